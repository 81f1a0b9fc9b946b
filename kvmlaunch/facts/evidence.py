"""What the live QEMU and /proc say, read into evidence; pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmlaunch.model.evidence import DriveEvidence, RamMapping

KIB = 1024


def parse_smaps(text: str) -> Iterator[RamMapping]:
    """Give every mapping of /proc/PID/smaps; raises ValueError for a line of another shape.

    Source: proc_pid_smaps(5).
    """
    name, numbers, flags = "", dict[str, int](), frozenset[str]()
    for line in text.splitlines():
        head = line.split(maxsplit=5)
        if not head:
            continue
        if head[0].endswith(":"):
            if head[0] == "VmFlags:":
                flags = frozenset(line.split()[1:])
                yield build_mapping(name, numbers, flags)
                numbers = {}
            elif len(head) > 1 and head[1].isdigit():
                numbers[head[0][:-1]] = int(head[1]) * KIB
        else:
            name = head[5] if len(head) > 5 else ""  # noqa: PLR2004 - the sixth field is the name


def build_mapping(name: str, numbers: Mapping[str, int], flags: frozenset[str]) -> RamMapping:
    """Give one mapping; a missing number is 0."""
    return RamMapping(
        size=numbers.get("Size", 0),
        page_size=numbers.get("KernelPageSize", 0),
        resident=numbers.get("Rss", 0) + numbers.get("Private_Hugetlb", 0),
        flags=flags,
        name=name,
    )


def guest_ram(mappings: Sequence[RamMapping], size: int) -> tuple[RamMapping, ...]:
    """Give the mappings that hold the guest's RAM: those of hugetlbfs, else the smallest private one that fits."""
    huge = tuple(mapping for mapping in mappings if "ht" in mapping.flags)
    if huge:
        return huge
    fitting = sorted(
        (mapping for mapping in mappings if mapping.size >= size and not mapping.name), key=lambda mapping: mapping.size
    )
    return tuple(fitting[:1])


def parse_drives(answer: object) -> tuple[DriveEvidence, ...]:
    """Give the drives of query-block that have a medium; the descriptors are added by who can see them.

    Source: QEMU qapi/block-core.json, BlockDeviceInfo.
    """
    blocks: list[Any] = answer if isinstance(answer, list) else []
    return tuple(
        parse_drive(block["device"], block["inserted"])
        for block in blocks
        if block.get("inserted") and block.get("device")
    )


def parse_drive(device: str, inserted: Mapping[str, Any]) -> DriveEvidence:
    """Give one drive of query-block."""
    cache = inserted.get("cache", {})
    return DriveEvidence(
        id=device,
        path=inserted.get("image", {}).get("filename", ""),
        format=inserted.get("drv", ""),
        readonly=inserted.get("ro", False),
        direct=cache.get("direct", False),
        no_flush=cache.get("no-flush", False),
        writeback=cache.get("writeback", False),
        detect_zeroes=inserted.get("detect_zeroes", ""),
        iops=inserted.get("iops", 0),
        bandwidth=inserted.get("bps", 0),
    )


def parse_status(text: str) -> dict[str, str]:
    """Give the fields of /proc/PID/status by name."""
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in text.splitlines()) if colon}


def parse_open_flags(fdinfo: str) -> int:
    """Give the open flags of /proc/PID/fdinfo/N, octal there; ValueError when they are missing."""
    for line in fdinfo.splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    message = "fdinfo has no flags"
    raise ValueError(message)
