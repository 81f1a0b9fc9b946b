"""Definition, host facts and QEMU's capabilities become a plan, and a plan becomes argv; pure."""
