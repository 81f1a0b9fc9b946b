"""Images that were deleted or replaced while a VM runs: QEMU has the last name of them, a number in /proc.

What the guest writes goes there, and is gone when QEMU ends; at the image's path is nothing, or another file.
"""

import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

from kvmlaunch.errors import Busy, Report
from kvmlaunch.facts.evidence import parse_open_flags
from kvmlaunch.host.readers import link_target, names_in
from kvmlaunch.model.value import frozen
from kvmlaunch.run.process import read_cmdline
from kvmlaunch.steps.observe import Seen
from kvmlaunch.storage.snapshot import SINCE

READ_ONLY = re.compile(r"(?:^|,)(?:readonly=on|media=cdrom)(?:,|$)")  # of -drive
FILE = re.compile(r"(?:^|,)file=((?:[^,]|,,)*)")  # of -drive, where a comma is doubled
DELETED = " (deleted)"  # behind the name of what a descriptor leads to: proc_pid_fd(5)


@frozen(kw_only=True)
class LostImage:
    """A file that QEMU alone still has: where it was, and where it can be copied from while QEMU lives.

    One that is not `written` holds what lies beneath an overlay.
    """

    path: PurePosixPath
    place: str
    written: bool


def lost_images(seen: Seen) -> tuple[LostImage, ...]:
    """Give the images of a live VM that are not at their paths any more; none where its descriptors may not be seen.

    They are the files of its drives that it writes to, the overlays of their snapshots, and what those rest on.  An
    overlay that QEMU has let go was committed.
    """
    opened = tuple(open_files(seen.pid))
    if not opened:
        return ()
    drives = dict(drive_files(seen.pid))
    homes = {path.parent for path in drives}
    held = {each.identity for each in opened}
    written = (path for path, writes in drives.items() if writes and SINCE not in path.name)
    found = {path: ("", True) for path in written if identity_at(path) not in held and not is_hidden(path)}
    for each in opened:
        overlay = SINCE in each.path.name
        base = not each.written and each.path not in drives and not homes.isdisjoint(each.path.parents[:2])
        gone = each.deleted and (each.path in found or overlay or base)
        if gone or (overlay and each.written and each.path.parent not in homes):
            found[each.path] = (each.place, each.written)
    own = (seen.places.run, seen.places.state, seen.places.hugepages)
    others = (each for each in opened if each.written and each.path not in drives and SINCE not in each.path.name)
    renamed = next((each.place for each in others if not any(each.path.is_relative_to(place) for place in own)), "")
    return tuple(
        LostImage(path=path, place=place or renamed, written=writes) for path, (place, writes) in found.items()
    )


def drive_files(pid: int | None) -> Iterator[tuple[PurePosixPath, bool]]:
    """Give the files of a VM's drives by its command line, where they really lie, and whether it may write to each."""
    return files_of_drives(read_cmdline(pid or 0))


def files_of_drives(argv: Sequence[str]) -> Iterator[tuple[PurePosixPath, bool]]:
    """Give the files of the drives in an argv, where they really lie, and whether each may be written."""
    for flag, word in pairwise(argv):
        for name in FILE.findall(word) if flag == "-drive" else ():
            if name.startswith("/"):
                path = os.path.realpath(name.replace(",,", ","))
                yield PurePosixPath(path), READ_ONLY.search(word) is None


@frozen(kw_only=True)
class OpenFile:
    """A regular file that a process has open: by what name, `deleted` or not, and whether it may write."""

    place: str
    path: PurePosixPath
    identity: tuple[int, int]
    deleted: bool
    written: bool


def open_files(pid: int | None) -> Iterator[OpenFile]:
    """Give the regular files and block devices that a process has open."""
    for place in descriptors(pid):
        try:
            status = os.stat(place)
            flags = parse_open_flags(Path(place.replace("/fd/", "/fdinfo/")).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        link = link_target(place)
        if (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)) and link.startswith("/"):
            yield OpenFile(
                place=place,
                path=PurePosixPath(link.removesuffix(DELETED)),
                identity=identity(status),
                deleted=stat.S_ISREG(status.st_mode) and status.st_nlink == 0,
                written=flags & os.O_ACCMODE != os.O_RDONLY,
            )


def identity_at(path: PurePosixPath | str) -> tuple[int, int] | None:
    """Give by what the file at a path is known, None where there is none."""
    try:
        return identity(os.stat(path))
    except OSError:
        return None


def is_hidden(path: PurePosixPath) -> bool:
    """Lies a path in a directory that may not be searched, so that what is there cannot be told."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def descriptors(pid: int | None) -> list[str]:
    """Give the open files of a process as paths of /proc, none where they may not be listed."""
    return [f"/proc/{pid}/fd/{number}" for number in sorted(names_in(f"/proc/{pid}/fd"), key=int)]


def has_open(seen: Seen, path: PurePosixPath) -> bool:
    """Has a live QEMU the very file or device open that lies at a path; true where its descriptors may not be seen."""
    places, wanted = descriptors(seen.pid), identity_at(path)
    if wanted is None:
        return False
    return not places or any(identity_at(place) == wanted for place in places)


def identity(status: os.stat_result) -> tuple[int, int]:
    """Give what a file is known by, whatever its name: of a device its number."""
    return (status.st_rdev, 0) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)


def refuse_replaced(seen: Seen, path: PurePosixPath, table: str) -> None:
    """Refuse to work on a file that is not the one which a running VM has open (`disk.replaced`)."""
    if not has_open(seen, path):
        raise replaced(seen, path, table, "what is done here would be done to another file than the guest's")


def refuse_lost(seen: Seen) -> None:
    """Refuse to end a VM that is the last to have an image of its own (`disk.replaced`)."""
    for image in lost_images(seen):
        more = f"\nor: kvmlaunch down {seen.name} --force   # all that it has there is lost"
        raise replaced(seen, image.path, f"pid {seen.pid}", "ending it ends what the guest has written", more)


def replaced(seen: Seen, path: PurePosixPath, where: str, why: str, more: str = "") -> Busy:
    """Give the refusal where an image was deleted or replaced beneath a running VM."""
    place = next((each.place for each in lost_images(seen) if each.path == path), "")
    copy = f"kvmlaunch pause {seen.name} && cp --sparse=always {place} {shlex.quote(f'{path}.saved')}"
    return Busy(
        Report(
            code="disk.replaced",
            message=f"{path} is not the file that the running VM has open",
            where=where,
            why=f"it was deleted or replaced while {seen.name} runs; {why}",
            hint=(f"{copy}   # saves what the guest has" if place else f"ls -l /proc/{seen.pid}/fd") + more,
        )
    )


def lost_notes(seen: Seen) -> tuple[str, ...]:
    """Give what a user must know of a VM whose image has no name any more."""
    return tuple(
        f"[disk.replaced] {image.path} was deleted or replaced: "
        f"what {'the guest writes' if image.written else 'the disk held before'} is in {image.place} alone"
        for image in lost_images(seen)
    )
