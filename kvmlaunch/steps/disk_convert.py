"""`disk convert`: a disk becomes another image, volume or device, and counts as that only once both compare equal."""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

from kvmlaunch.errors import HostFailed, PreflightFailed, Report
from kvmlaunch.host.capture_path import open_image
from kvmlaunch.host.images import (
    free_space,
    mark_image,
    new_image,
    owner_of,
)
from kvmlaunch.host.rights import rights_of
from kvmlaunch.host.tree import failed
from kvmlaunch.host.volumes import drop_volume, find_volume, new_volume
from kvmlaunch.model.image import moved_path, qcow2_room
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.model.volume import parse_volume_name
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.disk_check import is_unsound, refuse_unsound
from kvmlaunch.steps.disk_goal import Goal, goal_of, refuse_filled, refuse_goal
from kvmlaunch.steps.disks import (
    Progress,
    Target,
    at_rest,
    failed_tool,
    find_disk,
    keeper_of,
    need_file,
    no_progress,
    qemu_img,
    read_chain,
    refuse_base,
    refuse_damaged,
    refuse_disorder,
    refuse_elsewhere,
    refuse_locked,
    refuse_shared,
    remove_file,
    top_format,
    top_of,
)
from kvmlaunch.storage.creation import COPIES_ON_WRITE
from kvmlaunch.storage.image import Image, parse_info, parse_progress
from kvmlaunch.units import render_rounded, render_size

SHARE = {"convert": (0.0, 0.7), "compare": (0.7, 0.3)}  # of the whole, for its progress
CLUSTER = 1 << 16  # bytes, as qemu-img makes them
PREALLOCATION = {"raw": "falloc", "qcow2": "metadata"}


@frozen(kw_only=True)
class Converted:
    """What a disk became; `removed` tells whether the source is gone, `already` that both were equal before.

    `left` are snapshots and bitmaps within the source, which did not come along; `lacking` the bytes that a device
    has less than a qcow2 image on it may need one day; `unsound` that a check finds the source damaged.
    """

    target: Target
    path: PurePosixPath
    format: str
    size: int
    already: bool = False
    removed: bool = False
    left: tuple[str, ...] = ()
    lacking: int = 0
    unsound: bool = False


@frozen(kw_only=True)
class Conversion:
    """What is asked for: a file, a device or `lvm:GROUP/VOLUME`, its format, "" for what its name tells."""

    goal: str
    format: str = ""
    overwrite: bool = False
    remove_source: bool = False
    dry_run: bool = False


def convert(caller: Caller, word: str, wanted: Conversion, *, progress: Progress = no_progress) -> Converted:
    """Convert a disk, its whole chain into one, and compare; nothing has the goal's name before both are equal.

    A device is written in place, so one that holds anything else is refused without `overwrite` (`disk.exists`).
    Raises Busy, PreflightFailed, DefinitionInvalid, HostFailed `disk.differs`.
    """
    target = needed(caller, word, wanted)
    with at_rest(caller, target, "converted"):
        target = needed(caller, word, wanted)  # nobody takes a snapshot any more
        refuse_locked(target)
        if wanted.remove_source:
            refuse_unsound(target)
        unsound = not wanted.remove_source and is_unsound(target)
        done = convert_target(caller, target, wanted, progress)
        if wanted.remove_source and not wanted.dry_run:
            found = needed(caller, word, wanted)  # an overlay of another VM may have been laid over it meanwhile
            if found.facts.kind == "file":
                mark_image(moved_path(found.image), str(done.path))
            remove(found)
        return evolve(done, unsound=unsound)


def needed(caller: Caller, word: str, wanted: Conversion) -> Target:
    """Give a disk that can be converted so."""
    target = find_disk(caller, word)
    need_file(target)
    refuse_disorder(target)
    refuse_elsewhere(target)
    if wanted.remove_source:
        refuse_damaged(target)
        refuse_base(target)
        refuse_shared(caller, target)
        need_removable(target)
    return target


def convert_target(caller: Caller, target: Target, wanted: Conversion, progress: Progress) -> Converted:
    """Convert a disk that nobody uses and whose VM is not started meanwhile; see `convert`."""
    chain = read_chain(target)
    image = chain[0]
    if wanted.remove_source:
        refuse_inside(target, chain)
    goal = goal_of(caller, wanted.goal, wanted.format)
    refuse_goal(target, goal, image)
    already = is_done(target, goal, image)
    if already:
        sync(goal.path)
    else:
        refuse_filled(goal, overwrite=wanted.overwrite)
        refuse_nowhere(goal)
        refuse_space(goal, chain)
        if not wanted.dry_run:
            make(target, goal, image, progress)
    return Converted(
        target=target,
        path=goal.path,
        format=goal.format,
        size=image.size,
        already=already,
        removed=wanted.remove_source,
        left=tuple(each for image in chain for each in image.inside),
        lacking=max(0, room_of(goal, image) - goal.facts.size) if goal.facts.kind == "block" else 0,
    )


