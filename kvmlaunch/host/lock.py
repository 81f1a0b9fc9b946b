"""The host-wide lock: a flock on a control file of the kernel that only root can open.

Opened and never written, it does nothing.  Directories of sysfs would not do: another network namespace
with a sysfs of its own sees other inodes (measured), and any user could hold a lock on them.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from kvmlaunch.errors import Busy, HostFailed, Report

LOCK_PATHS = ("/proc/sys/vm/compact_memory", "/proc/sys/vm/drop_caches")  # the first needs CONFIG_COMPACTION
RETRY = 0.01  # seconds
CAP_SYS_ADMIN = 21


def lock_path() -> str:
    """Give the file whose lock is the host's."""
    return next((path for path in LOCK_PATHS if os.path.exists(path)), LOCK_PATHS[-1])


def why_fixed() -> str:
    """Give why root cannot change this host from here, "" when he can: in a container he may neither mount nor write.

    Source: capabilities(7), CAP_SYS_ADMIN; /proc/sys is read-only in a container.
    """
    path = lock_path()
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            rights = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return "" if rights >> CAP_SYS_ADMIN & 1 else "root may not mount here (CAP_SYS_ADMIN)"


@contextlib.contextmanager
def host_lock(deadline: float = 60.0) -> Iterator[None]:
    """Hold the lock under which pools, mounts and taps change; raises Busy `host.locked` after `deadline` seconds."""
    path = lock_path()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        why = f"{path}: {error.strerror}"
        raise HostFailed(
            Report(code="host.fixed", message="this host cannot be changed from here", where=path, why=why)
        ) from error
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
