"""Who holds what a VM wants: an image by its locks, a port by its socket.

The open files of all processes are looked through, which takes long on a busy host: only when
something is held, and only what we may see.
"""

import fcntl
import os
import stat
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress

from kvmlaunch.facts import block, network, process
from kvmlaunch.host.readers import device_number, inode_of, link_target, names_in, read_text

BACKING = "loop/backing_file"
ASKED = struct.Struct("hhqqi4x")  # struct flock of fcntl(2): type, whence, start, length, pid


def may_be_locked(path: str, kind: str) -> bool:
    """Tell whether somebody holds a record lock on a file; one that is not opened to ask for it may be locked.

    fcntl(2) answers at once, where reading /proc/locks takes 6 ms (measured with Linux 6.18).
    """
    if kind not in {"file", "block"}:
        return True
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, ASKED.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return True
    finally:
        os.close(handle)
    return int(ASKED.unpack(answer)[0]) != fcntl.F_UNLCK


def capture_lock_holders(base: str, inodes: set[str]) -> dict[str, list[dict[str, object]]]:
    """Give who holds a record lock on one of these files, by inode.

    /proc/locks says that there is one, and nothing of the process: QEMU's locks belong to an open
    file, not to a process.  Only then are the open files of all processes looked through.
    """
    locks = [lock for lock in block.parse_locks(read_text(f"{base}/proc/locks") or "") if lock.inode in inodes]
    found: dict[str, list[dict[str, object]]] = {lock.inode: [] for lock in locks}
    for pid in processes(base) if locks else ():
        for inode, writes in locks_of(f"{base}/proc/{pid}", set(found)).items():
            found[inode].append(capture_holder(base, pid, writes=writes))
    for lock in locks:
        if not found[lock.inode]:
            found[lock.inode] = [unseen_holder(lock.inode, locks)]
    return found


def unseen_holder(inode: str, locks: list[block.Lock]) -> dict[str, object]:
    """Give a holder that we may not see: another user's process."""
    writes = any(lock.writes for lock in locks if lock.inode == inode)
    return {"pid": 0, "command": "", "vm": "", "writes": writes}


def processes(base: str) -> list[str]:
    """Give the pids, as text, in order."""
    return sorted((name for name in names_in(f"{base}/proc") if name.isdecimal()), key=int)


def locks_of(process_place: str, inodes: set[str]) -> dict[str, bool]:
    """Give the wanted files that a process has locked, and whether for writing."""
    found: dict[str, bool] = {}
    for number in names_in(f"{process_place}/fd"):
        if inode_of(f"{process_place}/fd/{number}") in inodes:
            for lock in block.parse_locks(read_text(f"{process_place}/fdinfo/{number}") or ""):
                found[lock.inode] = found.get(lock.inode, False) or lock.writes
    return {inode: writes for inode, writes in found.items() if inode in inodes}


def capture_holder(base: str, pid: str, *, writes: bool) -> dict[str, object]:
    """Give a process as a holder: its command, and the VM that a QEMU's arguments name."""
    command = (read_text(f"{base}/proc/{pid}/comm") or "").strip()
    name = process.parse_vm_name(read_text(f"{base}/proc/{pid}/cmdline") or "")
    return {"pid": int(pid), "command": command, "vm": name, "writes": writes}


def capture_socket_holders(base: str, files: Mapping[str, str], ports: tuple[int, ...]) -> dict[str, dict[str, object]]:
    """Give who has bound one of these ports, by the socket's inode; whom we may not see is absent."""
    tables = (files.get(path, "") for path in network.SOCKET_FILES)
    bound = (found for table in tables for found in network.parse_sockets(table))
    wanted = {f"socket:[{inode}]": inode for _, port, _, inode in bound if int(port, 16) in ports}
    found: dict[str, dict[str, object]] = {}
    for pid in processes(base) if wanted else ():
        for target in open_files(f"{base}/proc/{pid}/fd") & wanted.keys():
            found.setdefault(wanted[target], capture_holder(base, pid, writes=False))
    return found


def open_files(directory: str) -> set[str]:
    """Give what the descriptors of a process point to."""
    return {target for number in names_in(directory) if (target := link_target(f"{directory}/{number}"))}


def files_beneath(path: str) -> tuple[str, ...]:
    """Give the files and devices that a block device is made of: by loop, device-mapper, md, or as their partition."""
    return reached(path, directly_beneath)


def reached(path: str, step: Callable[[str], list[str]]) -> tuple[str, ...]:
    """Give all that one comes to from a file or device, step by step, each once."""
    found = [path]
    for each in found:
        found += [place for place in step(each) if place not in found]
    return tuple(found[1:])


def directly_beneath(path: str) -> list[str]:
    """Give what one block device is made of, nothing for a file."""
    place = place_of(path)
    if not place:
        return []
    names = names_in(f"{place}/slaves")
    if os.path.exists(f"{place}/partition"):
        names.append(os.path.basename(os.path.dirname(place)))
    backing = (read_text(f"{place}/{BACKING}") or "").rstrip("\n")
    return [*map(node_of, names), *([backing] if backing else [])]


def files_above(path: str) -> tuple[str, ...]:
    """Give the devices that a file or block device is beneath: its partitions, and what loop, LVM or md make of it."""
    return reached(path, directly_above)


def directly_above(path: str) -> list[str]:
    """Give what is made of one file or block device."""
    place, names = place_of(path), []
    if place:
        names = names_in(f"{place}/holders")
        names += [name for name in names_in(place) if os.path.exists(f"{place}/{name}/partition")]
    return [*map(node_of, names), *loops_on(path)]


def place_of(path: str) -> str:
    """Give the directory of a block device in /sys, "" for anything else: /sys/dev/block."""
    with suppress(OSError):
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            return os.path.realpath(f"/sys/dev/block/{device_number(status.st_rdev)}")
    return ""


def node_of(name: str) -> str:
    """Give the file in /dev of a device of the kernel's."""
    return f"/dev/{name.replace('!', '/')}"


def loops_on(path: str) -> list[str]:
    """Give the loop devices that a file is beneath."""
    loops = (name for name in names_in("/sys/block") if name.startswith("loop"))
    return [node_of(name) for name in loops if (read_text(f"/sys/block/{name}/{BACKING}") or "").rstrip("\n") == path]


def other_inodes(path: str) -> set[str]:
    """Give by which other files the content of a file or block device can be had, each as `major:minor:inode`.

    A lock is on one of them alone: the node of a device in /dev, another name of it, what it is made of, what is made
    of it.  What else is made of the same, as another partition, is another's.
    """
    beneath = files_beneath(path)
    places = {path, *beneath, *files_above(path), *(loop for each in beneath for loop in loops_on(each))}
    places |= {node_of(os.path.basename(place)) for each in places if (place := place_of(each))}
    return {inode_of(each) for each in places} - {inode_of(path), ""}
