"""Puts right what a dead command or a dead QEMU left: the run directory, and the host changes it had made.

Runs under the host-wide lock.  Only what a dead `up` left is taken back; what was prepared stays.
"""

import os
from pathlib import PurePosixPath

from kvmlaunch.builder.names import vm_uuid
from kvmlaunch.errors import Busy, KvmlaunchError, Report
from kvmlaunch.host import journal as journals
from kvmlaunch.host.apply import mounts_on, undo_command_of, undo_entries
from kvmlaunch.host.lock import host_lock
from kvmlaunch.host.logs import bound_events, keep_events, rotate_logs
from kvmlaunch.host.places import root_places
from kvmlaunch.host.rundir import claimed, is_locked, read_contents, remove_claimed
from kvmlaunch.host.tree import make_owned
from kvmlaunch.model.change import DirectoryChange, Journal, PoolChange, change_word
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.plan import Places
from kvmlaunch.model.run_files import NOTE, SOCKET
from kvmlaunch.model.value import evolve
from kvmlaunch.run.process import read_boot_id, read_uid
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.observe import owner_of, pids_of, read_machine_id


def tend(caller: Caller, places: Places) -> None:
    """Keep what a live VM writes within bounds: as nothing of ours is resident, every command that meets it does."""
    uid = owner_of(places.run)
    rotate_logs(places.run, places.logs, uid, caller.uid)
    bound_events(places.run, uid)


def keep_logs(run: PurePosixPath, kept: PurePosixPath, log_uid: int, tell: Tell) -> None:
    """Keep all that a VM which has ended has printed; what cannot be kept is said."""
    for why in rotate_logs(run, kept, owner_of(run), log_uid, everything=True):
        tell("warn", why)


def end_beside(run: PurePosixPath) -> None:
    """End what is left beside a QEMU that is gone, or never came: the emulator of its TPM, daemons of its shares."""
    names = os.listdir(run) if os.path.isdir(run) else []
    if any(name.endswith(f"{SOCKET}{NOTE}") for name in names):
        from kvmlaunch.run.sidecar import end_sidecars  # noqa: PLC0415 - where there is one

        end_sidecars(run)


def group_of(run: PurePosixPath) -> int | None:
    """Give the group of a run directory, None where there is none: another command may have removed it just now."""
    try:
        return os.stat(run).st_gid
    except (FileNotFoundError, NotADirectoryError):
        return None


def heal_one(journal: Journal, tell: Tell) -> tuple[Finding, ...]:
    """Take back what one dead start left: its logs are kept first, and nobody may be starting it meanwhile.

    How a VM ended that had run stays there for `status`, until a command about that VM cleans up.
    """
    places = root_places(journal.vm)
    uid, gid = owner_of(places.run), group_of(places.run)
    if journal.uid != 0 or gid is None:  # what was being prepared for a user had no start yet
        return undo_entries(journal, journal.owned("up"))
    with claimed(places.run, uid, gid) as claim:
        keep_logs(places.run, places.logs, 0, tell)
        keep_events(places.run, uid)
        end_beside(places.run)
        found = undo_entries(journal, journal.owned("up"))
        record = read_contents(places.run, uid).record
        if record is None or record.state != "running":
            remove_claimed(claim)
    return found


def refuse_living(journal: Journal) -> None:
    """Refuse to take from a VM whose QEMU lives (`vm.state`), although its run directory is not to be seen from here.

    In another mount namespace no lock of it shows; the process does, wherever it sees the same /proc.  Anybody can
    start something with its UUID: those alone count that are root's, or run as whom its changes were made for.
    """
    vm, changes = journal.vm, (entry.change for entry in journal.entries)
    owners = {0, *(change.uid for change in changes if not isinstance(change, PoolChange))}
    pids = pids_of(vm_uuid(read_machine_id(), journal.uid, vm))
    pid = next((pid for pid in pids if read_uid(pid) in owners), None)
    if pid is not None:
        raise Busy(
            Report(
                code="vm.state",
                message=f"{vm} runs, and its run directory is not to be seen from here",
                where=f"pid {pid}",
                why="this is another mount namespace, or the directory was removed; nothing was taken back",
                hint=f"kill {pid}   # ends it; or run the command where it was started",
            )
        )


