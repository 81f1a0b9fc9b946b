"""`disk info`, `disk check`, `disk remove`: what a disk is, whether it is sound, and its end."""

import contextlib
import os
import shlex
from pathlib import PurePosixPath
from typing import Final, Literal

from kvmlaunch.errors import KvmlaunchError, PreflightFailed, Report
from kvmlaunch.facts.block import parse_layout
from kvmlaunch.host.capture_path import read_head
from kvmlaunch.host.images import held_images, making_place
from kvmlaunch.host.rundir import lock_taker
from kvmlaunch.host.volumes import drop_volume, find_volume
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.model.volume import parse_volume_name
from kvmlaunch.preflight.disk import check_chain, cut_off, repair_beneath_hint, repair_hint
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.disk_create import refuse_held
from kvmlaunch.steps.disks import (
    Target,
    at_rest,
    failed_tool,
    find_disk,
    find_disks,
    need_file,
    need_format,
    qemu_img,
    read_chain,
    refuse_absent,
    refuse_base,
    refuse_clones,
    refuse_disorder,
    refuse_found,
    refuse_kind,
    refuse_locked,
    refuse_running,
    refuse_shared,
    remove_file,
    unreadable,
    volume_of,
)
from kvmlaunch.storage.image import Checked, Image, parse_check
from kvmlaunch.storage.volume import Volume

CORRUPT, LEAKS, NOT_FOR_THIS_FORMAT = 2, 3, 63
UNSOUND: Final = ("corrupt", "marked")
Soundness = Literal["sound", "repaired", "leaks", "marked", "corrupt", "nothing to check"]
WORST: Final[tuple[Soundness, ...]] = ("corrupt", "marked", "leaks", "repaired", "sound", "nothing to check")


@frozen(kw_only=True)
class Unfinished:
    """An image that is not whole yet: bytes `allocated`, whether it is `locked`: something still makes it.

    `pid` is that of the command, None where it has ended.
    """

    path: PurePosixPath
    allocated: int
    locked: bool
    pid: int | None


@frozen(kw_only=True)
class Info:
    """A disk as it lies on the host: its chain, the topmost first, and the LVM volume that it is.

    `unfinished` is what a command has made of the image until now, or had when it was killed; `error` is why nothing
    can be told of the image.
    """

    target: Target
    chain: tuple[Image, ...] = ()
    volume: Volume | None = None
    unfinished: Unfinished | None = None
    error: KvmlaunchError | None = None


def unfinished_of(target: Target) -> Unfinished | None:
    """Give what lies under the name that the image of a disk has until it is whole."""
    place = making_place(target.disk.path)
    try:
        status = os.stat(place, follow_symlinks=False)
    except OSError:
        return None
    taker = lock_taker(place)
    lives = taker is not None and os.path.isdir(f"/proc/{taker}")
    size = status.st_blocks * 512
    return Unfinished(path=place, allocated=size, locked=taker is not None, pid=taker if lives else None)


def look_at(caller: Caller, word: str) -> tuple[Info, ...]:
    """Give what the disks of a word are; of one that cannot be read, why."""
    return tuple(look_at_one(caller, target) for target in find_disks(caller, word))


def look_at_one(caller: Caller, target: Target) -> Info:
    """Give what one disk is."""
    unfinished = unfinished_of(target)
    try:
        if target.facts.kind not in {"file", "block"}:
            refuse_absent(target)
            refuse_kind(target.disk.path, target.facts, target.table)
            refuse_held(caller, target)
            return Info(target=target, unfinished=unfinished)
        chain = read_chain(target) if target.format else ()
    except KvmlaunchError as error:
        return Info(target=target, unfinished=unfinished, error=error)
    return Info(target=target, chain=chain, volume=volume_of(target), unfinished=unfinished)


@frozen(kw_only=True)
class Examined:
    """What a check of a disk came to, and of which of its images that is told."""

    target: Target
    path: PurePosixPath
    soundness: Soundness
    found: Checked

    @property
    def beneath(self) -> bool:
        """Is it of an image that the disk's own rests on, and others' may too."""
        return self.path in images_beneath(self.target)