def room_of(goal: Goal, image: Image) -> int:
    """Give the bytes that a disk takes at its goal once it is full."""
    return qcow2_room(image.size, CLUSTER) if goal.format == "qcow2" else image.size


def refuse_inside(target: Target, chain: Sequence[Image]) -> None:
    """Refuse to remove a source of which the copy would not have everything (`disk.snapshot`)."""
    inside = [each for image in chain for each in image.inside]
    if inside:
        raise PreflightFailed(
            Report(
                code="disk.snapshot",
                message=f"{target.disk.path.name} holds more than the disk: {', '.join(inside[:4])}",
                where=target.table,
                why="a conversion takes along what the disk is now, and the source would be removed",
                hint="the same command without --remove-source; or qemu-img snapshot -d NAME, where it is not wanted",
            )
        )


def need_removable(target: Target) -> None:
    """Refuse to remove a source that is neither an image nor a volume, before anything is copied (`disk.type`)."""
    name = parse_volume_name(target.disk.path)
    if target.facts.kind != "file" and (name is None or find_volume(name) is None):
        raise PreflightFailed(
            Report(
                code="disk.type",
                message=f"{target.disk.path} is a device, and stays",
                where=target.table,
                why="kvmlaunch removes images and LVM volumes",
            )
        )


def is_done(target: Target, goal: Goal, image: Image) -> bool:
    """Is what lies at the goal equal to the disk already, and on its own: a conversion that was done before."""
    if goal.facts.kind == "missing" or not goal.facts.readable or goal.format != (goal.facts.header or "raw"):
        return False
    if goal.facts.backing or goal.facts.external_data:
        return False
    try:
        return has_size(goal, image) and compare(target, goal, goal.path, image, no_progress)
    except HostFailed:
        return False  # it cannot even be read as an image


def has_size(goal: Goal, image: Image) -> bool:
    """Is what lies at the goal as large as the disk; of a device the beginning counts."""
    if goal.is_device and goal.format == "raw":
        return goal.facts.size >= image.size
    words = ("info", "--output=json", "--backing-chain", "-f", goal.format, str(goal.path))
    done = qemu_img(*words, paths=(goal.path,))
    return done.status == 0 and parse_info(done.out)[0].size == image.size


def refuse_nowhere(goal: Goal) -> None:
    """Refuse a goal in a directory that is not there, and a device that is not, and is no volume (`disk.missing`)."""
    if goal.is_device and goal.facts.kind == "missing" and parse_volume_name(goal.path) is None:
        raise PreflightFailed(
            Report(code="disk.missing", message=f"{goal.path} does not exist", where=str(goal.path), why="no device")
        )
    if not goal.is_device and not os.path.isdir(goal.path.parent):
        message, hint = f"{goal.path.parent} does not exist", f"mkdir -p {shlex.quote(str(goal.path.parent))}"
        raise PreflightFailed(
            Report(code="disk.missing", message=message, where=str(goal.path), hint=f"{hint}   # or mount it")
        )


def make(target: Target, goal: Goal, image: Image, progress: Progress) -> None:
    """Make what is to lie at the goal."""
    if goal.is_device:
        fill_device(target, goal, image, progress)
        return
    maker = owner_of(goal.path.parent)
    with new_image(goal.path, maker, keeper_of(target.subject.definition, goal.path, maker)) as making:
        options = [f"preallocation={PREALLOCATION[goal.format]}"] if goal.format in PREALLOCATION else []
        options += ["nocow=on"] if goal.filesystem == COPIES_ON_WRITE else []
        written = ("-o", ",".join(options)) if options else ()
        run_convert(target, goal, making.place, written, progress, (making.fd,))
        prove(target, goal, making.place, image, progress)


def fill_device(target: Target, goal: Goal, image: Image, progress: Progress) -> None:
    """Write a disk to a device; a volume that is not there is made, and has its name only when it is whole."""
    name = parse_volume_name(goal.path)
    if goal.facts.kind != "missing" or name is None:
        fill(target, goal, goal.path, image, progress)
        return
    with new_volume(name, image.size) as making:
        fill(target, goal, making.path, image, progress)


def fill(target: Target, goal: Goal, place: PurePosixPath, image: Image, progress: Progress) -> None:
    """Write a disk to a device that is there, and compare; an interruption has a note of what that leaves."""
    try:
        run_convert(target, goal, place, ("-n",) if goal.format == "raw" else (), progress, ())
        sync(place)
        prove(target, goal, place, image, progress)
    except BaseException as failure:
        if place == goal.path:
            failure.add_note(f"what {place} held may be gone, and the disk is not whole there: the same command again")
        raise


