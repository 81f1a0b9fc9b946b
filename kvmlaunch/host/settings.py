"""Turns the host's knobs and takes that back: written down before and after, put back only where it is as we left it.

Every function here runs under the host-wide lock.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attrs import define, evolve

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.facts.memory import parse_meminfo
from kvmlaunch.facts.tuning import parse_knob
from kvmlaunch.host.apply import apply_pool, undo_pool
from kvmlaunch.host.files import write_control
from kvmlaunch.host.readers import read_text
from kvmlaunch.host.tune_journal import write_entries
from kvmlaunch.model.change import Entry, PoolChange
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.tuning import FileEntry, MountEntry, Setting, SettingEntry, TuneEntry, VmEntry
from kvmlaunch.tune.keep import boot_pages

# What the kernel resets when the first is written (measured with Linux 6.18).
COMPANIONS = {"advisor_mode": "pages_to_scan", "scheduler": "nr_requests"}
RUN, ACROSS = "/sys/kernel/mm/ksm/run", "merge_across_nodes"
DROP_CACHES = "/proc/sys/vm/drop_caches"


@define(kw_only=True)
class Ledger:
    """The journal of tuning in hand: every change of it is on disk before this process goes on.

    `boot_id` and `time` are written into new entries.
    """

    entries: tuple[TuneEntry, ...]
    boot_id: str
    time: str
    write: Callable[[tuple[TuneEntry, ...]], None] = write_entries

    def find(self, path: str) -> TuneEntry | None:
        """Give what is written down of a path."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def put(self, entry: TuneEntry) -> None:
        """Write an entry down, in the place of an earlier one of its path."""
        if self.find(entry.path) is None:
            self.entries = (*self.entries, entry)
        else:
            self.entries = tuple(entry if each.path == entry.path else each for each in self.entries)
        self.write(self.entries)

    def drop(self, path: str) -> None:
        """Take an entry out."""
        self.entries = tuple(entry for entry in self.entries if entry.path != path)
        self.write(self.entries)

    def restore(self, path: str, earlier: TuneEntry | None) -> None:
        """Write down what stood there before a try that failed."""
        if earlier is None:
            self.drop(path)
        else:
            self.put(earlier)


def read_value(path: str, root: Path = Path("/")) -> str | None:
    """Give the value in use of a knob, None where it is not there."""
    text = read_text(str(root / path.lstrip("/")))
    knob = None if text is None else parse_knob({path: text}, path)
    return None if knob is None else knob.value


def write_value(path: str, value: str, root: Path = Path("/")) -> str:
    """Write a knob and give what is read back; raises OSError with the kernel's own word."""
    write_control(root / path.lstrip("/"), value)
    return read_value(path, root) or ""


def settle(ledger: Ledger, root: Path = Path("/")) -> None:
    """Put right what a crash left: what was about to be changed was changed or was not, as the host itself tells."""
    for entry in ledger.entries:
        if isinstance(entry, SettingEntry | VmEntry) and not entry.lasting and entry.boot_id != ledger.boot_id:
            ledger.drop(entry.path)
        elif isinstance(entry, SettingEntry) and entry.counted and entry.boot_id != ledger.boot_id:
            ledger.put(counted_anew(entry, int(read_value(entry.path, root) or 0), ledger.boot_id, root))
        elif isinstance(entry, SettingEntry) and not entry.done:
            settle_one(ledger, entry, read_value(entry.path, root))


def counted_anew(entry: SettingEntry, live: int, boot_id: str, root: Path) -> SettingEntry:
    """Give a pool that was raised at boot again as it is counted there: what the boot loader asked for is not ours."""
    cmdline = (read_text(str(root / "proc/cmdline")) or "").split()
    default = parse_meminfo(read_text(str(root / "proc/meminfo")) or "").get("Hugepagesize", 0)
    booted = boot_pages(cmdline, default, page_size_of(entry.path))
    before = min(live, max(int(entry.before), booted))
    after = min(live, max(int(entry.wanted), before))
    return evolve(entry, before=str(before), after=str(after), undo_from=None, done=True, boot_id=boot_id)


