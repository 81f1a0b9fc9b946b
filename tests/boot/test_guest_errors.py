"""Disks that fail beneath a guest: it is told, goes on, and `status` says so."""

from typing import Final

from tests.boot.conftest import NO_NETWORK, Define
from tests.powercut import SIZE, make_volatile, mend
from tests.sandbox import Machine, wait_for

# The disks are found by their serial numbers; what each of three ways of writing ended with is printed.
SCRIPT: Final = """
for disk in /sys/block/vd*; do
    read -r serial <$disk/serial
    device=/dev/${disk##*/}
    dd if=/dev/zero of=$device bs=4k count=1 oflag=direct 2>/dev/null; direct=$?
    dd if=/dev/zero of=$device bs=4k count=1 conv=fsync 2>/dev/null
    echo guest: tried $serial $direct $?
done >/dev/ttyS0
"""


TOLD: Final = "guest: tried bad-write 1 1", "guest: tried bad-flush 0 1", "guest: tried good 0 0"
WELL: Final = "guest: tried bad-write 0 0", "guest: tried bad-flush 0 0", "guest: tried good 0 0"


def with_bad_disks(machine: Machine, more: str = "") -> str:
    """Give the tables of a disk that fails to write, one that fails to flush, and one that is well."""
    names = ("bad-write", "bad-flush", "good")
    place = make_volatile(machine, {f"{name}.img": bytes(SIZE) for name in names})
    return NO_NETWORK + "".join(
        f'[disk.{name}]\npath = "{place}/live/{name}.img"\nserial = "{name}"\n{more}' for name in names
    )


def tried(machine: Machine) -> tuple[str, ...]:
    """Give what the guest told."""
    lines = machine.ok("logs", "web").out.splitlines()
    return tuple(line.strip() for line in lines if line.startswith("guest: tried"))


def test_an_error_of_the_host_reaches_the_guest_which_goes_on(machine: Machine, define: Define) -> None:
    define(script=SCRIPT, disk="", more=with_bad_disks(machine))

    machine.ok("up", "web", "--wait", "ready")
    seen = machine.status("web")

    assert tried(machine) == TOLD
    assert (seen["state"], seen["run_state"]) == ("running", "running")


def test_a_guest_that_is_to_stop_at_an_error_hears_nothing_of_one_that_was_mended(
    machine: Machine, define: Define
) -> None:
    define(script=SCRIPT, disk="", more=with_bad_disks(machine, 'on_error = "stop"\n'))
    machine.ok("up", "web", "--wait", "started")
    wait_for("it is paused", lambda: machine.status("web")["run_state"] == "io-error")
    seen = machine.status("web")

    again = machine.run("resume", "web")
    mend(machine)
    machine.ok("resume", "web")
    wait_for("it has tried all", lambda: len(tried(machine)) == len(WELL))

    assert seen["state"] == "paused"
    assert again.code == 7
    assert "disk bad-write: its store refused" in again.err
    assert tried(machine) == WELL
    machine.ok("down", "web")
