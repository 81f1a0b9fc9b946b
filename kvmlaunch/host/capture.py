"""Look at the host machine: text and probes for `facts/sources.py`, under a root, saved and loaded.

Reads /proc and /sys directly and starts nothing.  What depends on rights is tried with those of
the VM's user.  No environment, serial number or hardware address is read; the machine's id is
replaced by one that only we know the way to, as machine-id(5) asks.  Paths are strings here: Path
takes ten times as long, and this runs before every print-cmd.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import filter as matching
from pathlib import Path, PurePosixPath

from kvmlaunch.facts import block, cpu, limits, mounts, sources
from kvmlaunch.facts.sources import Captured, Wanted
from kvmlaunch.host.holders import capture_lock_holders, capture_socket_holders
from kvmlaunch.host.readers import device_number, link_target, names_in, read_text
from kvmlaunch.host.rights import capture_user, rights_of, user_name
from kvmlaunch.host.sockets import capture_sockets
from kvmlaunch.model.host import Mount, UserFacts
from kvmlaunch.model.image import RAW_SUFFIXES, overlay_directories
from kvmlaunch.storage import snapshot
from kvmlaunch.storage.image import plain_file

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAEMONS = "/usr/libexec:/usr/lib/qemu"  # where distributions put what nobody starts by hand
BLOCK = 4096
CLAIM_LOOKS = (0.01, 0.03, 0.1, 0.1)  # seconds after each try
DEEPEST_STORE = 16
DEEPEST_CHAIN = 64
IO_URING_SETUP = 425
SIZE_OF_IO_URING_PARAMS = 120
# The first paragraph of /proc/cpuinfo is enough, and the kernel writes the rest only when it is read.
LONGEST_CPU = 1 << 14


def capture_host(
    wanted: Wanted, *, root: Path = Path("/"), user: UserFacts | None = None, search: str | None = None
) -> Captured:
    """Look at the host under `root`; with `user`, as root, what needs rights is tried with that user's.

    `search` is the PATH for tools, the caller's own by default.
    """
    base = str(root).rstrip("/")
    subject = user or capture_user()
    files = capture_files(base, wanted)
    set_up_ring = load_io_uring() if wanted.io_uring else None
    with rights_of(subject):
        tried = capture_rights(base, set_up_ring)
        paths = {str(path): capture_path(base, str(path)) for path in wanted.paths}
        for path in paths.values() if wanted.locks else ():
            path.update({"claimed": True} if path["kind"] == "block" and is_claimed(base + str(path["real"])) else {})
        heads = [str(since[-1]) for seen in paths.values() if isinstance(since := seen.get("since"), list)]
        paths.update({head: capture_path(base, head) for head in heads})
    mounted = mounts.parse_mounts(files)
    for path in paths.values():
        path["disks"] = capture_disks(base, find_device(base, mounted, path), mounted)
        path.update({"overlays": find_overlays(path)} if wanted.overlays else {})
    inodes = {str(path.get("inode", "")) for path in paths.values()} if wanted.locks else set()
    for inode, holders in (capture_lock_holders(base, inodes) if inodes else {}).items():
        for path in paths.values():
            path.update({"holders": holders} if path.get("inode") == inode else {})
    probes = {
        "caller": {"uid": os.getuid()},
        "user": {"uid": subject.uid, "gid": subject.gid, "name": subject.name, "groups": list(subject.groups)},
        **tried,
        "modules": sorted(matching(names_in(f"{base}/sys/module"), "kvm*")),
        "tools": capture_tools(base, os.environ.get("PATH", "") if search is None else search),
        "masters": capture_masters(base) if wanted.network_devices else {},
        "sockets": capture_socket_holders(base, files, wanted.ports),
        **{f"{sources.PATH}{path}": probe for path, probe in paths.items()},
    }
    return Captured(files=files, probes=probes)


def capture_files(base: str, wanted: Wanted) -> dict[str, str]:
    """Give the text of every file that is there, by its path on the host."""
    files = dict(read_all(base, wanted.files))
    files.update(capture_sockets(base, wanted.sockets))
    limit_files = (
        f"{directory}/{name}" for directory in limits.parse_cgroup_directories(files) for name in limits.HUGETLB_FILES
    )
    files.update(read_all(base, limit_files))
    if sources.MACHINE_ID in files:
        files[sources.MACHINE_ID] = own_machine_id(files[sources.MACHINE_ID])
    return files


def own_machine_id(machine_id: str) -> str:
    """Give an id of this machine that is ours alone: the real one is not to be shown to others (machine-id(5))."""
    secret = machine_id.strip().encode(errors="surrogateescape")
    return hashlib.blake2b(secret, key=b"kvmlaunch", digest_size=16).hexdigest() + "\n"


def read_all(base: str, patterns: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Give path and text of the files of these patterns that can be read."""
    for pattern in patterns:
        for path in expand(base, pattern):
            text = read_text(base + path, LONGEST_CPU if path == cpu.CPUINFO else None)
            if text is not None:
                yield path, text.partition("\n\n")[0] + "\n" if path == cpu.CPUINFO else text


def expand(base: str, pattern: str) -> list[str]:
    """Give the paths below `base` that a pattern names; one without `*` as it is, there or not."""
    before, star, _ = pattern.partition("*")
    if not star:
        return [pattern]
    parent = before.rpartition("/")[0]
    component, slash, rest = pattern[len(parent) + 1 :].partition("/")
    names = sorted(matching(names_in(base + parent), component))
    return [path for name in names for path in expand(base, f"{parent}/{name}{slash}{rest}")]


