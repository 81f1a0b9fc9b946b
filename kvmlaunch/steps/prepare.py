"""`preflight`: check the host for VMs, prepare it, and take that back."""

import contextlib
import os
from collections.abc import Iterator

from kvmlaunch.errors import Busy, PrivilegeMissing, Report
from kvmlaunch.host import journal as journals
from kvmlaunch.host.apply import apply_changes, undo_command_of, undo_entries
from kvmlaunch.host.lock import host_lock
from kvmlaunch.host.rights import rights_of
from kvmlaunch.host.rundir import claimed, mark_prepared, remove_claimed, remove_contents, unmark_prepared
from kvmlaunch.model.change import (
    Change,
    DirectoryChange,
    Journal,
    MountChange,
    render_change,
    render_entry,
    render_undone,
)
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.host import UserFacts
from kvmlaunch.model.plan import Places
from kvmlaunch.model.run_files import LOG
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.hardware import machine_findings
from kvmlaunch.steps.heal import heal_host, keep_logs, own_prepared
from kvmlaunch.steps.host_changes import all_changes, journal_head
from kvmlaunch.steps.load import load_subject, place_findings
from kvmlaunch.steps.names import name_of, refuse_unknown
from kvmlaunch.steps.observe import observe, owner_of
from kvmlaunch.steps.resolve import Resolved, refuse_errors, resolve
from kvmlaunch.steps.start_findings import linger_findings, own_findings, seeded


@frozen(kw_only=True)
class Checked:
    """What preflight found for a VM, and what of the host must change for it.

    `fits` tells whether it can run beside the others that were asked about, None where nobody asked.
    """

    name: str
    findings: tuple[Finding, ...]
    changes: tuple[Change, ...]
    prepared: bool = False
    fits: bool | None = None


def directories(resolved: Resolved) -> tuple[DirectoryChange, ...]:
    """Give the directories that a printed command needs: the user's runtime directory, the VM's, its log's."""
    user, run = resolved.host.user, resolved.places.run
    owned = [DirectoryChange(path=str(path), mode=0o700, uid=user.uid, gid=user.gid) for path in (run, run / LOG)]
    if resolved.host.caller_uid == 0:
        return tuple(owned)
    parents = [
        DirectoryChange(path=str(path), mode=0o700, uid=user.uid, gid=user.gid)
        for path in (run.parent.parent, run.parent)
    ]
    return (*parents, *owned)


def examine(caller: Caller, word: str) -> Resolved:
    """Give a VM as planned here; its own ports, locks and pages count as free for it."""
    subject = load_subject(caller, word)
    name = subject.definition.name
    seen = observe(caller, name)
    return resolve(caller, subject, everything=True, running=seen.pid)


def check(caller: Caller, word: str, *, preparing: bool = False) -> Checked:
    """Check the host for a VM; changes nothing, raises nothing for what it finds.

    Its changes are those of a start, or with `preparing` those of `preflight --apply`, which makes directories too.
    """
    resolved = examine(caller, word)
    checked = check_resolved(caller, resolved)
    made = [each for each in directories(resolved) if preparing and not os.path.isdir(each.path)]
    return evolve(checked, changes=(*made, *checked.changes))


def refuse_all_but_disks(caller: Caller, word: str) -> None:
    """Refuse a VM that could not be started even once its disks were made; raises PreflightFailed."""
    found = check(caller, word).findings
    made = [each for each in found if each.report.code == "disk.missing" and each.key.startswith("disk.")]
    refuse_errors(name_of(word), tuple(each for each in found if each not in made))


def check_resolved(caller: Caller, resolved: Resolved) -> Checked:
    """Check the host for a VM that is planned already."""
    journal = journals.read_journal(caller.owner_uid, resolved.name) if caller.uid == 0 else None
    return Checked(
        name=resolved.name,
        findings=(
            *resolved.findings(),
            *place_findings(resolved.subject, own_findings(resolved)),
            *machine_findings(resolved),
            *linger_findings(resolved),
        ),
        changes=all_changes(resolved),
        prepared=journal is not None and bool(journal.owned("prepared")),
    )


def needs_root(name: str, changes: tuple[Change, ...], hint: str) -> PrivilegeMissing:
    """Give the refusal to change the host without root, with the changes in words and root's command."""
    why = "\n".join(render_change(change) for change in changes) or "the host is changed by root alone"
    return PrivilegeMissing(
        Report(
            code="host.privilege",
            message="only root prepares the host",
            where=name,
            why=why,
            hint=hint,
        )
    )


