"""`tune`: the host as the definitions and host.toml want it, planned, made, verified, taken back."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from attrs import evolve, field

from kvmlaunch.define.host_file import load_wishes
from kvmlaunch.define.positions import locate
from kvmlaunch.errors import PreflightFailed, PrivilegeMissing, Report
from kvmlaunch.facts.boot_files import parse_boot_lines
from kvmlaunch.facts.sources import Wanted, parse_captured
from kvmlaunch.facts.tuning import parse_tuning
from kvmlaunch.host.capture import capture_host
from kvmlaunch.host.capture_tuning import capture_grub, capture_tuning
from kvmlaunch.host.definitions import definition_files, read_file
from kvmlaunch.host.journal import read_all_journals
from kvmlaunch.host.kept_files import apply_file, apply_shared_mount, is_kept, serves, undo_other
from kvmlaunch.host.lock import host_lock
from kvmlaunch.host.settings import (
    COMPANIONS,
    OWN_KNOBS,
    Ledger,
    apply_counted,
    apply_setting,
    lower_counted,
    make_lasting,
    settle,
    undo_all,
)
from kvmlaunch.host.tune_journal import read_entries
from kvmlaunch.model.change import PoolChange
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding, errors_of, warning
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.tuning import FileEntry, HostTuning, KeptFile, Setting, SettingEntry, TuneEntry, TunePlan, VmEntry
from kvmlaunch.model.value import frozen
from kvmlaunch.model.wishes import HOST_FILE, HostWishes
from kvmlaunch.run.process import read_boot_id
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.load import invalid, load_subject
from kvmlaunch.tune.fleet import VmWish, vm_wish
from kvmlaunch.tune.keep import GRUB_FILE, overriding
from kvmlaunch.tune.memory import check_borrowed, pool_path
from kvmlaunch.tune.plan import plan_tuning


@frozen(kw_only=True)
class Planned:
    """A plan, and what it was made of.

    `written` are the paths of those of its files in which already stands what should.  `returning` is what an
    earlier `apply` did and nobody wishes any more: it is put back.  Root alone can know.  `unmounted` is the place of
    the shared hugetlbfs that is wished and not there, `named` are the files of VMs that do not start with the host.
    `raised` are the pages that running VMs have in each pool by themselves; `again` is the command that applies it.
    """

    plan: TunePlan
    written: frozenset[str] = frozenset()
    returning: tuple[TuneEntry, ...] = ()
    unmounted: str = ""
    named: tuple[str, ...] = ()
    vms: tuple[VmWish, ...]
    wishes: HostWishes
    host: HostFacts
    tuning: HostTuning
    raised: Mapping[str, Mapping[str, int]] = field(factory=dict)
    again: str = ""


@frozen(kw_only=True)
class Difference:
    """Something that is not as it should be: a knob, or a file; `by` names what makes it so, "" where nobody knows."""

    key: str
    place: str
    wanted: str
    found: str
    by: str = ""


def read_wishes(caller: Caller) -> HostWishes:
    """Give what host.toml says, all defaults where there is none; raises DefinitionInvalid with every mistake."""
    path = Path(HOST_FILE)
    if not os.path.exists(path):
        return HostWishes()
    wishes, findings = load_wishes(PurePosixPath(path), read_file(path, caller.trust))
    if wishes is None:
        raise invalid("host.toml", findings)
    return wishes


def placed(finding: Finding) -> Finding:
    """Give a finding about a key of host.toml with its file, line and column, where that key was written."""
    path = Path(HOST_FILE)
    if not finding.key or finding.report.where or not os.path.exists(path):
        return finding
    position = locate(path.read_text(encoding="utf-8", errors="replace"), finding.key)
    if position is None:
        return finding
    where = f"{path}:{position[0]}:{position[1]} {finding.key}"
    return evolve(finding, report=evolve(finding.report, where=where))


def definitions_of(
    caller: Caller, words: Sequence[str], remembered: Sequence[str], *, every: bool
) -> tuple[Definition, ...]:
    """Give the definitions that count: those that start with the host, or all, and those named now or remembered.

    Raises DefinitionInvalid for a broken one: what it asks for would be missing from every sum.
    """
    named = [load_subject(caller, word).definition for word in words]
    found = {os.path.realpath(each.file): each for each in named}
    others = evolve(caller, file="", overrides=()) if words else caller  # -f and --set are about those that are named
    files = {os.path.realpath(path): name for name, path in definition_files(caller.search).items()}
    for place, word in {**files, **dict.fromkeys(remembered)}.items():
        if place not in found:
            definition = load_subject(others, word or place).definition
            if every or definition.lifecycle.autostart or place in remembered:
                found[place] = definition
    return tuple(sorted(found.values(), key=lambda each: each.name))  # what is written names them in this order


def remembered_of(entries: Sequence[TuneEntry]) -> tuple[str, ...]:
    """Give the files of the VMs that were named when the host was tuned, as long as they are there."""
    boot_id = read_boot_id()
    named = (entry for entry in entries if isinstance(entry, VmEntry))
    return tuple(
        entry.path for entry in named if (entry.lasting or entry.boot_id == boot_id) and os.path.isfile(entry.path)
    )


def look(definitions: Sequence[Definition], wishes: HostWishes) -> tuple[HostFacts, HostTuning]:
    """Look at the host and at its knobs."""
    paths = {each.name: tuple(disk.path for disk in each.disk.values()) for each in definitions}
    captured = capture_tuning(paths, shared=wishes.hugetlbfs)
    host = parse_captured(capture_host(Wanted(locks=False, io_uring=True)))
    tuning = parse_tuning(captured.files, captured.probes)
    return host, evolve(tuning, boot_lines=tuple(parse_boot_lines(captured.files, tuning.devices)))


def plan(caller: Caller, words: Sequence[str], *, every: bool, boot: bool = False, as_applied: bool = False) -> Planned:
    """Give what the host should be; changes nothing, needs no root.  Raises DefinitionInvalid.

    VMs that were named earlier count where others are named beside them, and where the host is held against what was
    applied (`as_applied`); without a name they no longer do.
    """
    wishes = read_wishes(caller)
    entries = read_entries() if caller.uid == 0 else ()
    remembered = remembered_of(entries) if words or as_applied else ()
    definitions = definitions_of(caller, words, remembered, every=every)
    host, tuning = look(definitions, wishes)
    vms = tuple(vm_wish(each) for each in definitions)
    boot = boot or any(entry.path == GRUB_FILE for entry in entries)
    made = plan_tuning(host, tuning, wishes, vms, boot=boot)
    again = apply_line(words, every=every)
    raised = raised_by_vms() if caller.uid == 0 else {}
    borrowed = check_borrowed(made.settings, raised, again)
    made = evolve(made, findings=tuple(placed(finding) for finding in (*made.findings, *borrowed)))
    return Planned(
        plan=made,
        written=written_of(made),
        returning=unwished(entries, made, wishes),
        unmounted=unmounted(host, wishes),
        named=tuple(os.path.realpath(each.file) for each in definitions if not each.lifecycle.autostart),
        vms=vms,
        wishes=wishes,
        host=host,
        tuning=tuning,
        raised=raised,
        again=again,
    )


def apply_line(words: Sequence[str], *, every: bool) -> str:
    """Give the command that applies what is planned here."""
    return shlex.join(["kvmlaunch", "tune", "apply", *words, *(["--all"] if every else [])])


def unmounted(host: HostFacts, wishes: HostWishes) -> str:
    """Give the place of the shared hugetlbfs that is wished and not mounted, "" for none."""
    there = any(str(mount.path) == wishes.hugetlbfs and serves(mount) for mount in host.mounts)
    return "" if there else wishes.hugetlbfs or ""


def written_of(made: TunePlan) -> frozenset[str]:
    """Give the files in which already stands what should."""
    return frozenset(kept.path for kept in made.files if is_kept(kept))


def raised_by_vms() -> dict[str, dict[str, int]]:
    """Give, by a pool's control file, the pages that each VM's start put into it; root alone can read that."""
    raised: dict[str, dict[str, int]] = {}
    boot_id = read_boot_id()
    for journal in read_all_journals():
        for entry in journal.owned("up") if journal.boot_id == boot_id else ():
            if isinstance(entry.change, PoolChange) and entry.before is not None and entry.after is not None:
                vms = raised.setdefault(pool_path(entry.change.page_size), {})
                vms[journal.vm] = vms.get(journal.vm, 0) + entry.after - entry.before
    return raised


def unwished(entries: Sequence[TuneEntry], made: TunePlan, wishes: HostWishes) -> tuple[TuneEntry, ...]:
    """Give what was made and is in the plan no more, or counted for more than is wished now."""
    settings = {setting.knob.path: setting for setting in made.settings}
    kept = {*settings, *(each.path for each in made.files), wishes.hugetlbfs}
    changes = [
        entry
        for entry in entries
        if not isinstance(entry, VmEntry) and not (isinstance(entry, SettingEntry) and is_beside(entry, settings))
    ]
    return tuple(
        entry
        for entry in changes
        if (entry.path not in kept and not is_back(entry)) or is_more(entry, settings.get(entry.path))
    )


def is_back(entry: TuneEntry) -> bool:
    """Is a knob as it was before already, and written down only as a file of ours sets it at the next boot."""
    return isinstance(entry, SettingEntry) and entry.kept is not None and entry.after == entry.before


def is_beside(entry: SettingEntry, settings: Mapping[str, Setting]) -> bool:
    """Is a knob what the kernel resets beside another one that is wished still."""
    directory, _, name = entry.path.rpartition("/")
    if directory.endswith(f"/{OWN_KNOBS}"):
        return f"{directory.removesuffix(OWN_KNOBS)}scheduler" in settings
    return entry.companion and any(f"{directory}/{each}" in settings for each, its in COMPANIONS.items() if its == name)


def is_more(entry: TuneEntry, setting: Setting | None) -> bool:
    """Was a pool raised for more pages than are wished now."""
    if not isinstance(entry, SettingEntry) or setting is None or not setting.counted:
        return False
    return int(entry.wanted) > int(setting.wanted.value)


def open_ledger() -> Ledger:
    """Give the journal of tuning, put right after a crash; under the host-wide lock."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    ledger = Ledger(entries=read_entries(), boot_id=read_boot_id(), time=now)
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
    planned = plan(caller, words, every=every, boot=boot)
    refuse_user(caller)
    refuse_errors(planned)
    with host_lock():
        ledger = open_ledger()
        planned = plan(caller, words, every=every, boot=boot)
        refuse_errors(planned)
        remember(ledger, planned.named, lasting=persist)
        found: list[Finding | None] = [*put_back(ledger, planned, tell, files=persist)]
        planned = plan(caller, words, every=every, boot=boot)  # a pool that was lowered may have to be raised again
        found += apply_settings(ledger, planned, tell, lasting=persist, drop_caches=drop_caches)
        if planned.wishes.hugetlbfs:
            found.append(apply_shared_mount(ledger, planned.wishes.hugetlbfs, lasting=persist))
            if planned.unmounted and found[-1] is None:
                tell("mounted", planned.unmounted)
        for kept in planned.plan.files:
            if (boot if kept.option == "--boot" else persist) and not is_kept(kept):
                finding = apply_file(ledger, kept)
                found.append(finding)
                if finding is None:
                    tell("written", kept.path)
    return evolve(planned, written=written_of(planned.plan)), tuple(finding for finding in found if finding)


