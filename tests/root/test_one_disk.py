"""A disk is one whatever it is called: a partition, the device that it lies on, the file beneath that."""

import subprocess  # noqa: TID253 - loop devices are the host's: made and detached outside of the machine
from pathlib import Path

import pytest

from tests.root.test_volumes import loop_device
from tests.sandbox import TINY, Machine

pytestmark = pytest.mark.root


@pytest.mark.parametrize("first", ["file", "device", "one"])
def test_a_partition_and_what_it_lies_on_are_not_two_vms_disks(machine: Machine, first: str) -> None:
    with loop_device(machine, "device", 16 << 20) as device:
        parts = {name: f"{device}p{number}" for number, name in enumerate(("one", "two"), start=1)}
        for number, start in ((1, 2048), (2, 8192)):  # in sectors
            words = ("addpart", device, str(number), str(start), "4096")
            subprocess.run(words, check=True)  # noqa: S603
        for name, path in {"file": str(machine.directory / "device"), "device": device, **parts}.items():
            assert Path(path).exists()
            machine.define(name, f'{TINY}[disk.root]\npath = "{path}"\nformat = "raw"\n')
        machine.ok("up", first, "--paused")

        found = {name: machine.run("up", name, "--paused") for name in ("file", "device", "one", "two")}
        for name in found:
            machine.end(name)
        for number in (1, 2):
            subprocess.run(("delpart", device, str(number)), check=True)  # noqa: S603, S607

    free = {first, "two"} if first == "one" else {first}
    assert {name for name, result in found.items() if result.code == 0} == free
    assert {code for name, result in found.items() if name not in free for code in result.codes} == {"disk.locked"}
