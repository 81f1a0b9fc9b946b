"""Look at the files and devices that definitions name: what they begin with, rest on and lie on.

As we are: whoever asks has taken on the rights of the VM's user.  Paths are strings here: Path takes ten times as long.
"""

import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePosixPath

from kvmlaunch.facts import block, mounts
from kvmlaunch.host.readers import device_number, names_in, read_text
from kvmlaunch.host.rights import user_name
from kvmlaunch.model.host import Mount
from kvmlaunch.model.image import RAW_SUFFIXES, SMALLEST_QCOW2, moved_path, overlay_directories
from kvmlaunch.storage import snapshot
from kvmlaunch.storage.image import plain_file

BLOCK = 4096
CLAIM_LOOKS = (0.01, 0.03, 0.1, 0.1)  # seconds after each try
DEEPEST_STORE = 16
LONGEST_PATH = 4096
COUNTS_ENTRY = 8  # bytes of the table that leads to the blocks of a qcow2 file's counts
DEEPEST_CHAIN = 64


def capture_path(base: str, path: str) -> dict[str, object]:
    """Give what can be seen of a file that a definition names, without its content."""
    real = os.path.realpath(base + path)
    probe: dict[str, object] = {"real": real.removeprefix(base) or "/"}
    try:
        seen = os.stat(real)
    except OSError as error:
        missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
        led = {"dangling": True} if missing and os.path.islink(base + path) else {}
        gone = {"moved": moved} if missing and (moved := moved_to(PurePosixPath(real))) else {}
        return {**probe, "kind": "missing" if missing else "denied", "refusal": error.strerror, **led, **gone}
    kind = kind_of(seen.st_mode)
    device = seen.st_rdev if kind == "block" else seen.st_dev
    return {
        **probe,
        "kind": kind,
        "size": seen.st_size,
        "allocated": seen.st_blocks * 512,
        "inode": f"{device_number(seen.st_dev)}:{seen.st_ino}",
        "device": device_number(device),
        "owner": user_name(seen.st_uid),
        "mode": stat.S_IMODE(seen.st_mode),
        **({"mounted_readonly": True} if kind != "block" and is_mounted_readonly(real) else {}),
        **({"no_discard": True} if kind == "block" and takes_no_discard(base, device_number(device)) else {}),
        "readable": os.access(real, os.R_OK, effective_ids=True),
        "writable": os.access(real, os.W_OK, effective_ids=True),
        **(capture_store(real, kind) if kind in {"file", "block"} else {}),
        **(capture_snapshots(real) if kind == "file" else {}),
    }


def moved_to(image: PurePosixPath) -> str:
    """Give where a disk went that was converted, and removed at this path; "" where that is not known."""
    try:
        with open(moved_path(image), encoding="utf-8") as file:
            return file.read(LONGEST_PATH).strip()
    except (OSError, ValueError):
        return ""


def is_mounted_readonly(path: str) -> bool:
    """Does a file lie on a file system that nobody can write to; for a device node that does not matter."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def capture_snapshots(path: str) -> dict[str, object]:
    """Give the overlays of an image's snapshots that lie beside it, and what of them is not finished."""
    directory, name = os.path.split(path)
    names = [each for each in names_in(directory) if each.startswith(f"{name}.")]
    image = PurePosixPath(path)
    overlays = [f"{directory}/{each}" for each in names if snapshot.is_overlay_name(each, name)]
    files = [each for each in overlays if os.path.isfile(each)]
    unread = [each for each in files if not os.access(each, os.R_OK, effective_ids=True)]
    known = {PurePosixPath(each): PurePosixPath(backing_of(each)) for each in overlays if each not in unread}
    chain = snapshot.order(image, known)
    seen: dict[str, object] = {"since": [str(each) for each in chain.overlays]} if chain.overlays else {}
    seen |= {"stray": [str(each) for each in chain.stray]} if chain.stray else {}
    seen |= {"unread": unread} if unread else {}
    seen |= {"taking": True} if os.path.isfile(snapshot.taking_path(image)) else {}
    return seen | ({"committing": True} if snapshot.mark_path(image).name in names else {})


def kind_of(mode: int) -> str:
    """Give the kind of a path from its mode."""
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFBLK: "block",
        stat.S_IFDIR: "directory",
        stat.S_IFIFO: "fifo",
        stat.S_IFCHR: "character",
    }
    return kinds.get(stat.S_IFMT(mode), "socket")