def remember(ledger: Ledger, named: Sequence[str], *, lasting: bool) -> None:
    """Write down which VMs were named, and forget those that no longer count."""
    for path in named:
        earlier = ledger.find(path)
        ours = earlier if isinstance(earlier, VmEntry) else None
        if ours is None or (lasting and not ours.lasting):
            ledger.put(VmEntry(path=path, lasting=lasting, boot_id=ledger.boot_id, time=ledger.time))
    for entry in ledger.entries:
        if isinstance(entry, VmEntry) and entry.path not in named:
            ledger.drop(entry.path)


def put_back(ledger: Ledger, planned: Planned, tell: Tell, *, files: bool) -> list[Finding]:
    """Put back what nobody wishes any more; files only where files are written."""
    settings = {setting.knob.path: setting for setting in planned.plan.settings}
    returning = [entry for entry in planned.returning if files or not isinstance(entry, FileEntry)]
    returning += [entry for entry in ledger.entries if files and is_back(entry) and entry.path not in settings]
    fewer = [entry for entry in returning if isinstance(entry, SettingEntry) and entry.path in settings]
    gone = [entry for entry in returning if entry not in fewer]
    listed: list[Finding] = []
    for entry in fewer:
        listed += lower_counted(ledger, entry, int(settings[entry.path].wanted.value))
        tell("lowered", f"{entry.key}  {entry.wanted} → {settings[entry.path].wanted.value} are wished")
    found = undo_all(
        ledger, lambda entry: undo_other(ledger, entry, force=False, files=files), gone, force=False, files=files
    )
    listed += found
    left = {entry.path: entry for entry in ledger.entries}
    for each in gone:
        if left.get(each.path) != each:
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


