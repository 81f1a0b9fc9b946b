"""Virtual machine definitions, compiled to a tuned QEMU/KVM command line, run and verified.

The law: `host/` is the host machine, `run/` is the QEMU processes, `steps/` puts them in
order, `cli/` speaks; everything else is a function of its arguments.
"""

__version__ = "0.1.0"
