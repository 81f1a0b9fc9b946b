"""What a VM is seen to be, looked at anew each time: its lock, its process, its record."""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from shlex import join

from kvmlaunch.builder.names import vm_uuid
from kvmlaunch.errors import PreflightFailed
from kvmlaunch.host.capture import own_machine_id
from kvmlaunch.host.rundir import Contents, lock_taker, own_socket, read_contents
from kvmlaunch.model.lifecycle import VmState
from kvmlaunch.model.plan import Places
from kvmlaunch.model.record import Record
from kvmlaunch.model.run_files import CONSOLE, QMP, QMP_OWN
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.run.process import (
    carries_uuid,
    held,
    is_alive,
    is_of_record,
    read_boot_id,
    read_cmdline,
    read_start_time,
    read_uid,
)
from kvmlaunch.steps.caller import Caller

LEFT = "shutdown"  # QEMU's run state when its guest has powered down and QEMU was told to stay


@frozen(kw_only=True)
class Seen:
    """What was seen of a VM.

    `uuid` is the VM's, computed and never read from the record.  `record` is of a run that was found to
    be live, or of the one that ended; `last_end` is QEMU's own reason
    for the last end, "" when it left none.  `leftovers` tells whether something of it lies in the run directory.
    `taker` is the pid that took its lock, which a QEMU inherits.
    """

    name: str
    places: Places
    state: VmState
    uuid: str = ""
    pid: int | None = None
    record: Record | None = None
    last_end: str = ""
    unreadable: str = ""
    leftovers: bool = False
    taker: int | None = None

    @property
    def lives(self) -> bool:
        """Is there a QEMU of this VM."""
        return self.pid is not None


def age(seen: Seen) -> float:
    """Give the seconds since a start: by its record, else since its QEMU began; 0 where that is not known."""
    with contextlib.suppress(ValueError, TypeError):
        if seen.record:
            return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(seen.record.started)).total_seconds())
    with contextlib.suppress(OSError, ValueError):
        if seen.pid:
            uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
            return max(0.0, uptime - read_start_time(seen.pid) / os.sysconf("SC_CLK_TCK"))
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
            # A zombie may stay for long, where the first process of a container reaps nobody.
            return is_alive(record.launcher) and read_start_time(record.launcher) == record.launcher_start
        except (OSError, ValueError):
            return False


def is_kvmlaunch(pid: int) -> bool:
    """Is a process a command of ours other than this one."""
    return pid != os.getpid() and any("kvmlaunch" in word for word in read_cmdline(pid)[:3])


def find_by_uuid(uuid: str, run: PurePosixPath) -> int | None:
    """Give the pid of a process whose argv carries a VM's UUID, None when there is none in sight.

    Anybody can compute a UUID and start something with it: only root's and those of the run directory's owner count.
    """
    owners = {0, owner_of(run)}
    return next((pid for pid in pids_of(uuid) if read_uid(pid) in owners), None)


def pids_of(uuid: str) -> Iterator[int]:
    """Give the pids of the processes in sight whose argv carries a VM's UUID, whosever they are."""
    return (pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if carries_uuid(read_cmdline(pid), uuid))


def who_holds(seen: Seen) -> str:
    """Give who has a VM in hand: its QEMU, the command that starts it, or another with its words."""
    if seen.pid:
        return f"pid {seen.pid}"
    if seen.state is VmState.STARTING and seen.record:
        return f"pid {seen.record.launcher}, which starts it"
    words = read_cmdline(seen.taker or 0)
    ours = next((index for index, word in enumerate(words[:3]) if word.rpartition("/")[2] == "kvmlaunch"), None)
    return "another command" if ours is None else f"pid {seen.taker}: {join(('kvmlaunch', *words[ours + 1 :]))}"