def verify(caller: Caller, words: Sequence[str], *, every: bool) -> tuple[Planned, tuple[Difference, ...]]:
    """Give what of the host is not as it should be: knobs by the plan, files by the journal, and who overrides them."""
    planned = plan(caller, words, every=every, as_applied=True)
    entries = read_entries() if caller.uid == 0 else ()
    kept = {kept.path: kept for kept in planned.plan.files}
    files = [entry for entry in entries if isinstance(entry, FileEntry)]
    written = {entry.path for entry in files}
    lasting = any(isinstance(entry, SettingEntry) and entry.lasting for entry in entries)
    return planned, (
        *(knob_difference(planned, setting) for setting in planned.plan.changes),
        *(file_difference(entry) for entry in files if is_changed(entry, kept.get(entry.path))),
        *(missing(path) for path in kept if lasting and path not in written and kept[path].option == "--persist"),
        *((mount_difference(planned.unmounted),) if planned.unmounted else ()),
        *(unwished_difference(entry) for entry in planned.returning),
        *overridden(planned),
    )


def mount_difference(path: str) -> Difference:
    """Give the difference of the shared hugetlbfs that is not mounted."""
    return Difference(key="hugetlbfs", place=path, wanted="mounted", found="not mounted")


def missing(path: str) -> Difference:
    """Give the difference of a file that --persist should have written, and could not."""
    return Difference(key=path, place=path, wanted="written by --persist", found="not written")


