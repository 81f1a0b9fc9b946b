"""Snapshots of an image: the overlays that lie over it, told by their names and what they rest on.

Snapshot NAME of `web01.img` keeps the image as it was; `web01.img.since-NAME.qcow2` holds what was written since.  The
topmost overlay is what QEMU opens.  `web01.img.merging` stands for a commit that has begun: from its first byte on the
image is a mixture, which only the overlays over it make whole.  `web01.img.committing` stands for its last step, and
`web01.img.taking` for a snapshot that is being taken, or was cut off.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from kvmlaunch.model.value import frozen

MARK: Final = ".committing"
BEGUN: Final = ".merging"
TAKING: Final = ".taking"
SINCE: Final = ".since-"
SUFFIX: Final = ".qcow2"
JOB: Final = "commit-"  # begins the id of QEMU's job that merges the snapshots of a disk
MAKING: Final = ".making"  # of an image that is not whole yet, behind a dot and its name
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@frozen(kw_only=True)
class Chain:
    """The overlays over an image, the oldest first; `stray` are those that do not lie over one another in a line."""

    overlays: tuple[PurePosixPath, ...] = ()
    stray: tuple[PurePosixPath, ...] = ()


def overlay_path(image: PurePosixPath, name: str) -> PurePosixPath:
    """Give the overlay of a snapshot of an image."""
    return image.with_name(f"{image.name}{SINCE}{name}{SUFFIX}")


def mark_path(image: PurePosixPath) -> PurePosixPath:
    """Give the file that stands for a commit at its last step."""
    return image.with_name(f"{image.name}{MARK}")


def begun_path(image: PurePosixPath) -> PurePosixPath:
    """Give the file that stands for a commit that has begun, and may have failed since."""
    return image.with_name(f"{image.name}{BEGUN}")


def taking_path(image: PurePosixPath) -> PurePosixPath:
    """Give the file that stands for a snapshot that is being taken, and names it."""
    return image.with_name(f"{image.name}{TAKING}")


def parse_merging(answer: object) -> Mapping[str, Mapping[str, object]]:
    """Give the jobs that merge snapshots, by the name of their disk, of an answer to query-block-jobs."""
    rows = [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []
    jobs = {str(row.get("device", "")): row for row in rows}
    return {name.removeprefix(JOB): row for name, row in jobs.items() if name.startswith(JOB)}


def is_overlay_name(file: str, image: str) -> bool:
    """Is a file's name that of a snapshot's overlay of an image."""
    begin = f"{image}{SINCE}"
    return file.startswith(begin) and file.endswith(SUFFIX) and bool(NAME.fullmatch(file[len(begin) : -len(SUFFIX)]))


def is_passing(file: str, image: str) -> bool:
    """Is a file's name that of an overlay of ours that is being made, or was ended: nobody's disk."""
    return file.startswith(f".{image.partition(SINCE)[0]}{SINCE}")


def snapshot_name(overlay: PurePosixPath) -> str:
    """Give the name of the snapshot that an overlay was made for."""
    return overlay.name.rpartition(SINCE)[2].removesuffix(SUFFIX)


def order(image: PurePosixPath, backings: Mapping[PurePosixPath, PurePosixPath]) -> Chain:
    """Give overlays in their order, from what each rests on; one beside the line, or a second one on it, is stray."""
    line: list[PurePosixPath] = []
    top = image
    while len(above := [each for each, beneath in backings.items() if beneath == top and each not in line]) == 1:
        top = above[0]
        line.append(top)
    return Chain(overlays=tuple(line), stray=tuple(sorted(backings.keys() - set(line))))
