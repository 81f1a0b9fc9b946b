"""`disk snapshot`: images kept as they are while the VM writes on beside them; committed back, or reverted to.

The overlay of the newest snapshot is what QEMU opens, told by its name alone: nothing is written into a definition.
An overlay that is merged must not be opened again: a mark lies beside the image as long as that could happen.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import PurePosixPath

from kvmlaunch.builder.names import drive_id
from kvmlaunch.errors import DefinitionInvalid, KvmlaunchError, PreflightFailed, Report
from kvmlaunch.host.images import (
    forget_retired,
    fresh_place,
    held_images,
    move_image,
    new_image,
    owner_of,
    remove_image,
)
from kvmlaunch.model.value import Factory, evolve, frozen
from kvmlaunch.steps.agent import Rest, frozen_guest
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.control import query
from kvmlaunch.steps.disk_check import refuse_unsound
from kvmlaunch.steps.disk_live import file_in_chain, refuse_merging
from kvmlaunch.steps.disk_settle import begin, end, is_begun, mark_text, retire, settle_held
from kvmlaunch.steps.disks import (
    Target,
    at_rest,
    failed_tool,
    find_disk,
    find_disks,
    keeper_of,
    need_file,
    qemu_img,
    read_chain,
    refuse_clones,
    refuse_damaged,
    refuse_disorder,
    refuse_elsewhere,
    refuse_locked,
    seen_of,
    top_format,
    top_of,
)
from kvmlaunch.steps.lost import lost_images, replaced
from kvmlaunch.steps.observe import Seen
from kvmlaunch.storage.creation import COPIES_ON_WRITE, OVERLAY_OPTIONS, as_file
from kvmlaunch.storage.snapshot import NAME, begun_path, overlay_path, snapshot_name

SECONDS = 60.0  # that QEMU may take for a step that is no copying


@frozen(kw_only=True)
class Taken:
    """Snapshots of disks; `rest` is how the guest's file systems were held still meanwhile.

    `zeroes` are disks whose `detect_zeroes` is off from now on, as QEMU gives it to no image that it switches to
    (measured with 7.2.22).
    """

    name: str
    targets: tuple[Target, ...]
    live: bool = False
    rest: Rest = Factory(Rest)
    already: bool = False
    zeroes: tuple[str, ...] = ()


def need_image(target: Target) -> None:
    """Refuse what has no overlays of ours: a device."""
    need_file(target)
    if target.facts.kind != "file":
        raise PreflightFailed(
            Report(
                code="disk.type",
                message=f"{target.disk.path} is a device",
                where=target.table,
                why="an overlay lies beside an image; a volume has snapshots of LVM's",
                hint=f"lvcreate --snapshot --size 1G {target.disk.path}   # where it is a volume",
            )
        )


def take(caller: Caller, word: str, name: str, *, freeze: bool = True, dry_run: bool = False) -> Taken:
    """Keep the disks of a word as they are: all of one moment, the guest's file systems at rest where an agent listens.

    Without `freeze` no agent is asked.  Raises DefinitionInvalid for a name that is none, PreflightFailed, Busy,
    TimedOut `agent.timeout`.
    """
    with held_images([target.image for target in takeable(caller, word, name)]):
        return take_held(caller, takeable(caller, word, name), name, freeze=freeze, dry_run=dry_run)


def take_held(caller: Caller, targets: tuple[Target, ...], name: str, *, freeze: bool, dry_run: bool) -> Taken:
    """Keep disks that no other command works on."""
    if not targets:
        return Taken(name=name, targets=())
    seen = seen_of(caller, targets[0])
    if seen is not None and seen.lives:
        return take_live(caller, seen, targets, name, freeze=freeze, dry_run=dry_run)
    with at_rest(caller, targets[0], "kept"):
        for target in targets:
            refuse_locked(target)
        left = tuple(target for target in targets if not is_begun(target, name))
        refuse_taken(left, name)
        if not left:
            return Taken(name=name, targets=targets, already=True)
        for target in left:
            refuse_unsound(target)
        if dry_run:
            return Taken(name=name, targets=targets)
        made: list[PurePosixPath] = []
        try:
            begin(left, name)
            made.extend(make_overlay(target, name) for target in left)
        except BaseException:
            for path in reversed(made):
                remove_image(path)
            end(left)
            raise
        end(left)
    return Taken(name=name, targets=targets)


def refuse_taken(targets: Sequence[Target], name: str) -> None:
    """Refuse a snapshot that is there, of these disks or of some (`disk.exists`): nothing would be kept now."""
    there = [target for target in targets if str(overlay_path(target.image, name)) in target.facts.since]
    if there:
        lacking = [target for target in targets if target not in there]
        others = [f"kvmlaunch disk snapshot create {target.word} {name}" for target in lacking]
        raise PreflightFailed(
            Report(
                code="disk.exists",
                message=f"{there[0].word} has a snapshot {name} already{', another disk has not' if lacking else ''}",
                where=there[0].table,
                why="it keeps what was before something was written since",
                hint="\n".join(others) or f"another name; kvmlaunch disk snapshot list {there[0].word}",
            )
        )


def take_live(
    caller: Caller, seen: Seen, targets: tuple[Target, ...], name: str, *, freeze: bool, dry_run: bool
) -> Taken:
    """Keep disks of a VM that runs, all at one moment; raises Busy `vm.state` where it runs with another disk."""
    for target in targets:
        file_in_chain(seen, target, top_of(target))
        refuse_merging(seen, target)
    for image in lost_images(seen):  # an overlay that is gone: another one would be laid over what lies beneath it
        raise replaced(seen, image.path, targets[0].table, "a snapshot would be laid over another file")
    if all(is_begun(target, name) for target in targets):
        return Taken(name=name, targets=targets, already=True, live=True)
    refuse_taken(targets, name)
    if dry_run:
        return Taken(name=name, targets=targets, live=True)
    try:
        begin(targets, name)
        overlays = [make_overlay(target, name) for target in targets]
        rest = switch(seen, targets, overlays, freeze=freeze)
    except BaseException:
        definition = targets[0].subject.definition
        with contextlib.suppress(KvmlaunchError):  # where QEMU cannot be asked a later command settles it
            names = {target.name for target in targets}
            settle_held(caller, str(definition.file), mark_text(targets, name), names)
        raise
    end(targets)
    zeroes = tuple(target.name for target in targets if target.disk.detect_zeroes != "off")
    return Taken(name=name, targets=targets, live=True, rest=rest, zeroes=zeroes)


def takeable(caller: Caller, word: str, name: str) -> tuple[Target, ...]:
    """Give the disks of a word that can be written, all of them images with their snapshots in order."""
    if not NAME.fullmatch(name):
        why = "lower-case letters, digits and -, at most 40, the first no -"
        raise DefinitionInvalid(Report(code="def.name", message=f"{name!r} is no name of a snapshot", why=why))
    targets = tuple(target for target in find_disks(caller, word) if not target.disk.readonly)
    for target in targets:
        need_image(target)
        refuse_disorder(target)
        refuse_elsewhere(target)
        seen = seen_of(caller, target)
        refuse_damaged(target, runs=seen is not None and seen.lives)
    return targets


def make_overlay(target: Target, name: str, place: PurePosixPath | None = None) -> PurePosixPath:
    """Make the empty overlay of a snapshot; its backing file is in use where the VM runs, and is not opened."""
    beneath, path = top_of(target), place or overlay_path(target.image, name)
    format_ = top_format(target)
    size = read_chain(target)[0].size
    keeper = keeper_of(target.subject.definition, path, owner_of(target.image))
    with new_image(path, owner_of(path.parent), keeper) as making:
        nocow = ("nocow=on",) if target.facts.filesystem == COPIES_ON_WRITE else ()
        options = ",".join((*OVERLAY_OPTIONS, *nocow))
        words = ("create", "-q", "-u", "-f", "qcow2", "-b", as_file(beneath.name), "-F", format_, "-o", options)
        done = qemu_img(*words, str(making.place), str(size), paths=(path.parent,), fds=(making.fd,))
        if done.status != 0:
            raise failed_tool(done, path)
    return path


def switch(seen: Seen, targets: Sequence[Target], overlays: Sequence[PurePosixPath], *, freeze: bool) -> Rest:
    """Have a running QEMU write to overlays from one moment on; gives how the guest's file systems were meanwhile."""
    actions = [
        {
            "type": "blockdev-snapshot-sync",
            "data": {
                "device": drive_id(target.name),
                "snapshot-file": str(overlay),
                "format": "qcow2",
                "mode": "existing",
            },
        }
        for target, overlay in zip(targets, overlays, strict=True)
    ]
    with frozen_guest(seen) if freeze else contextlib.nullcontext(Rest(unasked="no agent was asked")) as rest:
        query(seen, ("transaction", {"actions": actions}), seconds=SECONDS)
    return rest


