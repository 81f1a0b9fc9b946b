"""Power cuts, simulated: what a cache mode promises of written data is what is left when QEMU and the host are gone.

The disks are those that `up` starts QEMU with; QEMU itself writes, is killed, and then the caches are emptied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from kvmlaunch.builder.names import drive_id
from tests.monitor import Monitor, monitor_at
from tests.powercut import CACHE_MODES, FLUSHED, NEVER_FLUSHED, marks_left, with_every_mode
from tests.sandbox import TINY, Machine

MARK: Final = b"k" * (64 << 10)
WRITE: Final = "write -P 0x6b 0 64k"


@contextmanager
def started(machine: Machine, format_: str) -> Iterator[Monitor]:
    """Start a VM with a disk for each cache mode, talk to it, and kill it."""
    machine.define("web", f"{TINY}{with_every_mode(machine, format_)}")
    machine.ok("up", "web", "--paused")
    with monitor_at(machine.rundir("web") / "qmp.sock") as qmp:
        yield qmp
    machine.kill(machine.pid("web"))


def io(qmp: Monitor, mode: str, command: str) -> None:
    """Have QEMU do to a disk what its guest would."""
    answer = qmp.ask("human-monitor-command", **{"command-line": f'qemu-io {drive_id(mode)} "{command}"'})
    assert answer == "", answer


def reached(qmp: Monitor) -> dict[str, int]:
    """Give for each disk up to which byte it has been written."""
    return {
        block["device"].removeprefix(drive_id("")): block["stats"]["wr_highest_offset"]
        for block in qmp.ask("query-blockstats")
    }


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_what_was_never_flushed_is_kept_as_far_as_its_cache_mode_goes(machine: Machine, format_: str) -> None:
    with started(machine, format_) as qmp:
        for mode in CACHE_MODES:
            io(qmp, mode, WRITE)
        ends = reached(qmp)

    assert {mode: ends[mode] for mode in CACHE_MODES} == dict.fromkeys(CACHE_MODES, len(MARK))
    assert marks_left(machine, format_, MARK) == NEVER_FLUSHED[format_]


@pytest.mark.parametrize("commands", [(WRITE, "flush"), (WRITE.replace("write", "write -f"),)], ids=["flush", "fua"])
@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_what_was_flushed_survives_every_cut_but_with_unsafe(
    machine: Machine, format_: str, commands: tuple[str, ...]
) -> None:
    with started(machine, format_) as qmp:
        for mode in CACHE_MODES:
            for command in commands:
                io(qmp, mode, command)

    assert marks_left(machine, format_, MARK) == FLUSHED
