"""Logs: QEMU's own words, its events, and the console of a guest.

While a VM runs they lie in its run directory, root's in a tmpfs of their own: whatever a guest does, no more of the
host is filled.  They are kept by copy and truncate, by every command that meets the VM and at its end.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.host.files import write_all, write_atomically
from kvmlaunch.host.tree import DIRECTORY, entered, failed, make_at, unsafe
from kvmlaunch.model.run_files import CONSOLE_LOG, EVENTS_LOG, LOG, QEMU_LOG

LIMITS = {CONSOLE_LOG: 4 << 20, QEMU_LOG: 1 << 20}  # bytes of a live log; the older half goes to the kept one
NOTES = 256  # bytes of a kept log for lines of ours
EVENTS_LIMIT = 1 << 20
EVENT_PLACES = (LOG, ".")  # beside the record lies what was kept of it
LAST_EVENTS = 1 << 16  # bytes that are kept of a VM that has ended
CHUNK = 1 << 16
APPENDING = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def own_directory(directory: PurePosixPath, uid: int) -> Iterator[int]:
    """Open the directory of a VM's kept logs, made with mode 0700; its shared parents may be passed through."""
    with entered(directory.parent, uid, make=True) as parent:
        make_at(parent, directory.name, directory, 0o700)
    with entered(directory, uid) as fd:
        yield fd


def open_qemu_log(run_fd: int, run: PurePosixPath, heading: str) -> tuple[int, int]:
    """Open QEMU's own log in an opened run directory for appending and give its descriptor and size.

    The descriptor is open for reading too.  Raises PreflightFailed `host.dir.unsafe` for what is no file of our own,
    `host.space`, HostFailed.
    """
    place = run / LOG / QEMU_LOG
    try:
        directory = os.open(LOG, DIRECTORY, dir_fd=run_fd)
        try:
            log = os.open(QEMU_LOG, APPENDING, 0o600, dir_fd=directory)
        finally:
            os.close(directory)
        if not is_plain(log):
            os.close(log)
            raise unsafe(place, "it is no regular file of one name")
        write_all(log, f"{heading}\n".encode())
    except OSError as error:
        raise failed(place, error) from error
    return log, os.fstat(log).st_size


def is_plain(fd: int) -> bool:
    """Is an opened file a regular one of a single name: the VM's user may plant others where QEMU writes."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1


@contextlib.contextmanager
def live_log(run: PurePosixPath, name: str, uid: int, beneath: str = LOG) -> Iterator[int | None]:
    """Open a log that QEMU writes, for reading and emptying; None where there is none that is a plain file."""
    with contextlib.ExitStack() as stack:
        fd = None
        with contextlib.suppress(OSError):
            run_fd = stack.enter_context(entered(run, uid))
            directory = os.open(beneath, DIRECTORY, dir_fd=run_fd)
            stack.callback(os.close, directory)
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            stack.callback(os.close, fd)
        yield fd if fd is not None and is_plain(fd) else None


def bound_events(run: PurePosixPath, uid: int) -> None:
    """Empty QEMU's event log once it is more than 1 MiB: a guest can cause events; QEMU appends, so it goes on."""
    with live_log(run, EVENTS_LOG, uid) as events:
        if events is not None and os.fstat(events).st_size > EVENTS_LIMIT:
            os.ftruncate(events, 0)


def read_events(run: PurePosixPath, uid: int) -> str:
    """Give the end of a VM's event log, the live one's or what was kept of it; "" where there is none."""
    for beneath in EVENT_PLACES:
        with live_log(run, EVENTS_LOG, uid, beneath) as events:
            if events is not None:
                begin = max(0, os.fstat(events).st_size - LAST_EVENTS)
                return os.pread(events, LAST_EVENTS, begin).decode(errors="replace")
    return ""


def read_said(run: PurePosixPath, uid: int) -> str:
    """Give the end of what the QEMU of a running VM has printed; "" where that cannot be read."""
    with contextlib.suppress(OSError), live_log(run, QEMU_LOG, uid) as log:
        if log is not None:
            return os.pread(log, LAST_EVENTS, max(0, os.fstat(log).st_size - LAST_EVENTS)).decode(errors="replace")
    return ""


def keep_events(run: PurePosixPath, uid: int) -> None:
    """Keep the last events of a VM that has ended where the place of its logs is about to go."""
    text = read_events(run, uid)
    if text:
        with contextlib.suppress(FileNotFoundError), entered(run, uid) as fd:
            write_atomically(fd, EVENTS_LOG, text, durable=False)


def rotate_logs(
    run: PurePosixPath, kept: PurePosixPath, uid: int, log_uid: int, *, everything: bool = False
) -> tuple[str, ...]:
    """Move what a guest and its QEMU have printed to the kept logs once it is too much, or `everything` at the end.

    By copy and truncate: QEMU keeps its inode, and appends.  A kept log holds twice the live one's limit in two files.
    Gives why one could not be kept, which is no reason to keep a VM from ending.
    """
    found = []
    for name, limit in LIMITS.items():
        with live_log(run, name, uid) as source:
            size = 0 if source is None else os.fstat(source).st_size
            if source is not None and size and (everything or size > limit):
                try:
                    keep_log(source, name, kept, log_uid)
                    if not everything:  # at the end it is removed, and whoever follows it reads its last words
                        os.ftruncate(source, 0)
                except KvmlaunchError as error:
                    report = error.report
                    found.append(f"{name} is not kept: {report.message}  [{report.code}]")
                except OSError as error:
                    found.append(f"{name} is not kept: {error.strerror}")
    return tuple(found)


def open_kept(path: PurePosixPath) -> int | None:
    """Open a log for reading; None where it is no regular file of one name, as a guest's user may plant others."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if is_plain(fd):
        return fd
    os.close(fd)
    return None


def read_log(path: PurePosixPath) -> str | None:
    """Give the text of a log, None where there is none."""
    fd = open_kept(path)
    if fd is None:
        return None
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        return file.read()


def keep_log(source: int, name: str, kept: PurePosixPath, log_uid: int) -> None:
    """Append the last bytes of a live log, as many as its limit, to the kept one; a full one becomes `.1` first.

    Where something is missing a line of ours says so.
    """
    size, limit = os.fstat(source).st_size, LIMITS[name]
    most = limit - NOTES
    with own_directory(kept, log_uid) as fd:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(name, dir_fd=fd, follow_symlinks=False).st_size + min(size, most) > most:
                os.rename(name, f"{name}.1", src_dir_fd=fd, dst_dir_fd=fd)
        try:
            target = os.open(name, APPENDING, 0o600, dir_fd=fd)
        except OSError as error:
            raise failed(kept / name, error) from error
        try:
            offset = max(0, size - most)
            if offset:
                write_all(target, f"\n[kvmlaunch: {offset} bytes before this are not kept]\n".encode())
            while offset < size and (chunk := os.pread(source, min(CHUNK, size - offset), offset)):
                write_all(target, chunk)
                offset += len(chunk)
            room = os.fstatvfs(source)
            if room.f_blocks and not room.f_bavail:
                write_all(target, b"\n[kvmlaunch: the place of the log was full: what was printed next is lost]\n")
        finally:
            os.close(target)
