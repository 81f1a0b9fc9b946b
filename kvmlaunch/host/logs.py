"""Kept logs: QEMU's own words, and the console of a guest, rotated by copy and truncate."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from kvmlaunch.host.files import write_all
from kvmlaunch.host.tree import DIRECTORY, entered, failed, make_at
from kvmlaunch.model.run_files import CONSOLE_LOG, EVENTS_LOG, LOG

QEMU_LOG = "qemu.log"
QEMU_LOG_LIMIT = 1 << 20
CONSOLE_LIMIT = 4 << 20  # bytes that are kept while the VM runs; the older half goes to the kept log
EVENTS_LIMIT = 1 << 20
CHUNK = 1 << 16


@contextlib.contextmanager
def own_directory(directory: PurePosixPath, uid: int) -> Iterator[int]:
    """Open the directory of a VM's kept logs, made with mode 0700; its shared parents may be passed through."""
    with entered(directory.parent, uid, make=True) as parent:
        make_at(parent, directory.name, directory, 0o700)
    with entered(directory, uid) as fd:
        yield fd


def open_qemu_log(directory: PurePosixPath, uid: int, heading: str) -> tuple[int, int]:
    """Open QEMU's own log for appending and give its descriptor and size; beyond 1 MiB the old text goes to `.1`.

    The descriptor is open for reading too.  `uid` owns the directory's tree.
    """
    with own_directory(directory, uid) as fd:
        log = open_appending(fd, directory)
        if os.fstat(log).st_size > QEMU_LOG_LIMIT:
            os.close(log)
            os.rename(QEMU_LOG, f"{QEMU_LOG}.1", src_dir_fd=fd, dst_dir_fd=fd)
            log = open_appending(fd, directory)
    try:
        write_all(log, f"{heading}\n".encode())
    except OSError as error:
        raise failed(directory / QEMU_LOG, error) from error
    return log, os.fstat(log).st_size


def open_appending(directory_fd: int, directory: PurePosixPath) -> int:
    """Open QEMU's own log; raises PreflightFailed `host.dir.unsafe` for a link, `host.space`, HostFailed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(QEMU_LOG, flags, 0o600, dir_fd=directory_fd)
    except OSError as error:
        raise failed(directory / QEMU_LOG, error) from error


def bound_events(run: PurePosixPath, uid: int) -> None:
    """Empty QEMU's event log once it is more than 1 MiB: a guest can cause events; QEMU appends, so it goes on."""
    with contextlib.suppress(FileNotFoundError, OSError), entered(run, uid) as fd:
        events = os.open(EVENTS_LOG, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
        try:
            if os.fstat(events).st_size > EVENTS_LIMIT:
                os.ftruncate(events, 0)
        finally:
            os.close(events)


def rotate_console(
    run: PurePosixPath, kept: PurePosixPath, uid: int, log_uid: int, *, everything: bool = False
) -> None:
    """Move what a guest has printed to the kept log once it is more than 4 MiB, or `everything` at the end.

    By copy and truncate: QEMU keeps its inode, and appends.  The kept log holds the last 8 MiB in two files.
    """
    with contextlib.suppress(FileNotFoundError, OSError), entered(run, uid) as run_fd:
        log_fd = os.open(LOG, DIRECTORY, dir_fd=run_fd)
        try:
            source = os.open(CONSOLE_LOG, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=log_fd)
        finally:
            os.close(log_fd)
        try:
            size = os.fstat(source).st_size
            if size and (everything or size > CONSOLE_LIMIT):
                keep_console(source, size, kept, log_uid)
                if not everything:
                    os.ftruncate(source, 0)
        finally:
            os.close(source)


def open_kept(path: PurePosixPath) -> int | None:
    """Open a log for reading; None where it is no regular file of one name, as a guest's user may plant others."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
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


def keep_console(source: int, size: int, kept: PurePosixPath, log_uid: int) -> None:
    """Append the last 4 MiB of a console to the kept log; a full one becomes `.1` first."""
    with own_directory(kept, log_uid) as fd:
        with contextlib.suppress(FileNotFoundError):
            if (
                os.stat(CONSOLE_LOG, dir_fd=fd, follow_symlinks=False).st_size + min(size, CONSOLE_LIMIT)
                > CONSOLE_LIMIT
            ):
                os.rename(CONSOLE_LOG, f"{CONSOLE_LOG}.1", src_dir_fd=fd, dst_dir_fd=fd)
        target = os.open(
            CONSOLE_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd
        )
        try:
            offset = max(0, size - CONSOLE_LIMIT)
            while offset < size and (chunk := os.pread(source, min(CHUNK, size - offset), offset)):
                write_all(target, chunk)
                offset += len(chunk)
        finally:
            os.close(target)