def unwished_difference(entry: TuneEntry) -> Difference:
    """Give the difference of what an earlier `apply` did and nobody wishes any more."""
    key = entry.key if isinstance(entry, SettingEntry) else entry.path
    return Difference(key=key, place=entry.path, wanted="as it was before", found="no longer wished")


def knob_difference(planned: Planned, setting: Setting) -> Difference:
    """Give the difference of a knob, with a program that tunes the host as well."""
    by = ", ".join(f"{name} (pid {pid})" for name, pid in planned.tuning.daemons.items())
    return Difference(
        key=setting.key,
        place=setting.knob.path,
        wanted=setting.wanted.value,
        found=setting.knob.value,
        by=f"perhaps {by}" if by else "",
    )


def is_changed(entry: FileEntry, kept: KeptFile | None) -> bool:
    """Is a file of ours not as it was written, or not as it would be written now."""
    as_written = KeptFile(path=entry.path, text=entry.wanted, kind=entry.kind, mode=entry.mode)
    return not is_kept(as_written) or (kept is not None and kept.text != entry.wanted)


def file_difference(entry: FileEntry) -> Difference:
    """Give the difference of a file."""
    as_written = is_kept(KeptFile(path=entry.path, text=entry.wanted, kind=entry.kind, mode=entry.mode))
    found = "not what the definitions and host.toml say now" if as_written else "changed or removed by somebody else"
    return Difference(key=entry.path, place=entry.path, wanted="as written", found=found)


def overridden(planned: Planned) -> Iterator[Difference]:
    """Give what another file will set otherwise at boot."""
    for setting in planned.plan.settings:
        line = overriding(planned.tuning, setting)
        if line is not None:
            by = "the file that wins at boot" if line.sure else "perhaps, it has other conditions too"
            yield Difference(key=line.name, place=line.file, wanted=setting.wanted.value, found=line.value, by=by)


def off(caller: Caller, tell: Tell, *, force: bool = False) -> tuple[bool, bool, tuple[Finding, ...], tuple[str, ...]]:
    """Put the host back as it was, files included; tells whether there was anything, and is any left.

    What cannot be put back stays written down for the next time.  Gives what was found as well, and the commands that
    the removed files need.
    """
    refuse_user(caller)
    with host_lock():
        ledger = open_ledger()
        before = ledger.entries
        found = tuple(undo_all(ledger, lambda entry: undo_other(ledger, entry, force=force), before, force=force))
        left = {entry.path for entry in ledger.entries}
        for entry in reversed(before):
            if entry.path not in left and not isinstance(entry, VmEntry):
                tell("restored", entry.key if isinstance(entry, SettingEntry) else entry.path)
    gone = {entry.path for entry in before if entry.path not in left}
    return bool(before), bool(ledger.entries), found, tuple(commands_after(gone))


def commands_after(gone: set[str]) -> Iterator[str]:
    """Give what must be run once files of ours are gone: the boot loader keeps what it was told, systemd its units."""
    if GRUB_FILE in gone and (renew := capture_grub("")):
        yield f"{renew}   # or grubby --remove-args: the boot loader still has the words"
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
