"""What is made of disks and asked of their tools: images and volumes, as argv and as answers; pure."""
