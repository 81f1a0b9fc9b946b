"""Power cuts, simulated: what a cache mode promises of written data is what is left when QEMU and the host are gone.

The disks are those that `up` starts QEMU with; QEMU itself writes, is killed, and then the caches are emptied.
"""

import subprocess  # noqa: TID253 - qemu-img makes an image
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kvmlaunch.builder.names import drive_id
from tests.monitor import Monitor, monitor_at
from tests.powercut import (
    CACHE_MODES,
    ENDS,
    KEPT,
    LOST,
    LOST_WITH_THE_DISK,
    LOST_WITH_THE_HOST,
    SIZE,
    disk_tables,
    left_of,
    make_volatile,
    marks_left,
)
from tests.sandbox import TINY, Machine

MARK: Final = b"k" * 4096
WRITE: Final = "write -P 0x6b 0 64k"
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


def empty_image(directory: Path, format_: str) -> bytes:
    """Give an image with nothing in it."""
    if format_ == "raw":
        return bytes(SIZE)
    place = directory / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", format_, place, str(SIZE)], check=True)  # noqa: S603, S607
    return place.read_bytes()


@contextmanager
def started(machine: Machine, format_: str) -> Iterator[Monitor]:
    """Start a VM with a disk for each cache mode, talk to it, and kill it."""
    image = empty_image(machine.directory, format_)
    place = make_volatile(machine, {f"{mode}.img": image for mode in CACHE_MODES})
    tables = disk_tables(place, {mode: mode for mode in CACHE_MODES}, f'format = "{format_}"\n')
    machine.define("web", f"{TINY}{tables}")
    machine.ok("up", "web", "--paused")
    with monitor_at(machine.rundir("web") / "qmp.sock") as qmp:
        yield qmp
    machine.kill(machine.pid("web"))


def written(qmp: Monitor) -> dict[str, int]:
    """Give for each disk up to which byte its driver has written."""
    return {
        block["device"].removeprefix(drive_id("")): block["stats"]["wr_highest_offset"]
        for block in qmp.ask("query-blockstats")
    }


def io(qmp: Monitor, mode: str, command: str) -> None:
    """Have QEMU do to a disk what its guest would."""
    answer = qmp.ask("human-monitor-command", **{"command-line": f'qemu-io {drive_id(mode)} "{command}"'})
    assert answer == "", answer


def left(machine: Machine, format_: str) -> dict[str, tuple[str, ...]]:
    """Give for each cache mode whether what was written is there after each end."""
    if format_ == "raw":
        return {mode: marks_left(machine, f"{mode}.img", MARK) for mode in CACHE_MODES}
    return {mode: tuple(left_in_qcow2(machine, mode, end) for end in ENDS) for mode in CACHE_MODES}


def left_in_qcow2(machine: Machine, mode: str, end: str) -> str:
    """Tell whether what was written can be read from a qcow2 image."""
    image = left_of(machine, end) / f"{mode}.img"
    words = ("qemu-io", "-r", "-f", "qcow2", "-c", WRITE.replace("write", "read"), str(image))
    said = machine.execute(*words)
    assert "read 65536/65536" in said.out, said
    return "LOST" if said.code else "kept"


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_what_was_never_flushed_is_kept_as_far_as_its_cache_mode_goes(machine: Machine, format_: str) -> None:
    with started(machine, format_) as qmp:
        for mode in CACHE_MODES:
            io(qmp, mode, WRITE)
        reached = written(qmp)

    assert min(reached[mode] for mode in CACHE_MODES) >= 64 << 10
    assert left(machine, format_) == NEVER_FLUSHED[format_]


@pytest.mark.parametrize("commands", [(WRITE, "flush"), (WRITE.replace("write", "write -f"),)], ids=["flush", "fua"])
@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_what_was_flushed_survives_every_cut_but_with_unsafe(
    machine: Machine, format_: str, commands: tuple[str, ...]
) -> None:
    with started(machine, format_) as qmp:
        for mode in CACHE_MODES:
            for command in commands:
                io(qmp, mode, command)

    assert left(machine, format_) == FLUSHED
