"""Where `disk convert` leads: a file, a device or a volume, and what must not be written over or read as root."""

import os
from pathlib import PurePosixPath

from kvmlaunch.define.mistake import Mistake
from kvmlaunch.define.paths import VOLUME, volume_device
from kvmlaunch.errors import DefinitionInvalid, PreflightFailed, Report
from kvmlaunch.facts.sources import Wanted
from kvmlaunch.host.holders import files_beneath
from kvmlaunch.host.images import exists_already, owner_of, take_device
from kvmlaunch.model.host import PathFacts
from kvmlaunch.model.image import SUFFIXES
from kvmlaunch.model.value import frozen
from kvmlaunch.preflight.disk import holder_text
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.disks import Target, refuse_kind, top_format
from kvmlaunch.steps.resolve import look_at_host
from kvmlaunch.storage.image import Image
from kvmlaunch.storage.snapshot import SINCE
from kvmlaunch.units import render_size


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
    refuse_kind(path, facts, str(path))
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


def refuse_goal(target: Target, goal: Goal, image: Image) -> None:
    """Refuse a goal that a disk cannot be converted to, whatever lies there; `image` is what QEMU opens of the disk."""
    refuse_itself(target, goal)
    refuse_others(target, goal)
    refuse_small(goal, image)


def refuse_itself(target: Target, goal: Goal) -> None:
    """Refuse a goal that is the source, by any name (`disk.exists`), or that somebody uses (`disk.locked`)."""
    if goal.facts.inode and goal.facts.inode == target.facts.inode:
        raise exists_already(goal.path)
    if goal.facts.lock_holders:
        raise PreflightFailed(
            Report(
                code="disk.locked",
                message=f"{goal.path} is in use",
                where=str(goal.path),
                why="locked by " + ", ".join(dict.fromkeys(map(holder_text, goal.facts.lock_holders))),
            )
        )
    if goal.facts.kind == "block":
        refuse_above(target, goal)
        take_device(goal.path)


def refuse_above(target: Target, goal: Goal) -> None:
    """Refuse a device that is made of the source itself, as a loop device of the image is (`disk.exists`)."""
    beneath = {os.path.realpath(each) for each in files_beneath(str(goal.path))}
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


def refuse_filled(goal: Goal, *, overwrite: bool) -> None:
    """Refuse to write over an image, or, unless told to, over what a device holds (`disk.exists`)."""
    if goal.facts.kind == "file":
        raise exists_already(goal.path)
    if goal.facts.kind == "block" and not overwrite:
        raise PreflightFailed(
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
