"""What is written for a guest: its seed for cloud-init, its script; pure."""
