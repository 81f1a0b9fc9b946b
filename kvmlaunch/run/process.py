"""A process, known by more than its pid: start time, boot, and the VM's UUID on its command line.

A pid alone is no identity: a reused one had the same start time within a tick.  Who acts opens a
pidfd first and verifies after, so what is verified is what is signalled.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from kvmlaunch.errors import PrivilegeMissing, Report
from kvmlaunch.facts.record import parse_cmdline, parse_start_time, parse_state
from kvmlaunch.model.record import Record
from kvmlaunch.model.value import frozen

REAPED = 10.0  # seconds after SIGKILL: one that waits in the kernel for longer is left to it


@frozen(kw_only=True)
class Process:
    """A verified process, held by a pidfd."""

    pid: int
    fd: int

    def send(self, number: signal.Signals) -> None:
        """Send a signal; ended already is fine.  Raises PrivilegeMissing for a process of another user."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise foreign(self.pid) from error

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, at most `seconds`; tells whether it has."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(max(0, seconds * 1000)))


def foreign(pid: int) -> PrivilegeMissing:
    """Give the refusal to touch a process of another user, such as a QEMU that root pasted."""
    return PrivilegeMissing(
        Report(
            code="host.privilege",
            message=f"pid {pid} belongs to another user",
            where=f"pid {pid}",
            why="it was started by somebody else, by hand",
            hint=f"sudo kill {pid}   # ends it as it stands; or power the guest down from within",
        )
    )


def read_boot_id() -> str:
    """Give the id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def read_start_time(pid: int) -> int:
    """Give when a process started, in clock ticks since boot; raises OSError, ValueError."""
    return parse_start_time(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))


def is_alive(pid: int) -> bool:
    """Is there a process of this pid that runs; a zombie does not."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return parse_state(stat) not in {"Z", "X"}
    return False


def read_cmdline(pid: int) -> tuple[str, ...]:
    """Give the argv of a process; empty when it is gone or a zombie."""
    with contextlib.suppress(OSError):
        return parse_cmdline(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape"))
    return ()


def read_uid(pid: int) -> int | None:
    """Give the real uid of a process, None when it is gone; the owner of /proc/PID may be root for other reasons."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))
    return None


def carries_uuid(argv: tuple[str, ...], uuid: str) -> bool:
    """Does an argv name this VM's UUID as ours do."""
    return any(word == "-uuid" and argv[index + 1 : index + 2] == (uuid,) for index, word in enumerate(argv))


def is_of_record(pid: int, record: Record, uuid: str) -> bool:
    """Is a live process the one that a record tells of; the VM's UUID is never taken from the record itself."""
    with contextlib.suppress(OSError, ValueError):
        same_start = read_boot_id() == record.boot_id and read_start_time(pid) == record.start_time
        return same_start and carries_uuid(read_cmdline(pid), uuid)
    return False


def children(pid: int) -> tuple[int, ...]:
    """Give the child processes of a process's first thread."""
    try:
        return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))
    except OSError:
        return ()


@contextlib.contextmanager
def none_left_behind() -> Iterator[None]:
    """End every child that what is within has started when it fails.

    A signal, or a failure, can come between a start and our hold on the child.  What the child is cannot tell whether
    it is ours: in the middle of its exec it has no command line.  As nobody has waited for it, its pid is its own.
    """
    before = children(os.getpid())
    try:
        yield
    except BaseException:
        for pid in set(children(os.getpid())).difference(before):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + REAPED
                while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                    time.sleep(0.01)
        raise


@contextlib.contextmanager
def held(pid: int) -> Iterator[Process | None]:
    """Hold a process by pidfd; None when there is none of that pid."""
    try:
        fd = os.pidfd_open(pid)
    except (OSError, OverflowError, ValueError):
        yield None
        return
    try:
        yield Process(pid=pid, fd=fd)
    finally:
        os.close(fd)
