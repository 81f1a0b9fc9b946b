"""Our lines in fstab: put in and taken out as a whole, everything else as it was.

The file is replaced by rename under a flock on its directory, and only while its text is still the one that was
judged: editors know no lock of ours.  What systemd made of the old file stays until it is reloaded, which is for
the caller.  Taking lines out is not verified: it can add no problem, and must work where findmnt is gone.
"""

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from kvmlaunch.errors import Busy, HostFailed, KvmlaunchError, PreflightFailed, Report
from kvmlaunch.host.command import run_tool
from kvmlaunch.host.files import FILE, temporary_name, write_all
from kvmlaunch.host.lock import wait_for_lock
from kvmlaunch.host.tree import entered, failed
from kvmlaunch.tune.fstab import duplicate_targets, parse_region, render_region, without_region
from kvmlaunch.tune.fstab_problems import new_problems, parse_problems

DEADLINE: Final = 60.0  # seconds
TRIES: Final = 5
MOST_LINKS: Final = 40  # as the kernel follows: path_resolution(7)
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FS_IOC_GETFLAGS: Final = 0x80086601  # linux/fs.h, on a 64-bit machine
IMMUTABLE_OR_APPEND: Final = 0x30
OF_THE_CONTENT: Final = {"security.ima", "security.evm"}  # signatures: a copy would be wrong for another text

Outcome = Literal["written", "unchanged", "raced"]
Edit = Callable[[str], str]
Gate = Callable[[str, Path, Path, str], None]


def set_region(path: Path, lines: Sequence[str], *, deadline: float = DEADLINE, findmnt: str = "findmnt") -> bool:
    """Put these lines of ours into fstab in place of earlier ones; tells whether anything was to do.

    `lines` are as `render_line` gives them, none is `remove_region`; a mount point has to be there already.  Raises
    PreflightFailed `host.fstab.invalid` when they would add a problem (a warning too) or our markers are broken,
    `host.space`, `host.dir.unsafe`; Busy `host.locked` when the lock is held, or others change the file, for too
    long (`deadline` is in seconds); HostFailed, `host.tool.missing` without findmnt; TimedOut when that hangs.
    """
    if not lines:
        return remove_region(path, deadline=deadline)

    def check(old: str, real: Path, temporary: Path, new: str) -> None:
        refuse_duplicates(real, old, lines)
        refuse_new_problems(real, verify(findmnt, real, old), verify(findmnt, temporary, new))

    return replace(path, lambda old: render_region(old, lines), check, deadline)


def remove_region(path: Path, *, ours: Sequence[str] | None = None, deadline: float = DEADLINE) -> bool:
    """Take our lines out of fstab; tells whether there were any, and a file that is not there has none.

    Of the lines between our markers those that are not `ours` stay, where that is given.  Raises as `set_region`, but
    needs no findmnt.
    """
    if not os.path.lexists(path):
        return False
    return replace(path, lambda text: without_region(text, ours), lambda *_: None, deadline)


def replace(path: Path, edit: Edit, gate: Gate, deadline: float) -> bool:
    """Edit the file that a path leads to; starts again when somebody else changes it meanwhile."""
    for _ in range(TRIES):
        real = follow(path)
        with suppress(FileNotFoundError), entered(PurePosixPath(real.parent), os.geteuid()) as directory:
            wait_for_lock(directory, str(real.parent), deadline)
            outcome = replace_once(directory, path, real, edit, gate)
            if outcome != "raced":
                return outcome == "written"
    raise Busy(
        Report(
            code="host.locked",
            message="somebody else keeps changing fstab",
            where=str(real),
            why=f"it was changed during each of {TRIES} tries to edit it",
            hint=f"fuser -v {real}   # shows who has it open",
        )
    )


def follow(path: Path) -> Path:
    """Give the file that a path leads to: that one is replaced, and the links stay.

    A link that others could turn would make us write into another file: its directory is checked like the file's.
    """
    try:
        for _ in range(MOST_LINKS):
            place = Path(os.path.realpath(path.parent, strict=True)) / path.name
            target = read_link(place)
            if target is None:
                return place
            path = place.parent / target
    except FileNotFoundError as error:
        report = Report(
            code="host.failed",
            message=f"{path} is not there",
            where=str(path),
            why="lines of ours are added to a file that this host reads",
            hint=f"touch {path}   # then the same command again",
        )
        raise HostFailed(report) from error
    except OSError as error:
        raise failed(str(path), error) from error
    raise failed(str(path), OSError(errno.ELOOP, os.strerror(errno.ELOOP)))


def read_link(place: Path) -> str | None:
    """Give where a link leads, None for what is no link; raises OSError."""
    with entered(PurePosixPath(place.parent), os.geteuid()) as directory:
        try:
            return os.readlink(place.name, dir_fd=directory)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise


def replace_once(directory: int, path: Path, real: Path, edit: Edit, gate: Gate) -> Outcome:
    """Write the edited text beside the file, judge it, and put it in its place if that still holds the same text.

    Raises FileNotFoundError when the file went away since its path was followed.
    """
    fd = open_regular(directory, real)
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary_of(real.name), dir_fd=directory)  # left by a crash
        old = read_all(fd)
        refuse_broken_markers(real, old)
        new = edit(old)
        if new == old:
            return "unchanged"
        with temporary_like(fd, directory, real.name, new) as temporary:
            gate(old, real, real.parent / temporary, new)
            return rename_if_same(directory, temporary, path, real, old)
    except OSError as error:
        raise why_not(real, fd, error) from error
    finally:
        os.close(fd)


