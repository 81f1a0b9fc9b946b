"""The machine type of a VM's last start, kept in its state: a newer QEMU has a newer one, with other hardware."""

import re

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.host.files import read_text_at, write_atomically
from kvmlaunch.host.tree import entered, make_owned
from kvmlaunch.model.definition import AUTO
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.plan import IdentityPromise
from kvmlaunch.steps.caller import Tell
from kvmlaunch.steps.resolve import Resolved

MACHINE = "machine"
NAME = re.compile(r"pc-(?:q35|i440fx)-[0-9A-Za-z.-]{1,40}")


def planned_machine(resolved: Resolved) -> str:
    """Give the machine type that a start has, by its versioned name."""
    return next(each.machine for each in resolved.plan.promises if isinstance(each, IdentityPromise))


def last_machine(resolved: Resolved) -> str:
    """Give the machine type of the last start, "" where none is known; its file is the VM's user's, so it is input."""
    try:
        with entered(resolved.places.state, resolved.host.user.uid) as fd:
            text = (read_text_at(fd, MACHINE) or "").strip()
    except (OSError, KvmlaunchError):
        return ""
    return text if NAME.fullmatch(text) else ""


def machine_findings(resolved: Resolved) -> tuple[Finding, ...]:
    """Warn of an auto that gives a guest another machine than at its last start (`vm.machine.changed`)."""
    last, now = last_machine(resolved), planned_machine(resolved)
    if not last or last == now or resolved.subject.definition.machine is not AUTO:
        return ()
    return (
        warning(
            code="vm.machine.changed",
            message=f"the machine is {now}, at the last start it was {last}",
            key="machine",
            why="auto is the newest of this QEMU, and the guest finds other hardware",
            hint=f'machine = "{last}"   # keeps it',
        ),
    )


def note_machine(resolved: Resolved, tell: Tell) -> None:
    """Keep the machine type of this start for the next one; that it cannot be kept is said, and ends no start."""
    state, user, now = resolved.places.state, resolved.host.user, planned_machine(resolved)
    if last_machine(resolved) == now:
        return
    try:
        make_owned(state, user.uid, user.gid, 0o700)
        with entered(state, user.uid) as fd:
            write_atomically(fd, MACHINE, f"{now}\n", durable=False)
    except (OSError, KvmlaunchError) as error:
        tell("warn", f"the machine type is not kept for the next start: {error}")
