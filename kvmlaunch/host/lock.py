"""The host-wide lock: a flock on /sys/kernel/mm/hugepages, which holds across mount namespaces."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from kvmlaunch.errors import Busy, Report

LOCK_PATH = "/sys/kernel/mm/hugepages"
RETRY = 0.01  # seconds


@contextlib.contextmanager
def host_lock(deadline: float = 60.0) -> Iterator[None]:
    """Hold the lock under which pools, mounts and taps change; raises Busy `host.locked` after `deadline` seconds."""
    fd = os.open(LOCK_PATH if os.path.isdir(LOCK_PATH) else "/sys/kernel", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wait_for_lock(fd, deadline)
        yield
    finally:
        os.close(fd)


def wait_for_lock(fd: int, deadline: float) -> None:
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
                        where=LOCK_PATH,
                        why=f"its lock was not free within {deadline:g} s",
                        hint=f"fuser -v {LOCK_PATH}   shows who holds it",
                    )
                ) from None
            time.sleep(RETRY)
        else:
            return
