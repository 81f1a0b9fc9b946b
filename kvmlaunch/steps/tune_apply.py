"""`tune apply` and `tune off`: the host is made as it is planned, and put back as it was."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from kvmlaunch.errors import PreflightFailed, PrivilegeMissing, Report
from kvmlaunch.host.apply import mounts_on
from kvmlaunch.host.capture_tuning import capture_grub
from kvmlaunch.host.kept_files import (
    apply_file,
    apply_shared_mount,
    forget_mount,
    is_kept,
    is_served,
    meant_for_others,
    note_file,
    undo_other,
)
from kvmlaunch.host.lock import host_lock
from kvmlaunch.host.pool_settings import apply_counted, lower_counted
from kvmlaunch.host.readers import read_text
from kvmlaunch.host.settings import apply_setting, files_are_written, make_lasting, settle, undo_all
from kvmlaunch.host.tune_journal import Ledger, read_entries
from kvmlaunch.model.finding import Finding, errors_of, warning
from kvmlaunch.model.tuning import FileEntry, KeptFile, MountEntry, SettingEntry, TuneEntry, VmEntry
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.run.process import read_boot_id
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.tune import Planned, is_reset, plan, written_of
from kvmlaunch.tune.keep import (
    GRUB_FILE,
    HEAD,
    SCRIPT_FILE,
    SYSCTL_FILE,
    TMPFILES_FILE,
    UDEV_FILE,
    UNIT_FILE,
    check_kept,
)
from kvmlaunch.tune.plan import plan_files


@frozen(kw_only=True)
class PutBack:
    """What `tune off` did: was anything tuned, is any of it `left`, and the `commands` that removed files need."""

    tuned: bool
    left: bool
    found: tuple[Finding, ...]
    commands: tuple[str, ...]


def open_ledger(*, patient: bool = False) -> Ledger:
    """Give the journal of tuning, put right after a crash; under the host-wide lock."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    ledger = Ledger(entries=read_entries(), boot_id=read_boot_id(), time=now, patient=patient)
    settle(ledger)
    return ledger


def refuse_user(caller: Caller) -> None:
    """Raise PrivilegeMissing for whoever is not root."""
    if caller.uid != 0:
        raise PrivilegeMissing(
            Report(
                code="host.privilege",
                message="only root changes the host",
                where="tune",
                why="knobs and files of the whole host",
                hint=f"sudo {caller.line}",
            )
        )


def apply(
    caller: Caller,
    words: Sequence[str],
    tell: Tell,
    *,
    every: bool,
    persist: bool = False,
    boot: bool = False,
    drop_caches: bool = False,
) -> tuple[Planned, tuple[Finding, ...]]:
    """Make the host as it should be; a second time changes nothing.  Gives the plan and what could not be made.

    `persist` also writes the files that keep it, `boot` the boot loader's as well.  Raises PrivilegeMissing,
    PreflightFailed for a wish that the host has no room for, before anything is changed.
    """
    refuse_user(caller)
    with host_lock():
        ledger = open_ledger()
        boot = boot or (persist and ledger.find(GRUB_FILE) is not None)  # what was asked for once is kept up
        planned = plan(caller, words, every=every, boot=boot)
        refuse_errors(planned)
        remember(ledger, planned.counted, lasting=persist)
        before = ledger.entries
        found: list[Finding | None] = [*put_back(ledger, planned, tell, files=persist)]
        if ledger.entries != before:  # a pool that was lowered may have to be raised again
            planned = plan(caller, words, every=every, boot=boot)
        turned = apply_settings(ledger, planned, tell, lasting=persist, drop_caches=drop_caches)
        shared, kept = share_pages(ledger, planned, tell, lasting=persist)
        found += [*turned, shared]
        files = files_without(planned, turned, shared=kept)
        planned = evolve(planned, plan=evolve(planned.plan, files=files))
        found += write_files(ledger, planned, tell, persist=persist, boot=boot)
    told = (
        check_kept(planned.plan.settings, planned.tuning, planned.raised) if persist else check_stale(ledger, planned)
    )
    planned = evolve(planned, plan=evolve(planned.plan, findings=(*planned.plan.findings, *told)))
    return evolve(planned, written=written_of(planned.plan)), tuple(finding for finding in found if finding)


def check_stale(ledger: Ledger, planned: Planned) -> Iterator[Finding]:
    """Say which files of an earlier `--persist` set at the next boot what is not wished any more."""
    for kept in planned.plan.files:
        if isinstance(ledger.find(kept.path), FileEntry) and not is_kept(kept):
            yield warning(
                code="host.notactive",
                message=f"{kept.path} still says what was wished before",
                where=kept.path,
                why="what is set now lasts until the next boot, and without --persist no file is written",
                hint=f"{planned.again} --persist",
            )


