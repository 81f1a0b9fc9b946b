"""Power cuts, simulated, with a real guest: what it was told is safe is there after them, but for `unsafe`."""

from typing import Final

import pytest

from tests.boot.conftest import NO_NETWORK, Define
from tests.powercut import FLUSHED, NEVER_FLUSHED, marks_left, with_every_mode
from tests.sandbox import Machine

# To each disk some data that is synchronised, then some that is not: O_DIRECT in the guest sends no flush.
SCRIPT: Final = """
make() { head -c 65536 /dev/zero | tr '\\0' $1 >/run/$1; }
make f; make n
for disk in /sys/block/vd*; do
    disk=/dev/${disk##*/}
    dd if=/run/f of=$disk bs=64k conv=fsync && dd if=/run/n of=$disk bs=64k seek=8 oflag=direct && echo guest: wrote
done >/dev/ttyS0
"""


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_what_a_guest_has_flushed_survives_a_power_cut_and_what_it_has_not_as_its_cache_mode_says(
    machine: Machine, define: Define, format_: str
) -> None:
    define(script=SCRIPT, disk="", more=f"{NO_NETWORK}{with_every_mode(machine, format_)}")
    machine.ok("up", "web", "--wait", "ready")
    said = machine.ok("logs", "web").out

    machine.kill(machine.pid("web"))

    assert said.count("guest: wrote") == len(FLUSHED)
    assert marks_left(machine, format_, b"f" * 65536) == FLUSHED
    assert marks_left(machine, format_, b"n" * 65536) == NEVER_FLUSHED[format_]