def settle_one(ledger: Ledger, entry: SettingEntry, live: str | None) -> None:
    """Finish one entry by what the knob holds now."""
    if live is None or (live == entry.before and entry.after is None):
        ledger.drop(entry.path)
    elif entry.counted:
        ledger.put(evolve(entry, after=str(min(int(live), int(entry.wanted))), done=True))
    elif live == entry.after:
        ledger.put(evolve(entry, wanted=live, done=True))
    else:
        ledger.put(evolve(entry, after=entry.wanted, done=True))


def skipped(setting_key: str, path: str, why: str, hint: str = "") -> Finding:
    """Give the finding of a setting that could not be made; the others are made all the same."""
    return warning(
        code="host.setting.refused", message=f"{setting_key} could not be set: skipped", where=path, why=why, hint=hint
    )


def apply_setting(ledger: Ledger, setting: Setting, root: Path = Path("/"), *, lasting: bool) -> Finding | None:
    """Turn one knob; gives why it could not be.  What was there before the first time is what is put back later."""
    path, wanted = setting.knob.path, setting.wanted.value
    live = read_value(path, root)
    if live is None:
        return skipped(setting.key, path, "it is not there any more")
    earlier = ledger.find(path)
    ours = earlier if isinstance(earlier, SettingEntry) and earlier.after == live else None
    entry = SettingEntry(
        key=setting.key,
        path=path,
        before=ours.before if ours else live,
        wanted=wanted,
        after=ours.after if ours else None,
        lasting=lasting or bool(ours and ours.lasting),
        boot_id=ledger.boot_id,
        time=ledger.time,
    )
    keep_companion(ledger, setting, root, lasting=entry.lasting)
    ledger.put(entry)
    try:
        after = write_value(path, wanted, root)
    except OSError as error:
        ledger.restore(path, earlier)
        return skipped(setting.key, path, f"the kernel refused {wanted}: {error.strerror}")
    if after != wanted:
        with contextlib.suppress(OSError):
            write_value(path, live, root)
        ledger.restore(path, earlier)
        return skipped(setting.key, path, f"{wanted} was written, {after} is what the kernel made of it")
    ledger.put(evolve(entry, after=after, done=True))
    return None


def keep_companion(ledger: Ledger, setting: Setting, root: Path, *, lasting: bool) -> None:
    """Write down what the kernel resets beside a knob: it is put back after that knob is."""
    directory, _, name = setting.knob.path.rpartition("/")
    path = f"{directory}/{COMPANIONS.get(name, '')}"
    live = read_value(path, root) if name in COMPANIONS else None
    if live is not None and ledger.find(path) is None:
        ledger.put(
            SettingEntry(
                key=f"{setting.key.rpartition('.')[0]}.{COMPANIONS[name]}",
                path=path,
                before=live,
                wanted=live,
                after=live,
                done=True,
                lasting=lasting,
                companion=True,
                boot_id=ledger.boot_id,
                time=ledger.time,
            )
        )


def page_size_of(path: str) -> int:
    """Give the size in bytes of a pool's pages, by the name of its directory."""
    return int(path.partition("hugepages-")[2].partition("kB")[0]) << 10


def apply_counted(ledger: Ledger, setting: Setting, *, lasting: bool, drop_caches: bool) -> Finding | None:
    """Raise a pool by what it lacks; gives why it could not be, with what compaction gained."""
    path = setting.knob.path
    live = int(read_value(path) or 0)
    missing = int(setting.wanted.value) - live
    earlier = ledger.find(path)
    ours = earlier if isinstance(earlier, SettingEntry) else None
    gained = still_gained(ours, live) if ours else 0
    entry = SettingEntry(
        key=setting.key,
        path=path,
        before=str(live - gained),
        wanted=setting.wanted.value,
        after=str(live) if gained else None,
        counted=True,
        lasting=lasting or bool(ours and ours.lasting),
        boot_id=ledger.boot_id,
        time=ledger.time,
    )
    if missing <= 0:
        return None
    ledger.put(entry)
    change = PoolChange(page_size=page_size_of(path), pages=missing, compact=True)
    try:
        after = raise_pool(change, live, drop_caches=drop_caches)
    except KvmlaunchError as error:
        ledger.restore(path, earlier)
        report = error.report
        ladder = f"{report.hint.splitlines()[0]}   # or: kvmlaunch tune apply --boot"
        first = "" if drop_caches else "kvmlaunch tune apply --drop-caches   # gives the page cache's memory as well\n"
        return warning(code=report.code, message=report.message, where=path, why=report.why, hint=f"{first}{ladder}")
    ledger.put(evolve(entry, after=str(after), done=True))
    return None


