"""`disk convert`: a disk becomes another image, volume or device, and counts as that only once both compare equal."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from kvmlaunch.define.mistake import Mistake
from kvmlaunch.define.paths import VOLUME, volume_device
from kvmlaunch.errors import DefinitionInvalid, HostFailed, PreflightFailed, Report
from kvmlaunch.facts.sources import Wanted
from kvmlaunch.host.capture import open_image
from kvmlaunch.host.images import (
    exists_already,
    files_beneath,
    free_space,
    new_image,
    owner_of,
    remove_image,
    take_device,
)
from kvmlaunch.host.rights import rights_of
from kvmlaunch.host.tree import failed
from kvmlaunch.host.volumes import drop_volume, find_volume, new_volume
from kvmlaunch.model.host import PathFacts
from kvmlaunch.model.image import SUFFIXES
from kvmlaunch.model.value import frozen
from kvmlaunch.model.volume import parse_volume_name
from kvmlaunch.steps.caller import Caller
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
    refuse_disorder,
    refuse_locked,
    top_format,
    top_of,
)
from kvmlaunch.steps.resolve import look_at_host
from kvmlaunch.storage.creation import COPIES_ON_WRITE
from kvmlaunch.storage.image import Image, parse_info, parse_progress
from kvmlaunch.storage.snapshot import SINCE
from kvmlaunch.units import render_rounded, render_size

SHARE = {"convert": (0.0, 0.7), "compare": (0.7, 0.3)}  # of the whole, for its progress
PREALLOCATION = {"raw": "falloc", "qcow2": "metadata"}


@frozen(kw_only=True)
class Converted:
    """What a disk became; `removed` tells whether the source is gone, `already` that both were equal before."""

    target: Target
    path: PurePosixPath
    format: str
    size: int
    already: bool = False
    removed: bool = False


@frozen(kw_only=True)
class Goal:
    """Where a disk goes: a path with what lies there, and the format that it gets."""

    path: PurePosixPath
    facts: PathFacts
    format: str
    filesystem: str = ""  # that a new image would lie on

    @property
    def is_device(self) -> bool:
        """Is it a block device, or a volume to be made."""
        return self.facts.kind == "block" or (self.facts.kind == "missing" and self.path.is_relative_to("/dev"))


@frozen(kw_only=True)
class Conversion:
    """What is asked for: a file, a device or `lvm:GROUP/VOLUME`, its format, "" for what its name tells."""

    goal: str
    format: str = ""
    overwrite: bool = False
    remove_source: bool = False


def convert(caller: Caller, word: str, wanted: Conversion, *, progress: Progress = no_progress) -> Converted:
    """Convert a disk, its whole chain into one, and compare; nothing has the goal's name before both are equal.

    A device is written in place, so one that holds anything else is refused without `overwrite` (`disk.exists`).
    Raises Busy, PreflightFailed, DefinitionInvalid, HostFailed `disk.differs`.
    """
    target = needed(caller, word, wanted)
    with at_rest(caller, target, "converted"):
        target = needed(caller, word, wanted)  # nobody takes a snapshot any more
        refuse_locked(target)
        done = convert_target(caller, target, wanted, progress)
        if wanted.remove_source:
            remove(needed(caller, word, wanted))  # an overlay of another VM may have been laid over it meanwhile
        return done


def needed(caller: Caller, word: str, wanted: Conversion) -> Target:
    """Give a disk that can be converted so."""
    target = find_disk(caller, word)
    need_file(target)
    refuse_disorder(target)
    if wanted.remove_source:
        refuse_base(target)
        need_removable(target)
    return target


def convert_target(caller: Caller, target: Target, wanted: Conversion, progress: Progress) -> Converted:
    """Convert a disk that nobody uses and whose VM is not started meanwhile; see `convert`."""
    image = read_chain(target)[0]
    goal = goal_of(caller, wanted.goal, wanted.format)
    refuse_itself(target, goal)
    refuse_others(target, goal)
    refuse_small(goal, image)
    already = is_done(target, goal, image)
    if already:
        sync(goal.path)
    else:
        if goal.facts.kind == "file" or (goal.facts.kind == "block" and not wanted.overwrite):
            raise exists_already(goal.path) if goal.facts.kind == "file" else holds_something(goal)
        make(target, goal, image, progress)
    return Converted(
        target=target,
        path=goal.path,
        format=goal.format,
        size=image.size,
        already=already,
        removed=wanted.remove_source,
    )


def goal_of(caller: Caller, word: str, format_: str) -> Goal:
    """Give where a word leads; raises DefinitionInvalid where nothing tells the format."""
    try:
        written = volume_device(word) if word.startswith(VOLUME) else word
    except Mistake as error:
        raise DefinitionInvalid(Report(code=error.code, message=error.message, where=word, why=error.why)) from error
    path = PurePosixPath(os.path.normpath(caller.here / written))
    seen = look_at_host(caller, Wanted(paths=(path, path.parent)), None).paths
    facts = seen[path]
    found = format_ or (
        "raw" if path.is_relative_to("/dev") or facts.kind == "block" else SUFFIXES.get(path.suffix, "")
    )
    if facts.kind not in {"missing", "file", "block"}:
        raise PreflightFailed(
            Report(code="disk.type", message=f"{path} is of kind {facts.kind}", where=str(path), why=facts.refusal)
        )
    if not found:
        raise DefinitionInvalid(
            Report(
                code="def.disk.format",
                message=f"the format of {path.name} is not known by its suffix",
                where=str(path),
                hint="the same command with --format raw   # or qcow2",
            )
        )
    return Goal(path=path, facts=facts, format=found, filesystem=seen[path.parent].filesystem)


def refuse_itself(target: Target, goal: Goal) -> None:
    """Refuse a goal that is the source, by any name (`disk.exists`), or that somebody uses (`disk.locked`)."""
    if goal.facts.inode and goal.facts.inode == target.facts.inode:
        raise exists_already(goal.path)
    if goal.facts.lock_holders:
        raise PreflightFailed(
            Report(code="disk.locked", message=f"{goal.path} is in use", where=str(goal.path), why="it is locked")
        )
    if goal.facts.kind == "block":
        refuse_above(target, goal)
        take_device(goal.path)


def refuse_above(target: Target, goal: Goal) -> None:
    """Refuse a device that is made of the source itself, as a loop device of the image is (`disk.exists`)."""
    beneath = {os.path.realpath(each) for each in files_beneath(goal.path)}
    source = {os.path.realpath(each) for each in (str(target.image), *target.facts.since, *target.facts.chain)}
    if beneath & source:
        raise PreflightFailed(
            Report(
                code="disk.exists",
                message=f"{goal.path} is made of {target.disk.path.name} itself",
                where=str(goal.path),
                why="it holds what the source holds, and nothing without it",
            )
        )


def refuse_others(target: Target, goal: Goal) -> None:
    """Refuse a goal that is another disk of the VM (`disk.exists`), to read a user's container or write to him as root.

    The header of a qcow2 image names files that are opened with it: read with root's rights they could be anybody's.
    What root writes by name into a user's directory may land wherever he leads it.
    """
    if SINCE in goal.path.name:
        raise PreflightFailed(
            Report(
                code="disk.exists",
                message=f"{goal.path.name} is what a snapshot's overlay is called",
                where=str(goal.path),
                why="the image whose name comes before that would be taken for one with a snapshot",
                hint="a name without " + SINCE,
            )
        )
    for name, disk in target.subject.definition.disk.items():
        if name != target.name and os.path.realpath(disk.path) == os.path.realpath(goal.path):
            raise exists_already(goal.path)
    # The node of a device cannot be led elsewhere by whom it belongs to, but by whom its directory does.
    goal_uid = owner_of(goal.path.parent if goal.facts.kind == "block" else goal.path).uid
    owners = {owner_of(target.image).uid, goal_uid}
    if len(owners) > 1 and goal_uid != 0:
        raise PreflightFailed(
            Report(
                code="disk.permission",
                message=f"{goal.path} would be written as root in another user's directory",
                where=str(goal.path),
                why=f"the disk is not his: it belongs to uid {owner_of(target.image).uid}",
                hint="convert it to a directory of its owner's, then move and chown it",
            )
        )
    if top_format(target) != "raw" and len(owners) > 1 and owner_of(target.image).uid != 0:
        raise PreflightFailed(
            Report(
                code="disk.permission",
                message=f"{target.disk.path.name} is another user's, and would be read as root",
                where=str(target.disk.path),
                why="the header of a qcow2 image names other files, which root may read",
                hint="convert it as its owner, to a directory of his, then move it",
            )
        )


def holds_something(goal: Goal) -> PreflightFailed:
    """Give the refusal to write over a device."""
    return PreflightFailed(
        Report(
            code="disk.exists",
            message=f"what {goal.path} holds would be lost",
            where=str(goal.path),
            why=f"it is a device of {render_size(goal.facts.size)}, and not equal to the disk",
            hint="--overwrite   # if that is what you want",
        )
    )


def refuse_small(goal: Goal, image: Image) -> None:
    """Refuse a device that is smaller than the disk (`disk.small`)."""
    if goal.facts.kind == "block" and goal.format == "raw" and goal.facts.size < image.size:
        raise PreflightFailed(
            Report(
                code="disk.small",
                message=f"{goal.path} has {render_size(goal.facts.size)}, the disk {render_size(image.size)}",
                where=str(goal.path),
                why="what does not fit would be lost",
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


def make(target: Target, goal: Goal, image: Image, progress: Progress) -> None:
    """Make what is to lie at the goal."""
    if goal.is_device:
        fill_device(target, goal, image, progress)
        return
    if not os.path.isdir(goal.path.parent):
        message, hint = f"{goal.path.parent} does not exist", f"mkdir -p {shlex.quote(str(goal.path.parent))}"
        raise PreflightFailed(
            Report(code="disk.missing", message=message, where=str(goal.path), hint=f"{hint}   # or mount it")
        )
    refuse_space(goal, image)
    maker = owner_of(goal.path.parent)
    with new_image(goal.path, maker, keeper_of(target.subject.definition, goal.path, maker)) as making:
        options = [f"preallocation={PREALLOCATION[goal.format]}"] if goal.format in PREALLOCATION else []
        options += ["nocow=on"] if goal.filesystem == COPIES_ON_WRITE else []
        written = ("-o", ",".join(options)) if options else ()
        run_convert(target, goal, making.place, written, progress, (making.fd,))
        prove(target, goal, making.place, image, progress)


def fill_device(target: Target, goal: Goal, image: Image, progress: Progress) -> None:
    """Write a disk to a device; a volume that is not there is made, and has its name only when it is whole."""
    if goal.facts.kind != "missing":
        fill(target, goal, goal.path, image, progress)
        return
    name = parse_volume_name(goal.path)
    if name is None:
        raise PreflightFailed(
            Report(code="disk.missing", message=f"{goal.path} does not exist", where=str(goal.path), why="no device")
        )
    with new_volume(name, image.size) as making:
        fill(target, goal, making.path, image, progress)


def fill(target: Target, goal: Goal, place: PurePosixPath, image: Image, progress: Progress) -> None:
    """Write a disk to a device that is there, and compare."""
    run_convert(target, goal, place, ("-n",) if goal.format == "raw" else (), progress, ())
    sync(place)
    prove(target, goal, place, image, progress)


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


def refuse_space(goal: Goal, image: Image) -> None:
    """Refuse a conversion that has no room (`host.space`)."""
    needed = image.size if goal.format == "raw" else image.allocated
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
        remove_image(target.image)
    elif name is not None:
        drop_volume(name)