def open_regular(directory: int, real: Path) -> int:
    """Open the file for reading, which is no link any more."""
    try:
        fd = os.open(real.name, READ, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise failed(str(real), error) from error
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise HostFailed(Report(code="host.failed", message="fstab is no regular file", where=str(real)))


def read_all(fd: int) -> str:
    """Give the text of an opened file; bytes that are no UTF-8 are kept as surrogates."""
    with open(fd, "rb", closefd=False) as file:
        return file.read().decode(errors="surrogateescape")


def temporary_of(name: str) -> str:
    """Give the name that the edited text has until it takes the file's place."""
    return temporary_name(f"{name}.kvmlaunch")


@contextmanager
def temporary_like(like: int, directory: int, name: str, text: str) -> Iterator[str]:
    """Write a text beside a file, with what that file has but its text, and give its name; it is gone afterwards."""
    temporary = temporary_of(name)
    fd = os.open(temporary, FILE, 0o600, dir_fd=directory)
    try:
        try:
            copy_attributes(like, fd)
            write_all(fd, text.encode(errors="surrogateescape"))
            os.fsync(fd)
        finally:
            os.close(fd)
        yield temporary
    finally:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)


def copy_attributes(like: int, fd: int) -> None:
    """Give a file the owner, mode, access lists and other extended attributes of another; the owner first."""
    wanted, status = os.fstat(like), os.fstat(fd)
    if (wanted.st_uid, wanted.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(fd, wanted.st_uid, wanted.st_gid)
    os.fchmod(fd, stat.S_IMODE(wanted.st_mode))
    for name in attribute_names(like):
        os.setxattr(fd, name, os.getxattr(like, name))


def attribute_names(fd: int) -> list[str]:
    """Give the names of a file's extended attributes that go with its place rather than with its content."""
    try:
        return [name for name in os.listxattr(fd) if name not in OF_THE_CONTENT]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def rename_if_same(directory: int, temporary: str, path: Path, real: Path, old: str) -> Outcome:
    """Put the new file in place, unless the path leads elsewhere or the text is another than the one judged."""
    fd = open_regular(directory, real)
    try:
        if follow(path) != real or read_all(fd) != old:
            return "raced"
    finally:
        os.close(fd)
    os.rename(temporary, real.name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
    return "written"


def why_not(real: Path, fd: int, error: OSError) -> KvmlaunchError:
    """Give the failure of an edit in words: a file that nobody may change is told from one that we may not."""
    if error.errno == errno.EPERM and is_protected(fd):
        return HostFailed(
            Report(
                code="host.failed",
                message="fstab is immutable or append-only",
                where=str(real),
                why=f"an attribute of the file forbids to replace it: errno {error.errno}",
                hint=f"lsattr {real}   # shows it, chattr -i -a {real} takes it away",
            )
        )
    return failed(str(real), error)


def is_protected(fd: int) -> bool:
    """Tell whether chattr made a file immutable or append-only; where there are no such attributes it did not."""
    try:
        flags = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return False
    return bool(int.from_bytes(flags[:4], sys.byteorder) & IMMUTABLE_OR_APPEND)


def refuse_broken_markers(real: Path, text: str) -> None:
    """Refuse a text in which our lines cannot be told from others'."""
    try:
        parse_region(text)
    except ValueError as error:
        report = Report(
            code="host.fstab.invalid",
            message="the markers around our lines in fstab do not fit together",
            where=str(real),
            why=str(error),
            hint=f"grep -n '# kvmlaunch:' {real}   # then remove what is left of our lines by hand",
        )
        raise PreflightFailed(report) from error


def read_region(path: Path) -> str | None:
    """Give our lines in fstab, None without markers; raises OSError, PreflightFailed `host.fstab.invalid`."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    refuse_broken_markers(path, text)
    lines = parse_region(text)
    return None if lines is None else "\n".join(lines)


def refuse_duplicates(real: Path, text: str, lines: Sequence[str]) -> None:
    """Refuse a line of ours for a mount point that another line has."""
    found = duplicate_targets(text, lines)
    if found:
        raise PreflightFailed(
            Report(
                code="host.fstab.invalid",
                message="fstab has another line for the same mount point",
                where=str(real),
                why="\n".join(f"{other}   is there, and this would come beside it: {line}" for line, other in found),
            )
        )


def refuse_new_problems(real: Path, before: Sequence[str], after: Sequence[str]) -> None:
    """Refuse problems that were not there before; those of others' lines are theirs."""
    found = new_problems(before, after)
    if found:
        raise PreflightFailed(
            Report(
                code="host.fstab.invalid",
                message="lines for fstab were refused by findmnt",
                where=str(real),
                why="\n".join(found),
                hint=f"findmnt --verify --tab-file {real}   # shows what is wrong without them",
            )
        )


def verify(findmnt: str, file: Path, text: str) -> tuple[str, ...]:
    """Give the problems that findmnt finds in a file with this text."""
    argv = (findmnt, "--verify", "--tab-file", str(file))
    result = run_tool(argv)
    problems = parse_problems(result.out, result.err, text)
    if result.status not in {0, 1} or (result.status and not problems):
        raise HostFailed(
            Report(
                code="host.tool.failed",
                message="findmnt did not verify fstab",
                where=" ".join(argv),
                why=f"status {result.status}\n{result.err.strip()}",
            )
        )
    return problems
