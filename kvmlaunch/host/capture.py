"""Look at the host machine: text and probes for `facts/sources.py`, under a root, saved and loaded.

Reads /proc and /sys directly and starts nothing.  What depends on rights is tried with those of
the VM's user.  No environment, serial number or hardware address is read; the machine's id is
replaced by one that only we know the way to, as machine-id(5) asks.  Paths are strings here: Path
takes ten times as long, and this runs before every print-cmd.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from fnmatch import filter as matching
from pathlib import Path

from kvmlaunch.facts import cpu, limits, mounts, sources
from kvmlaunch.facts.sources import Captured, Wanted
from kvmlaunch.host.capture_path import capture_disks, capture_path, find_device, find_overlays, is_claimed
from kvmlaunch.host.holders import capture_lock_holders, capture_socket_holders, may_be_locked, other_inodes
from kvmlaunch.host.readers import link_target, names_in, read_text
from kvmlaunch.host.rights import capture_user, rights_of
from kvmlaunch.host.sockets import capture_sockets
from kvmlaunch.model.host import UserFacts

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAEMONS = "/usr/libexec:/usr/lib/qemu"  # where distributions put what nobody starts by hand
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
        present = [path for path in paths.values() if "inode" in path] if wanted.locks else []
        inodes = {str(path["inode"]) for path in present if base or may_be_locked(str(path["real"]), str(path["kind"]))}
    others = {} if base else {str(path["inode"]): other_inodes(str(path["real"])) for path in present}
    inodes.update(*others.values())
    mounted = mounts.parse_mounts(files)
    for path in paths.values():
        path["disks"] = capture_disks(base, find_device(base, mounted, path), mounted)
        path.update({"overlays": find_overlays(path)} if wanted.overlays else {})
    locked = capture_lock_holders(base, inodes) if inodes else {}
    for path in present:
        names = (str(path["inode"]), *others.get(str(path["inode"]), ()))
        if holders := [holder for name in names for holder in locked.get(name, ())]:
            path["holders"] = holders
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
