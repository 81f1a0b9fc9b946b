"""Image files in the making, and room for them: a file has its name only when it is whole.

Beside its name to be an image is made under one of its own, locked, so that a second command sees that one is at work
and what a killed one left is made anew.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import PurePosixPath

from kvmlaunch.errors import HostFailed, PreflightFailed, Report
from kvmlaunch.host.files import write_atomically
from kvmlaunch.host.rights import capture_user, rights_of, user_name
from kvmlaunch.host.tree import check_directory, failed
from kvmlaunch.model.host import UserFacts
from kvmlaunch.model.image import moved_path
from kvmlaunch.model.value import frozen
from kvmlaunch.storage.snapshot import MAKING, SINCE

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LOOKS = (0.01, 0.02, 0.05)  # seconds
RETIRED = ".retired"
FRESH = ".fresh"
MODE = 0o600  # what a disk holds is its guest's own
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@frozen(kw_only=True)
class Making:
    """An image that is being made: where, and the lock on it, which its tool inherits."""

    place: PurePosixPath
    fd: int


def owner_of(path: PurePosixPath) -> UserFacts:
    """Give with whose rights a file is worked on; for a user his own.

    For root: whom its directory, or the nearest one above that there is, belongs to, as he decides what a name there
    leads to; in a directory of root's own whom the file belongs to.
    """
    if os.geteuid() != 0:
        return capture_user()
    status = os.stat("/")
    for each in path.parents:
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.stat(each)
            break
    if status.st_uid == 0:
        with suppress(OSError):
            status = os.stat(path)
    name = user_name(status.st_uid)
    return UserFacts(uid=status.st_uid, gid=status.st_gid, name=name) if name.isdecimal() else capture_user(name)


def free_space(path: PurePosixPath) -> int:
    """Give the bytes that can be written beneath the nearest directory that there is."""
    for each in path.parents:
        with suppress(FileNotFoundError, NotADirectoryError):
            room = os.statvfs(each)
            return room.f_bavail * room.f_frsize
    return 0


def exists_already(path: PurePosixPath) -> PreflightFailed:
    """Give the refusal to make an image over a file."""
    return PreflightFailed(
        Report(
            code="disk.exists",
            message=f"{path} is there already",
            where=str(path),
            why="nothing is overwritten",
            hint="another name; or move that file away, where nobody needs it",
        )
    )


@contextmanager
def new_image(path: PurePosixPath, maker: UserFacts, owner: UserFacts) -> Iterator[Making]:
    """Give the place where an image is made; when the block ends it is on the disk, `owner`'s, and has its name.

    Missing directories are made.  On any failure nothing stays.  `maker` is with whose rights: that of the directory.
    Raises PreflightFailed `disk.exists`, `disk.locked`, `host.space`; HostFailed.
    """
    place = making_place(path)
    try:
        with rights_of(maker):
            os.makedirs(path.parent, exist_ok=True)
            refuse_open_directory(path.parent, maker)
            fd = locked_file(place)
    except OSError as error:
        raise failed(path, error) from error
    try:
        yield Making(place=place, fd=fd)
        with rights_of(maker):
            os.fsync(fd)
        if os.geteuid() == 0 and owner.uid != maker.uid:
            os.fchown(fd, owner.uid, owner.gid)
        with rights_of(maker):
            give_name(place, path)
            with suppress(FileNotFoundError):  # what was there before went elsewhere, and is here again
                os.unlink(moved_path(path))
    except OSError as error:
        raise failed(path, error) from error
    finally:
        with rights_of(maker):
            if is_named(fd, place):
                os.unlink(place)
        os.close(fd)


def refuse_open_directory(path: PurePosixPath, maker: UserFacts) -> None:
    """Refuse to make an image where others may put a file of theirs in its place (`host.dir.unsafe`)."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check_directory(directory, path, maker.uid)
    finally:
        os.close(directory)


def making_place(path: PurePosixPath) -> PurePosixPath:
    """Give the name that an image has until it is whole."""
    return path.with_name(f".{path.name}{MAKING}")


def forget_making(path: PurePosixPath) -> None:
    """Take away the making name that a command left which was killed when its image had its own name already."""
    place = making_place(path)
    if os.path.lexists(place):
        with rights_of(owner_of(path.parent)), suppress(OSError, PreflightFailed):
            remove_unlocked(place)


def locked_file(place: PurePosixPath) -> int:
    """Make a file that nobody else had in hand, and lock it; what lies there under its name is another's, or left over.

    A name that a killed command left may be a second one of a finished image: it is taken away, never emptied.
    Raises PreflightFailed `disk.locked` while another command makes it.
    """
    while True:
        remove_unlocked(place)
        try:
            fd = os.open(place, NEW, MODE)
        except FileExistsError:
            continue
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_named(fd, place):
                return fd
        os.close(fd)


