"""`disk snapshot commit`: what was written since the snapshots of a disk goes into its image, and they end.

An overlay that is merged must not be opened again: a mark lies beside the image as long as that could happen, and says
how far it is.  `merging`: the overlays hold the truth; `completing`: QEMU may have switched back to the image at any
moment; `merged`: the image holds it, the overlays go.
"""

import contextlib
import os
import time
from pathlib import PurePosixPath

from kvmlaunch.builder.names import drive_id
from kvmlaunch.errors import HostFailed, PreflightFailed, Report, TimedOut
from kvmlaunch.facts.record import parse_job_error
from kvmlaunch.host.images import forget_retired, free_space, held_images, mark_image, owner_of, unmark_image
from kvmlaunch.host.logs import read_events
from kvmlaunch.model.value import frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.control import query
from kvmlaunch.steps.disk_live import file_in_chain, job_of, job_row, top_file
from kvmlaunch.steps.disk_settle import read_mark, retire
from kvmlaunch.steps.disk_snapshot import need_image, snapshot_names
from kvmlaunch.steps.disks import (
    Progress,
    Target,
    at_rest,
    failed_tool,
    find_disk,
    no_progress,
    qemu_img,
    read_chain,
    refuse_clones,
    refuse_damaged,
    refuse_disorder,
    refuse_locked,
    seen_of,
    top_of,
)
from kvmlaunch.steps.observe import Seen
from kvmlaunch.storage.image import parse_progress
from kvmlaunch.storage.snapshot import begun_path, mark_path
from kvmlaunch.units import render_rounded

MERGING, MERGED, COMPLETING = "merging", "merged", "completing"
SECONDS = 60.0  # that QEMU may take for its last step
LOOK_EVERY = 0.1


@frozen(kw_only=True)
class Committed:
    """A disk whose snapshots went into its image; `names` none when it had none."""

    target: Target
    names: tuple[str, ...]
    live: bool = False


def commit(caller: Caller, word: str, *, dry_run: bool = False, progress: Progress = no_progress) -> Committed:
    """Merge all that was written since the snapshots of a disk into its image, and end them; finishes what was begun.

    Raises Busy, PreflightFailed, HostFailed, TimedOut.
    """
    found = find_disk(caller, word)
    need_image(found)
    with held_images([found.image]):
        return commit_held(caller, find_disk(caller, word), progress, dry_run=dry_run)


def refuse_uncommittable(caller: Caller, target: Target) -> None:
    """Refuse a disk whose snapshots cannot be told in order, are damaged, or have clones resting on them."""
    if not target.facts.committing:
        refuse_disorder(target)
        refuse_damaged(target)
    if snapshot_names(target) or target.facts.committing:  # an image without snapshots may have clones
        refuse_clones(caller, target, (target.image, *map(PurePosixPath, target.facts.since)), "go into its image")


def commit_held(caller: Caller, target: Target, progress: Progress, *, dry_run: bool) -> Committed:
    """Merge the snapshots of a disk that no other command works on; a dry run is refused the same, and does nothing."""
    names = snapshot_names(target)
    seen = seen_of(caller, target)
    runs = seen is not None and seen.lives
    refuse_uncommittable(caller, target)
    if target.facts.committing and read_mark(mark_path(target.image)) != MERGING:
        if not dry_run:
            finish(caller, target, seen)
        return Committed(target=target, names=names, live=runs)
    if not names:
        if not dry_run:
            unmark_image(begun_path(target.image))
        return Committed(target=target, names=())
    if seen is not None and runs:
        return commit_running(caller, seen, target, progress, dry_run=dry_run)
    with at_rest(caller, target, "committed"):
        refuse_locked(target)
        if not os.path.lexists(begun_path(target.image)):  # what was begun already may just fit
            refuse_room(target)
        if not dry_run:
            commit_stopped(caller, target, progress)
    return Committed(target=target, names=names)


def commit_running(caller: Caller, seen: Seen, target: Target, progress: Progress, *, dry_run: bool) -> Committed:
    """Merge the snapshots of a disk of a VM that runs, or go on with it where a command was ended."""
    if job_row(seen, target) is None:
        refuse_room(target)
    if dry_run:
        file_in_chain(seen, target, target.image)
    else:
        commit_live(caller, seen, target, progress)
    return Committed(target=target, names=snapshot_names(target), live=True)


