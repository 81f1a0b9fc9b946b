"""Limits: asynchronous I/O, locked memory, hugepages of our control group.

Sources: Documentation/admin-guide/sysctl/fs.rst and kernel.rst; cgroup-v2.rst, "HugeTLB";
cgroup-v1/hugetlb.rst.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from kvmlaunch.model.host import AioFacts, UserFacts
from kvmlaunch.units import SIZE_UNITS

AIO_USED = "/proc/sys/fs/aio-nr"
AIO_MOST = "/proc/sys/fs/aio-max-nr"
IO_URING_DISABLED = "/proc/sys/kernel/io_uring_disabled"
IO_URING_GROUP = "/proc/sys/kernel/io_uring_group"
LIMITS = "/proc/self/limits"
CGROUP = "/proc/self/cgroup"
MOUNTINFO = "/proc/self/mountinfo"
FILES = (AIO_USED, AIO_MOST, IO_URING_DISABLED, IO_URING_GROUP, LIMITS, CGROUP)

UNLIMITED = (1 << 64) - 1
MEMLOCK = re.compile(r"^Max locked memory +\S+ +(unlimited|[0-9]{1,20}) ", re.MULTILINE | re.ASCII)
NUMBER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
HUGETLB = r"(?a)hugetlb\.([0-9]{1,6})(KB|MB|GB)\.(?:rsvd\.)?(?:max|limit_in_bytes)"
HUGETLB_FILES = ("hugetlb.*.max", "hugetlb.*.limit_in_bytes")
# A version 1 limit that was never set is the largest counter, rounded down to a page.
NO_LIMIT_FROM = 1 << 62


def parse_aio(files: Mapping[str, str], io_uring: object, user: UserFacts) -> AioFacts:
    """Give the limits of asynchronous I/O; `io_uring` is what the system said to the user, None when it was not tried.

    Untried, the sysctl alone speaks: 2 refuses everybody, 1 whoever is neither root nor in the group.
    """
    refusal = io_uring if isinstance(io_uring, str) else parse_io_uring_switch(files, user)
    return AioFacts(
        used=parse_number(files, AIO_USED),
        most=parse_number(files, AIO_MOST),
        io_uring_refusal=refusal,
        io_uring_switch=parse_number(files, IO_URING_DISABLED),
    )


def parse_io_uring_switch(files: Mapping[str, str], user: UserFacts) -> str:
    """Give the refusal that kernel.io_uring_disabled means for this user, "" when it means none."""
    switch = parse_number(files, IO_URING_DISABLED)
    if switch == 0 or (switch == 1 and user.uid == 0):
        return ""
    return f"kernel.io_uring_disabled is {switch}"


def parse_number(files: Mapping[str, str], path: str) -> int:
    """Give the number that a sysctl holds; 0 when this kernel has no such file."""
    text = files.get(path, "0").strip()
    if NUMBER.fullmatch(text) is None:
        message = f"{path} holds {text[:40]!r}, no number"
        raise ValueError(message)
    return int(text)


def parse_memlock(files: Mapping[str, str]) -> int | None:
    """Give the hard limit of locked memory in bytes, 2^64-1 for no limit, None when it was not read."""
    match = MEMLOCK.search(files.get(LIMITS, ""))
    if match is None:
        return None
    return UNLIMITED if match[1] == "unlimited" else int(match[1])


def parse_hugetlb_cgroup(files: Mapping[str, str]) -> Mapping[int, int]:
    """Give by page size the smallest limit in bytes of our control group and its parents; absent is unlimited."""
    limits: dict[int, int] = {}
    for directory in map(str, parse_cgroup_directories(files)):
        for path, text in files.items():
            parent, _, name = path.rpartition("/")
            match = re.fullmatch(HUGETLB, name) if parent == directory else None
            if match and NUMBER.fullmatch(text.strip()) and (limit := int(text)) < NO_LIMIT_FROM:
                size = int(match[1]) * SIZE_UNITS[match[2][0]]
                limits[size] = min(limit, limits.get(size, limit))
    return limits


def parse_cgroup_directories(files: Mapping[str, str]) -> tuple[PurePosixPath, ...]:
    """Give the directories, of our control group and its parents, where limits of hugepages stand.

    A mount of version 2, or of version 1 with the hugetlb controller.  Where the mount shows a part
    of the tree only (a container), the part above it cannot be read.
    """
    memberships = [parse_membership(line) for line in files.get(CGROUP, "").splitlines() if line.count(":") > 1]
    groups = {controller: group for controllers, group in memberships for controller in controllers}
    found: list[PurePosixPath] = []
    for mount_point, root, controller in parse_cgroup_mounts(files.get(MOUNTINFO, "")):
        if controller in groups:
            found.extend(parse_ancestry(mount_point, root, groups[controller]))
    return tuple(dict.fromkeys(found))


def parse_membership(line: str) -> tuple[tuple[str, ...], str]:
    """Give the controllers and the group of a line of /proc/self/cgroup; version 2 is the controller ""."""
    _, controllers, group = line.split(":", 2)
    return tuple(controllers.split(",")), group


def parse_cgroup_mounts(mountinfo: str) -> list[tuple[str, str, str]]:
    """Give mount point, mounted root and controller ("" for version 2) of the hierarchies with hugepage limits."""
    found = []
    for line in mountinfo.splitlines():
        front, _, back = line.partition(" - ")
        match front.split(" "), back.split(" "):
            case [_, _, _, root, point, *_], ["cgroup2", *_]:
                found.append((point, root, ""))
            case [_, _, _, root, point, *_], ["cgroup", _, options, *_] if "hugetlb" in options.split(","):
                found.append((point, root, "hugetlb"))
    return found


def parse_ancestry(mount_point: str, root: str, group: str) -> list[PurePosixPath]:
    """Give the directory of a group below its mount and every parent up to the mount point."""
    try:
        below = PurePosixPath(group).relative_to(root)
    except ValueError:
        return []
    if ".." in below.parts:
        return []
    return [PurePosixPath(mount_point) / part for part in (below, *below.parents)]
