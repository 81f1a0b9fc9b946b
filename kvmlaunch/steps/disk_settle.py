"""A snapshot that was cut off while it was taken: of all its disks, or of none.

The overlays get their names before QEMU switches to them, all at one moment.  A mark beside each image says meanwhile
that the snapshot may not have been taken, and of which disks; whoever finds one, and no command at work on the images,
settles that.
"""

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from kvmlaunch.errors import PreflightFailed, Report
from kvmlaunch.facts.sources import Wanted
from kvmlaunch.host.files import read_text_at
from kvmlaunch.host.images import (
    forget_making,
    held_images,
    mark_image,
    move_image,
    owner_of,
    remove_image,
    retired_place,
    unmark_image,
)
from kvmlaunch.host.rights import rights_of
from kvmlaunch.preflight.disk import holder_text
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.disk_live import is_in_chain
from kvmlaunch.steps.disks import Target, at_rest, find_disks, parse_word, qemu_img, seen_of
from kvmlaunch.steps.observe import Seen
from kvmlaunch.steps.resolve import look_at_host
from kvmlaunch.storage.image import parse_own
from kvmlaunch.storage.snapshot import NAME, overlay_path, taking_path

LONGEST_MARK = 1 << 16  # bytes


def read_mark(mark: PurePosixPath) -> str:
    """Give what a mark beside an image says; what is no such file says nothing."""
    with rights_of(owner_of(mark.parent)):
        directory = os.open(mark.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return (read_text_at(directory, mark.name, LONGEST_MARK) or "").strip()
        finally:
            os.close(directory)


def begin(targets: Sequence[Target], name: str) -> None:
    """Lay the marks of a snapshot that is about to be taken: its name, and its disks."""
    text = " ".join((name, *(target.name for target in targets)))
    for target in targets:
        mark_image(taking_path(target.image), text)


def end(targets: Iterable[Target]) -> None:
    """Take the marks of a snapshot away: it is taken, or nothing is left of it."""
    for target in targets:
        unmark_image(taking_path(target.image))


def settle(caller: Caller, word: str) -> tuple[str, ...]:
    """Settle what a killed command has left beside the disks of a VM; gives the names of snapshots that are not.

    Raises PreflightFailed `disk.locked` while a command is at work on them; Busy, TimedOut where QEMU cannot be asked.
    """
    vm = parse_word(word)[0]
    marks: dict[str, set[str]] = {}
    for target in find_disks(caller, vm):
        if os.path.lexists(taking_path(target.image)):
            name, *disks = read_mark(taking_path(target.image)).split() or [""]
            marks.setdefault(name, set()).update(disks, {target.name})
    return tuple(name for name, disks in marks.items() if settle_one(caller, vm, name, disks))


def settle_one(caller: Caller, vm: str, name: str, disks: Collection[str]) -> bool:
    """Settle a snapshot of some disks; tells whether it is none."""
    with held_images([target.image for target in named(caller, vm, disks)]):
        targets = named(caller, vm, disks)
        if not any(os.path.lexists(taking_path(target.image)) for target in targets):
            return False  # another command did it
        if NAME.fullmatch(name):
            return drop_unused(caller, targets, name)
        end(targets)  # no mark of ours
        return False


def named(caller: Caller, vm: str, disks: Collection[str]) -> tuple[Target, ...]:
    """Give the images of a VM's disks of these names, as they are now."""
    return tuple(each for each in find_disks(caller, vm) if each.name in disks and each.facts.kind == "file")


def drop_unused(caller: Caller, targets: Sequence[Target], name: str) -> bool:
    """Drop the overlays of a snapshot where none of them was ever written to; tells whether that was so."""
    seen = seen_of(caller, targets[0])
    if seen is not None and seen.lives:
        return drop_unused_live(caller, seen, targets, name)
    with at_rest(caller, targets[0], "settled"):
        if any(is_written(target, name) for target in targets):
            end(targets)
            return False
        drop(caller, targets, name)
    return True


def drop_unused_live(caller: Caller, seen: Seen, targets: Sequence[Target], name: str) -> bool:
    """Drop the overlays of a snapshot where the running QEMU has none of them: it switches to all or to none."""
    if any(is_in_chain(seen, target, overlay_path(target.image, name)) for target in targets):
        end(targets)
        return False
    drop(caller, targets, name)
    return True


def drop(caller: Caller, targets: Sequence[Target], name: str) -> None:
    """Remove the overlays of a snapshot, as far as they are there, then the marks."""
    for target in targets:
        overlay = overlay_path(target.image, name)
        if os.path.lexists(overlay):
            retire(caller, overlay)
        forget_making(overlay)
    end(targets)


def is_written(target: Target, name: str) -> bool:
    """Was something written to the overlay of a snapshot, or rests something on it."""
    overlay = str(overlay_path(target.image, name))
    above = target.top is not None and bool(target.top.overlays)
    return overlay in target.facts.since and (above or not is_begun(target, name))


def is_begun(target: Target, name: str) -> bool:
    """Is the newest overlay of a disk that of a snapshot, and empty: nothing was written since."""
    top = overlay_path(target.image, name)
    if not target.facts.since or target.facts.since[-1] != str(top):
        return False
    done = qemu_img("map", "-U", "--output=json", "-f", "qcow2", str(top), paths=(top,))
    with contextlib.suppress(ValueError):
        return done.status == 0 and not parse_own(done.out)
    return False


def retire(caller: Caller, overlay: PurePosixPath) -> None:
    """Remove an overlay that nobody has open; raises PreflightFailed `disk.locked`, and it is as it was.

    Its name goes first, so that nobody opens it after the look.
    """
    place = retired_place(overlay)
    move_image(overlay, place)
    holders = look_at_host(caller, Wanted(paths=(place,)), None).paths[place].lock_holders
    if holders:
        move_image(place, overlay)
        raise PreflightFailed(
            Report(
                code="disk.locked",
                message=f"{overlay.name} is in use",
                where=str(overlay),
                why="locked by " + ", ".join(dict.fromkeys(map(holder_text, holders))),
                hint="the same command again, once that has ended",
            )
        )
    remove_image(place)
