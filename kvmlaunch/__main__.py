"""`python -m kvmlaunch` is the command `kvmlaunch`, and this is where both begin."""

import gc

# A short command leaves no garbage: looking for it, most of all while modules are made, is a fortieth of print-cmd.
gc.set_threshold(100_000)

from kvmlaunch.cli.main import main  # noqa: E402 - after the line above

if __name__ == "__main__":
    main()
