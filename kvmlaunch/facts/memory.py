"""The host's memory: /proc/meminfo, transparent huge pages, KSM."""

import re
from collections.abc import Mapping

from kvmlaunch.model.host import HostMemory, Ksm

MEMINFO = "/proc/meminfo"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
KSM = "/sys/kernel/mm/ksm"
FILES = (MEMINFO, THP, *(f"{KSM}/{name}" for name in ("run", "pages_shared", "pages_sharing")))

KIB_LINE = re.compile(r"(?:Node [0-9]+ )?([A-Za-z0-9_()]+): *([0-9]{1,18}) kB")
CHOSEN = re.compile(r"\[([^\[\]\s]+)\]")


def parse_meminfo(text: str) -> Mapping[str, int]:
    """Give the fields of /proc/meminfo in bytes; lines without `kB` (page counts) are left out."""
    found = (KIB_LINE.fullmatch(line.strip()) for line in text.splitlines())
    return {match[1]: int(match[2]) * 1024 for match in found if match}


def parse_memory(files: Mapping[str, str]) -> HostMemory:
    """Give the memory; ValueError when the total or the available part is missing."""
    fields = parse_meminfo(files.get(MEMINFO, ""))
    for name in ("MemTotal", "MemAvailable"):
        if name not in fields:
            message = f"{MEMINFO} has no {name}"
            raise ValueError(message)
    return HostMemory(
        total=fields["MemTotal"],
        available=fields["MemAvailable"],
        free=fields.get("MemFree", 0),
        swap_total=fields.get("SwapTotal", 0),
    )


def parse_thp(files: Mapping[str, str]) -> str | None:
    """Give `always`, `madvise` or `never`: the word in brackets; None where the kernel has none."""
    match = CHOSEN.search(files.get(THP, ""))
    return match[1] if match else None


def parse_ksm(files: Mapping[str, str]) -> Ksm | None:
    """Give KSM's switch and counters, None where the kernel has none."""
    if f"{KSM}/run" not in files:
        return None
    run, shared, sharing = (
        parse_count(files.get(f"{KSM}/{name}", "0"), name) for name in ("run", "pages_shared", "pages_sharing")
    )
    return Ksm(run=run, pages_shared=shared, pages_sharing=sharing)


def parse_count(text: str, name: str) -> int:
    """Give the number that a file of KSM holds."""
    if re.fullmatch(r"[0-9]{1,20}", text.strip(), re.ASCII) is None:
        message = f"{KSM}/{name} holds {text.strip()[:40]!r}, no number"
        raise ValueError(message)
    return int(text)