def see_locked(name: str, places: Places, contents: Contents, uuid: str, taker: int | None) -> Seen:
    """Give what a VM is whose lock is held: by its QEMU, by the command that starts it, or by one about its disks."""
    record = contents.record
    seen = Seen(
        name=name,
        places=places,
        state=VmState.BUSY,
        uuid=uuid,
        record=record,
        last_end=contents.last_end,
        unreadable=contents.unreadable,
        leftovers=True,
        taker=taker,
    )
    if record is not None and record.state == "running" and is_of_record(record.pid, record, uuid):
        stopping = contents.stopper is not None and is_kvmlaunch(contents.stopper)
        return evolve(seen, state=VmState.STOPPING if stopping else VmState.RUNNING, pid=record.pid)
    if record is not None and record.state == "intent" and launcher_lives(record):
        return evolve(seen, state=VmState.STARTING)
    pid = find_by_uuid(uuid, places.run)
    if pid is None:
        return seen
    # A record that is missing, broken or of another process tells nothing: the lock and the UUID say that it runs.
    half = record is not None and record.state == "intent"
    return evolve(seen, state=VmState.HALF if half else VmState.RUNNING, pid=pid, record=record if half else None)


def see_unlocked(name: str, places: Places, contents: Contents, uuid: str) -> Seen:
    """Give what a VM is whose lock nobody holds: stopped, ended, or run by somebody else's command."""
    state, pid = VmState.ENDED if contents.record else VmState.STOPPED, None
    if os.path.exists(places.run / QMP):
        from kvmlaunch.run.qmp import listener_pid  # noqa: PLC0415 - only where a socket is left

        pid = listener_pid(places.run / QMP)
        pid = pid if pid and carries_uuid(read_cmdline(pid), uuid) else None
    if pid is None:
        # Its socket may have been taken over by a second one that then died, or logind removed a user's directory.
        pid = find_by_uuid(uuid, places.run)
    if pid is not None:
        state = VmState.FOREIGN
    return Seen(
        name=name,
        places=places,
        state=state,
        uuid=uuid,
        pid=pid,
        record=None if pid else contents.record,
        last_end="" if pid else contents.last_end,
        unreadable=contents.unreadable,
        leftovers=contents.exists,
    )


def uuid_of(caller: Caller, name: str) -> str:
    """Give a VM's UUID, by which a QEMU is recognised that kvmlaunch did not start."""
    return vm_uuid(read_machine_id(), caller.owner_uid, name)


def read_machine_id() -> str:
    """Give the id of this machine that names are computed from, "" where it has none."""
    try:
        return own_machine_id(Path("/etc/machine-id").read_text(encoding="ascii")).strip()
    except OSError:
        return ""


def observe(caller: Caller, name: str) -> Seen:
    """Look at a VM of the caller's."""
    places = caller.places(name)
    taker = lock_taker(places.run)
    try:
        contents = read_contents(places.run, owner_of(places.run))
    except PreflightFailed as error:
        return Seen(name=name, places=places, state=VmState.STOPPED, unreadable=error.report.message)
    if not contents.exists and caller.uid == 0:
        return Seen(name=name, places=places, state=VmState.STOPPED)
    uuid, record = uuid_of(caller, name), contents.record
    # /proc/locks tells no lock on btrfs, nor one of another pid namespace: a process that is the record's is believed.
    believed = record is not None and record.state == "running" and is_of_record(record.pid, record, uuid)
    if taker is not None or believed:
        return see_locked(name, places, contents, uuid, taker)
    return see_unlocked(name, places, contents, uuid)


def monitor_path(seen: Seen) -> PurePosixPath:
    """Give the socket by which a live VM is asked: the second name that a pasted QEMU cannot take over."""
    run = seen.places.run
    return run / QMP if seen.state is VmState.FOREIGN else own_socket(run, QMP)


def console_path(seen: Seen) -> PurePosixPath:
    """Give the socket of a live VM's serial port, by the name that a pasted QEMU cannot take over."""
    run = seen.places.run
    return run / CONSOLE if seen.state is VmState.FOREIGN else own_socket(run, CONSOLE)


def is_usurped(seen: Seen) -> bool:
    """Leads the first name of a live VM's monitor elsewhere, or nowhere: another QEMU was started by the same line."""
    run = seen.places.run
    try:
        return seen.state is not VmState.FOREIGN and not os.path.samefile(run / QMP, run / QMP_OWN)
    except OSError:
        return os.path.exists(run / QMP_OWN)


def namesakes(name: str) -> tuple[str, ...]:
    """Say which users run a VM of this name: root looks for his own alone, and nobody else can tell."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc") if os.geteuid() == 0 else ()):
        if f"guest={name},debug-threads=on" in read_cmdline(int(pid)):
            with contextlib.suppress(OSError):
                found.append(f"uid {os.stat(f'/proc/{pid}').st_uid} runs a {name} of its own (pid {pid})")
    return tuple(found)
