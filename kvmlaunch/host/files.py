"""Files written so that a reader, or a crash, sees the old text or the new, never a part."""

import contextlib
import errno
import os
from pathlib import Path, PurePosixPath

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.host.tree import failed, unsafe

FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def temporary_name(name: str) -> str:
    """Give the name that a file has until it is whole: one alone, as writers hold a lock and a crash leaves one."""
    return f".{name}.new"


def write_atomically(
    directory_fd: int,
    name: str,
    text: str,
    *,
    durable: bool = True,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write a file in an opened directory: temp, fsync, rename, fsync again; raises HostFailed, PreflightFailed.

    `owner` is its uid and gid, None for our own.
    """
    temporary = temporary_name(name)
    try:
        fd = open_anew(directory_fd, temporary)
        try:
            write_all(fd, text.encode(errors="surrogateescape"))
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        if durable:
            os.fsync(directory_fd)
    except OSError as error:
        with contextlib.suppress(KvmlaunchError):
            remove_if_there(directory_fd, temporary)
        raise failed(place_of(directory_fd, name), error) from error


def open_anew(directory_fd: int, temporary: str) -> int:
    """Make a file for writing; one that a crash left is removed first."""
    try:
        return os.open(temporary, FILE, 0o600, dir_fd=directory_fd)
    except FileExistsError:
        remove_if_there(directory_fd, temporary)
        return os.open(temporary, FILE, 0o600, dir_fd=directory_fd)


def write_all(fd: int, content: bytes) -> None:
    """Write every byte: a short write goes on."""
    while content:
        content = content[os.write(fd, content) :]


def remove_if_there(directory_fd: int, name: str) -> None:
    """Remove a file of an opened directory; not there is fine."""
    try:
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        place = place_of(directory_fd, name)
        immutable = error.errno == errno.EPERM and os.geteuid() == 0
        if error.errno in {errno.EISDIR, errno.EPERM, errno.EACCES} and not immutable:
            raise unsafe(place, f"it cannot be removed: {error.strerror}") from error
        raise failed(place, error) from error


def place_of(directory_fd: int, name: str) -> str:
    """Give where a file of an opened directory lies, for a message."""
    try:
        return f"{os.readlink(f'/proc/self/fd/{directory_fd}')}/{name}"
    except OSError:
        return name


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, whole or not at all; raises OSError."""
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def read_text_at(directory_fd: int, name: str, most: int = 1 << 20) -> str | None:
    """Give the text of a regular file in an opened directory, None when it is not there or no such file."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return None
    try:
        return os.read(fd, most).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def write_control(path: Path | PurePosixPath, text: str) -> None:
    """Write a control file of the kernel in one write, as a shell's `>` does; raises OSError, also for late errors."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read_number(path: Path | PurePosixPath) -> int:
    """Give the number in a control file of the kernel; raises OSError."""
    with open(path, encoding="ascii") as file:
        return int(file.read())
