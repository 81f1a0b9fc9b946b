"""Pools of huge pages that tuning keeps filled: raised by what they lack, lowered by what is ours in them.

Beside what was there before, a pool holds pages of running VMs, which go with them.
Every function here runs under the host-wide lock.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.facts.boot_files import FILES, parse_boot_lines
from kvmlaunch.facts.memory import parse_meminfo
from kvmlaunch.host.capture import read_all
from kvmlaunch.host.files import write_control
from kvmlaunch.host.knobs import read_value
from kvmlaunch.host.pool import apply_pool, undo_pool
from kvmlaunch.host.readers import read_text
from kvmlaunch.host.tune_journal import Ledger
from kvmlaunch.model.change import Entry, PoolChange
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.tuning import Setting, SettingEntry
from kvmlaunch.model.value import evolve
from kvmlaunch.tune.keep import SYSCTL_FILE, boot_pages, sysctl_name

DROP_CACHES = "/proc/sys/vm/drop_caches"


def page_size_of(path: str) -> int:
    """Give the size in bytes of a pool's pages, by the name of its directory."""
    return int(path.partition("hugepages-")[2].partition("kB")[0]) << 10


def apply_counted(
    ledger: Ledger, setting: Setting, *, lasting: bool, drop_caches: bool, borrowed: int, again: str
) -> Finding | None:
    """Raise a pool by what it lacks; gives why it could not be, with what compaction gained.

    `borrowed` are the pages of running VMs in it, which go with them; `again` is this command, for a hint.
    """
    path = setting.knob.path
    live = int(read_value(path) or 0)
    missing = int(setting.wanted.value) - live
    earlier = ledger.find(path)
    if missing <= 0:
        return None
    entry = counted_entry(ledger, setting, live, borrowed, lasting=lasting)
    ledger.put(entry)
    change = PoolChange(page_size=page_size_of(path), pages=missing, compact=True)
    try:
        raise_pool(change, live, int(entry.surplus), drop_caches=drop_caches)
    except KvmlaunchError as error:
        if lasting:  # a file of ours asks for it at boot, while memory is empty
            ledger.put(evolve(entry, done=True))
        else:
            ledger.restore(path, earlier)
        report = error.report
        ladder = f"{report.hint.splitlines()[0]}   # or: {again} --boot"
        first = "" if drop_caches else f"{again} --drop-caches   # gives the page cache's memory as well\n"
        return warning(code=report.code, message=report.message, where=path, why=report.why, hint=f"{first}{ladder}")
    ledger.put(evolve(entry, after=str(int(entry.after or 0) + missing), done=True))
    return None


def counted_entry(ledger: Ledger, setting: Setting, live: int, borrowed: int, *, lasting: bool) -> SettingEntry:
    """Give the entry of a pool as it is now: what is ours in it, what running VMs have, what was there before."""
    earlier = ledger.find(setting.knob.path)
    ours = earlier if isinstance(earlier, SettingEntry) else None
    gained = still_gained(ours, live - borrowed) if ours else 0
    before = max(0, live - gained - borrowed)
    return SettingEntry(
        key=setting.key,
        path=setting.knob.path,
        before=str(before),
        wanted=setting.wanted.value,
        after=str(before + gained),
        counted=True,
        lasting=lasting or bool(ours and ours.lasting),
        kept=setting.wanted.value if lasting else ours.kept if ours else None,
        kept_before=kept_before(ours, setting.wanted.value) if lasting else ours.kept_before if ours else (),
        borrowed=str(borrowed),
        surplus=str(int(ours.surplus if ours else 0) + lent_pages(setting.knob.path)),
        boot_id=ledger.boot_id,
        time=ledger.time,
    )


def kept_before(known: SettingEntry | None, wanted: str) -> tuple[str, ...]:
    """Give what a file of ours may set at boot until it is written with another value."""
    if known is None or known.kept in {None, wanted}:
        return known.kept_before if known else ()
    return (*known.kept_before, str(known.kept))


def lent_pages(path: str) -> int:
    """Give the pages that the kernel lends beyond a pool now; raising the pool makes them its own."""
    return int(read_value(path.replace("nr_hugepages", "surplus_hugepages")) or 0)


def raise_pool(change: PoolChange, before: int, surplus: int, *, drop_caches: bool) -> int:
    """Raise a pool, and where it stays short once more after the page cache was dropped."""
    try:
        return apply_pool(change, before, surplus)
    except KvmlaunchError:
        if not drop_caches:
            raise
        with contextlib.suppress(OSError):
            write_control(Path(DROP_CACHES), "3")
        return apply_pool(change, before, surplus)


