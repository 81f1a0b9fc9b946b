"""`tune verify`: the host held against what it should be, and its files against what was written."""

from collections.abc import Iterator, Sequence

from kvmlaunch.host.kept_files import is_kept
from kvmlaunch.host.tune_journal import read_entries
from kvmlaunch.model.tuning import FileEntry, KeptFile, Setting, SettingEntry, TuneEntry
from kvmlaunch.model.value import frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.tune import Planned, plan
from kvmlaunch.tune.keep import GRUB_FILE, overriding


@frozen(kw_only=True)
class Difference:
    """Something that is not as it should be: a knob, or a file; `by` names what makes it so, "" where nobody knows."""

    key: str
    place: str
    wanted: str
    found: str
    by: str = ""


def verify(caller: Caller, words: Sequence[str], *, every: bool) -> tuple[Planned, tuple[Difference, ...]]:
    """Give what of the host is not as it should be: knobs by the plan, files by the journal, and who overrides them."""
    planned = plan(caller, words, every=every, as_applied=True)
    entries = read_entries() if caller.uid == 0 else ()
    kept = {kept.path: kept for kept in planned.plan.files}
    files = [entry for entry in entries if isinstance(entry, FileEntry)]
    written = {entry.path for entry in files}
    lasting = any(entry.path != GRUB_FILE if isinstance(entry, FileEntry) else entry.lasting for entry in entries)
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
            by = (
                "the file that wins at boot, if the kernel takes its value"
                if line.sure
                else "perhaps, it has other conditions too"
            )
            yield Difference(key=line.name, place=line.file, wanted=setting.wanted.value, found=line.value, by=by)
