"""What a running QEMU has as a disk: asked before it is told anything, as its VM may run from another file."""

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from kvmlaunch.builder.names import drive_id
from kvmlaunch.errors import Busy, PreflightFailed, Report
from kvmlaunch.preflight.disk import repair_hint
from kvmlaunch.steps.control import query
from kvmlaunch.steps.disks import Target, top_of
from kvmlaunch.steps.lost import refuse_replaced
from kvmlaunch.steps.observe import Seen
from kvmlaunch.storage.image import plain_file
from kvmlaunch.storage.snapshot import JOB, parse_merging


def image_of(seen: Seen, target: Target) -> Mapping[str, Any]:
    """Give the image that a running QEMU has at the top of a disk, with its backing chain."""
    found = query(seen, ("query-block", {}))[0]
    rows = found if isinstance(found, list) else []
    (row, *_) = [row for row in rows if isinstance(row, dict) and row.get("device") == drive_id(target.name)] or [{}]
    inserted = row.get("inserted")
    if isinstance(inserted, dict) and isinstance(inserted.get("image"), dict):
        return dict(inserted["image"])
    if row:  # QEMU takes an image away that it finds damaged: block/qcow2.c, qcow2_signal_corruption
        raise PreflightFailed(
            Report(
                code="disk.corrupt",
                message=f"QEMU has dropped the image of {target.word}",
                where=str(target.disk.path),
                why="it found its tables wrong while the VM ran, marked it as damaged, and fails what the guest asks",
                hint=f"kvmlaunch down {seen.name} --force --timeout 0 && {repair_hint(top_of(target), target.word)}",
            )
        )
    raise Busy(
        Report(
            code="vm.state",
            message=f"the running VM has no disk {target.name}",
            where=target.table,
            why="it was started before the disk was defined, or from another file",
            hint=f"kvmlaunch restart {seen.name}   # with the definition as it is now",
        )
    )


def top_file(seen: Seen, target: Target) -> str:
    """Give the file that a running QEMU writes a disk to."""
    return plain_file(str(image_of(seen, target).get("filename", "")))


def is_in_chain(seen: Seen, target: Target, path: PurePosixPath) -> bool:
    """Does a running QEMU have a file of this name in the chain of a disk."""
    return name_in_chain(seen, target, path) is not None


def name_in_chain(seen: Seen, target: Target, path: PurePosixPath) -> str | None:
    """Give the name by which a running QEMU knows a file of a disk's chain, None for none."""
    image: object = image_of(seen, target)
    while isinstance(image, dict):
        name = str(image.get("filename", ""))
        if os.path.realpath(plain_file(name)) == os.path.realpath(path):
            return name
        image = image.get("backing-image")
    return None


def job_of(target: Target) -> str:
    """Give the id of the job that merges a disk."""
    return f"{JOB}{target.name}"


def job_row(seen: Seen, target: Target) -> Mapping[str, Any] | None:
    """Give the job that merges a disk, None when there is none."""
    return parse_merging(query(seen, ("query-block-jobs", {}))[0]).get(target.name)


def refuse_merging(seen: Seen, target: Target) -> None:
    """Refuse to change a disk whose snapshots QEMU still merges (`vm.state`): the command may have been ended."""
    if job_row(seen, target) is not None:
        raise Busy(
            Report(
                code="vm.state",
                message=f"the snapshots of {target.word} are being merged",
                where=f"pid {seen.pid}",
                why=f"QEMU has the job {job_of(target)}",
                hint=f"kvmlaunch disk snapshot commit {target.word}   # goes on with it where the command was ended",
            )
        )


def file_in_chain(seen: Seen, target: Target, path: PurePosixPath) -> str:
    """Give the name by which a running QEMU knows a file of a disk's chain.

    Raises Busy `vm.state` for none, `disk.replaced` where another file has that name now.
    """
    name = name_in_chain(seen, target, path)
    if name is not None:
        refuse_replaced(seen, path, target.table)
        return name
    raise Busy(
        Report(
            code="vm.state",
            message=f"the running VM does not have {path.name} beneath its disk {target.name}",
            where=str(path),
            why="it was started from another file, or before the path was changed or the snapshot was made",
            hint=f"kvmlaunch status {seen.name}   # names the definition that it runs from",
        )
    )
