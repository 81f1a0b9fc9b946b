"""The run directory of a VM: its lock, its record, its sockets.

"Is it running?" is the flock on the directory that QEMU inherited: held after the launcher ends,
released by kill -9, not held by a zombie, gone after a reboot.  Nobody probes by locking: a
question reads /proc/locks.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kvmlaunch.errors import Busy, KvmlaunchError, PreflightFailed, Report
from kvmlaunch.facts.record import parse_last_end, parse_lock_taker, parse_record, parse_state, render_record
from kvmlaunch.host.files import read_text_at, remove_if_there, temporary_name, write_atomically
from kvmlaunch.host.logs import read_events
from kvmlaunch.host.readers import read_text
from kvmlaunch.host.tree import DIRECTORY, entered, failed, make_owned, unsafe
from kvmlaunch.model.record import Record
from kvmlaunch.model.run_files import (
    AGENT,
    CONSOLE,
    CONSOLE_LOG,
    CONSOLE_OWN,
    EVENTS,
    EVENTS_LOG,
    LOG,
    NOTE,
    PREPARED,
    QEMU_LOG,
    QMP,
    QMP_OWN,
    RECORD,
    SHARE,
    SOCKET,
    STOPPING,
    TPM,
    VNC,
)
from kvmlaunch.model.value import frozen

OWN_FILES = (
    RECORD,
    STOPPING,
    temporary_name(RECORD),
    QMP,
    QMP_OWN,
    EVENTS,
    EVENTS_LOG,
    CONSOLE,
    CONSOLE_OWN,
    f"{CONSOLE}.lock",
    VNC,
    AGENT,
    TPM,
)
OWN_NAMES = {QMP: QMP_OWN, CONSOLE: CONSOLE_OWN}
NODE = "host-nodes="  # as the backend of the memory has it


@frozen(kw_only=True)
class Claim:
    """A run directory that this process holds the lock of, by its descriptor."""

    path: PurePosixPath
    fd: int
    uid: int


def holder_text(fd: int) -> str:
    """Give who claims a run directory, from its record: pid and state, as far as they can be told."""
    text = read_text_at(fd, RECORD)
    with contextlib.suppress(ValueError):
        record = parse_record(text or "")
        if record.state == "running":
            return f"pid {record.pid}"
        stopped = ", and is stopped: kill -CONT lets it go on" if is_stopped(record.launcher) else ""
        return f"pid {record.launcher}, kvmlaunch, which starts it{stopped}"
    return "another command of kvmlaunch"


def is_stopped(pid: int) -> bool:
    """Does a process stand still by a signal, as after Ctrl-Z."""
    return parse_state(read_text(f"/proc/{pid}/stat") or "") in {"T", "t"}


def lock_directory(fd: int, path: PurePosixPath) -> None:
    """Take the flock or refuse at once (`vm.locked`)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Busy(
            Report(
                code="vm.locked",
                message=f"{path.name} is held by somebody else",
                where=str(path),
                why=holder_text(fd),
                hint=f"kvmlaunch status {path.name}",
            )
        ) from error


def is_the_same(fd: int, parent: int, name: str) -> bool:
    """Is the locked directory still the one of that name: it may have been removed and made again."""
    with contextlib.suppress(FileNotFoundError):
        there, locked = os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(fd)
        return (there.st_dev, there.st_ino) == (locked.st_dev, locked.st_ino)
    return False


@contextlib.contextmanager
def claimed(path: PurePosixPath, uid: int, gid: int) -> Iterator[Claim]:
    """Make a run directory for the VM's user and hold its lock; leaving lets go of our descriptor only.

    QEMU, which inherits the descriptor, keeps the lock.  Raises Busy `vm.locked`, PreflightFailed
    `host.dir.unsafe`.
    """
    fd = claim_directory(path, uid, gid)
    try:
        yield Claim(path=path, fd=fd, uid=uid)
    finally:
        os.close(fd)


def check_owner(fd: int, path: PurePosixPath, uid: int) -> None:
    """Refuse a run directory of another user."""
    owner = os.fstat(fd).st_uid
    if owner != uid:
        raise unsafe(path, f"it belongs to uid {owner}")


def claim_directory(path: PurePosixPath, uid: int, gid: int) -> int:
    """Give the descriptor of a run directory with its lock held; one removed meanwhile is made again."""
    while True:
        make_owned(path, uid, gid, 0o700)
        with entered(path.parent, uid) as parent:
            try:
                fd = os.open(path.name, DIRECTORY, dir_fd=parent)
            except FileNotFoundError:
                continue
            try:
                check_owner(fd, path, uid)
                lock_directory(fd, path)
                if is_the_same(fd, parent, path.name):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def write_record(claim: Claim, record: Record) -> None:
    """Write the record, the old text or the new in a crash; not fsynced: a host that dies takes the VM along."""
    write_atomically(claim.fd, RECORD, render_record(record), durable=False)


def make_log_directory(claim: Claim, gid: int) -> None:
    """Make the directory of the logs."""
    try:
        os.mkdir(LOG, 0o700, dir_fd=claim.fd)
    except FileExistsError:
        pass
    except OSError as error:
        raise failed(claim.path / LOG, error) from error
    try:
        fd = os.open(LOG, DIRECTORY, dir_fd=claim.fd)
    except OSError as error:
        raise unsafe(claim.path / LOG, "it is a link or no directory") from error
    try:
        if os.fstat(fd).st_uid not in {os.geteuid(), claim.uid}:
            raise unsafe(claim.path / LOG, "it belongs to another user")
        os.fchown(fd, claim.uid, gid)
    finally:
        os.close(fd)


