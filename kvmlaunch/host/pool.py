"""Pools of huge pages, raised and lowered by what is ours in them, under the host-wide lock."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from kvmlaunch.errors import HostFailed, PreflightFailed, Report
from kvmlaunch.facts.memory import parse_meminfo
from kvmlaunch.host.files import read_number, write_control
from kvmlaunch.host.readers import read_text
from kvmlaunch.model.change import Entry, PoolChange
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.value import evolve
from kvmlaunch.units import GIB, MIB, count, render_size

MOST_READINGS = 100
WAITS = (0.01, 0.02, 0.05, 0.1, 0.2)  # seconds


def pool_path(change: PoolChange, name: str, root: Path = Path("/")) -> Path:
    """Give a file of the pool that a change is about."""
    size = f"hugepages-{change.page_size >> 10}kB"
    if change.host_numa_node is None:
        return root / "sys/kernel/mm/hugepages" / size / name
    return root / f"sys/devices/system/node/node{change.host_numa_node}/hugepages" / size / name


def idle_pages(change: PoolChange, root: Path) -> int:
    """Give the pages of a pool that nobody holds or was promised; promises are counted for the whole host only.

    Three files tell, and a QEMU that ends between two readings moves pages from one to another: they are read until
    two readings agree.
    """
    everywhere = evolve(change, host_numa_node=None)
    paths = (
        pool_path(change, "free_hugepages", root),
        pool_path(everywhere, "free_hugepages", root),
        pool_path(everywhere, "resv_hugepages", root),
    )
    reading = [read_number(path) for path in paths]
    for _ in range(MOST_READINGS):
        last, reading = reading, [read_number(path) for path in paths]
        if last == reading:
            break
    here, free, promised = reading
    return max(0, min(here, free - promised))


def wait_for_idle(change: PoolChange, pages: int, root: Path) -> int:
    """Give the idle pages of a pool, once it has as many, or as they are after a short wait.

    Pages of a QEMU that was just killed are in nobody's count for a moment (seen with 20 ended at once).
    """
    idle = idle_pages(change, root)
    for seconds in WAITS if idle < pages else ():
        time.sleep(seconds)
        idle = idle_pages(change, root)
        if idle >= pages:
            break
    return idle


def set_pool(change: PoolChange, wanted: int, root: Path) -> int:
    """Write a pool's total and give what is there afterwards: the kernel may grant less without an error."""
    path = pool_path(change, "nr_hugepages", root)
    try:
        write_control(path, str(wanted))
        return read_number(path)
    except OSError as error:
        raise HostFailed(
            Report(
                code="host.failed", message=f"{path}: {error.strerror}", where=str(path), why=f"the value was {wanted}"
            )
        ) from error


def compact_memory(root: Path) -> None:
    """Ask the kernel to make large blocks of free memory; a kernel without it is fine."""
    with contextlib.suppress(OSError):
        write_control(root / "proc/sys/vm/compact_memory", "1")


def lower_pool(change: PoolChange, pages: int, surplus: int, root: Path) -> None:
    """Take pages out of a pool, and let the kernel lend again what it had lent before the pool was raised.

    nr_hugepages reads as the pool's own pages and the lent ones; what is written are its own alone: hugetlbpage.rst.
    """
    total, lent = (read_number(pool_path(change, name, root)) for name in ("nr_hugepages", "surplus_hugepages"))
    set_pool(change, max(0, total - pages - max(lent, surplus)), root)


def apply_pool(change: PoolChange, before: int, surplus: int = 0, root: Path = Path("/")) -> int:
    """Raise a pool and give its new total; granted in part is rolled back and refused.

    `surplus` are those of the pages before that the kernel had lent.
    Raises PreflightFailed `host.hugepages.short` when nothing was granted, `.partial` when some was.
    """
    wanted = before + change.pages
    gained = first = set_pool(change, wanted, root) - before
    if gained < change.pages and change.compact:
        compact_memory(root)
        now = read_number(pool_path(change, "nr_hugepages", root))  # an administrator may have changed it meanwhile
        gained += set_pool(change, now + change.pages - gained, root) - now
    if gained >= change.pages:
        return before + gained
    lower_pool(change, gained, surplus, root)
    gained, by_compaction = max(0, gained), max(0, gained - first)
    why = f"{count(change.pages, 'page')} were asked for beside the {before} there, the kernel granted {gained}"
    if change.compact:
        why += f"\n{shortage((change.pages - gained) * change.page_size, by_compaction, root)}"
    pages = f"{count(change.pages, 'more huge page')} of {render_size(change.page_size)}"
    size = "1G" if change.page_size >= GIB else "2M"
    lasting = f"put hugepagesz={size} hugepages={wanted} on the host's kernel command line"
    raise PreflightFailed(
        Report(
            code="host.hugepages.partial" if gained else "host.hugepages.short",
            where=str(pool_path(change, "nr_hugepages")),
            why=why,
            message=f"{pages} are needed, {gained} can be had",
            hint=f"lasting:  {lasting}\nwithout:  --set memory.hugepages=auto",
        )
    )


def shortage(missing: int, by_compaction: int, root: Path) -> str:
    """Give why the kernel grants no more pages: memory in pieces, or too little of it; `missing` is in bytes."""
    compaction = f"compaction freed {count(by_compaction, 'more page')}"
    free = parse_meminfo(read_text(str(root / "proc/meminfo")) or "").get("MemFree", 0) // MIB * MIB
    if free < missing:
        return f"there is too little memory: {render_size(missing)} lack and {render_size(free)} are free; {compaction}"
    return f"memory is fragmented: {render_size(free)} are free, in pieces that are too small; {compaction}"


def undo_pool(entry: Entry, change: PoolChange, root: Path = Path("/")) -> Iterator[Finding]:
    """Lower a pool by what this change gained, never by a page in use or promised; says what could not be given back.

    Pages that somebody else took, or that were taken out of the pool meanwhile, are his: `host.change.conflict`.
    """
    total = read_number(pool_path(change, "nr_hugepages", root))
    before = entry.before or 0
    # Without what was read afterwards the command ended between: what came since then, up to what was wanted, is ours.
    # The kernel stops in the middle of a large raise when a signal is pending and keeps what it has (mm/hugetlb.c).
    gained = max(0, total - before) if entry.after is None else entry.after - before
    given = 0 if entry.undo_from is None else max(0, entry.undo_from - total)
    own = max(0, min(gained, change.pages) - given)
    idle = wait_for_idle(change, own, root)
    back = min(own, idle, total)
    if back:
        lower_pool(change, back, entry.surplus or 0, root)
    if back < own:
        yield warning(
            code="host.change.conflict",
            message=f"{back} of the {count(own, 'page')} of {render_size(change.page_size)} added to the pool go back",
            where=str(pool_path(change, "nr_hugepages", root)),
            why=f"others use them, or changed the pool: it has {total}, {idle} of them idle",
            hint="grep -i huge /proc/meminfo   # then set vm.nr_hugepages to what you want",
        )
