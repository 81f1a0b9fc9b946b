"""The QEMU processes: started, asked, watched, ended."""