def gain_of(entry: SettingEntry) -> int:
    """Give by how much a counted setting was raised."""
    return int(entry.after or entry.before) - int(entry.before)


def still_gained(entry: SettingEntry, total: int) -> int:
    """Give how many pages of a gain are in the pool still: what others, or an interrupted undo, took out is not."""
    return max(0, min(gain_of(entry), total - int(entry.before)))


def undo_counted(ledger: Ledger, entry: SettingEntry, root: Path, *, stays: bool) -> Iterator[Finding]:
    """Lower a pool by what it was raised; from where that began is written down first, so that it may be repeated."""
    ledger.put(entry)
    if ledger.unwritten:  # lowered again by what it says still, it would lose pages of others
        yield warning(
            code=ledger.unwritten.code,
            message=f"{entry.key} is not put back: skipped",
            where=entry.path,
            why=f"what is lowered is written down first: {ledger.unwritten.message}",
            hint="kvmlaunch tune off   # again, once there is room",
        )
        return
    before, undo_from = int(entry.before), int(entry.undo_from or 0)
    gained = still_gained(entry, undo_from)  # what others took out since is not ours to take again
    change = PoolChange(page_size=page_size_of(entry.path), pages=gained)
    noted = Entry(change=change, before=before, after=before + gained, undo_from=undo_from, surplus=int(entry.surplus))
    yield from undo_pool(noted, change, root)
    total = int(read_value(entry.path, root) or 0)
    left = max(0, min(gained - max(0, undo_from - total), still_gained(entry, total)))
    if left or stays:  # in use now: they go back when they are free
        ledger.put(evolve(entry, after=str(before + left), undo_from=None, surplus="0", done=True))
    else:
        ledger.drop(entry.path)


def lower_counted(ledger: Ledger, entry: SettingEntry, wanted: int, root: Path = Path("/")) -> Iterator[Finding]:
    """Lower a pool that holds more of ours than is wished now, as far as its pages are idle."""
    live = int(read_value(entry.path, root) or 0)
    if entry.undo_from is not None:  # a crash came while it was lowered: what was given then is not ours any more
        given = max(0, int(entry.undo_from) - live)
        entry = evolve(entry, after=str(max(int(entry.before), int(entry.after or entry.before) - given)))
    excess = min(gain_of(entry), max(0, live - wanted))
    change = PoolChange(page_size=page_size_of(entry.path), pages=excess)
    ledger.put(evolve(entry, undo_from=str(live)))
    if excess:
        yield from undo_pool(Entry(change=change, before=live - excess, after=live, undo_from=live), change, root)
    given = live - int(read_value(entry.path, root) or 0)
    after = max(int(entry.before), int(entry.after or entry.before) - given)
    ledger.put(evolve(entry, after=str(after), wanted=str(wanted), undo_from=None))


def settled_pool(entry: SettingEntry, live: int) -> SettingEntry:
    """Give the entry of a pool that was being raised when a crash came: what is there beyond others' pages is ours."""
    others = int(entry.before) + int(entry.borrowed)
    gained = max(0, min(live, int(entry.wanted)) - others)
    return evolve(entry, after=str(int(entry.before) + gained), done=True)


def asked_at_boot(path: str, root: Path) -> int:
    """Give the pages of a pool that the kernel command line, or a file of somebody else, asks for at boot."""
    cmdline = (read_text(str(root / "proc/cmdline")) or "").split()
    default = parse_meminfo(read_text(str(root / "proc/meminfo")) or "").get("Hugepagesize", 0)
    booted = boot_pages(cmdline, default, page_size_of(path))
    if page_size_of(path) != default:  # vm.nr_hugepages counts another pool
        return booted
    lines = parse_boot_lines(dict(read_all(str(root).rstrip("/"), FILES)), ())
    others = [each.value for each in lines if each.name == sysctl_name(path) and each.file != SYSCTL_FILE]
    return int(others[-1]) if others and others[-1].isdecimal() else booted


def counted_anew(entry: SettingEntry, live: int, boot_id: str, root: Path) -> SettingEntry:
    """Give a pool that was raised at boot again as it is counted there: what others asked for at boot is not ours.

    What was there before is there again where the pool is as large; a smaller one has lost it with the earlier boot.
    """
    again = int(entry.before) if live >= int(entry.before) else 0
    before = min(live, max(again, asked_at_boot(entry.path, root)))
    set_by_us = (int(each) for each in (entry.kept or entry.wanted, *entry.kept_before))
    after = min(live, max(*set_by_us, before))
    counted = evolve(entry, before=str(before), after=str(after), undo_from=None, done=True, boot_id=boot_id)
    return evolve(counted, borrowed="0", surplus="0")
