"""What an image's name and place tell: the format that its suffix means, and where overlays of it may lie."""

from pathlib import PurePosixPath
from typing import Final

SUFFIXES: Final = {".img": "raw", ".raw": "raw", ".qcow2": "qcow2"}
MARKED: Final = ("Marking image as corrupt", "Image is corrupt")  # QEMU's words: one it may write, and one it may not
SMALLEST_QCOW2: Final = 104  # bytes: the header of version 3; docs/interop/qcow2.txt
RAW_SUFFIXES: Final = tuple(suffix for suffix, format_ in SUFFIXES.items() if format_ == "raw")


def qcow2_room(size: int, cluster: int, *, subclusters: bool = False) -> int:
    """Give the bytes that a qcow2 image takes once its guest has written everywhere; sizes in bytes.

    Clusters of data, L2 and L1 tables, and a count of 2 bytes for each cluster, those of the counts themselves too.
    Source: docs/interop/qcow2; `qemu-img measure` says the same.
    """
    data = -(-size // cluster)
    tables = -(-data * (16 if subclusters else 8) // cluster)
    rest = 1 + data + tables - (-tables * 8 // cluster)  # 1 for the header
    counts = roots = 0
    while True:
        more = -(-(rest + counts + roots) * 2 // cluster)
        if (more, -(-more * 8 // cluster)) == (counts, roots):
            return (rest + counts + roots) * cluster
        counts, roots = more, -(-more * 8 // cluster)


def moved_path(image: PurePosixPath) -> PurePosixPath:
    """Give the file that says where a disk went which was converted, and removed here."""
    return image.with_name(f".{image.name}.moved")


def overlay_directories(image: PurePosixPath) -> tuple[PurePosixPath, ...]:
    """Give the directories in which an overlay of an image may lie, and is sought: its own, and the one above."""
    return tuple(dict.fromkeys((image.parent, image.parent.parent)))
