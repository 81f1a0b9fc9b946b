"""`tune plan`: the host as the definitions and host.toml want it, and what of it is not so."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from kvmlaunch.define.host_file import load_wishes
from kvmlaunch.define.positions import locate
from kvmlaunch.errors import DefinitionInvalid
from kvmlaunch.facts.boot_files import parse_boot_lines
from kvmlaunch.facts.sources import Wanted, parse_captured
from kvmlaunch.facts.tuning import parse_tuning
from kvmlaunch.host.apply import mounts_on
from kvmlaunch.host.capture import capture_host
from kvmlaunch.host.capture_tuning import capture_tuning
from kvmlaunch.host.definitions import definition_files, read_file, refuse_closed
from kvmlaunch.host.journal import read_all_journals
from kvmlaunch.host.kept_files import is_kept, serves
from kvmlaunch.host.settings import RUN, came_again, is_back, principal_of, settle
from kvmlaunch.host.tune_journal import Ledger, read_entries
from kvmlaunch.model.change import PoolChange
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.tuning import HostTuning, MountEntry, Setting, SettingEntry, TuneEntry, TunePlan, VmEntry
from kvmlaunch.model.value import Factory, evolve, frozen
from kvmlaunch.model.wishes import HOST_FILE, HostWishes
from kvmlaunch.run.process import read_boot_id
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import invalid, load_subject
from kvmlaunch.tune.fleet import VmWish, vm_wish
from kvmlaunch.tune.keep import GRUB_FILE
from kvmlaunch.tune.memory import check_borrowed, pool_path
from kvmlaunch.tune.plan import plan_tuning


@frozen(kw_only=True)
class Planned:
    """A plan, and what it was made of.

    `written` are the paths of those of its files in which already stands what should.  `returning` is what an
    earlier `apply` did and nobody wishes any more: it is put back.  Root alone can know.  `unmounted` is the place of
    the shared hugetlbfs that is wished and not there, `counted` are the files of the VMs that count, and whether
    each was named: does not start with the host.
    `raised` are the pages that running VMs have in each pool by themselves; `again` is the command that applies it.
    """

    plan: TunePlan
    written: frozenset[str] = frozenset()
    returning: tuple[TuneEntry, ...] = ()
    unmounted: str = ""
    counted: Mapping[str, bool] = Factory(dict)
    vms: tuple[VmWish, ...]
    wishes: HostWishes
    host: HostFacts
    tuning: HostTuning
    raised: Mapping[str, Mapping[str, int]] = Factory(dict)
    again: str = ""

    @property
    def returned(self) -> tuple[TuneEntry, ...]:
        """What is put back by itself: the rest is what the kernel resets beside that."""
        return tuple(entry for entry in self.returning if not is_reset(entry))

    @property
    def changes(self) -> int:
        """How much of the host would be changed."""
        return len(self.plan.changes) + len(self.returned) + bool(self.unmounted)


def read_wishes(caller: Caller) -> HostWishes:
    """Give what host.toml says, all defaults where there is none; raises DefinitionInvalid with every mistake."""
    path = Path(HOST_FILE)
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return HostWishes()
    except OSError:
        pass  # it may be there: reading it tells why it cannot be
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
    return evolve(finding, report=finding.report._replace(where=where))


def load_counted(caller: Caller, name: str, words: Sequence[str]) -> Definition:
    """Give a definition that counts though nobody named it; raises DefinitionInvalid, which says so."""
    try:
        return load_subject(caller, name).definition
    except DefinitionInvalid as error:
        if not words:
            raise
        message = f"{name} is broken, and what it needs of the host counts beside {', '.join(words)}"
        first, *_ = error.problems or (error.report,)
        why = "\n".join(filter(None, (first.message, first.why)))
        hint = f"kvmlaunch validate {name}   # tells all of it"
        raise DefinitionInvalid(first._replace(message=message, why=why, hint=hint)) from error


def definitions_of(
    caller: Caller, words: Sequence[str], remembered: Sequence[VmEntry], *, every: bool, named_too: bool
) -> tuple[Definition, ...]:
    """Give the definitions that count: those that start with the host, or all, and those named now or remembered.

    Of the remembered ones those that start with the host count from wherever this is asked, those that were named only
    if they are `named_too`.  There is one VM of a name: what is named goes before what is found here, and that before
    what is remembered.  Raises DefinitionInvalid for a broken one: what it asks for would be missing from every sum.
    """
    found = {each.name: each for each in (load_subject(caller, word).definition for word in words)}
    others = evolve(caller, file="", overrides=()) if words else caller  # -f and --set are about those that are named
    named_before = {entry.path for entry in remembered if entry.named and named_too}
    refuse_closed(caller.search)
    files = definition_files(caller.search)
    for name, path in files.items():
        if name not in found:
            definition = load_counted(others, name, words)
            if every or definition.lifecycle.autostart or os.path.abspath(path) in named_before:
                found[name] = definition
    for entry in remembered:
        name = PurePosixPath(entry.path).stem
        if name not in files and name not in found and (named_too or not entry.named):
            definition = load_subject(others, entry.path).definition
            if definition.lifecycle.autostart or entry.path in named_before:
                found[name] = definition
    return tuple(sorted(found.values(), key=lambda each: each.name))  # what is written names them in this order


def remembered_of(entries: Sequence[TuneEntry]) -> tuple[VmEntry, ...]:
    """Give the VMs that counted when the host was tuned, as long as their definitions are there."""
    return tuple(entry for entry in entries if isinstance(entry, VmEntry) and os.path.isfile(entry.path))


def look(definitions: Sequence[Definition], wishes: HostWishes) -> tuple[HostFacts, HostTuning]:
    """Look at the host and at its knobs."""
    paths = {each.name: tuple(disk.path for disk in each.disk.values()) for each in definitions}
    captured = capture_tuning(paths, shared=wishes.hugetlbfs)
    host = parse_captured(capture_host(Wanted(locks=False, io_uring=True)))
    tuning = parse_tuning(captured.files, captured.probes)
    return host, evolve(tuning, boot_lines=tuple(parse_boot_lines(captured.files, tuning.queues)))


def plan(caller: Caller, words: Sequence[str], *, every: bool, boot: bool = False, as_applied: bool = False) -> Planned:
    """Give what the host should be; changes nothing, needs no root.  Raises DefinitionInvalid.

    VMs that were named earlier count where others are named beside them, and where the host is held against what was
    applied (`as_applied`); without a name they no longer do.
    """
    wishes = read_wishes(caller)
    entries = settled(read_entries()) if caller.uid == 0 else ()
    remembered = remembered_of(entries)
    definitions = definitions_of(caller, words, remembered, every=every, named_too=bool(words) or as_applied)
    host, tuning = look(definitions, wishes)
    vms = tuple(vm_wish(each) for each in definitions)
    boot = boot or any(entry.path == GRUB_FILE for entry in entries)
    made = plan_tuning(host, tuning, wishes, vms, boot=boot)
    ending = any(entry.path == RUN for entry in unwished(entries, made, wishes))
    if ending and "run" in tuning.ksm:  # a scan that ends has no wishes
        made = plan_tuning(host, stopped(tuning, entries), wishes, vms, boot=boot)
    again = apply_line(words, every=every)
    raised = raised_by_vms() if caller.uid == 0 else {}
    borrowed = check_borrowed(made.settings, raised, again)
    made = evolve(made, findings=tuple(placed(finding) for finding in (*made.findings, *borrowed)))
    return Planned(
        plan=made,
        written=written_of(made),
        returning=unwished(entries, made, wishes),
        unmounted=unmounted(host, wishes),
        counted={os.path.abspath(each.file): not each.lifecycle.autostart for each in definitions},
        vms=vms,
        wishes=wishes,
        host=host,
        tuning=tuning,
        raised=raised,
        again=again,
    )


def settled(entries: tuple[TuneEntry, ...]) -> tuple[TuneEntry, ...]:
    """Give the journal as the next change of the host would find it: put right after a crash or a reboot."""
    ledger = Ledger(entries=entries, boot_id=read_boot_id(), time="", write=lambda _: None)
    settle(ledger)
    return ledger.entries


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
    ledger = Ledger(entries=tuple(entries), boot_id="", time="", write=lambda _: None)
    kept = {*settings, *(each.path for each in made.files), wishes.hugetlbfs}
    changes = [
        entry
        for entry in entries
        if not isinstance(entry, VmEntry) and not (isinstance(entry, SettingEntry) and is_beside(entry, settings))
    ]
    return tuple(
        entry
        for entry in changes
        if is_more(entry, settings.get(entry.path)) or (entry.path not in kept and not is_over(ledger, entry))
    )


def is_over(ledger: Ledger, entry: TuneEntry) -> bool:
    """Is what was made as it was before already, and written down only as a file of ours makes it at the next boot."""
    if isinstance(entry, SettingEntry):
        return is_back(ledger, entry) and not came_again(entry)
    return isinstance(entry, MountEntry) and entry.lasting and not mounts_on(entry.path)


def is_reset(entry: TuneEntry) -> bool:
    """Is it what the kernel resets beside a knob, and no change of its own."""
    return isinstance(entry, SettingEntry) and entry.companion


def stopped(tuning: HostTuning, entries: Sequence[TuneEntry]) -> HostTuning:
    """Give the knobs as they are when KSM has been put back."""
    run = next(entry.before for entry in entries if isinstance(entry, SettingEntry) and entry.path == RUN)
    return evolve(tuning, ksm={**tuning.ksm, "run": evolve(tuning.ksm["run"], value=run)})


def is_beside(entry: SettingEntry, settings: Mapping[str, Setting]) -> bool:
    """Is a knob what the kernel resets beside another one that is wished still."""
    return entry.companion and principal_of(entry.path) in settings


def is_more(entry: TuneEntry, setting: Setting | None) -> bool:
    """Was a pool raised for more pages than are wished now."""
    if not isinstance(entry, SettingEntry) or setting is None or not setting.counted:
        return False
    return int(entry.wanted) > int(setting.wanted.value)
