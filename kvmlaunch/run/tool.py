"""Run a tool that may take long, qemu-img above all: its progress told, ended with us, its rights an image's owner's.

Images are their guests' own: what reads them does so with the rights of whom they belong to.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from kvmlaunch.errors import HostFailed, Report
from kvmlaunch.model.value import frozen
from kvmlaunch.run.process import none_left_behind
from kvmlaunch.run.spawn import Owner, has_ended, spawn_child

EVERY = 0.1  # seconds between two looks
GRACE = 5.0  # seconds from SIGTERM to SIGKILL
MOST_READ = 1 << 24
PACKAGES = {"qemu-img": "qemu-utils"}


@frozen(kw_only=True)
class Finished:
    """How a tool ended: `status` is its exit status, or minus the signal that ended it."""

    status: int
    out: str
    err: str


def run_long(
    argv: tuple[str, ...], owner: Owner, *, fds: Sequence[int] = (), look: Callable[[str], None] = lambda _: None
) -> Finished:
    """Give the outcome of a tool; `look` is given what it has printed so far, ten times a second; it inherits `fds`.

    Raises HostFailed when it cannot be started.  Whatever ends us here ends the tool first.
    """
    import logging  # noqa: PLC0415 - print-cmd does without

    logging.getLogger("kvmlaunch.command").debug(shlex.join(argv))
    with ExitStack() as stack:
        out, err = (memory_file(stack) for _ in range(2))
        try:
            with none_left_behind():
                process = spawn_child(argv, owner, out_fd=out, err_fd=err, fds=fds)
        except OSError as error:
            raise HostFailed(report_unstarted(argv[0], error)) from error
        try:
            while not has_ended(process, EVERY):
                look(text_of(out))
        except BaseException:
            process.terminate()
            if not has_ended(process, GRACE):
                process.kill()
                process.wait()
            raise
        return Finished(status=process.returncode, out=text_of(out), err=text_of(err))


def memory_file(stack: ExitStack) -> int:
    """Give a file in memory, whose text can be read while it is written; it is closed with the stack."""
    fd = os.memfd_create("kvmlaunch")
    stack.callback(os.close, fd)
    return fd


def text_of(fd: int) -> str:
    """Give what was written so far."""
    return os.pread(fd, MOST_READ, 0).decode(errors="surrogateescape")


def report_unstarted(tool: str, error: OSError) -> Report:
    """Give the report for a tool that cannot be started."""
    package = PACKAGES.get(tool)
    missing = isinstance(error, FileNotFoundError)
    return Report(
        code="host.tool.missing" if missing else "host.tool.failed",
        message=f"{tool} is not installed" if missing else f"{tool} could not be started",
        where=tool,
        why=error.strerror or str(error),
        hint=f"apt install {package}" if missing and package else "",
    )
