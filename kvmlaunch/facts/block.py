"""What a definition's file is: its image header, its store, its locks.

Sources: QEMU docs/interop/qcow2.rst, block/vmdk.c, vdi.c, vhdx.c, vpc.c, qed.c, parallels.c,
block/file-posix.c (image locks); proc_locks(5).
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TypeVar

from kvmlaunch.model.host import Holder, PathFacts, PathKind
from kvmlaunch.model.value import evolve, frozen

T = TypeVar("T")
U = TypeVar("U")

KINDS: tuple[PathKind, ...] = (
    *("file", "block", "directory", "fifo"),
    *("character", "socket", "missing", "denied"),
)
MAGICS = (
    (b"QFI\xfb\x00\x00\x00\x01", "qcow"),
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"<<< ", "vdi"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"QED\x00", "qed"),
    (b"LUKS\xba\xbe", "luks"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
)
LONGEST_BACKING = 1023
VOLUME_DESCRIPTOR = 16 * 2048  # where an ISO 9660 image has its first
LONGEST_QCOW2_HEADER = 20
FIRST_WITH_FEATURES = 3  # version of qcow2
SECOND_VERSION_LENGTH = 72  # bytes of the header of version 2
BACKING_FORMAT = 0xE2792ACA  # the header extension that names it
DIRTY = 1 << 0
COUNT_ORDER, COUNT_ORDERS = 4, range(7)  # of version 2, and of all: the bits of a count are 1 << order
LARGEST_TABLE = 8 << 20  # bytes, of counts for 64 PiB
FURTHEST = 1 << 62  # bytes, from which on no offset in a file is believed
EXTERNAL_DATA = 1 << 2
CORRUPT = 1 << 1
EXTENDED_L2 = 1 << 4
LONGEST_LAYOUT = 80
CLUSTER_BITS = range(9, 22)  # 512 bytes to 2 MiB
CHOSEN = re.compile(r"\[([^\[\]\s]+)\]")
LOCK = (
    r"(?a)(?:OFDLCK|POSIX) +\S+ +(?:READ|WRITE) +-?[0-9]+ "
    r"([0-9a-f]{1,8}):([0-9a-f]{1,8}):([0-9]{1,20}) ([0-9]{1,20}) ([0-9]{1,20}|EOF)"
)
# QEMU locks byte 100 + N of an image for a permission that it has taken; N of write is 1.
WRITE_LOCK = 101


@frozen(kw_only=True)
class Disk:
    """A block device at the bottom of a path's store."""

    name: str = ""
    scheduler: str = ""
    rotational: bool | None = None
    queues: int | None = None
    physical: int = 0  # bytes of its physical block, 0 where it does not tell


@frozen(kw_only=True)
class Lock:
    """A record lock: `inode` as in PathFacts, bytes `first` to `last`; `last` None is up to the end."""

    inode: str
    first: int
    last: int | None

    @property
    def writes(self) -> bool:
        """Does it cover the byte that stands for writing to an image."""
        return self.first <= WRITE_LOCK and (self.last is None or self.last >= WRITE_LOCK)


def parse_header(head: bytes) -> str:
    """Give QEMU's name of the image format that a file begins as, "" for none that we know."""
    return next((name for magic, name in MAGICS if head.startswith(magic)), "")


def parse_backing_place(head: bytes) -> tuple[int, int]:
    """Give offset and length of a qcow2 file's backing file name; length 0 is none.

    ValueError for a length that QEMU refuses, as the file is then no sound image.
    """
    if parse_header(head) != "qcow2" or len(head) < LONGEST_QCOW2_HEADER:
        return 0, 0
    offset, length = int.from_bytes(head[8:16], "big"), int.from_bytes(head[16:20], "big")
    if offset == 0:
        return 0, 0
    if length > LONGEST_BACKING or offset >= 1 << 62:
        message = f"the qcow2 header places a backing file name of {length} bytes at {offset}"
        raise ValueError(message)
    return offset, length