@frozen(kw_only=True)
class Unexamined:
    """A disk that could not be checked, and why."""

    target: Target
    error: PreflightFailed


def check(
    caller: Caller, word: str, *, repair: bool = False, dry_run: bool = False
) -> tuple[Examined | Unexamined, ...]:
    """Check the images of a word, and mend them: then one that cannot be has none mended.

    With a dry run they are checked, and refused what would keep them from being mended.  Raises Busy while the VM
    runs, PreflightFailed.
    """
    targets = find_disks(caller, word)
    for target in targets:
        refuse_running(caller, target, "checked")
    if not repair:
        return tuple(examine(target) for target in targets)
    for target in targets:
        need_file(target)
    with held_images([target.image for target in targets]):
        return mend(caller, find_disks(caller, word), dry_run=dry_run)


def mend(caller: Caller, targets: tuple[Target, ...], *, dry_run: bool) -> tuple[Examined, ...]:
    """Repair disks that no other command works on, where that can be done to all of them."""
    for target in targets:
        need_file(target)
        refuse_locked(target)
        refuse_disorder(target)
        if not target.facts.since:
            refuse_base(target)
        else:
            refuse_clones(caller, target, (target.image, *map(PurePosixPath, target.facts.since)), "be repaired")
    return tuple(check_one(target, repair=not dry_run) for target in targets)


def examine(target: Target) -> Examined | Unexamined:
    """Check a disk; one that cannot be keeps no other from it."""
    try:
        need_file(target)
        refuse_locked(target)
        return check_one(target, repair=False)
    except PreflightFailed as error:
        return Unexamined(target=target, error=error)


def check_one(target: Target, *, repair: bool) -> Examined:
    """Check a disk: its image, the overlays of its snapshots, what it rests on; gives the worst that was found.

    What it rests on is others' as well, and is not mended here.
    """
    refuse_circle(target)
    overlays = [(PurePosixPath(each), "qcow2") for each in target.facts.since]
    found = [
        check_image(target, path, format_, repair=repair)
        for path, format_ in ((target.image, need_format(target)), *overlays)
    ]
    formats = formats_of(target)
    others = (path for path in images_beneath(target) if formats.get(path, path.suffix.lstrip(".")) == "qcow2")
    found += [check_image(target, path, "qcow2", repair=False) for path in others]
    return min(found, key=lambda each: WORST.index(each.soundness))


def refuse_circle(target: Target) -> None:
    """Refuse an image that rests on itself (`disk.backing`): qemu-img would open one file after another for ever."""
    chain = (os.path.realpath(target.image), *target.facts.chain)
    if len(set(chain)) < len(chain):
        refuse_found(target, check_chain(target.image, target.facts, target.table))


def formats_of(target: Target) -> dict[PurePosixPath, str]:
    """Give the formats of a disk's images as each names what it rests on; none where something of it is not there."""
    with contextlib.suppress(PreflightFailed):
        return {PurePosixPath(os.path.realpath(image.path)): image.format for image in read_chain(target)}
    return {}


def is_unsound(target: Target) -> bool:
    """Does a check find something wrong in a disk, or cannot even read it."""
    try:
        return check_one(target, repair=False).soundness in UNSOUND
    except PreflightFailed:
        return True


def refuse_unsound(target: Target) -> None:
    """Refuse a disk in which a check finds what is wrong (`disk.corrupt`): QEMU reads nothing there, in silence."""
    examined = check_one(target, repair=False)
    if examined.soundness in UNSOUND:
        path = examined.path
        raise PreflightFailed(
            Report(
                code="disk.corrupt",
                message=f"{path.name} is damaged",
                where=target.table,
                why="qemu-img check finds its tables wrong: what they led to is read as nothing",
                hint=repair_beneath_hint(path) if examined.beneath else repair_hint(path, target.word),
            )
        )