def capture_rights(base: str, set_up_ring: Callable[[], str] | None) -> dict[str, object]:
    """Give what the user is let to use."""
    return {
        "kvm": try_open(f"{base}/dev/kvm"),
        "vhost": try_open(f"{base}/dev/vhost-net"),
        "io_uring": set_up_ring() if set_up_ring else None,
    }


def try_open(path: str) -> str:
    """Give the name of the errno of opening a device for reading and writing, "" when it opens."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return ""


def load_io_uring() -> Callable[[], str]:
    """Give the trial of io_uring_setup: what the system says to it, "" when it makes a ring (which is closed again).

    Loaded before the user's rights are taken on, as those may not reach Python's own files.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def set_up_ring() -> str:
        params = ctypes.create_string_buffer(SIZE_OF_IO_URING_PARAMS)
        handle = libc.syscall(ctypes.c_long(IO_URING_SETUP), ctypes.c_uint(1), params)
        if handle < 0:
            return os.strerror(ctypes.get_errno())
        os.close(handle)
        return ""

    return set_up_ring


def try_io_uring(user: UserFacts) -> str:
    """Give what io_uring_setup says to a user, "" when it makes a ring."""
    set_up_ring = load_io_uring()
    with rights_of(user):
        return set_up_ring()


def capture_path(base: str, path: str) -> dict[str, object]:
    """Give what can be seen of a file that a definition names, without its content."""
    real = os.path.realpath(base + path)
    probe: dict[str, object] = {"real": real.removeprefix(base) or "/"}
    try:
        seen = os.stat(real)
    except OSError as error:
        missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
        return {**probe, "kind": "missing" if missing else "denied", "refusal": error.strerror}
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
        **({"mounted_readonly": True} if is_mounted_readonly(real) else {}),
        "readable": os.access(real, os.R_OK, effective_ids=True),
        "writable": os.access(real, os.W_OK, effective_ids=True),
        **(capture_store(real, kind) if kind in {"file", "block"} else {}),
        **(capture_snapshots(real) if kind == "file" else {}),
    }


def is_mounted_readonly(path: str) -> bool:
    """Does a file lie on a file system that nobody can write to; a device node does not matter."""
    try:
        return not stat.S_ISBLK(os.stat(path).st_mode) and bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def capture_snapshots(path: str) -> dict[str, object]:
    """Give the overlays of an image's snapshots that lie beside it, and whether a commit is at its last step."""
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
        volume = block.parse_volume_id(os.pread(handle, BLOCK, block.VOLUME_DESCRIPTOR))
        seen |= {"volume_id": volume} if volume else {}
        seen |= read_chain(path, head, backing) if backing or block.parse_external(head) else {}
    except OSError as error:
        return {"refusal": error.strerror}
    finally:
        os.close(handle)
    refusal = try_o_direct(path)
    sizes = {"size": size, "allocated": size} if kind == "block" else {}
    return {**seen, **sizes, "o_direct": not refusal, "refusal": refusal}


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
    """Give where the files of a backing chain really lie, and whether one keeps its data in another file."""
    chain: list[str] = []
    external = block.parse_external(head)
    while backing and len(chain) < DEEPEST_CHAIN:
        path = backing_path(path, backing)
        chain.append(path)
        try:
            head, backing = read_head(path)
        except OSError as error:
            return {"chain": chain, "external": external, "broken": f"{path}: {error.strerror}"}
        external = external or block.parse_external(head)
    return {"chain": chain, "external": external}


def read_head(path: str) -> tuple[bytes, str]:
    """Give the beginning of an image and the backing file that it names; raises OSError."""
    handle = open_image(path)
    try:
        head = os.pread(handle, BLOCK, 0)
        return head, read_backing(handle, head)
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
    place = os.path.realpath(f"{base}/sys/dev/block/{device}")
    if not device or depth > DEEPEST_STORE or not os.path.isdir(place):
        return []
    if os.path.exists(f"{place}/partition"):
        place = os.path.dirname(place)
    below = [read_text(f"{place}/slaves/{name}/dev") for name in sorted(names_in(f"{place}/slaves"))]
    below.extend(device_of_file(base, read_text(f"{place}/loop/backing_file"), mounted))
    if not below:
        return [capture_disk(place)]
    return [disk for number in below if number for disk in capture_disks(base, number.strip(), mounted, depth + 1)]


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
    }


def capture_tools(base: str, search: str) -> dict[str, str]:
    """Give the tools found on the search path, or in the system's own directories, which a user's PATH may lack."""
    directories = dict.fromkeys(place for place in f"{search}:{SEARCH}:{DAEMONS}".split(":") if place.startswith("/"))
    found = {}
    for name in sources.TOOLS:
        places = (f"{directory}/{name}" for directory in directories)
        hit = next((place for place in places if is_program(base + place)), "")
        found.update({name: hit} if hit else {})
    return found


def is_program(path: str) -> bool:
    """Is this a file that we may run."""
    return os.access(path, os.X_OK) and os.path.isfile(path)


def capture_masters(base: str) -> dict[str, str]:
    """Give the bridge of every network device that belongs to one."""
    links = {name: f"{base}/sys/class/net/{name}/brport/bridge" for name in sorted(names_in(f"{base}/sys/class/net"))}
    return {name: target.rpartition("/")[2] for name, link in links.items() if (target := link_target(link))}
