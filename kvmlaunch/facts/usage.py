"""What a VM has used so far, and from two looks at it what it uses now.

Sources: proc(5), /proc/PID/stat, status, smaps_rollup, ksm_merging_pages; QEMU's QAPI schema, query-blockstats.
"""

import re
from collections.abc import Mapping
from typing import Final

from kvmlaunch.model.value import frozen

LINE: Final = re.compile(r"^(\w+):?\s+([0-9]{1,18})(?: kB)?$", re.MULTILINE | re.ASCII)
UTIME, STIME = 11, 12  # of the fields behind the name in brackets
KIB: Final = 1024
LARGEST: Final = 1 << 64
NUMBER: Final = re.compile(r"[0-9]{1,20}")


@frozen(kw_only=True)
class Counters:
    """What a VM has used since it was started: CPU time in ticks, what its disks did, what its taps carried.

    Memory is what it has now, in bytes: `resident` without huge pages, `huge` of it in transparent ones, `hugetlb` in
    reserved ones of `hugetlb_page` each (0 where that cannot be told), `swapped` out, `merged` by KSM (None before
    Linux 5.19).  What the disks did is None where QEMU does not answer; `received` and `sent` are the guest's, None
    without a tap.
    """

    ticks: int = 0
    resident: int = 0
    huge: int = 0
    hugetlb: int = 0
    hugetlb_page: int = 0
    swapped: int = 0
    merged: int | None = None
    reads: int | None = None
    writes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    busy_ns: int | None = None
    received: int | None = None
    sent: int | None = None


@frozen(kw_only=True)
class Usage:
    """What a VM uses: `cpu` in CPUs (1.5 is one and a half), rates a second, `latency` of a request in seconds.

    What the disks did is None where QEMU did not answer at both looks, `latency` also when there was no request;
    `received` and `sent` are None without a tap.
    """

    cpu: float
    now: Counters
    reads: float | None
    writes: float | None
    read_bytes: float | None
    written_bytes: float | None
    latency: float | None
    received: float | None
    sent: float | None


def parse_ticks(stat: str) -> int:
    """Give the CPU time of /proc/PID/stat in ticks, user's and system's; 0 for no such text."""
    fields = stat.rpartition(")")[2].split()[UTIME : STIME + 1]
    return sum(map(int, fields)) if len(fields) > 1 and all(map(NUMBER.fullmatch, fields)) else 0


def parse_numbers(text: str) -> Mapping[str, int]:
    """Give the numbers of `Name: 12 kB` and `name 12` lines as they stand."""
    return {name: int(number) for name, number in LINE.findall(text)}


def parse_blocks(answer: object) -> Mapping[str, int]:
    """Give what all disks together did, of query-blockstats; nothing where there is no such answer."""
    if not isinstance(answer, list):
        return {}
    found = {"reads": 0, "writes": 0, "read_bytes": 0, "written_bytes": 0, "busy_ns": 0}
    names = {"reads": ("rd_operations",), "writes": ("wr_operations", "flush_operations", "unmap_operations")}
    names |= {"read_bytes": ("rd_bytes",), "written_bytes": ("wr_bytes",)}
    names |= {"busy_ns": ("rd_total_time_ns", "wr_total_time_ns", "flush_total_time_ns", "unmap_total_time_ns")}
    for row in answer:
        stats = row.get("stats") if isinstance(row, Mapping) else None
        if isinstance(stats, Mapping):
            for name, parts in names.items():
                found[name] += sum(
                    number for part in parts if type(number := stats.get(part)) is int and 0 <= number < LARGEST
                )
    return found


def build_counters(
    *,
    stat: str,
    status: str,
    rollup: str,
    ksm: str,
    blocks: object,
    network: tuple[int, int] | None,
    page_size: int,
    huge_page: int = 0,
) -> Counters:
    """Give the counters of a VM from what was read of it; what could not be read is "" and counts as nothing."""
    numbers, pages, merged = parse_numbers(status), parse_numbers(rollup), ksm.strip()
    hugetlb = numbers.get("HugetlbPages", 0) * KIB
    return Counters(
        ticks=parse_ticks(stat),
        resident=numbers.get("VmRSS", 0) * KIB,
        huge=(pages.get("AnonHugePages", 0) + pages.get("ShmemPmdMapped", 0)) * KIB,
        hugetlb=hugetlb,
        hugetlb_page=huge_page if hugetlb else 0,
        swapped=numbers.get("VmSwap", 0) * KIB,
        merged=int(merged) * page_size if NUMBER.fullmatch(merged) else None,
        received=network[0] if network else None,
        sent=network[1] if network else None,
        **parse_blocks(blocks),
    )


def build_usage(before: Counters, after: Counters, seconds: float, ticks_a_second: int) -> Usage:
    """Give what a VM used between two looks; a counter that went back, as after a reset, counts as nothing."""

    def rate(first: int | None, last: int | None) -> float | None:
        return None if first is None or last is None else max(0, last - first) / seconds

    reads, writes = rate(before.reads, after.reads), rate(before.writes, after.writes)
    requests, busy = (reads or 0) + (writes or 0), rate(before.busy_ns, after.busy_ns)
    return Usage(
        cpu=max(0, after.ticks - before.ticks) / ticks_a_second / seconds,
        now=after,
        reads=reads,
        writes=writes,
        read_bytes=rate(before.read_bytes, after.read_bytes),
        written_bytes=rate(before.written_bytes, after.written_bytes),
        latency=busy / requests / 1e9 if busy is not None and requests > 0 else None,
        received=rate(before.received, after.received),
        sent=rate(before.sent, after.sent),
    )
