"""The host-wide lock: a flock on a control file of the kernel that only root can open.

Opened and never written, it does nothing.  Directories of sysfs would not do: another network namespace
with a sysfs of its own sees other inodes (measured), and any user could hold a lock on them.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from kvmlaunch.errors import Busy, Report

LOCK_PATHS = ("/proc/sys/vm/compact_memory", "/proc/sys/vm/drop_caches")  # the first needs CONFIG_COMPACTION
RETRY = 0.01  # seconds


def lock_path() -> str:
    """Give the file whose lock is the host's."""
    return next((path for path in LOCK_PATHS if os.path.exists(path)), LOCK_PATHS[-1])


@contextlib.contextmanager
def host_lock(deadline: float = 60.0) -> Iterator[None]:
    """Hold the lock under which pools, mounts and taps change; raises Busy `host.locked` after `deadline` seconds."""
    path = lock_path()
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        wait_for_lock(fd, path, deadline)
        yield
    finally:
        os.close(fd)


def wait_for_lock(fd: int, path: str, deadline: float) -> None:
    """Take the flock, trying until the deadline."""
    end = time.monotonic() + deadline
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise Busy(
                    Report(
                        code="host.locked",
                        message="another command is changing the host",
                        where=path,
                        why=f"its lock was not free within {deadline:g} s",
                        hint=f"fuser -v {path}   # shows who holds it",
                    )
                ) from None
            time.sleep(RETRY)
        else:
            return