def prepare(caller: Caller, word: str, tell: Tell) -> Checked:
    """Make the host ready for a VM, so that its printed command runs as it stands; a second time changes nothing.

    What is made is owned by `prepared`: it stays over `up` and `down` until it is undone, or until a reboot.
    Raises PrivilegeMissing, PreflightFailed, Busy.
    """
    resolved = examine(caller, word)
    if caller.uid != 0:
        hint = caller.preflight(resolved.name, f"--apply{caller.settings}")
        raise needs_root(resolved.name, all_changes(resolved), hint)
    resolved.refuse()
    with host_lock():
        heal_host(tell)
        resolved = examine(caller, word)
        resolved.refuse()
        head = journal_head(resolved)
        made = adopted(apply_changes(head, (*directories(resolved), *all_changes(resolved)), tell))
        if made.entries:
            journals.write_journal(made)
        if seeded(resolved) and caller.owner_uid == 0 and not observe(caller, resolved.name).lives:
            from kvmlaunch.steps.seed import make_seed  # noqa: PLC0415 - with cloud_init only

            make_seed(resolved)
        mark_prepared(resolved.places.run, resolved.host.user.uid, resolved.plan.memory.host_numa_node)
    fresh = tuple(entry.change for entry in made.entries[len(head.entries) :])
    return Checked(
        name=resolved.name, findings=(*resolved.findings(), *linger_findings(resolved)), changes=fresh, prepared=True
    )


def adopted(journal: Journal) -> Journal:
    """Give a journal whose every change is prepared: what a start made stays from now on."""
    return evolve(journal, entries=tuple(evolve(entry, owner="prepared") for entry in journal.entries))


def undo(caller: Caller, word: str, tell: Tell, *, dry_run: bool = False) -> tuple[bool, tuple[Finding, ...]]:
    """Take back what was prepared for a VM; tells whether there was anything, and what others had changed since.

    Raises Busy while a QEMU uses it, UnknownVm.
    """
    name = name_of(word)
    refuse_unknown(caller, word)
    if caller.uid != 0:
        raise needs_root(name, (), caller.preflight(name, "--undo"))
    with host_lock():
        if not dry_run:
            heal_host(tell)  # what a command took that was killed at preparing it has no other owner yet
        journal: Journal | None = journals.read_journal(caller.owner_uid, name)
        if journal is None or not journal.owned("prepared"):
            return False, ()
        refuse_while_used(caller, name, journal)
        if dry_run:
            for entry in reversed(journal.entries):
                tell("would undo", render_entry(entry))
            return True, ()
        with emptied(caller.places(name), journal.uid, tell):
            own_prepared(journal, tell)
            found = undo_entries(journal, journal.entries)
        for entry in reversed(journal.entries):
            tell("undone", render_undone(entry))
            if command := undo_command_of(entry):
                tell("exec", command)
    return True, found


@contextlib.contextmanager
def emptied(places: Places, owner_uid: int, tell: Tell) -> Iterator[None]:
    """Hold a VM's run directory, emptied, so that nobody starts it meanwhile; afterwards it goes as well.

    What its guest has printed is kept first, with its user's rights.
    """
    if not os.path.isdir(places.run):
        yield
        return
    uid, gid = owner_of(places.run), os.stat(places.run).st_gid
    with contextlib.ExitStack() as stack:
        with rights_of(UserFacts(uid=owner_uid, gid=gid)):
            claim = stack.enter_context(claimed(places.run, uid, gid))
            keep_logs(places.run, places.logs, owner_uid, tell)
            remove_contents(claim)
        yield
        if os.path.isdir(places.run):  # it was there before it was prepared: its mark would make it stay for ever
            unmark_prepared(places.run, uid)
            remove_claimed(claim)


def refuse_while_used(caller: Caller, name: str, journal: Journal) -> None:
    """Raise Busy while a QEMU uses what was prepared: `host.hugetlbfs.busy`, or `vm.state` without a mount."""
    seen = observe(caller, name)
    if seen.lives:
        mounted = any(isinstance(entry.change, MountChange) for entry in journal.entries)
        raise Busy(
            Report(
                code="host.hugetlbfs.busy" if mounted else "vm.state",
                message=f"{name} uses what was prepared",
                where=str(seen.places.run),
                why=f"pid {seen.pid}: {seen.state.value}",
                hint=f"kvmlaunch down {name}   # as the user to whom it belongs",
            )
        )
