"""Directories made and removed by descriptor, never along a path that somebody else can change.

Root's trees (/run/kvmlaunch, /var/lib/kvmlaunch, /var/log/kvmlaunch) are root's from top to bottom,
so what lies in them can be named; what lies in a user's directory is entered with O_NOFOLLOW.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from shlex import quote

from kvmlaunch.errors import HostFailed, PreflightFailed, Report

OWN_NAME = "kvmlaunch"
PARENT_MODE = 0o711  # others pass through and cannot list
PASSED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # one may pass where one may not list
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def unsafe(path: PurePosixPath | str, why: str) -> PreflightFailed:
    """Give the refusal of a directory that somebody else could change under us."""
    return PreflightFailed(
        Report(
            code="host.dir.unsafe",
            message="a directory is not safe",
            where=str(path),
            why=why,
            hint=f"ls -ld {quote(str(path))}   # then remove it or give it to its owner",
        )
    )


def failed(path: PurePosixPath | str, error: OSError) -> HostFailed | PreflightFailed:
    """Give the failure of a system call on a path; a full or read-only file system, or a link, is a refusal."""
    message, why = f"{path}: {error.strerror}", f"errno {error.errno}"
    if error.errno == errno.ELOOP:
        return unsafe(path, "it is a link")
    if error.errno in {errno.ENOSPC, errno.EROFS, errno.EDQUOT}:
        return PreflightFailed(Report(code="host.space", message=message, where=str(path), why=why))
    hint = f"namei -l {quote(str(path))}   # shows what keeps you out" if error.errno == errno.EACCES else ""
    if error.errno == errno.EPERM and os.geteuid() == 0:  # root may write everything else
        place = path if os.path.lexists(path) else PurePosixPath(path).parent
        hint = f"lsattr -d {quote(str(place))}   # where it shows an i or an a: chattr -i -a takes that away"
    return HostFailed(Report(code="host.failed", message=message, where=str(path), why=why, hint=hint))


def check_directory(fd: int, path: PurePosixPath | str, uid: int) -> None:
    """Refuse an opened directory that is not `uid`'s or root's, or that others may write (a sticky one is allowed)."""
    status = os.fstat(fd)
    if status.st_uid not in {0, uid}:
        raise unsafe(path, f"it belongs to uid {status.st_uid}")
    # Above our own trees a group may write, as in Ubuntu's /var/log: what it can move away is caught by its owner.
    others = 0o022 if OWN_NAME in PurePosixPath(path).parts else 0o002
    if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
        raise unsafe(path, f"others may write it: mode {status.st_mode & 0o7777:04o}")


@contextlib.contextmanager
def entered(path: PurePosixPath, uid: int, *, make: bool = False, mode: int = PARENT_MODE) -> Iterator[int]:
    """Open a directory step by step without following links, each step checked; `make` makes what is missing.

    Raises PreflightFailed `host.dir.unsafe`, FileNotFoundError where it is not there, HostFailed.
    """
    fd = os.open("/", DIRECTORY)
    try:
        for index, part in enumerate(path.parts[1:], start=2):
            here = PurePosixPath(*path.parts[:index])
            if make:
                make_at(fd, part, here, mode)
            below = step(fd, part, here, DIRECTORY if here == path else PASSED)
            os.close(fd)
            fd = below
            check_directory(fd, here, uid)
        yield fd
    finally:
        os.close(fd)


def step(fd: int, name: str, here: PurePosixPath, flags: int = DIRECTORY) -> int:
    """Open a directory within an opened one, a link never followed."""
    try:
        return os.open(name, flags, dir_fd=fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise unsafe(here, "it is a link or no directory") from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise unsafe(here, error.strerror or "") from error
        raise failed(here, error) from error


def make_at(fd: int, name: str, here: PurePosixPath, mode: int) -> None:
    """Make a directory within an opened one, with exactly this mode whatever the umask; there already is fine."""
    try:
        os.mkdir(name, mode, dir_fd=fd)
        os.chmod(name, mode, dir_fd=fd)
    except FileExistsError:
        return
    except OSError as error:
        raise failed(here, error) from error


def make_owned(path: PurePosixPath, uid: int, gid: int, mode: int) -> None:
    """Make a directory for a VM's user within a tree of root's or his own; one of another user is refused."""
    with entered(path.parent, uid, make=True) as parent:
        make_at(parent, path.name, path, mode)
        fd = open_owned(parent, path, uid)
        try:
            if os.fstat(fd).st_uid != uid or os.geteuid() == 0:
                os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)


def own_files(path: PurePosixPath, uid: int, gid: int) -> None:
    """Give root's VM the files in a directory of its own that belong to a user as whom it ran before.

    A file that has a second name may be anybody's, and stays as it is.
    """
    if os.geteuid() != 0:
        return
    with entered(path, uid) as directory:
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                try:
                    status = os.fstat(fd)
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid != uid:
                        os.fchown(fd, uid, gid)
                finally:
                    os.close(fd)


def open_owned(parent: int, path: PurePosixPath, uid: int) -> int:
    """Open the last component of a path: a directory of a VM's user, or any within root's tree, which is root's.

    Raises PreflightFailed `host.dir.unsafe`, FileNotFoundError.
    """
    fd = step(parent, path.name, path)
    owner = os.fstat(fd).st_uid
    in_roots_tree = os.geteuid() == 0 and os.fstat(parent).st_uid == 0
    if owner not in {os.geteuid(), uid} and not in_roots_tree:
        os.close(fd)
        raise unsafe(path, f"it belongs to uid {owner}")
    return fd


def why_unsafe(paths: Iterable[PurePosixPath], uid: int) -> Report | None:
    """Give why the first of a VM's directories may not be used, None when those that are there may, and have room."""
    for path in paths:
        try:
            check_room(path)
            with entered(path.parent, uid) as parent:
                os.close(open_owned(parent, path, uid))
        except FileNotFoundError:
            continue
        except PreflightFailed as error:
            return error.report
    return None


def check_room(path: PurePosixPath) -> None:
    """Refuse a directory, there or to be made, whose file system is full or read-only (`host.space`)."""
    seen = os.statvfs(next(place for place in (path, *path.parents) if os.path.isdir(place)))
    blocks = seen.f_bfree if os.geteuid() == 0 else seen.f_bavail
    if seen.f_flag & os.ST_RDONLY:
        raise failed(path, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if (seen.f_blocks and not blocks) or (seen.f_files and not seen.f_ffree):
        raise failed(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def remove_empty(path: PurePosixPath, uid: int, *, up_to: PurePosixPath) -> None:
    """Remove a directory and its parents below `up_to`, as long as they are empty."""
    while path != up_to and up_to in path.parents:
        try:
            with entered(path.parent, uid) as parent:
                os.rmdir(path.name, dir_fd=parent)
        except FileNotFoundError:
            pass  # a crash may have come between: its parents are still to go
        except (OSError, PreflightFailed):
            return
        path = path.parent
