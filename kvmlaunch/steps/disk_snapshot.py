"""`disk snapshot`: images kept as they are while the VM writes on beside them; committed back, or reverted to.

The overlay of the newest snapshot is what QEMU opens, told by its name alone: nothing is written into a definition.
An overlay that is merged must not be opened again: a mark lies beside the image as long as that could happen.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from attrs import evolve

from kvmlaunch.builder.names import drive_id
from kvmlaunch.errors import Busy, DefinitionInvalid, HostFailed, PreflightFailed, Report, TimedOut
from kvmlaunch.facts.sources import Wanted
from kvmlaunch.host.images import (
    forget_retired,
    held_images,
    mark_image,
    move_image,
    new_image,
    owner_of,
    remove_image,
    retired_place,
    unmark_image,
)
from kvmlaunch.model.value import frozen
from kvmlaunch.preflight.disk import holder_text
from kvmlaunch.steps.agent import frozen_guest
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.control import query
from kvmlaunch.steps.disks import (
    Progress,
    Target,
    failed_tool,
    find_disk,
    find_disks,
    need_file,
    no_progress,
    qemu_img,
    read_chain,
    refuse_locked,
    refuse_running,
    seen_of,
    top_format,
    top_of,
)
from kvmlaunch.steps.observe import Seen
from kvmlaunch.steps.resolve import look_at_host
from kvmlaunch.storage.creation import OVERLAY_OPTIONS
from kvmlaunch.storage.image import parse_progress
from kvmlaunch.storage.snapshot import NAME, mark_path, overlay_path, snapshot_name

MERGING, MERGED, COMPLETING = "merging", "merged", "completing"  # what a mark says
SECONDS = 60.0  # that QEMU may take for a step that is no copying
LOOK_EVERY = 0.1


@frozen(kw_only=True)
class Taken:
    """Snapshots of disks; `frozen` file systems of the guest were held still meanwhile, None without an agent."""

    name: str
    targets: tuple[Target, ...]
    live: bool = False
    frozen: int | None = None
    already: bool = False


def need_order(target: Target) -> None:
    """Refuse an image whose snapshots are not in order (`disk.snapshot`)."""
    if target.facts.stray or target.facts.committing:
        why = "a commit was not finished" if target.facts.committing else f"beside the line: {target.facts.stray[0]}"
        raise PreflightFailed(
            Report(
                code="disk.snapshot",
                message=f"the snapshots of {target.word} are not in order",
                where=str(target.disk.path),
                why=why,
                hint=f"kvmlaunch disk snapshot commit {target.word}" if target.facts.committing else "",
            )
        )


def need_image(target: Target) -> None:
    """Refuse what has no overlays of ours: a device."""
    need_file(target)
    if target.facts.kind != "file":
        raise PreflightFailed(
            Report(
                code="disk.type",
                message=f"{target.disk.path} is a device",
                where=target.table,
                why="an overlay lies beside an image; a volume has snapshots of LVM's: lvcreate --snapshot",
            )
        )


def take(caller: Caller, word: str, name: str) -> Taken:
    """Keep the disks of a word as they are: all of one moment, the guest's file systems at rest where an agent listens.

    Raises DefinitionInvalid for a name that is none, PreflightFailed, Busy.
    """
    with held_images([target.disk.path for target in takeable(caller, word, name)]):
        return take_held(caller, takeable(caller, word, name), name)


def take_held(caller: Caller, targets: tuple[Target, ...], name: str) -> Taken:
    """Keep disks that no other command works on."""
    there = [target for target in targets if str(overlay_path(target.disk.path, name)) in target.facts.since]
    if there and len(there) == len(targets):
        return Taken(name=name, targets=targets, already=True)
    if there:
        raise PreflightFailed(
            Report(code="disk.exists", message=f"{there[0].word} has a snapshot {name} already", where=there[0].table)
        )
    if not targets:
        return Taken(name=name, targets=())
    seen = seen_of(caller, targets[0])
    runs = seen is not None and seen.lives
    if not runs:
        for target in targets:
            refuse_locked(target)
    made: list[PurePosixPath] = []
    try:
        made.extend(make_overlay(target, name) for target in targets)
        frozen = switch(seen, targets, made) if seen is not None and runs else None
    except BaseException:
        for path in reversed(made):
            remove_image(path)
        raise
    return Taken(name=name, targets=targets, live=runs, frozen=frozen)


def takeable(caller: Caller, word: str, name: str) -> tuple[Target, ...]:
    """Give the disks of a word that can be written, all of them images with their snapshots in order."""
    if not NAME.fullmatch(name):
        why = "lower-case letters, digits and -, at most 40, the first no -"
        raise DefinitionInvalid(Report(code="def.name", message=f"{name!r} is no name of a snapshot", why=why))
    targets = tuple(target for target in find_disks(caller, word) if not target.disk.readonly)
    for target in targets:
        need_image(target)
        need_order(target)
    return targets


def make_overlay(target: Target, name: str) -> PurePosixPath:
    """Make the empty overlay of a snapshot; its backing file is in use where the VM runs, and is not opened."""
    beneath, path = top_of(target), overlay_path(target.disk.path, name)
    format_ = top_format(target)
    size = read_chain(target)[0].size
    with new_image(path, owner_of(path.parent), owner_of(target.disk.path)) as making:
        options = ",".join(OVERLAY_OPTIONS)
        words = ("create", "-q", "-u", "-f", "qcow2", "-b", beneath.name, "-F", format_, "-o", options)
        done = qemu_img(*words, str(making.place), str(size), paths=(path.parent,), lock_fd=making.fd)
        if done.status != 0:
            raise failed_tool(done, path)
    return path


def switch(seen: Seen, targets: Sequence[Target], overlays: Sequence[PurePosixPath]) -> int | None:
    """Have a running QEMU write to overlays from one moment on; gives how many file systems were at rest."""
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
    with frozen_guest(seen) as frozen:
        query(seen, ("transaction", {"actions": actions}), seconds=SECONDS)
    return frozen


@frozen(kw_only=True)
class Committed:
    """A disk whose snapshots went into its image; `names` none when it had none."""

    target: Target
    names: tuple[str, ...]
    live: bool = False


def commit(caller: Caller, word: str, *, progress: Progress = no_progress) -> Committed:
    """Merge all that was written since the snapshots of a disk into its image, and end them; finishes what was begun.

    Raises Busy, PreflightFailed, HostFailed, TimedOut.
    """
    found = find_disk(caller, word)
    need_image(found)
    with held_images([found.disk.path]):
        return commit_held(caller, find_disk(caller, word), progress)


def commit_held(caller: Caller, target: Target, progress: Progress) -> Committed:
    """Merge the snapshots of a disk that no other command works on."""
    names = tuple(snapshot_name(PurePosixPath(each)) for each in target.facts.since)
    seen = seen_of(caller, target)
    runs = seen is not None and seen.lives
    if target.facts.committing and read_mark(mark_path(target.disk.path)) != MERGING:
        finish(caller, target, seen)
        return Committed(target=target, names=names, live=runs)
    if not target.facts.committing:
        need_order(target)
    if not names:
        return Committed(target=target, names=())
    if seen is not None and runs:
        commit_live(caller, seen, target, progress)
    else:
        refuse_locked(target)
        commit_stopped(caller, target, progress)
    return Committed(target=target, names=names, live=runs)


def commit_stopped(caller: Caller, target: Target, progress: Progress) -> None:
    """Merge with qemu-img: until it is through the overlays hold the truth, from then on the image does.

    The mark keeps a VM from being started meanwhile; one that was started just before has the overlay locked.
    """
    top, image = top_of(target), target.disk.path
    mark = mark_path(image)

    def look(text: str) -> None:
        progress(parse_progress(text) or 0.0)

    mark_image(mark, MERGING)
    words = ("commit", "-p", "-f", "qcow2", "-d", "-b", str(image), str(top))
    done = qemu_img(*words, paths=(top, image), look=look)
    if done.status != 0:
        unmark_image(mark)
        raise failed_tool(done, top)
    mark_image(mark, MERGED)
    drop_overlays(caller, target)


def drop_overlays(caller: Caller, target: Target) -> None:
    """Remove overlays that are merged, then the mark that kept them from being opened."""
    for each in reversed(target.facts.since):
        retire(caller, PurePosixPath(each))
    forget_retired(target.disk.path)
    unmark_image(mark_path(target.disk.path))


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
                why="locked by " + ", ".join(map(holder_text, holders)),
            )
        )
    remove_image(place)


def job_of(target: Target) -> str:
    """Give the id of the job that merges a disk."""
    return f"commit-{target.name}"


def jobs(seen: Seen, target: Target) -> Mapping[str, Any] | None:
    """Give the job that merges a disk, None when there is none."""
    found = query(seen, ("query-block-jobs", {}))[0]
    rows = found if isinstance(found, list) else []
    return next((row for row in rows if isinstance(row, dict) and row.get("device") == job_of(target)), None)


def commit_live(caller: Caller, seen: Seen, target: Target, progress: Progress) -> None:
    """Merge while the VM runs: QEMU copies, then writes to the image again.

    Whatever ends us before the last step leaves the overlay as the disk; a later command goes on with the job.
    """
    if jobs(seen, target) is None:
        base = file_in_chain(seen, target, target.disk.path)
        query(seen, ("block-commit", {"device": drive_id(target.name), "job-id": job_of(target), "base": base}))
    while (job := jobs(seen, target)) and not job.get("ready"):
        length = job.get("len") or 0
        progress(min(1.0, job.get("offset", 0) / length) if length else 0.0)
        time.sleep(LOOK_EVERY)
    if job is None:
        raise HostFailed(
            Report(code="qmp.error", message=f"QEMU gave up the commit of {target.word}", where=str(target.disk.path))
        )
    mark_image(mark_path(target.disk.path), COMPLETING)
    query(seen, ("block-job-complete", {"device": job_of(target)}))
    wait_gone(seen, target)
    finish(caller, target, seen)


def wait_gone(seen: Seen, target: Target) -> None:
    """Wait until a job has ended; raises TimedOut `qmp.timeout`."""
    deadline = time.monotonic() + SECONDS
    while jobs(seen, target) is not None:
        if time.monotonic() > deadline:
            raise TimedOut(
                Report(code="qmp.timeout", message="QEMU does not end the commit", where=str(target.disk.path))
            )
        time.sleep(LOOK_EVERY)


def finish(caller: Caller, target: Target, seen: Seen | None) -> None:
    """End a commit that is at its last step, by what QEMU writes to.

    Raises PreflightFailed `disk.snapshot` where that cannot be told any more.
    """
    mark = mark_path(target.disk.path)
    if read_mark(mark) == MERGED:
        drop_overlays(caller, target)
        return
    if seen is None or not seen.lives:
        raise PreflightFailed(
            Report(
                code="disk.snapshot",
                message=f"the commit of {target.word} was cut off at its last step, and the VM has ended since",
                where=str(mark),
                why="either the image or the newest overlay has the last writes; which, only their times tell",
                hint=f"ls -l --time-style=full-iso {target.disk.path}*   # keep the newer, remove the mark",
            )
        )
    if os.path.realpath(top_file(seen, target)) == os.path.realpath(target.disk.path):
        drop_overlays(caller, target)
        return
    unmark_image(mark)
    raise HostFailed(
        Report(
            code="qmp.error",
            message=f"QEMU did not switch {target.word} back to its image",
            where=str(target.disk.path),
            why="the overlay is still the disk; nothing is lost",
            hint=f"kvmlaunch disk snapshot commit {target.word}",
        )
    )


def read_mark(mark: PurePosixPath) -> str:
    """Give what a mark says: the commit is being completed, or all is merged."""
    with open(mark, encoding="ascii", errors="replace") as file:
        return file.read(64).strip()


def image_of(seen: Seen, target: Target) -> Mapping[str, Any]:
    """Give the image that a running QEMU has at the top of a disk, with its backing chain."""
    found = query(seen, ("query-block", {}))[0]
    rows = found if isinstance(found, list) else []
    for row in rows:
        inserted = row.get("inserted") if isinstance(row, dict) and row.get("device") == drive_id(target.name) else None
        if isinstance(inserted, dict) and isinstance(inserted.get("image"), dict):
            return dict(inserted["image"])
    raise HostFailed(Report(code="qmp.error", message=f"QEMU has no disk {target.name}", where=target.table))


def top_file(seen: Seen, target: Target) -> str:
    """Give the file that a running QEMU writes a disk to."""
    return str(image_of(seen, target).get("filename", ""))


def file_in_chain(seen: Seen, target: Target, path: PurePosixPath) -> str:
    """Give the name by which a running QEMU knows a file of a disk's chain."""
    image: object = image_of(seen, target)
    while isinstance(image, dict):
        name = str(image.get("filename", ""))
        if os.path.realpath(name) == os.path.realpath(path):
            return name
        image = image.get("backing-image")
    raise Busy(
        Report(
            code="vm.state",
            message=f"the running VM does not have {path.name} beneath its disk",
            where=str(path),
            why="it was started before the snapshot was made, or from another file",
        )
    )