def tell_found(found: tuple[Finding, ...], tell: Tell) -> None:
    """Say what was found changed by others when something was taken back."""
    for finding in found:
        tell("warn", f"{finding.report.message}: {finding.report.why}  [{finding.report.code}]")


def heal_journals(boot_id: str, tell: Tell, *, but: str = "") -> None:
    """Take back what VMs that are gone left on the host; a journal of another boot is void.  Root only.

    `but` is the run directory that the caller holds himself.  What cannot be healed is said, and stops nobody else.
    """
    for journal in journals.read_all_journals():
        if journal.boot_id != boot_id:
            journals.write_journal(evolve(journal, entries=()))
        elif journal.run != but and journal.owned("up") and not is_locked(PurePosixPath(journal.run)):
            try:
                refuse_living(journal)
                found = heal_one(journal, tell)
                tell("healed", f"{journal.vm}: it has ended, and what it had of the host was taken back")
                tell_found(found, tell)
            except Busy as error:
                if error.report.code != "vm.locked":  # whoever holds it cleans up
                    tell_unhealed(journal, error, tell)
            except KvmlaunchError as error:
                tell_unhealed(journal, error, tell)
    for path in journals.unreadable_journals():
        tell("warn", f"{path} cannot be read: what it took of the host stays until you remove it  [state.quarantined]")


def tell_unhealed(journal: Journal, error: KvmlaunchError, tell: Tell) -> None:
    """Say that what a VM left on the host could not be taken back."""
    tell("warn", f"{journal.vm} could not be healed: {error.report.message}: {error.report.why}")


def give_back(uid: int, vm: str, tell: Tell) -> bool:
    """Take the host changes of a VM's own start back; tells whether something stays because it was prepared.

    Raises Busy when a process still uses them.
    """
    journal = journals.read_journal(uid, vm)
    if journal is None:
        return False
    own = journal.owned("up")
    tell_found(undo_entries(journal, own), tell)
    for entry in reversed(own):
        tell(change_word(entry.change), "given back")
        if command := undo_command_of(entry):
            tell("exec", command)
    own_prepared(journal, tell)
    return bool(journal.owned("prepared"))


def own_prepared(journal: Journal, tell: Tell) -> None:
    """Give root's VM the directories back that were prepared for it, after it ran as another user.

    They lie in root's tree, and the first of them in a directory that is root's.  That user could plant what is no
    directory: it is said, and keeps nothing else from being given back.
    """
    for entry in journal.owned("prepared") if journal.uid == 0 else ():
        change = entry.change
        if isinstance(change, DirectoryChange) and os.path.isdir(change.path):
            try:
                make_owned(PurePosixPath(change.path), change.uid, change.gid, change.mode)
            except (KvmlaunchError, OSError) as error:
                tell("warn", f"{change.path} stays as it is: {error}")


def clean_up(caller: Caller, vm: str, places: Places, tell: Tell) -> bool:
    """Clean up after a VM that is gone: keep its console, empty its run directory, give back what its start took.

    Tells whether something stays because it was prepared.  Raises Busy `vm.locked` when it is started right now.
    """
    gid = group_of(places.run)
    if gid is None:
        journal = journals.read_journal(0, vm) if caller.uid == 0 else None
        if journal is not None:
            refuse_living(journal)
        return give_back_under_lock(caller, vm, tell)
    with claimed(places.run, owner_of(places.run), gid) as claim:
        keep_logs(places.run, places.logs, caller.uid, tell)
        end_beside(places.run)
        prepared = give_back_under_lock(caller, vm, tell)
        remove_claimed(claim)
    return prepared


def give_back_under_lock(caller: Caller, vm: str, tell: Tell) -> bool:
    """Give back what a start took, under the host-wide lock; for an ordinary user root may have prepared."""
    if caller.uid != 0:
        return bool(mounts_on(str(caller.places(vm).hugepages)))
    if journals.read_journal(0, vm) is None:
        return False
    with host_lock():
        heal_host(tell, but=str(caller.places(vm).run))  # pages are counted from what is there: first come older ones
        return give_back(0, vm, tell)


def heal_host(tell: Tell, *, but: str = "") -> None:
    """Heal every VM's leftovers; under the host-wide lock, which the caller holds."""
    heal_journals(read_boot_id(), tell, but=but)
