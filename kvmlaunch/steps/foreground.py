"""`up --foreground`: stay QEMU's parent, pass signals on as a power-down, end with the guest.

For service managers and containers: readiness is told by sd_notify(3).  This process stays the main one
of the service: it turns SIGTERM into a power-down, which QEMU itself would not.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Literal

from kvmlaunch.errors import Busy, KvmlaunchError, QemuFailed
from kvmlaunch.host.rundir import own_socket
from kvmlaunch.model.lifecycle import VmState
from kvmlaunch.model.run_files import QMP
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.heal import clean_up
from kvmlaunch.steps.lost import lost_notes
from kvmlaunch.steps.observe import Seen
from kvmlaunch.steps.resolve import Resolved
from kvmlaunch.steps.waking import woken_by_signals

if TYPE_CHECKING:
    from kvmlaunch.run.launch import RunningVm

PRESS_AGAIN = 5000  # milliseconds: a guest that still boots did not see the first time
Ending = Literal["unasked", "asked", "forced"]
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def notify(environment: dict[str, str] | os._Environ[str], message: str) -> None:
    """Tell a service manager, where one listens; that it does not is no reason to end a VM; source: sd_notify(3)."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    import socket  # noqa: PLC0415 - under a service manager only

    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        channel.send(message.encode())


def once(tell: Tell) -> Tell:
    """Give what tells a step when it says something new: the button is pressed again and again."""
    said: set[tuple[str, str]] = set()

    def tell_once(word: str, text: str) -> None:
        if (word, text) not in said:
            tell(word, text)
        said.add((word, text))

    return tell_once


def press_power_button(resolved: Resolved, vm: "RunningVm", tell: Tell) -> None:
    """Ask the guest to power down; a monitor that does not answer is said."""
    from kvmlaunch.run.qmp import Target  # noqa: PLC0415 - imported by the start already
    from kvmlaunch.steps import control  # noqa: PLC0415

    try:
        press = control.press_power_button(Target(path=own_socket(resolved.places.run, QMP), pid=vm.pid))
        stands = press.deed == "in vain"
        done = f"stands still ({press.run_state}) and hears no power button" if stands else f"was {press.deed}"
        tell("powerdown", f"pid {vm.pid} {done}")
    except KvmlaunchError as error:
        tell("warn", error.report.message)


def warn_lost(resolved: Resolved, vm: "RunningVm", tell: Tell) -> None:
    """Say what a power-down is about to lose: an image that QEMU alone still has."""
    seen = Seen(name=resolved.name, places=resolved.places, state=VmState.RUNNING, pid=vm.pid)
    for note in lost_notes(seen):
        tell("warn", note)
        notify(os.environ, f"STATUS={note}")


def watch(resolved: Resolved, vm: "RunningVm", wakeup: int, tell: Tell) -> Ending:
    """Wait for QEMU to end, passing signals on; a guest that ignores the power button is ended when its time is up.

    Tells whether a signal asked for the end, and whether that had to be forced.
    """
    poller = select.poll()
    poller.register(vm.process.fd, select.POLLIN)
    poller.register(wakeup, select.POLLIN)
    limit = float(resolved.subject.definition.lifecycle.stop_timeout)
    end: float | None = None
    tell = once(tell)
    while True:
        ready = dict(poller.poll(None if end is None else PRESS_AGAIN))
        if vm.process.fd in ready:
            return "unasked" if end is None else "asked"
        if wakeup in ready:
            os.read(wakeup, 64)
            if end is None:
                warn_lost(resolved, vm, tell)
                notify(os.environ, "STOPPING=1")
                end = time.monotonic() + limit
                tell("powerdown", f"the guest has {limit:g} s for it")
            else:
                left, now = end - time.monotonic(), f"kvmlaunch down {resolved.name} --force --timeout 0"
                tell("powerdown", f"asked again; QEMU is ended in {left:.0f} s, and at once by: {now}")
        elif end is not None and time.monotonic() > end:
            tell("warn", f"the guest did not power down within {limit:g} s: SIGTERM to pid {vm.pid}, then SIGKILL;")
            tell("warn", "what it had not flushed is lost")
            vm.end(10)
            return "forced"
        press_power_button(resolved, vm, tell)


@contextmanager
def passing_on() -> Iterator[int]:
    """Take signals for a VM instead of for this process; gives a descriptor that is readable when one has come."""
    with woken_by_signals() as signals_fd, ExitStack() as stack:
        for number in PASSED_ON:
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        yield signals_fd


def supervise(
    caller: Caller, resolved: Resolved, vm: "RunningVm", tell: Tell, begin: Callable[[], None]
) -> Callable[[], None]:
    """Take signals for a started VM from now on; gives what stays its parent until it ends, after `begin`."""
    kept = ExitStack()
    signals_fd = kept.enter_context(passing_on())

    def stay() -> None:
        with kept:
            begin()
            attend(caller, resolved, vm, tell, signals_fd)

    return stay


def attend(caller: Caller, resolved: Resolved, vm: "RunningVm", tell: Tell, signals_fd: int) -> None:
    """Stay the parent of a started VM until it ends, then clean up; raises QemuFailed when it died unasked."""
    try:
        notify(os.environ, f"READY=1\nSTATUS={resolved.name} runs, verified, pid {vm.pid}")
        tell("foreground", f"pid {vm.pid}; SIGTERM powers it down")
        ending = watch(resolved, vm, signals_fd, tell)
        status = vm.poll() or 0
        killed = ending == "asked" and status < 0  # by somebody else, and what the guest was about to flush is lost
        death = vm.death() if status and (ending == "unasked" or killed) else None
    finally:
        vm.let_go()
    try:
        clean_up(caller, resolved.name, resolved.places, tell)
    except Busy as error:
        if isinstance(death, QemuFailed):
            raise death from error
        if error.report.code != "vm.locked":
            raise
        tell("ended", "another command ended it and cleans up")
        return
    if isinstance(death, QemuFailed):
        raise death
    tell("ended", "QEMU ended")