def share_pages(ledger: Ledger, planned: Planned, tell: Tell, *, lasting: bool) -> tuple[Finding | None, bool]:
    """Mount the shared hugetlbfs where that is wished; gives why it was not, and whether a file of ours is to keep it.

    One that somebody else keeps there is as good.
    """
    place = planned.wishes.hugetlbfs
    if not place:
        return None, False
    others = meant_for_others(ledger, place, planned.plan.files)
    if others is not None:
        return None if is_served(place) else others, False
    finding = apply_shared_mount(ledger, place, lasting=lasting)
    if planned.unmounted and finding is None:
        tell("mounted", planned.unmounted)
    return finding, finding is None


def remember(ledger: Ledger, counted: Mapping[str, bool], *, lasting: bool) -> None:
    """Write down which VMs count, and forget those that no longer do."""
    known = {entry.path: entry for entry in ledger.entries if isinstance(entry, VmEntry)}
    new = VmEntry(path="", lasting=lasting, boot_id=ledger.boot_id, time=ledger.time)
    vms = [
        evolve(known[path] if path in known and known[path].lasting >= lasting else new, path=path, named=named)
        for path, named in counted.items()
    ]
    ledger.replace((*(entry for entry in ledger.entries if not isinstance(entry, VmEntry)), *vms))


def put_back(ledger: Ledger, planned: Planned, tell: Tell, *, files: bool) -> list[Finding]:
    """Put back what nobody wishes any more; files only where files are written.

    What a file sets at boot is not forgotten before that is written anew: a crash, or a full disk, may come between.
    """
    settings = {setting.knob.path: setting for setting in planned.plan.settings}
    returning = [entry for entry in planned.returning if files or not isinstance(entry, FileEntry)]
    fewer = [entry for entry in returning if isinstance(entry, SettingEntry) and entry.path in settings]
    gone = [entry for entry in returning if entry not in fewer]
    mounted = {entry.path for entry in gone if isinstance(entry, MountEntry) and mounts_on(entry.path)}
    listed: list[Finding] = []
    for entry in fewer:
        listed += lower_counted(ledger, entry, int(settings[entry.path].wanted.value))
        tell("lowered", f"{entry.key}  {entry.wanted} → {settings[entry.path].wanted.value} are wished")
    listed += undo_all(
        ledger,
        lambda entry, at_boot: undo_other(ledger, entry, force=False, at_boot=at_boot),
        gone,
        force=False,
        rewritten=True,
    )
    left = {entry.path: entry for entry in ledger.entries}
    for each in gone:
        if isinstance(each, MountEntry) and each.path in mounted and not mounts_on(each.path):
            tell("unmounted", each.path)
        elif left.get(each.path) != each and not is_reset(each):
            tell("restored", each.key if isinstance(each, SettingEntry) else each.path)
    return listed


def refuse_errors(planned: Planned) -> None:
    """Raise PreflightFailed for a wish that the host has no room for."""
    errors = tuple(finding.report for finding in errors_of(planned.plan.findings))
    if errors:
        raise PreflightFailed(errors[0], errors)


def apply_settings(
    ledger: Ledger, planned: Planned, tell: Tell, *, lasting: bool, drop_caches: bool
) -> list[Finding | None]:
    """Turn every knob that differs; one that cannot be turned does not stop the others."""
    found = []
    for setting in planned.plan.settings:
        borrowed = sum(planned.raised.get(setting.knob.path, {}).values())
        if setting.differs and setting.counted:
            finding = apply_counted(
                ledger, setting, lasting=lasting, drop_caches=drop_caches, borrowed=borrowed, again=planned.again
            )
        elif setting.differs:
            finding = apply_setting(ledger, setting, lasting=lasting)
        if setting.differs:
            found.append(finding)
            if finding is None:
                tell("set", f"{setting.key}  {setting.knob.value} → {setting.wanted.value}")
        elif lasting:
            make_lasting(ledger, setting, borrowed)
    return found


def write_files(ledger: Ledger, planned: Planned, tell: Tell, *, persist: bool, boot: bool) -> list[Finding]:
    """Write the files of a plan, and take back those of ours in which nothing would stand any more."""
    wanted = [kept for kept in planned.plan.files if (boot if kept.option == "--boot" else persist)]
    there = {kept.path for kept in planned.plan.files}
    told = {entry.path for entry in planned.returning}
    empty = [each for each in ledger.entries if isinstance(each, FileEntry) and each.path not in there | told]
    found = [*undo_files(ledger, tuple(empty) if persist else ())]
    for kept in wanted:
        if is_kept(kept):
            note_file(ledger, kept)
            continue
        finding = apply_file(ledger, kept)
        if finding is not None:
            found.append(finding)
        else:
            tell("written", kept.path)
    if persist and all_written(ledger, planned):
        files_are_written(ledger, {setting.knob.path for setting in planned.plan.settings})
        forget_mount(ledger, planned.wishes.hugetlbfs)
    return found


def undo_files(ledger: Ledger, entries: Sequence[FileEntry]) -> Iterator[Finding]:
    """Take files back; one that cannot be keeps no other from it."""
    yield from undo_all(ledger, lambda entry, _: undo_other(ledger, entry, force=False), entries, force=False)


def all_written(ledger: Ledger, planned: Planned) -> bool:
    """Does every file of ours stand as it is planned, so that none sets at boot what it set before."""
    planned_files = {kept.path: kept for kept in planned.plan.files}
    ours = (each.path for each in ledger.entries if isinstance(each, FileEntry))
    return all(path in planned_files and is_kept(planned_files[path]) for path in ours)