def images_beneath(target: Target) -> tuple[PurePosixPath, ...]:
    """Give the images that the image of a disk rests on, the nearest first."""
    return tuple(PurePosixPath(each) for each in target.facts.chain)


def check_image(target: Target, path: PurePosixPath, format_: str, *, repair: bool) -> Examined:
    """Check one image, and with a repair twice: qemu-img's status tells what was found.

    The second one takes the mark of a damaged image away, which the one that mends it may leave (QEMU 7.2.22).
    """
    marked = is_marked(path)
    first = run_check(target, path, format_, repair=repair)
    if not repair or first.soundness == "nothing to check":
        return evolve(first, soundness="marked") if marked and first.soundness in {"sound", "leaks"} else first
    again = run_check(target, path, format_, repair=True)
    mended = again.soundness == "sound" and (marked or first.found.fixed > 0)
    return evolve(again, soundness="repaired") if mended else again


def is_marked(path: PurePosixPath) -> bool:
    """Has QEMU marked an image as damaged, which it may be no more; one that cannot be read is not.

    Raises PreflightFailed `disk.corrupt` of one that ends before its first table does: qemu-img finds nothing in it,
    and nothing wrong (7.2.22).
    """
    try:
        head, _, size, _ = read_head(str(path))
    except OSError:
        return False
    layout = parse_layout(head)
    least = int(str(layout.get("least", 0)))
    if size < least:
        raise PreflightFailed(cut_off(path, size, least, "").report._replace(where=str(path)))
    return bool(layout.get("damaged"))


def run_check(target: Target, path: PurePosixPath, format_: str, *, repair: bool) -> Examined:
    """Run qemu-img on one image; raises PreflightFailed `disk.corrupt` where it could not look at it."""
    mend = ("-r", "all") if repair else ()
    done = qemu_img("check", "--output=json", "-f", format_, *mend, str(path), paths=(path,))
    if done.status == NOT_FOR_THIS_FORMAT:
        return Examined(target=target, path=path, soundness="nothing to check", found=Checked())
    if done.status not in {0, CORRUPT, LEAKS}:
        raise unreadable(target, failed_tool(done, path).report.why)
    try:
        found = parse_check(done.out)
    except ValueError as error:
        raise unreadable(target, str(error)) from error
    words: dict[int, Soundness] = {CORRUPT: "corrupt", LEAKS: "leaks"}
    return Examined(target=target, path=path, soundness=words.get(done.status, "sound"), found=found)


def remove(caller: Caller, word: str, *, dry_run: bool = False) -> Target:
    """Remove a disk: its file, or its volume; raises Busy while the VM runs, PreflightFailed while it is locked."""
    with at_rest(caller, removable(caller, word), "removed"):
        target = removable(caller, word)  # looked at again: nobody takes a snapshot any more
        return remove_at_rest(target, dry_run=dry_run)


def removable(caller: Caller, word: str) -> Target:
    """Give a disk that nothing rests on."""
    target = find_disk(caller, word)
    need_file(target)
    refuse_disorder(target)
    refuse_base(target)
    refuse_shared(caller, target)
    return target


def remove_at_rest(target: Target, *, dry_run: bool) -> Target:
    """Remove a disk whose VM cannot be started meanwhile."""
    refuse_locked(target)
    if target.facts.kind == "file":
        if not os.access(target.image.parent, os.W_OK | os.X_OK):
            message, hint = (
                f"{target.image.parent} cannot be written to",
                f"ls -ld {shlex.quote(str(target.image.parent))}",
            )
            raise PreflightFailed(Report(code="disk.permission", message=message, where=target.table, hint=hint))
        if not dry_run:
            remove_file(target)
        return target
    name = parse_volume_name(target.disk.path)
    if name is None or find_volume(name) is None:
        raise PreflightFailed(
            Report(
                code="disk.type",
                message=f"{target.disk.path} is no LVM volume",
                where=target.table,
                why="a device is not kvmlaunch's to remove",
                hint=f"take [{target.table}] out of the definition; the device stays",
            )
        )
    if not dry_run:
        drop_volume(name)
    return target
