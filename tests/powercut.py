"""Disks that lose what was not flushed when the power fails: simulated, by tests/fakes/volatile.py."""

import shutil
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


def disk_tables(place: Path, disks: Mapping[str, str], more: str = "") -> str:
    """Give the tables of disks by their names, each with its cache mode."""
    return "".join(
        f'[disk.{name}]\npath = "{place}/live/{name}.img"\ncache = "{cache}"\n{more}' for name, cache in disks.items()
    )


def marks_left(machine: Machine, name: str, mark: bytes) -> tuple[str, ...]:
    """Tell for each end whether a mark is still in a raw image."""
    return tuple("kept" if mark in (left_of(machine, end) / name).read_bytes() else "LOST" for end in ENDS)