def files_without(planned: Planned, turned: Sequence[Finding | None], *, shared: bool) -> tuple[KeptFile, ...]:
    """Give the files of a plan without what the kernel refuses now, as a boot would be refused it too.

    Without `shared` none of them mounts the hugetlbfs.

    A pool that is short now may be filled while memory is still empty, and stays in.
    """
    refused = {each.report.where for each in turned if each and each.report.code == "host.setting.refused"}
    settings = [each for each in planned.plan.settings if each.counted or each.knob.path not in refused]
    boot = any(kept.option == "--boot" for kept in planned.plan.files)
    wishes = planned.wishes if shared else evolve(planned.wishes, hugetlbfs="")
    return plan_files(settings, planned.tuning, wishes, boot=boot)


def off(caller: Caller, tell: Tell, *, force: bool = False) -> PutBack:
    """Put the host back as it was, files included; what cannot be put back stays written down for the next time.

    Where the journal cannot be written, as nothing can, all is put back by what it says, and it stays as it is.
    Raises PrivilegeMissing, PreflightFailed `host.journal.unreadable`.
    """
    refuse_user(caller)
    with host_lock():
        ledger = open_ledger(patient=True)
        before = ledger.entries
        found = tuple(
            undo_all(
                ledger,
                lambda entry, at_boot: undo_other(ledger, entry, force=force, at_boot=at_boot),
                before,
                force=force,
            )
        )
        left = {entry.path for entry in ledger.entries}
        skipped = {finding.report.where for finding in found}
        for entry in reversed(before):
            if isinstance(entry, VmEntry) or is_reset(entry) or entry.path in skipped:
                continue
            key = entry.key if isinstance(entry, SettingEntry) else entry.path
            if entry.path not in left:
                tell("restored", key)
            elif is_back_for_now(entry, ledger.find(entry.path)):
                tell("restored", f"{key}, until a file of ours that stays is read at the next boot")
    gone = {entry.path: entry for entry in before if entry.path not in left}
    commands = tuple(commands_after(gone))
    if not before:
        found = tuple(orphans())
    if ledger.unwritten:
        found = (*found, not_noted(ledger.unwritten))
    return PutBack(tuned=bool(before), left=bool(left or ledger.unwritten), found=found, commands=commands)


def is_back_for_now(before: TuneEntry, after: TuneEntry | None) -> bool:
    """Was a knob put back that stays written down, as a file of ours sets it again."""
    was, now = (isinstance(each, SettingEntry) and each.after == each.before for each in (before, after))
    return now and not was


def not_noted(report: Report) -> Finding:
    """Give the finding of a journal that still names what was put back."""
    return warning(
        code=report.code,
        message="what was put back could not be struck out of the journal",
        where=report.where,
        why=report.message,
        hint="kvmlaunch tune off   # again, once there is room: what is back already stays so",
    )


def orphans() -> Iterator[Finding]:
    """Give the files of ours that no journal knows: it was lost, and with it what the host was before."""
    after = {GRUB_FILE: f" && {capture_grub('') or 'update-grub'}", UNIT_FILE: " && systemctl daemon-reload"}
    before = {UNIT_FILE: f"systemctl disable {UNIT_FILE.rpartition('/')[2]} && "}
    for path in (SYSCTL_FILE, UDEV_FILE, TMPFILES_FILE, UNIT_FILE, SCRIPT_FILE, GRUB_FILE):
        if HEAD in (read_text(path) or ""):
            yield warning(
                code="host.change.conflict",
                message=f"{path} is of an earlier tune apply, and the journal does not know it",
                where=path,
                why="the journal was removed, so what was before is not known; this sets it at the next boot again",
                hint=f"{before.get(path, '')}rm {path}{after.get(path, '')}",
            )


def commands_after(gone: Mapping[str, TuneEntry]) -> Iterator[str]:
    """Give what must be run once files of ours are gone: the boot loader keeps what it was told, systemd its units."""
    drop_in = gone.get(GRUB_FILE)
    told = re.search(r"(?m)^# (grubby .*)--args=(.*)$", drop_in.wanted) if isinstance(drop_in, FileEntry) else None
    if told:
        yield f"{told[1]}--remove-args={told[2]}   # the boot loader still has the words"
    elif drop_in is not None and (renew := capture_grub("")):
        yield f"{renew}   # the boot loader still has the words"
    if any(path.startswith("/etc/systemd/") for path in gone):
        yield "systemctl daemon-reload"


def inactive_findings(files: Sequence[KeptFile]) -> tuple[Finding, ...]:
    """Warn of files that nothing reads at boot (`host.notactive`)."""
    return tuple(
        warning(
            code="host.notactive",
            message=f"{kept.path} is written, and not active at boot",
            where=kept.path,
            why=kept.inactive,
            hint=f"{kept.command}   # at boot, by whatever starts this host" if kept.command else "",
        )
        for kept in files
        if kept.inactive and is_kept(kept)
    )