def refuse_room(target: Target) -> None:
    """Refuse to begin a commit that may fill the store, beneath a guest that runs too (`host.space`).

    It is what the overlays hold, as far as the image may lack it.
    """
    if target.facts.fully_allocated and target.format == "raw":
        return
    chain = read_chain(target)
    above = chain[: len(target.facts.since)]
    image = chain[len(above)]
    most = min(sum(overlay.allocated for overlay in above), max(0, image.size - image.allocated))
    free = free_space(target.image)
    if most > free:
        raise PreflightFailed(
            Report(
                code="host.space",
                message=f"{target.image.name} may grow by {render_rounded(most)}, and there is no room for it",
                where=str(target.image.parent),
                why=f"{render_rounded(free)} are free; a store that is full stops the writes of every guest on it",
            )
        )


def commit_stopped(caller: Caller, target: Target, progress: Progress) -> None:
    """Merge with qemu-img: until it is through the overlays hold the truth, from then on the image does.

    The mark keeps a VM from being started meanwhile; one that was started just before has the overlay locked.
    """
    top, image = top_of(target), target.image
    mark = mark_path(image)

    def look(text: str) -> None:
        progress(parse_progress(text) or 0.0)

    mark_image(begun_path(image), MERGING)
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
    forget_retired(target.image)
    unmark_image(begun_path(target.image))
    unmark_image(mark_path(target.image))


def commit_live(caller: Caller, seen: Seen, target: Target, progress: Progress) -> None:
    """Merge while the VM runs: QEMU copies, then writes to the image again.

    Whatever ends us before the last step leaves the overlay as the disk; a later command goes on with the job.
    """
    base = file_in_chain(seen, target, target.image)
    mark_image(begun_path(target.image), MERGING)
    if job_row(seen, target) is None:
        query(seen, ("block-commit", {"device": drive_id(target.name), "job-id": job_of(target), "base": base}))
    while (job := job_row(seen, target)) and not job.get("ready"):
        length = job.get("len") or 0
        progress(min(1.0, job.get("offset", 0) / length) if length else 0.0)
        time.sleep(LOOK_EVERY)
    if job is None:
        raise HostFailed(
            Report(
                code="qmp.error",
                message=f"QEMU gave up the commit of {target.word}",
                where=str(target.disk.path),
                why=parse_job_error(read_events(seen.places.run, owner_of(seen.places.run).uid), job_of(target)),
                hint=f"kvmlaunch disk snapshot commit {target.word}   # again, once that is mended: nothing is lost",
            )
        )
    mark_image(mark_path(target.image), COMPLETING)
    query(seen, ("block-job-complete", {"device": job_of(target)}))
    wait_gone(seen, target)
    finish(caller, target, seen)


def wait_gone(seen: Seen, target: Target) -> None:
    """Wait until a job has ended; raises TimedOut `qmp.timeout`."""
    deadline = time.monotonic() + SECONDS
    while job_row(seen, target) is not None:
        if time.monotonic() > deadline:
            raise TimedOut(
                Report(code="qmp.timeout", message="QEMU does not end the commit", where=str(target.disk.path))
            )
        time.sleep(LOOK_EVERY)


def finish(caller: Caller, target: Target, seen: Seen | None) -> None:
    """End a commit that is at its last step, by what QEMU writes to.

    Raises PreflightFailed `disk.snapshot` where that cannot be told any more.
    """
    mark = mark_path(target.image)
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
                hint=f"ls -l --time-style=full-iso {target.image} {top_of(target)}   # keep the newer, remove the mark",
            )
        )
    file_in_chain(seen, target, target.image)
    if job_row(seen, target) is not None:
        with contextlib.suppress(HostFailed):  # it may be completing already
            query(seen, ("block-job-complete", {"device": job_of(target)}))
        wait_gone(seen, target)
    if os.path.realpath(top_file(seen, target)) == os.path.realpath(target.image):
        mark_image(mark, MERGED)
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