def capture_store(path: str, kind: str) -> dict[str, object]:
    """Give format, size of a device, and the outcome of reading a file or block device as we are."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return {"readable": False, "refusal": error.strerror}
    try:
        head = os.pread(handle, BLOCK, 0)
        size = os.lseek(handle, 0, os.SEEK_END)
        backing = read_backing(handle, head)
        seen: dict[str, object] = {"readable": True, "header": block.parse_header(head), "backing": backing}
        seen |= block.parse_layout(head)
        short = is_short(handle, head)
        volume = block.parse_volume_id(os.pread(handle, BLOCK, block.VOLUME_DESCRIPTOR))
        seen |= {"volume_id": volume} if volume else {}
        seen |= read_chain(path, head, backing) if backing or block.parse_external(head) else {}
        if short:
            seen["short"] = [path, *chained_short(seen)]
    except OSError as error:
        return {"refusal": error.strerror}
    finally:
        os.close(handle)
    refusal = try_o_direct(path)
    sizes = {"size": size, "allocated": size} if kind == "block" else {}
    return {**seen, **sizes, "o_direct": not refusal, "refusal": refusal}


def chained_short(seen: dict[str, object]) -> list[object]:
    """Give the short files of what was seen of a chain."""
    short = seen.get("short")
    return short if isinstance(short, list) else []


def is_short(handle: int, head: bytes) -> bool:
    """Does a qcow2 file end before the last cluster that it counts as used: it was cut off, or a crash left counts."""
    return last_cluster(handle, head) >= os.lseek(handle, 0, os.SEEK_END) > 0


def last_cluster(handle: int, head: bytes) -> int:
    """Give where the last cluster in use of a qcow2 file begins, in bytes, by its counts; -1 where they do not tell.

    Where no count can be read it is the cluster that should have them.
    """
    offset, length, bits = block.parse_counts_place(head)
    if not length:
        return -1
    if offset >= block.FURTHEST:
        return block.FURTHEST
    table = os.pread(handle, length, offset)
    place = block.last_counted(table, 8)
    if place is None:
        return offset
    number, cluster = place // COUNTS_ENTRY, 1 << int.from_bytes(head[20:24], "big")
    start = number * COUNTS_ENTRY
    where = int.from_bytes(table[start : start + COUNTS_ENTRY], "big")
    counts = os.pread(handle, cluster, where) if where < block.FURTHEST else b""
    last = block.last_counted(counts, bits)
    return where if last is None else (number * cluster * 8 // bits + last) * cluster


def is_claimed(path: str) -> bool:
    """Does the kernel itself hold a block device: mounted, swap, a part of LVM, md or another; of a partition too.

    Only an exclusive open tells, by EBUSY; another command that asks the same has the device for a moment.
    Source: open(2), O_EXCL of block devices.
    """
    for seconds in CLAIM_LOOKS:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.EBUSY:
                return False
        else:
            return False
        time.sleep(seconds)
    return True


def try_o_direct(path: str) -> str:
    """Give what the system says to one aligned read past the page cache, "" when it works.

    Only the read tells: some file systems take the flag and refuse the read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECT)
    except OSError as error:
        return f"open: {error.strerror}"
    try:
        with mmap.mmap(-1, BLOCK) as page:
            os.preadv(handle, [page], 0)
    except OSError as error:
        return f"read: {error.strerror}"
    finally:
        os.close(handle)
    return ""


def read_backing(handle: int, head: bytes) -> str:
    """Give the backing file's name as a qcow2 file has it; "" when there is none, or none that is sound."""
    try:
        offset, length = block.parse_backing_place(head)
    except ValueError:
        return ""
    return os.fsdecode(os.pread(handle, length, offset).partition(b"\0")[0]) if length else ""  # a C string


def read_chain(path: str, head: bytes, backing: str) -> dict[str, object]:
    """Give where the files of a backing chain really lie, and what of them keeps it from being used."""
    chain: list[str] = []
    short: list[str] = []
    external, spoilt = block.parse_external(head), ""
    while backing and len(chain) < DEEPEST_CHAIN:
        above, path, stated = (path, *chain), backing_path(path, backing), block.parse_backing_format(head)
        chain.append(path)
        if path in above:
            return {"chain": chain, "external": external, "broken": f"{path}: what it rests on leads back to it"}
        try:
            head, backing, size, ends_early = read_head(path)
        except OSError as error:
            return {"chain": chain, "external": external, "broken": f"{path}: {error.strerror}"}
        if stated == "qcow2" and block.parse_header(head) != stated:
            return {"chain": chain, "external": external, "broken": f"{path}: it has no qcow2 header any more"}
        layout = block.parse_layout(head)
        if stated == "qcow2" and size < max(SMALLEST_QCOW2, int(str(layout.get("least", 0)))):
            return {"chain": chain, "external": external, "broken": f"{path}: it is cut off"}
        external = external or block.parse_external(head)
        if stated == "qcow2" and layout.get("damaged"):  # what a raw one begins with is its guest's
            spoilt = spoilt or path
        if stated == "qcow2" and ends_early:
            short.append(path)
    wrong = ({"spoilt": spoilt} if spoilt else {}) | ({"short": short} if short else {})
    return {"chain": chain, "external": external, **wrong}


def read_head(path: str) -> tuple[bytes, str, int, bool]:
    """Give the beginning of an image, the backing file that it names, its size and whether it is short; OSError."""
    handle = open_image(path)
    try:
        head = os.pread(handle, BLOCK, 0)
        return head, read_backing(handle, head), os.lseek(handle, 0, os.SEEK_END), is_short(handle, head)
    finally:
        os.close(handle)


def open_image(path: str) -> int:
    """Give the descriptor of a file or block device, read-only; raises OSError for anything else, unopened.

    The name may come from a guest, and opening a device such as a watchdog does something.
    """
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if kind_of(os.fstat(place).st_mode) not in {"file", "block"}:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(place)


