"""What is wrong with a plan on this host, and what of the host must change for it; pure."""