def is_named(fd: int, place: PurePosixPath) -> bool:
    """Does an open file still have its name?  Whoever locked it before may have taken the name away."""
    with suppress(FileNotFoundError):
        named, opened = os.lstat(place), os.fstat(fd)
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
    return False


def remove_unlocked(place: PurePosixPath) -> None:
    """Take a name away that no command holds; not there is fine."""
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError:
        os.unlink(place)  # a link, or nothing that one opens
        return
    try:
        lock_soon(fd)
        if is_named(fd, place):
            os.unlink(place)
    except BlockingIOError as error:
        raise PreflightFailed(
            Report(
                code="disk.locked",
                message="another command is making this image",
                where=str(place),
                why="its lock is held",
                hint=f"fuser -v {place}   # shows who",
            )
        ) from error
    finally:
        os.close(fd)


def lock_soon(fd: int) -> None:
    """Lock a file; who only looks whether it is locked has it for a moment.  Raises BlockingIOError."""
    for seconds in LOOKS:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(seconds)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def give_name(place: PurePosixPath, path: PurePosixPath) -> None:
    """Give an image its name, never that of a file that is there."""
    try:
        os.link(place, path)
    except FileExistsError as error:
        raise exists_already(path) from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(path):
            raise exists_already(path) from error
        os.rename(place, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_image(path: PurePosixPath) -> None:
    """Remove an image file, with the rights of whom its directory belongs to; raises HostFailed."""
    try:
        with rights_of(owner_of(path.parent)):
            os.unlink(path)
    except OSError as error:
        raise HostFailed(
            Report(code="host.failed", message=f"{path}: {error.strerror}", where=str(path), why=f"errno {error.errno}")
        ) from error


def take_device(path: PurePosixPath) -> None:
    """Refuse a block device that is mounted, or that something else on the host is made of (`disk.locked`)."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise failed(path, error) from error
        raise PreflightFailed(
            Report(
                code="disk.locked",
                message=f"{path} is in use",
                where=str(path),
                why="it is mounted, or another device is made of it",
                hint=f"lsblk {path}",
            )
        ) from error


def mark_image(mark: PurePosixPath, text: str) -> None:
    """Lay a mark beside an image, on the disk before anything else is done; one that is there is replaced."""
    maker = owner_of(mark.parent)
    try:
        with rights_of(maker):
            directory = os.open(mark.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                write_atomically(directory, mark.name, f"{text}\n")
            finally:
                os.close(directory)
    except OSError as error:
        raise failed(mark, error) from error


def unmark_image(mark: PurePosixPath) -> None:
    """Take a mark away; the removals before it are on the disk first.  Raises HostFailed, PreflightFailed."""
    try:
        with suppress(FileNotFoundError), rights_of(owner_of(mark.parent)):
            directory = os.open(mark.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
                os.unlink(mark.name, dir_fd=directory)
            finally:
                os.close(directory)
    except OSError as error:
        raise failed(mark, error) from error


@contextmanager
def held_images(paths: Sequence[PurePosixPath]) -> Iterator[None]:
    """Hold images for a while, so that no other command of ours works on them; QEMU's own locks are others.

    Raises PreflightFailed `disk.locked` while another command has one of them, HostFailed.
    """
    with ExitStack() as stack:
        for path in paths:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PreflightFailed(
                    Report(
                        code="disk.locked",
                        message=f"another command works on {path.name}",
                        where=str(path),
                        why="its lock is held",
                        hint="the same command again, once that has ended",
                    )
                ) from error
            except OSError as error:
                raise failed(path, error) from error
        yield


def retired_place(path: PurePosixPath) -> PurePosixPath:
    """Give the name under which an overlay is nobody's disk any more."""
    return path.with_name(f".{path.name}{RETIRED}")


def fresh_place(path: PurePosixPath) -> PurePosixPath:
    """Give the name of an overlay that is to replace another."""
    return path.with_name(f".{path.name}{FRESH}")


def move_image(path: PurePosixPath, place: PurePosixPath) -> None:
    """Give an image another name in its directory; raises HostFailed, PreflightFailed."""
    try:
        with rights_of(owner_of(path.parent)):
            os.rename(path, place)
    except OSError as error:
        raise failed(path, error) from error


def forget_retired(image: PurePosixPath) -> None:
    """Remove overlays of an image that a killed command had retired already."""
    for name in os.listdir(image.parent):
        if name.startswith(f".{image.name}{SINCE}") and name.endswith(RETIRED):
            remove_image(image.with_name(name))
