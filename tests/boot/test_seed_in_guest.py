"""A seed as a real guest finds it, trimmed blocks that go back to the host, and the scheduler that the guest takes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.boot.conftest import NO_NETWORK, Define, write_guest
from tests.sandbox import Machine, made_machine, require_root

USER_DATA: Final = "#cloud-config\nhostname: front\n"
SEED: Final = f'{NO_NETWORK}[cloud_init]\nuser_data = "user-data.yaml"\nagent = false\n'
# The guest has no udev and no blkid: what is labelled is told by the volume descriptor of ISO 9660.
FIND: Final = """
modprobe isofs
for disk in /sys/block/vd*; do
    disk=/dev/${disk##*/}
    label=$(dd if=$disk bs=1 skip=32808 count=6 2>/dev/null | tr -dc a-z)
    [ "$label" = cidata ] || continue
    mkdir -p /mnt
    mount -t iso9660 -o ro $disk /mnt
    for file in /mnt/*; do
        echo "seed: begin ${file##*/}"
        cat $file
        echo "seed: end"
    done
    echo "seed: ro=$(cat /sys/block/${disk##*/}/ro)"
done >/dev/ttyS0
"""
TRIM: Final = "blkdiscard /dev/vda && echo guest: trimmed >/dev/ttyS0"
FILE: Final = re.compile(r"^seed: begin (\S+?)\r?$(.*?)^seed: end\r?$", re.MULTILINE | re.DOTALL)


def said(machine: Machine) -> str:
    """Give what the guest has printed."""
    return machine.ok("logs", "web").out.replace("\r", "")


def schedulers(printed: str) -> dict[str, str]:
    """Give the scheduler of each disk, as the guest told it."""
    return dict(re.findall(r"^guest: disk (\w+) .*?scheduler=(\S+)", printed, re.MULTILINE))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, cache: Path, built: Path) -> Iterator[str]:
    """Give what a guest with one CPU and a seed has printed when it was ready."""
    require_root()
    with made_machine(tmp_path_factory.mktemp("seed"), cache) as machine:
        write_guest(machine, built, script=FIND, more=SEED)
        (machine.directory / "vmdefs" / "user-data.yaml").write_text(USER_DATA)
        machine.ok("up", "web", "--wait", "ready")
        yield said(machine)


def test_a_guest_finds_the_seed_by_its_label_and_in_it_what_was_written(small: str) -> None:
    files = dict(FILE.findall(small))

    meta = yaml.safe_load(files["meta-data"])
    assert set(files) == {"meta-data", "user-data", "vendor-data"}
    assert files["user-data"].strip() == USER_DATA.strip()
    assert meta["local-hostname"] == "web"
    assert "60-kvmlaunch-scheduler.rules" in files["vendor-data"]


def test_a_guest_can_only_read_the_seed(small: str) -> None:
    assert "seed: ro=1" in small


def test_a_guest_with_one_cpu_takes_a_scheduler(small: str) -> None:
    assert schedulers(small)["vda"] == "mq-deadline"


def test_a_guest_with_two_cpus_takes_none_and_blocks_that_it_trims_go_back_to_the_host(
    machine: Machine, define: Define
) -> None:
    define(script=TRIM, disk='[disk.data]\npath = "data.img"\n')
    place = machine.directory / "vmdefs" / "web.toml"
    place.write_text(place.read_text().replace("vcpus = 1", "vcpus = 2"))
    image = machine.directory / "vmdefs" / "data.img"
    image.write_bytes(b"\1" * (16 << 20))

    before = image.stat().st_blocks
    machine.ok("up", "web", "--wait", "ready")
    after = image.stat().st_blocks
    printed = said(machine)
    machine.ok("down", "web")

    assert schedulers(printed)["vda"] == "none"
    assert "guest: trimmed" in printed
    assert (before * 512, image.stat().st_size) == (16 << 20, 16 << 20)
    assert after * 512 < 1 << 20
