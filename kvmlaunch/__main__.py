"""`python -m kvmlaunch` is the command `kvmlaunch`."""

from kvmlaunch.cli.main import main

if __name__ == "__main__":
    main()