def raise_pool(change: PoolChange, before: int, *, drop_caches: bool) -> int:
    """Raise a pool, and where it stays short once more after the page cache was dropped."""
    try:
        return apply_pool(change, before)
    except KvmlaunchError:
        if not drop_caches:
            raise
        with contextlib.suppress(OSError):
            write_control(Path(DROP_CACHES), "3")
        return apply_pool(change, before)


def gain_of(entry: SettingEntry) -> int:
    """Give by how much a counted setting was raised."""
    return int(entry.after or entry.before) - int(entry.before)


def still_gained(entry: SettingEntry, total: int) -> int:
    """Give how many pages of a gain are in the pool still: what others, or an interrupted undo, took out is not."""
    return max(0, min(gain_of(entry), total - int(entry.before)))


def undo_setting(ledger: Ledger, entry: SettingEntry, root: Path = Path("/"), *, force: bool) -> Iterator[Finding]:
    """Put one knob back where it is as we left it; says what is not, which `force` overwrites."""
    live = read_value(entry.path, root)
    if live is None:
        ledger.drop(entry.path)
        yield skipped(entry.key, entry.path, "it is not there any more")
        return
    if entry.counted:
        yield from undo_counted(ledger, evolve(entry, undo_from=entry.undo_from or live), root)
        return
    if live != entry.before:
        if live != entry.after and not force and not entry.companion:
            yield conflict(entry, live)
            return
        try:
            back = write_back(entry, root)
        except OSError as error:
            yield skipped(entry.key, entry.path, f"the kernel refused {entry.before}: {error.strerror}")
            return
        if back != entry.before:
            yield skipped(entry.key, entry.path, f"{entry.before} was written, {back} is what the kernel made of it")
            return
    ledger.drop(entry.path)


def write_back(entry: SettingEntry, root: Path) -> str:
    """Write what a knob held before and give what is read back; raises OSError.

    merge_across_nodes is refused while pages are merged, so they are taken apart first: ksm.rst.
    """
    try:
        return write_value(entry.path, entry.before, root)
    except OSError as error:
        run = read_value(RUN, root)
        if error.errno != errno.EBUSY or not entry.path.endswith(ACROSS) or run is None:
            raise
        write_value(RUN, "2", root)
        try:
            return write_value(entry.path, entry.before, root)
        finally:
            write_value(RUN, run, root)


def undo_counted(ledger: Ledger, entry: SettingEntry, root: Path) -> Iterator[Finding]:
    """Lower a pool by what it was raised; from where that began is written down first, so that it may be repeated."""
    ledger.put(entry)
    change = PoolChange(page_size=page_size_of(entry.path), pages=gain_of(entry))
    before, after, undo_from = (int(number or 0) for number in (entry.before, entry.after, entry.undo_from))
    yield from undo_pool(Entry(change=change, before=before, after=after, undo_from=undo_from), change, root)
    total = int(read_value(entry.path, root) or 0)
    left = min(gain_of(entry) - max(0, undo_from - total), still_gained(entry, total))
    if left > 0:  # in use now: they go back when they are free
        ledger.put(evolve(entry, before=str(total - left), after=str(total), undo_from=None))
    else:
        ledger.drop(entry.path)


def conflict(entry: SettingEntry, live: str) -> Finding:
    """Give the finding of a knob that somebody else has turned since."""
    return warning(
        code="host.change.conflict",
        message=f"{entry.key} was changed by somebody else and is left alone",
        where=entry.path,
        why=f"it was {entry.before}, was set to {entry.after}, and is {live}",
        hint="kvmlaunch tune off --force   # sets it back all the same",
    )


def undo_all(
    ledger: Ledger,
    undo_other: Callable[[FileEntry | MountEntry | VmEntry], Iterator[Finding]],
    entries: Sequence[TuneEntry],
    *,
    force: bool,
) -> Iterator[Finding]:
    """Take entries of the journal back, the last first; what cannot be stays written down."""
    for entry in reversed(entries):
        try:
            if isinstance(entry, SettingEntry):
                yield from undo_setting(ledger, entry, force=force)
            else:
                yield from undo_other(entry)
        except KvmlaunchError as error:
            report = error.report
            yield warning(code=report.code, message=report.message, where=report.where, why=report.why)
