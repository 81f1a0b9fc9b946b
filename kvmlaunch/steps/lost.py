"""Images that were deleted or replaced while a VM runs: QEMU has the last name of them, a number in /proc.

What the guest writes goes there, and is gone when QEMU ends; at the image's path is nothing, or another file.
"""

import os
import re
import shlex
import stat
from pathlib import Path, PurePosixPath

from kvmlaunch.errors import Busy, Report
from kvmlaunch.facts.evidence import parse_open_flags
from kvmlaunch.model.value import frozen
from kvmlaunch.run.process import read_cmdline
from kvmlaunch.steps.observe import Seen
from kvmlaunch.storage.snapshot import SINCE

FILE = re.compile(r"(?:^|,)file=((?:[^,]|,,)*)")  # of -drive, where a comma is doubled
DELETED = " (deleted)"  # behind the name of what a descriptor leads to: proc_pid_fd(5)


@frozen(kw_only=True)
class LostImage:
    """A file that QEMU alone still has: where it was, and where it can be copied from while QEMU lives."""

    path: PurePosixPath
    place: str


def lost_images(seen: Seen) -> tuple[LostImage, ...]:
    """Give the images of a live VM that have no name any more; none where its descriptors may not be seen.

    An image is a file that its command line names and that it writes to, or the overlay of a snapshot.
    """
    files = {
        os.path.realpath(each.replace(",,", ",")) for word in read_cmdline(seen.pid or 0) for each in FILE.findall(word)
    }
    found: dict[PurePosixPath, LostImage] = {}
    for place in descriptors(seen.pid):
        link = read_link(place)
        path = PurePosixPath(link.removesuffix(DELETED))
        if link.endswith(DELETED) and (SINCE in path.name or str(path) in files) and is_written(place):
            found.setdefault(path, LostImage(path=path, place=place))
    return tuple(found.values())


def descriptors(pid: int | None) -> list[str]:
    """Give the open files of a process as paths of /proc, none where they may not be listed."""
    try:
        return [f"/proc/{pid}/fd/{number}" for number in sorted(os.listdir(f"/proc/{pid}/fd"), key=int)]
    except OSError:
        return []


def read_link(place: str) -> str:
    """Give what a descriptor leads to, "" where that is gone."""
    try:
        return os.readlink(place)
    except OSError:
        return ""


def is_written(place: str) -> bool:
    """Is what a descriptor leads to a regular file without any name, and open for writing: an image, no seed or CD."""
    try:
        status = os.stat(place)
        flags = parse_open_flags(Path(place.replace("/fd/", "/fdinfo/")).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and flags & os.O_ACCMODE != os.O_RDONLY


def has_open(seen: Seen, path: PurePosixPath) -> bool:
    """Has a live QEMU the very file or device open that lies at a path; true where its descriptors may not be seen."""
    places = descriptors(seen.pid)
    try:
        wanted = identity(os.stat(path))
    except OSError:
        return False
    for place in places:
        try:
            if identity(os.stat(place)) == wanted:
                return True
        except OSError:
            continue
    return not places


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
        f"[disk.replaced] {image.path} was deleted or replaced: what the guest writes is in {image.place} alone"
        for image in lost_images(seen)
    )
