"""The host machine: what reads it, asks its tools, changes it and takes changes back."""