def revert(caller: Caller, word: str, name: str, *, dry_run: bool = False) -> Target:
    """Drop all that was written since a snapshot: the disk is as it was then, and the snapshot stays.

    Raises Busy while the VM runs, PreflightFailed `disk.unknown` for no such snapshot.
    """
    found = find_disk(caller, word)
    need_image(found)
    with held_images([found.image]):
        return revert_held(caller, find_disk(caller, word), name, dry_run=dry_run)


def refuse_begun(target: Target) -> None:
    """Refuse to go back to a snapshot of an image that a commit has begun to write into (`disk.snapshot`)."""
    if os.path.lexists(begun_path(target.image)):
        raise PreflightFailed(
            Report(
                code="disk.snapshot",
                message=f"a commit of {target.word} has begun, so its image is no longer as it was at any snapshot",
                where=str(begun_path(target.image)),
                why="nothing is lost: the newest state is whole, and is what the VM starts with",
                hint=f"kvmlaunch disk snapshot commit {target.word}",
            )
        )


def revert_held(caller: Caller, target: Target, name: str, *, dry_run: bool) -> Target:
    """Revert a disk that no other command works on: at every moment it is as at some time since the snapshot."""
    refuse_disorder(target)
    refuse_begun(target)
    wanted = str(overlay_path(target.image, name))
    if wanted not in target.facts.since:
        raise PreflightFailed(
            Report(
                code="disk.snapshot",
                message=f"{target.word} has no snapshot {name}",
                where=str(target.disk.path),
                why=f"its snapshots: {', '.join(snapshot_names(target)) or 'none'}",
                hint=f"kvmlaunch disk snapshot list {target.word}",
            )
        )
    with at_rest(caller, target, "reverted"):
        refuse_locked(target)
        place = target.facts.since.index(wanted)
        later = tuple(map(PurePosixPath, target.facts.since[place:]))
        refuse_clones(caller, target, later, "be dropped")
        if dry_run:
            return target
        for each in reversed(later[1:]):
            retire(caller, each)
        kept = evolve(target, facts=evolve(target.facts, since=target.facts.since[:place]))
        fresh = fresh_place(later[0])
        if os.path.lexists(fresh):
            remove_image(fresh)  # a killed command made it
        make_overlay(kept, name, fresh)
        move_image(fresh, later[0])
        forget_retired(target.image)
    return kept


def snapshot_names(target: Target) -> tuple[str, ...]:
    """Give the names of a disk's snapshots, the oldest first."""
    return tuple(snapshot_name(PurePosixPath(each)) for each in target.facts.since)


def later_than(caller: Caller, word: str, name: str) -> tuple[str, ...]:
    """Give the names of a disk's snapshots that are newer than one; none where there is no such one."""
    names = snapshot_names(find_disk(caller, word))
    return names[names.index(name) + 1 :] if name in names else ()
