"""Disks that lose what was not flushed when the power fails: simulated, by tests/fakes/volatile.py."""

import shutil
import subprocess  # noqa: TID253 - qemu-img makes an image
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.sandbox import FAKES, Machine, wait_for

SIZE: Final = 1 << 20
CACHE_MODES: Final = ("writeback", "none", "writethrough", "directsync", "unsafe")
ENDS: Final = ("killed", "cut1", "cut2")  # QEMU alone, the host with its page cache, the disk's cache too

# What is left of written data after each of ENDS.
KEPT: Final = ("kept", "kept", "kept")
LOST_WITH_THE_HOST: Final = ("kept", "LOST", "LOST")
LOST_WITH_THE_DISK: Final = ("kept", "kept", "LOST")
LOST: Final = ("LOST", "LOST", "LOST")
FLUSHED: Final = {mode: LOST_WITH_THE_HOST if mode == "unsafe" else KEPT for mode in CACHE_MODES}
NEVER_FLUSHED: Final = {
    "raw": {
        "writeback": LOST_WITH_THE_HOST,
        "none": LOST_WITH_THE_DISK,
        "writethrough": KEPT,
        "directsync": KEPT,
        "unsafe": LOST_WITH_THE_HOST,
    },
    # QEMU keeps in its own memory where a qcow2 image has its data.
    "qcow2": {"writeback": LOST, "none": LOST, "writethrough": KEPT, "directsync": KEPT, "unsafe": LOST},
}


def require_fuse() -> None:
    """Skip where no file system can be served by a program."""
    if not Path("/dev/fuse").exists() or not shutil.which("fusermount3"):
        pytest.skip("/dev/fuse and fusermount3 of fuse3 are needed")


def make_volatile(machine: Machine, images: Mapping[str, bytes]) -> Path:
    """Serve images from disks with volatile caches, in a machine; give the directory of the file system there."""
    require_fuse()
    store, place = machine.directory / "store", machine.directory / "volatile"
    for directory in (store, place):
        directory.mkdir()
    for name, content in images.items():
        (store / name).write_bytes(content)
    process = machine.start(sys.executable, FAKES / "volatile.py", store, place)
    wait_for("the file system is there", lambda: process.poll() is not None or left_of(machine, "live").is_dir())
    assert process.poll() is None, process.communicate()
    return place


def left_of(machine: Machine, end: str) -> Path:
    """Give the directory with what an end leaves, or `live`, as seen from outside of the machine."""
    return machine.outside(machine.directory / "volatile" / end)


def mend(machine: Machine) -> None:
    """Let the disks whose names begin with `bad-` work from now on."""
    (machine.directory / "store" / "mended").touch()


def with_every_mode(machine: Machine, format_: str) -> str:
    """Serve an empty disk for each cache mode, in a machine; give their tables."""
    image = empty_image(machine.directory, format_)
    place = make_volatile(machine, {f"{mode}.img": image for mode in CACHE_MODES})
    return "".join(
        f'[disk.{mode}]\npath = "{place}/live/{mode}.img"\nformat = "{format_}"\ncache = "{mode}"\n'
        for mode in CACHE_MODES
    )


def empty_image(directory: Path, format_: str) -> bytes:
    """Give an image with nothing in it."""
    if format_ == "raw":
        return bytes(SIZE)
    place = directory / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", format_, place, str(SIZE)], check=True)  # noqa: S603, S607
    return place.read_bytes()


def content_left(machine: Machine, name: str, format_: str, end: str) -> bytes:
    """Give what a guest would find on a disk after an end."""
    image = left_of(machine, end) / f"{name}.img"
    if format_ == "raw":
        return image.read_bytes()
    raw = machine.directory / "content.img"
    result = machine.execute("qemu-img", "convert", "-f", format_, "-O", "raw", image, raw)
    assert result.code == 0, result.err
    return raw.read_bytes()


def marks_left(machine: Machine, format_: str, mark: bytes) -> dict[str, tuple[str, ...]]:
    """Tell for each cache mode whether a mark is there after each end."""
    return {
        mode: tuple("kept" if mark in content_left(machine, mode, format_, end) else "LOST" for end in ENDS)
        for mode in CACHE_MODES
    }
