"""A command of kvmlaunch that has imported everything, and then stops until a tracer that came meanwhile lets it go.

Run as a program with the words of the command.  A tracer makes every system call slow, and those of imports, which are
most of a short command's, are of no interest to it.
"""

import importlib
import os
import pkgutil
import signal
import sys

import kvmlaunch
from kvmlaunch.cli.main import main

if __name__ == "__main__":
    for module in pkgutil.walk_packages(kvmlaunch.__path__, "kvmlaunch."):
        importlib.import_module(module.name)
    sys.argv[0] = "kvmlaunch"
    os.kill(os.getpid(), signal.SIGSTOP)
    main()