def revert(caller: Caller, word: str, name: str) -> Target:
    """Drop all that was written since a snapshot: the disk is as it was then, and the snapshot stays.

    Raises Busy while the VM runs, PreflightFailed `disk.unknown` for no such snapshot.
    """
    found = find_disk(caller, word)
    need_image(found)
    with held_images([found.disk.path]):
        return revert_held(caller, find_disk(caller, word), name)


def revert_held(caller: Caller, target: Target, name: str) -> Target:
    """Revert a disk that no other command works on."""
    need_order(target)
    refuse_running(caller, target, "reverted")
    refuse_locked(target)
    wanted = str(overlay_path(target.disk.path, name))
    if wanted not in target.facts.since:
        raise PreflightFailed(
            Report(
                code="disk.snapshot",
                message=f"{target.word} has no snapshot {name}",
                where=str(target.disk.path),
                why=f"its snapshots: {', '.join(snapshot_names(target)) or 'none'}",
            )
        )
    place = target.facts.since.index(wanted)
    for each in reversed(target.facts.since[place:]):
        retire(caller, PurePosixPath(each))
    kept = evolve(target, facts=evolve(target.facts, since=target.facts.since[:place]))
    make_overlay(kept, name)
    return kept


def snapshot_names(target: Target) -> tuple[str, ...]:
    """Give the names of a disk's snapshots, the oldest first."""
    return tuple(snapshot_name(PurePosixPath(each)) for each in target.facts.since)


def list_snapshots(caller: Caller, word: str) -> tuple[Target, ...]:
    """Give the disks of a word, whose facts name their snapshots."""
    return find_disks(caller, word)