def parse_backing_format(head: bytes) -> str:
    """Give the format that a qcow2 file says its backing file has; "" when it says none.

    Source: QEMU docs, interop/qcow2, "Header extensions".
    """
    version = int.from_bytes(head[4:8], "big")
    place = int.from_bytes(head[100:104], "big") if version >= FIRST_WITH_FEATURES else SECOND_VERSION_LENGTH
    while parse_header(head) == "qcow2" and place + 8 <= len(head):
        kind, length = (
            int.from_bytes(head[place : place + 4], "big"),
            int.from_bytes(head[place + 4 : place + 8], "big"),
        )
        if kind in {BACKING_FORMAT, 0}:
            return head[place + 8 : place + 8 + length].decode(errors="replace") if kind else ""
        place += 8 + (length + 7) // 8 * 8
    return ""


def parse_external(head: bytes) -> bool:
    """Does a qcow2 file keep its data in another file, which its header names: incompatible feature bit 2.

    Source: QEMU docs, interop/qcow2.
    """
    version = int.from_bytes(head[4:8], "big")
    features = int.from_bytes(head[72:80], "big") if version >= FIRST_WITH_FEATURES else 0
    return parse_header(head) == "qcow2" and bool(features & EXTERNAL_DATA)


def parse_layout(head: bytes) -> dict[str, object]:
    """Give size, cluster size and whether there are subclusters of a qcow2 file; nothing of another, or an unsound one.

    `least` is where its first table ends, which QEMU writes whole as soon as it names it: L1.
    Source: QEMU docs, interop/qcow2.
    """
    if parse_header(head) != "qcow2" or len(head) < LONGEST_LAYOUT:
        return {}
    bits, size = int.from_bytes(head[20:24], "big"), int.from_bytes(head[24:32], "big")
    version = int.from_bytes(head[4:8], "big")
    features = int.from_bytes(head[72:80], "big") if version >= FIRST_WITH_FEATURES else 0
    if bits not in CLUSTER_BITS or size >= 1 << 63:
        return {}
    layout: dict[str, object] = {
        "qcow2_version": version,
        "virtual_size": size,
        "cluster_size": 1 << bits,
        "extended_l2": bool(features & EXTENDED_L2),
        "least": min(int.from_bytes(head[40:48], "big") + 8 * int.from_bytes(head[36:40], "big"), FURTHEST),
    }
    return layout | ({"damaged": True} if features & CORRUPT else {})


def parse_counts_place(head: bytes) -> tuple[int, int, int]:
    """Give offset and length of the table of a qcow2 file's reference counts, and the bits of a count; zeros for none.

    None of a file that keeps its data in another, and of one whose counts may be behind (the dirty bit).
    Source: QEMU docs, interop/qcow2, "Host cluster management".
    """
    version = int.from_bytes(head[4:8], "big")
    features = int.from_bytes(head[72:80], "big") if version >= FIRST_WITH_FEATURES else 0
    layout = parse_layout(head)
    if not layout or features & (DIRTY | EXTERNAL_DATA):
        return 0, 0, 0
    order = int.from_bytes(head[96:100], "big") if version >= FIRST_WITH_FEATURES else COUNT_ORDER
    length = int.from_bytes(head[56:60], "big") << int.from_bytes(head[20:24], "big")
    offset = int.from_bytes(head[48:56], "big")
    if order not in COUNT_ORDERS:
        return 0, 0, 0
    return offset, min(length, LARGEST_TABLE), 1 << order


def last_counted(counts: bytes, bits: int) -> int | None:
    """Give the place of the last count above 0 in a block of them, as far as whole bytes tell it; None for none."""
    used = len(counts.rstrip(b"\0"))
    return (used - 1) * 8 // bits if used else None


def parse_volume_id(descriptor: bytes) -> str:
    """Give the name of an ISO 9660 volume, by its first descriptor; "" for what is none.

    Source: ECMA-119, 8.4: the identifier CD001 at byte 1, the volume's at byte 40.
    """
    if descriptor[1:6] != b"CD001":
        return ""
    return descriptor[40:72].decode("ascii", errors="replace").rstrip(" \0")


def parse_scheduler(text: str) -> str:
    """Give the scheduler in use: the word in brackets, or the only word."""
    match = CHOSEN.search(text)
    return match[1] if match else text.strip()


def parse_locks(text: str) -> tuple[Lock, ...]:
    """Give the record locks of /proc/locks or of an fdinfo file; flocks and leases are left out."""
    return tuple(
        Lock(
            inode=f"{int(major, 16)}:{int(minor, 16)}:{inode}",
            first=int(first),
            last=None if last == "EOF" else int(last),
        )
        for major, minor, inode, first, last in re.findall(LOCK, text)
    )


