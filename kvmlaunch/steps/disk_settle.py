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
from kvmlaunch.host.tree import failed
from kvmlaunch.preflight.disk import holder_text
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.disk_live import file_in_chain, is_in_chain
from kvmlaunch.steps.disks import Target, at_rest, find_disks, parse_word, qemu_img, seen_of
from kvmlaunch.steps.observe import Seen
from kvmlaunch.steps.resolve import look_at_host
from kvmlaunch.storage.image import parse_own
from kvmlaunch.storage.snapshot import NAME, overlay_path, taking_path

LONGEST_MARK = 1 << 16  # bytes


def read_mark(mark: PurePosixPath) -> str:
    """Give what a mark beside an image says; what is no such file says nothing.  Raises HostFailed, PreflightFailed."""
    try:
        with rights_of(owner_of(mark.parent)):
            directory = os.open(mark.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return (read_text_at(directory, mark.name, LONGEST_MARK) or "").strip()
            finally:
                os.close(directory)
    except OSError as error:
        raise failed(mark, error) from error


def mark_text(targets: Iterable[Target], name: str) -> str:
    """Give what the marks of a snapshot say: its name, and its disks."""
    return " ".join((name, *(target.name for target in targets)))


def begin(targets: Sequence[Target], name: str) -> None:
    """Lay the marks of a snapshot that is about to be taken."""
    for target in targets:
        mark_image(taking_path(target.image), mark_text(targets, name))


def end(targets: Iterable[Target]) -> None:
    """Take the marks of a snapshot away: it is taken, or nothing is left of it."""
    for target in targets:
        unmark_image(taking_path(target.image))


def mark_of(target: Target) -> str | None:
    """Give what the mark beside the image of a disk says, None where there is none; a read-only disk has none."""
    mark = taking_path(target.image)
    return read_mark(mark) if not target.disk.readonly and os.path.isfile(mark) else None


def settle(caller: Caller, word: str, tell: Tell) -> None:
    """Settle what a killed command has left beside the disks of a VM; what is no snapshot is told.

    Raises PreflightFailed `disk.locked` while a command is at work on them, `disk.snapshot` where it cannot be told;
    Busy, TimedOut where QEMU cannot be asked.
    """
    vm = parse_word(word)[0]
    marks = {target.name: text for target in find_disks(caller, vm) if (text := mark_of(target)) is not None}
    for text in dict.fromkeys(marks.values()):
        disks = {*text.split()[1:], *(name for name, each in marks.items() if each == text)}
        held = named(caller, vm, disks)
        for target in held:
            refuse_unseen(target, text)
        with held_images([target.image for target in held if mark_of(target) == text]):
            if settle_held(caller, vm, text, disks):
                name = text.split()[0]
                tell("warn", f"the command that took the snapshot {name} was cut off: there is none, nothing is lost")


def settle_held(caller: Caller, vm: str, text: str, disks: Collection[str]) -> bool:
    """Settle the snapshot of a mark, on whose disks no other command works; tells whether it is none."""
    marked = tuple(target for target in named(caller, vm, disks) if mark_of(target) == text)
    name = (text.split() or [""])[0]
    if not marked or not NAME.fullmatch(name):
        end(marked)
        return False
    seen = seen_of(caller, marked[0])
    if seen is not None and seen.lives:
        targets = named(caller, vm, disks)
        return drop_unless(caller, marked, name, taken=is_taken(targets, text) or is_live(seen, targets, name))
    with at_rest(caller, marked[0], "settled"):
        return drop_unless(caller, marked, name, taken=is_taken(named(caller, vm, disks), text))


def drop_unless(caller: Caller, marked: Sequence[Target], name: str, *, taken: bool) -> bool:
    """Remove the overlays of a snapshot that was not taken, as far as they are there, then the marks."""
    for target in marked if not taken else ():
        overlay = overlay_path(target.image, name)
        if os.path.lexists(overlay):
            retire(caller, overlay)
        forget_making(overlay)
    end(marked)
    return not taken


def is_taken(targets: Sequence[Target], text: str) -> bool:
    """Was a snapshot taken, as far as the images tell; raises PreflightFailed `disk.snapshot` of one out of sight.

    A mark speaks of its own image: an overlay without it was whole, and so was the snapshot.
    """
    name = text.split(maxsplit=1)[0]
    for target in targets:
        refuse_unseen(target, text)
    there = (target for target in targets if os.path.lexists(overlay_path(target.image, name)))
    return any(mark_of(target) != text or not is_begun(target, name) or has_clones(target) for target in there)


def named(caller: Caller, vm: str, disks: Collection[str]) -> tuple[Target, ...]:
    """Give a VM's disks of these names, as they are now."""
    return tuple(each for each in find_disks(caller, vm) if each.name in disks)


def refuse_unseen(target: Target, text: str) -> None:
    """Refuse to settle the snapshot of a mark where an image or overlay is out of sight: it may be written to."""
    name, facts = (text.split() or [""])[0], target.facts
    overlay = str(overlay_path(target.image, name)) if NAME.fullmatch(name) else ""
    if facts.kind != "file" or not facts.readable or overlay in facts.unread:
        gone = f"put it back; or, where it is gone for good: rm {taking_path(target.image)}, and the others"
        raise PreflightFailed(
            Report(
                code="disk.snapshot",
                message=f"whether the snapshot {name} was taken cannot be told",
                where=f"{target.disk.path} {target.table}",
                why=facts.refusal
                or (f"it is of kind {facts.kind}" if facts.kind != "file" else f"{overlay} is out of reach"),
                hint=gone if facts.kind == "missing" else f"namei -l {overlay}   # shows what keeps you out",
            )
        )


def is_live(seen: Seen, targets: Sequence[Target], name: str) -> bool:
    """Has the running QEMU switched to a snapshot, whose overlays are empty: to those of all its disks, or to none.

    Raises Busy `vm.state` for a QEMU that runs with other disks: that tells nothing of these.
    """
    for target in targets:
        overlay = overlay_path(target.image, name)
        if not os.path.lexists(overlay):
            continue
        if is_in_chain(seen, target, overlay):
            return True
        beneath = (target.image, *map(PurePosixPath, target.facts.since))[-2]
        file_in_chain(seen, target, beneath)
    return False


def has_clones(target: Target) -> bool:
    """Rests something else on the newest overlay of a disk."""
    return target.top is not None and bool(target.top.overlays)


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