def link_sockets(claim: Claim) -> None:
    """Give sockets a second name, once: a pasted second QEMU replaces the first one and cannot reach this."""
    for name, own in OWN_NAMES.items():
        with contextlib.suppress(OSError):
            os.link(name, own, src_dir_fd=claim.fd, dst_dir_fd=claim.fd, follow_symlinks=False)


def is_prepared(claim: Claim) -> bool:
    """Did root prepare this run directory, so that it stays for a printed command; the mark is root's to read."""
    with contextlib.suppress(OSError):
        os.stat(PREPARED, dir_fd=claim.fd, follow_symlinks=False)
        return True
    return False


def mark_prepared(path: PurePosixPath, uid: int, host_numa_node: int | None) -> None:
    """Leave the mark of a prepared run directory, and in it the NUMA node whose pages were prepared."""
    node = "" if host_numa_node is None else f"{NODE}{host_numa_node}\n"
    with entered(path, uid) as fd:
        write_atomically(fd, PREPARED, f"prepared by root until preflight --undo\n{node}", durable=False)


def read_node(path: PurePosixPath, uid: int) -> int | None:
    """Give the NUMA node that a VM's memory is bound to already: by its record, else by the mark of a prepared one."""
    words: list[str] = []
    with contextlib.suppress(OSError, PreflightFailed):  # a directory that is none of ours is refused elsewhere
        record = read_contents(path, uid).record
        words += [word for argument in record.argv for word in argument.split(",")] if record else []
        with entered(path, uid) as fd:
            words += (read_text_at(fd, PREPARED) or "").splitlines()
    found = next((word.removeprefix(NODE) for word in words if word.startswith(NODE)), "")
    return int(found) if found.isdecimal() else None


def unmark_prepared(path: PurePosixPath, uid: int) -> None:
    """Take the mark of a prepared run directory away."""
    with contextlib.suppress(FileNotFoundError), entered(path, uid) as fd:
        remove_if_there(fd, PREPARED)


def mark_stopping(path: PurePosixPath, uid: int) -> None:
    """Say in a run directory that this process ends the VM."""
    with contextlib.suppress(OSError, KvmlaunchError), entered(path, uid) as fd:
        write_atomically(fd, STOPPING, str(os.getpid()), durable=False)


def unmark_stopping(path: PurePosixPath, uid: int) -> None:
    """Take that back: the guest did not power down, and the VM runs on."""
    with contextlib.suppress(OSError, KvmlaunchError), entered(path, uid) as fd:
        remove_if_there(fd, STOPPING)


def sidecar_files(fd: int) -> list[str]:
    """Give the sockets of shares in an opened run directory, one a share, and the notes of who serves which socket."""
    names = os.listdir(fd)
    sockets = [name for name in names if name.startswith(SHARE) and name.endswith(SOCKET)]
    return sockets + [name for name in names if name.endswith(f"{SOCKET}{NOTE}")]


def note_sidecar(claim: Claim, socket: str, text: str) -> None:
    """Write down who serves a socket beside QEMU."""
    write_atomically(claim.fd, f"{socket}{NOTE}", text, durable=False)


def remove_contents(claim: Claim) -> None:
    """Remove our own files from a claimed run directory, and nothing that we do not know.

    The place of the logs stays in a prepared one.
    """
    for name in (*OWN_FILES, *sidecar_files(claim.fd)):
        remove_if_there(claim.fd, name)
    with contextlib.suppress(OSError):
        fd = os.open(LOG, DIRECTORY, dir_fd=claim.fd)
        try:
            for name in (CONSOLE_LOG, EVENTS_LOG, QEMU_LOG):
                remove_if_there(fd, name)
        finally:
            os.close(fd)
        if not is_prepared(claim):
            os.rmdir(LOG, dir_fd=claim.fd)


def remove_claimed(claim: Claim) -> None:
    """Remove a run directory whose lock is held; a prepared one is emptied only."""
    remove_contents(claim)
    if is_prepared(claim):
        return
    with contextlib.suppress(OSError, PreflightFailed), entered(claim.path.parent, claim.uid) as parent:
        if is_the_same(claim.fd, parent, claim.path.name):
            os.rmdir(claim.path.name, dir_fd=parent)


def lock_taker(path: PurePosixPath) -> int | None:
    """Give the pid that took the lock of a run directory, None where it is free; asks /proc/locks, disturbs nobody."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return parse_lock_taker(Path("/proc/locks").read_text(encoding="ascii"), device, status.st_ino)


def is_locked(path: PurePosixPath) -> bool:
    """Does a process hold the lock of a run directory."""
    return lock_taker(path) is not None


def own_socket(path: PurePosixPath, name: str) -> PurePosixPath:
    """Give the socket by which a VM of ours is reached: the second name, which a pasted QEMU cannot take over."""
    own = path / OWN_NAMES[name]
    return own if os.path.exists(own) else path / name


@frozen(kw_only=True)
class Contents:
    """What lies in a run directory: the record, or why it cannot be read, and how the last run ended."""

    exists: bool
    record: Record | None = None
    unreadable: str = ""
    last_end: str = ""
    stopper: int | None = None


def read_contents(path: PurePosixPath, uid: int) -> Contents:
    """Give what lies in a run directory, entered by descriptor."""
    try:
        with entered(path, uid) as fd:
            text = read_text_at(fd, RECORD)
            stopping = read_text_at(fd, STOPPING) or ""
    except FileNotFoundError:
        return Contents(exists=False)
    last_end = parse_last_end(read_events(path, uid))
    if text is None:
        return Contents(exists=True, last_end=last_end)
    try:
        stopper = int(stopping) if stopping.isdecimal() else None
        return Contents(exists=True, record=parse_record(text), last_end=last_end, stopper=stopper)
    except ValueError as error:
        return Contents(exists=True, unreadable=str(error), last_end=last_end)