def parse_path(path: PurePosixPath, probe: object, *, filesystem: str, holders: tuple[Holder, ...]) -> PathFacts:
    """Give the facts of one probe `path:/…`; `filesystem` is the type of the mount that it lies on."""
    if not isinstance(probe, Mapping):
        message = f"the probe of {path} is no table"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    disk = parse_disk(take(probe, "disks", list, []))
    return PathFacts(
        path=path,
        kind=parse_kind(take(probe, "kind", str, "")),
        size=take(probe, "size", int, 0),
        allocated=take(probe, "allocated", int, 0),
        readable=take(probe, "readable", bool, None) or False,
        writable=take(probe, "writable", bool, None) or False,
        o_direct=take(probe, "o_direct", bool, None),
        refusal=take(probe, "refusal", str, ""),
        dangling=take(probe, "dangling", bool, None) or False,
        filesystem=filesystem,
        inode=take(probe, "inode", str, ""),
        header=take(probe, "header", str, ""),
        volume_id=take(probe, "volume_id", str, ""),
        backing=take(probe, "backing", str, ""),
        since=tuple(str(each) for each in take(probe, "since", list, [])),
        stray=tuple(str(each) for each in take(probe, "stray", list, [])),
        unread=tuple(str(each) for each in take(probe, "unread", list, [])),
        broken=take(probe, "broken", str, ""),
        moved=take(probe, "moved", str, ""),
        spoilt=take(probe, "spoilt", str, ""),
        mounted_readonly=take(probe, "mounted_readonly", bool, None) or False,
        no_discard=take(probe, "no_discard", bool, None) or False,
        claimed=take(probe, "claimed", bool, None) or False,
        committing=take(probe, "committing", bool, None) or False,
        taking=take(probe, "taking", bool, None) or False,
        qcow2_version=take(probe, "qcow2_version", int, 0),
        virtual_size=take(probe, "virtual_size", int, 0),
        short=tuple(str(each) for each in take(probe, "short", list, [])),
        cluster_size=take(probe, "cluster_size", int, 0),
        extended_l2=take(probe, "extended_l2", bool, None) or False,
        damaged=take(probe, "damaged", bool, None) or False,
        least=take(probe, "least", int, 0),
        chain=tuple(str(each) for each in take(probe, "chain", list, [])),
        overlays=tuple(str(each) for each in take(probe, "overlays", list, [])),
        external_data=take(probe, "external", bool, None) or False,
        device=disk.name,
        scheduler=disk.scheduler,
        rotational=disk.rotational,
        queues=disk.queues,
        physical_block=disk.physical,
        lock_holders=holders,
        owner=take(probe, "owner", str, ""),
        mode=take(probe, "mode", int, 0),
    )


def parse_kind(text: str) -> PathKind:
    """Give the kind of a path."""
    for kind in KINDS:
        if text == kind:
            return kind
    message = f"{text[:40]!r} is no kind of a path"
    raise ValueError(message)


def parse_disk(probes: list[object]) -> Disk:
    """Give the bottom device; of several (LVM, RAID) the first, which rotates when any does, with the largest block."""
    disks = [parse_one_disk(probe) for probe in probes]
    if not disks:
        return Disk()
    first = evolve(disks[0], physical=max(disk.physical for disk in disks))
    return evolve(first, rotational=True) if any(disk.rotational for disk in disks) else first


def parse_one_disk(probe: object) -> Disk:
    """Give one block device of a probe."""
    if not isinstance(probe, Mapping):
        message = "a block device is no table"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    rotational = take(probe, "rotational", str, "").strip()
    return Disk(
        name=take(probe, "name", str, ""),
        scheduler=parse_scheduler(take(probe, "scheduler", str, "")),
        rotational=rotational != "0" if rotational else None,
        queues=take(probe, "queues", int, None),
        physical=take(probe, "physical", int, 0),
    )


def take(probe: Mapping[object, object], name: str, kind: type[T], absent: U) -> T | U:
    """Give a value of a probe; ValueError when it is of another kind (a bool is no int)."""
    value = probe.get(name)
    if value is None:
        return absent
    if type(value) is not kind:
        message = f"{name} of a path is {type(value).__name__}, not {kind.__name__}"
        raise ValueError(message)
    return value
