"""What an image's name and place tell: the format that its suffix means, and where overlays of it may lie."""

from pathlib import PurePosixPath
from typing import Final

SUFFIXES: Final = {".img": "raw", ".raw": "raw", ".qcow2": "qcow2"}
SMALLEST_QCOW2: Final = 104  # bytes: the header of version 3; docs/interop/qcow2.txt
RAW_SUFFIXES: Final = tuple(suffix for suffix, format_ in SUFFIXES.items() if format_ == "raw")


def overlay_directories(image: PurePosixPath) -> tuple[PurePosixPath, ...]:
    """Give the directories in which an overlay of an image may lie, and is sought: its own, and the one above."""
    return tuple(dict.fromkeys((image.parent, image.parent.parent)))
