"""What the live QEMU and /proc say, read into evidence; pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmlaunch.model.evidence import DriveEvidence, RamMapping

KIB = 1024
FIELDS = 5  # of a mapping's first line, before the name: addresses, rights, offset, device, inode
SIZE = "\nSize:"  # the first line beneath that of a mapping

SHARED_RAM = "/memfd:memory-backend-memfd"


def parse_smaps(text: str, *, least: int = 0) -> Iterator[RamMapping]:
    """Give the mappings of /proc/PID/smaps that have at least `least` bytes, as QEMU has some hundred small ones.

    Source: proc_pid_smaps(5).
    """
    before, *parts = text.split(SIZE)
    for part in parts:
        size, _, rest = part.partition("\n")
        head = before.rpartition("\n")[2].split(None, FIELDS)
        if parse_kib(size) >= least and len(head) >= FIELDS:
            yield parse_mapping("".join(head[FIELDS:]), parse_kib(size), rest.rpartition("\n")[0])
        before = part


def parse_mapping(name: str, size: int, text: str) -> RamMapping:
    """Give one mapping of the lines beneath that of its size; a missing number is 0."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    page_size, rss, huge = (parse_kib(fields.get(field, "")) for field in ("KernelPageSize", "Rss", "Private_Hugetlb"))
    huge += parse_kib(fields.get("Shared_Hugetlb", ""))
    flags = frozenset(fields.get("VmFlags", "").split())
    return RamMapping(size=size, page_size=page_size, resident=rss + huge, flags=flags, name=name)


def parse_kib(text: str) -> int:
    """Give the bytes of `   128 kB`; 0 for anything else."""
    number = text.split()[:1]
    return int(number[0]) * KIB if number and number[0].isascii() and number[0].isdecimal() else 0


def guest_ram(mappings: Sequence[RamMapping], size: int) -> tuple[RamMapping, ...]:
    """Give the mappings that hold the guest's RAM: those of hugetlbfs, else the smallest one of no file that fits."""
    huge = tuple(mapping for mapping in mappings if "ht" in mapping.flags)
    if huge:
        return huge
    shared = [mapping for mapping in mappings if mapping.name.startswith(SHARED_RAM)]
    nameless = [mapping for mapping in mappings if not mapping.name]
    fitting = sorted(
        (mapping for mapping in shared or nameless if mapping.size >= size), key=lambda mapping: mapping.size
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
