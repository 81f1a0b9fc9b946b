"""What a VM is seen to be, looked at anew each time: its lock, its process, its record."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from attrs import frozen

from kvmlaunch.builder.names import vm_uuid
from kvmlaunch.errors import PreflightFailed
from kvmlaunch.host.capture import own_machine_id
from kvmlaunch.host.rundir import QMP, QMP_OWN, Contents, is_locked, read_contents
from kvmlaunch.model.lifecycle import VmState
from kvmlaunch.model.plan import Places
from kvmlaunch.model.record import Record
from kvmlaunch.run.process import carries_uuid, held, is_of_record, read_boot_id, read_cmdline, read_start_time
from kvmlaunch.steps.caller import Caller


@frozen(kw_only=True)
class Seen:
    """What was seen of a VM.

    `record` is of a run that was found to be live, or of the one that ended; `last_end` is QEMU's own reason
    for it, "" when it left none.  `leftovers` tells whether something of it lies in the run directory.
    """

    name: str
    places: Places
    state: VmState
    pid: int | None = None
    record: Record | None = None
    last_end: str = ""
    unreadable: str = ""
    leftovers: bool = False

    @property
    def lives(self) -> bool:
        """Is there a QEMU of this VM."""
        return self.pid is not None


def age(record: Record | None) -> float:
    """Give the seconds since a start, 0 where that is not known."""
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(record.started)).total_seconds()) if record else 0.0
    except (ValueError, TypeError):
        return 0.0


def owner_of(path: PurePosixPath) -> int:
    """Give the uid that a run directory belongs to: the VM's user; our own where it is not there."""
    try:
        return os.stat(path, follow_symlinks=False).st_uid
    except OSError:
        return os.geteuid()


def launcher_lives(record: Record) -> bool:
    """Does the command that starts a VM still run."""
    with held(record.launcher) as process:
        if process is None or read_boot_id() != record.boot_id:
            return False
        try:
            return read_start_time(record.launcher) == record.launcher_start
        except (OSError, ValueError):
            return False


def find_by_uuid(uuid: str) -> int | None:
    """Give the pid of a process whose argv carries a VM's UUID, None when there is none in sight."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if carries_uuid(read_cmdline(int(pid)), uuid):
            return int(pid)
    return None


def see_locked(name: str, places: Places, contents: Contents) -> Seen:
    """Give what a VM is whose lock is held."""
    record = contents.record
    if record is None:
        return Seen(name=name, places=places, state=VmState.STARTING, unreadable=contents.unreadable, leftovers=True)
    if record.state == "running" and is_of_record(record.pid, record):
        return Seen(name=name, places=places, state=VmState.RUNNING, pid=record.pid, record=record, leftovers=True)
    if record.state == "intent" and launcher_lives(record):
        return Seen(name=name, places=places, state=VmState.STARTING, record=record, leftovers=True)
    pid = find_by_uuid(record.uuid)
    return Seen(
        name=name,
        places=places,
        state=VmState.HALF if pid else VmState.STARTING,
        pid=pid,
        record=record,
        leftovers=True,
    )


def see_unlocked(name: str, places: Places, contents: Contents, uuid: Callable[[], str]) -> Seen:
    """Give what a VM is whose lock nobody holds: stopped, ended, or run by somebody else's command."""
    if os.path.exists(places.run / QMP):
        from kvmlaunch.run.qmp import listener_pid  # noqa: PLC0415 - only where a socket is left

        pid = listener_pid(places.run / QMP)
        wanted = contents.record.uuid if contents.record else uuid()
        if pid and carries_uuid(read_cmdline(pid), wanted):
            return Seen(name=name, places=places, state=VmState.FOREIGN, pid=pid, leftovers=True)
    state = VmState.ENDED if contents.record else VmState.STOPPED
    return Seen(
        name=name,
        places=places,
        state=state,
        record=contents.record,
        last_end=contents.last_end,
        unreadable=contents.unreadable,
        leftovers=contents.exists,
    )


def uuid_of(caller: Caller, name: str) -> str:
    """Give a VM's UUID, by which a QEMU is recognised that kvmlaunch did not start."""
    machine_id = own_machine_id(Path("/etc/machine-id").read_text(encoding="ascii")).strip()
    return vm_uuid(machine_id, caller.owner_uid, name)


def observe(caller: Caller, name: str) -> Seen:
    """Look at a VM of the caller's."""
    places = caller.places(name)
    locked = is_locked(places.run)
    try:
        contents = read_contents(places.run, owner_of(places.run))
    except PreflightFailed as error:
        return Seen(name=name, places=places, state=VmState.STOPPED, unreadable=error.report.message)
    if not contents.exists:
        return Seen(name=name, places=places, state=VmState.STOPPED)
    if locked:
        return see_locked(name, places, contents)
    return see_unlocked(name, places, contents, lambda: uuid_of(caller, name))


def monitor_path(seen: Seen) -> PurePosixPath:
    """Give the socket by which a live VM is asked: the second name that a pasted QEMU cannot take over."""
    own = seen.places.run / QMP_OWN
    return own if os.path.exists(own) else seen.places.run / QMP