def sync(path: PurePosixPath) -> None:
    """Have a device or an image on the disk: until then a power cut takes it, and the source may go soon."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        raise failed(path, error) from error
    finally:
        os.close(fd)


def run_convert(
    target: Target, goal: Goal, place: PurePosixPath, options: tuple[str, ...], progress: Progress, fds: tuple[int, ...]
) -> None:
    """Run the conversion; cache modes without the page cache where both sides can."""
    direct = target.facts.o_direct and (goal.facts.o_direct or goal.facts.kind == "missing")
    modes = ("-t", "none", "-T", "none") if direct and goal.facts.kind != "missing" else ()
    words = ("-p", *modes, "-f", top_format(target), "-O", goal.format, *options)
    with opened_source(target, goal) as (source, more):
        words = ("convert", *words, str(source), str(place))
        done = qemu_img(*words, paths=(top_of(target), place), fds=(*fds, *more), look=share("convert", progress))
    if done.status != 0:
        raise failed_tool(done, goal.path)


@contextmanager
def opened_source(target: Target, goal: Goal) -> Iterator[tuple[PurePosixPath, tuple[int, ...]]]:
    """Give the name by which a tool reads the source, and the descriptors that it needs for that.

    What root reads for another user is opened with that user's rights, whose links might lead anywhere else.
    """
    top, owner = top_of(target), owner_of(target.image)
    if os.geteuid() != 0 or target.facts.kind != "file" or owner.uid in {0, owner_of(goal.path).uid}:
        yield top, ()
        return
    try:
        with rights_of(owner):
            fd = open_image(str(top))
    except OSError as error:
        raise failed(top, error) from error
    try:
        yield PurePosixPath(f"/proc/self/fd/{fd}"), (fd,)
    finally:
        os.close(fd)


def share(part: str, progress: Progress) -> Callable[[str], None]:
    """Give what turns the output of one of two tools into the progress of both."""
    begin, length = SHARE[part]

    def look(text: str) -> None:
        far = parse_progress(text)
        if far is not None:
            progress(begin + far * length)

    return look


def compare(target: Target, goal: Goal, place: PurePosixPath, image: Image, progress: Progress) -> bool:
    """Tell whether both sides hold the same; of a larger device what lies behind the disk does not count."""
    other = image_options(place, goal.format, device=goal.is_device, size=image.size if goal.is_device else None)
    with opened_source(target, goal) as (path, fds):
        source = image_options(path, top_format(target), device=target.facts.kind == "block")
        words = ("compare", "-p", "--image-opts", source, other)
        done = qemu_img(*words, paths=(top_of(target), place), fds=fds, look=share("compare", progress))
    if done.status > 1 or done.status < 0:
        raise failed_tool(done, place)
    return done.status == 0


def image_options(path: PurePosixPath, format_: str, *, device: bool, size: int | None = None) -> str:
    """Give an image as `--image-opts` has it; of a raw one the first `size` bytes only."""
    length = f"size={size}," if size is not None and format_ == "raw" else ""
    driver = "host_device" if device else "file"
    return f"driver={format_},{length}file.driver={driver},file.filename={str(path).replace(',', ',,')}"


def prove(target: Target, goal: Goal, place: PurePosixPath, image: Image, progress: Progress) -> None:
    """Refuse a goal that does not hold what the source does (`disk.differs`)."""
    if not compare(target, goal, place, image, progress):
        raise HostFailed(
            Report(
                code="disk.differs",
                message=f"{goal.path} differs from {target.disk.path} after it was written",
                where=str(goal.path),
                why="qemu-img compare found other bytes: a failing disk, or somebody writes to one of them",
            )
        )


def refuse_space(goal: Goal, chain: Sequence[Image]) -> None:
    """Refuse a conversion to a file that has no room (`host.space`): of qcow2 for what the whole chain holds."""
    if goal.is_device or not os.path.isdir(goal.path.parent):
        return
    held = min(chain[0].size, sum(image.allocated for image in chain))
    needed = chain[0].size if goal.format == "raw" else held
    free = free_space(goal.path)
    if needed > free:
        raise PreflightFailed(
            Report(
                code="host.space",
                message=f"{render_size(needed)} are needed for {goal.path.name}",
                where=str(goal.path.parent),
                why=f"{render_rounded(free)} are free",
            )
        )


def remove(target: Target) -> None:
    """Remove the source: its file, or its volume; a disk with snapshots never comes here."""
    name = parse_volume_name(target.disk.path)
    if target.facts.kind == "file":
        remove_file(target)
    elif name is not None:
        drop_volume(name)
