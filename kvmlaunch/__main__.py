"""`python -m kvmlaunch` is the command `kvmlaunch`, and this is where both begin."""

import gc
import signal

# As long as nothing is done yet, an interruption ends us without a word; where SIGINT is ignored, it stays so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# A short command leaves no garbage: looking for it, most of all while modules are made, is a fortieth of print-cmd.
gc.set_threshold(100_000)

from kvmlaunch.cli.main import main  # noqa: E402 - after the lines above

if __name__ == "__main__":
    main()