def find_overlays(path: Mapping[str, object]) -> list[str]:
    """Give the images that have a file as their backing file: beside it, or in the directory above.

    An overlay names a backing file in its own directory or beneath, as `disk.backing` has it.  Files that cannot be
    read are left out, and those that are raw by their name: what stands at their beginning is their guest's.
    """
    if path.get("kind") != "file":
        return []
    real = str(path["real"])
    image = PurePosixPath(real)
    found = (entry for each in overlay_directories(image) for entry in entries_of(str(each)))
    places = [entry for entry in found if not entry.endswith(RAW_SUFFIXES)]
    passing = {place for place in places if snapshot.is_passing(os.path.basename(place), image.name) or is_left(place)}
    return sorted(place for place in places if place not in {real, *passing} and rests_on(place, real))


def rests_on(path: str, image: str) -> bool:
    """Has an image another as its backing file, by whatever name or hard link."""
    backing = backing_of(path)
    if not backing or backing == image:
        return bool(backing)
    with suppress(OSError):
        return os.path.samefile(backing, image)
    return False


def is_left(path: str) -> bool:
    """Is a file an image that was being made, and that no command makes any more: a killed one left it."""
    place = PurePosixPath(path)
    if not (place.name.startswith(".") and place.name.endswith(snapshot.MAKING)):
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def entries_of(directory: str) -> list[str]:
    """Give the regular files of a directory, none where it cannot be listed."""
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []


def backing_of(path: str) -> str:
    """Give where the backing file of an image really lies, "" where there is none, or none that is a file here."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        backing = read_backing(handle, os.pread(handle, BLOCK, 0))
    except OSError:
        return ""
    finally:
        os.close(handle)
    return backing_path(path, backing) if backing else ""


def backing_path(image: str, name: str) -> str:
    """Give where the file lies that an image's header names, plainly, as `file:` or as `json:`."""
    plain = plain_file(name).removeprefix("file:")
    return os.path.realpath(os.path.join(os.path.dirname(image), plain))


def find_device(base: str, mounted: tuple[Mount, ...], path: Mapping[str, object]) -> str:
    """Give `major:minor` of the device below a path, "" when there is none.

    btrfs, overlay and their like report a number of their own (major 0): there the mount names the device.
    """
    device = str(path.get("device", ""))
    if not device.startswith("0:"):
        return device
    mount = mounts.find_mount(mounted, PurePosixPath(str(path["real"])))
    if mount is None or not mount.source.startswith("/dev/"):
        return ""
    try:
        number = os.stat(base + mount.source).st_rdev
    except OSError:
        return ""
    return device_number(number)


def capture_disks(base: str, device: str, mounted: tuple[Mount, ...], depth: int = 0) -> list[dict[str, object]]:
    """Give the devices at the bottom of one: a partition's disk, the parts of LVM, a loop's file."""
    place = disk_place(base, device)
    if not device or depth > DEEPEST_STORE or not os.path.isdir(place):
        return []
    below = [read_text(f"{place}/slaves/{name}/dev") for name in sorted(names_in(f"{place}/slaves"))]
    below.extend(device_of_file(base, read_text(f"{place}/loop/backing_file"), mounted))
    if not below:
        return [capture_disk(place)]
    return [disk for number in below if number for disk in capture_disks(base, number.strip(), mounted, depth + 1)]


def disk_place(base: str, device: str) -> str:
    """Give the directory of sysfs of a block device, for a partition that of its disk, which has the queue."""
    place = os.path.realpath(f"{base}/sys/dev/block/{device}")
    return os.path.dirname(place) if os.path.exists(f"{place}/partition") else place


def takes_no_discard(base: str, device: str) -> bool:
    """Does a block device say that it frees nothing; one whose queue tells no limit does not say so.

    Source: Linux Documentation/ABI/stable/sysfs-block, discard_max_bytes.
    """
    return read_number(f"{disk_place(base, device)}/queue/discard_max_bytes") == 0


def device_of_file(base: str, path: str | None, mounted: tuple[Mount, ...]) -> list[str]:
    """Give the device that a loop's file lies on, as a list of at most one."""
    real = (path or "").rstrip("\n")
    try:
        number = os.stat(base + real).st_dev if real else 0
    except OSError:
        return []
    device = find_device(base, mounted, {"device": device_number(number), "real": real}) if number else ""
    return [device] if device else []


def capture_disk(place: str) -> dict[str, object]:
    """Give the queue of one disk."""
    return {
        "name": os.path.basename(place).replace("!", "/"),
        "scheduler": (read_text(f"{place}/queue/scheduler") or "").strip(),
        "rotational": (read_text(f"{place}/queue/rotational") or "").strip(),
        "queues": len(names_in(f"{place}/mq")) or None,
        "physical": read_number(f"{place}/queue/physical_block_size"),
    }


def read_number(path: str) -> int | None:
    """Give the number of a file of sysfs, None where there is none."""
    text = (read_text(path) or "").strip()
    return int(text) if text.isdecimal() else None
