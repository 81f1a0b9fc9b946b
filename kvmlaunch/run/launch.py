"""The plan becomes a running VM: spawn, greeting, or QEMU's own words why not."""

import os
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from signal import SIGKILL, SIGTERM
from typing import TypeVar

from kvmlaunch.errors import KvmlaunchError, NotRunning, QemuFailed, Report, TimedOut, Unreachable
from kvmlaunch.model.value import frozen
from kvmlaunch.run.process import Process
from kvmlaunch.run.spawn import Owner, spawn

T = TypeVar("T")
LOOK_AGAIN = 0.002  # seconds between looks for the socket: QEMU needs about 100 ms
MOST_WORDS = 1 << 20


@frozen(kw_only=True)
class RunningVm:
    """A hold on a QEMU that this process started.  Letting go of it never ends the guest."""

    process: Process
    poll: Callable[[], int | None]
    argv: tuple[str, ...]
    log: PurePosixPath
    log_fd: int
    log_start: int

    @property
    def pid(self) -> int:
        """QEMU's pid."""
        return self.process.pid

    def words(self) -> str:
        """Give what QEMU has printed since this start."""
        return os.pread(self.log_fd, MOST_WORDS, self.log_start).decode(errors="replace")

    def death(self) -> KvmlaunchError:
        """Give the error of a QEMU that has ended, with its own words."""
        from kvmlaunch.preflight.death import report_death  # noqa: PLC0415 - of one that has ended

        return QemuFailed(report_death(self.poll() or 0, self.words(), self.argv, str(self.log)))

    def late(self, message: str) -> TimedOut:
        """Give the error of a QEMU that took too long to start."""
        from kvmlaunch.preflight.death import vm_of  # noqa: PLC0415 - of one that is late

        return TimedOut(
            Report(
                code="vm.start.timeout",
                message=message,
                where=f"pid {self.pid}",
                why=self.words().strip() or "QEMU said nothing",
                hint=f"kvmlaunch up {vm_of(self.argv)} --timeout 2m   # gives it longer",
            )
        )

    def end(self, seconds: float = 5.0) -> None:
        """End QEMU: SIGTERM, then SIGKILL; returns when it is reaped."""
        self.process.send(SIGTERM)
        if not self.process.wait(seconds):
            self.process.send(SIGKILL)
            self.process.wait(seconds)
        self.poll()

    def let_go(self) -> None:
        """Close what this hold keeps open."""
        os.close(self.process.fd)
        os.close(self.log_fd)


def launch_qemu(
    argv: tuple[str, ...],
    owner: Owner,
    *,
    lock_fd: int,
    log: PurePosixPath,
    log_fd: int,
    log_start: int,
    memlock: int,
    largest: int,
) -> RunningVm:
    """Start QEMU with the run directory's lock in its hands; `memlock` is in bytes, 0 for no limit of ours.

    `largest` is the size of its largest image, in bytes.
    """
    child = spawn(argv, owner, lock_fd=lock_fd, log_fd=log_fd, memlock=memlock, largest=largest)
    process = Process(pid=child.pid, fd=os.pidfd_open(child.pid))
    return RunningVm(process=process, poll=child.poll, argv=argv, log=log, log_fd=log_fd, log_start=log_start)


def wait_for_socket(vm: RunningVm, path: PurePosixPath, deadline: float) -> None:
    """Wait until QEMU's monitor is bound; raises QemuFailed when it dies before, TimedOut at the deadline."""
    while not os.path.exists(path):
        if vm.process.wait(LOOK_AGAIN):
            raise vm.death()
        if time.monotonic() > deadline:
            vm.end()
            raise vm.late("QEMU did not open its monitor")


def wait_for_greeting(vm: RunningVm, deadline: float, ask: Callable[[float], T]) -> T:
    """Wait until the monitor has negotiated, and give what it was asked: QEMU answers once it has read its whole argv.

    `ask` does an exchange within some seconds.  Raises as wait_for_socket does.
    """
    while True:
        left = deadline - time.monotonic()
        try:
            return ask(max(0.05, left))
        except (NotRunning, Unreachable):
            if vm.process.wait(LOOK_AGAIN * 5):
                raise vm.death() from None
            if left <= 0:
                raise vm.late("QEMU's monitor refuses connections") from None
        except TimedOut as error:
            raise vm.late("QEMU did not answer on its monitor") from error
