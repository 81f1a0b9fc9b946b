"""A seed as a real guest finds it, trimmed blocks that go back to the host, and the scheduler that the guest takes."""

import re
from pathlib import Path
from typing import Final

import yaml

from tests.boot.conftest import NO_NETWORK, Define
from tests.sandbox import Machine

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


def schedulers(machine: Machine) -> dict[str, str]:
    """Give the scheduler of each disk, as the guest told it."""
    return dict(re.findall(r"^guest: disk (\w+) .*?scheduler=(\S+)", said(machine), re.MULTILINE))


def test_a_guest_finds_the_seed_by_its_label_and_in_it_what_was_written(machine: Machine, define: Define) -> None:
    define(script=FIND, more=SEED)
    Path(machine.directory / "vmdefs" / "user-data.yaml").write_text(USER_DATA)

    machine.ok("up", "web", "--wait", "ready")
    files = dict(FILE.findall(said(machine)))
    machine.ok("down", "web")

    meta = yaml.safe_load(files["meta-data"])
    assert set(files) == {"meta-data", "user-data", "vendor-data"}
    assert files["user-data"].strip() == USER_DATA.strip()
    assert meta["local-hostname"] == "web"
    assert yaml.safe_load(files["vendor-data"])["write_files"][0]["path"].endswith("scheduler.rules")
    assert "seed: ro=1" in said(machine)
    assert machine.leftovers() == []


def test_blocks_that_the_guest_trims_go_back_to_the_host(machine: Machine, define: Define) -> None:
    define(script=TRIM, disk='[disk.data]\npath = "data.img"\n')
    image = machine.directory / "vmdefs" / "data.img"
    image.write_bytes(b"\1" * (16 << 20))

    before = image.stat().st_blocks
    machine.ok("up", "web", "--wait", "ready")
    after = image.stat().st_blocks
    machine.ok("down", "web")

    assert "guest: trimmed" in said(machine)
    assert (before * 512, image.stat().st_size) == (16 << 20, 16 << 20)
    assert after * 512 < 1 << 20


def test_a_guest_takes_a_scheduler_where_it_has_one_cpu_only(machine: Machine, define: Define) -> None:
    taken = []
    for vcpus in (1, 2):
        define()
        place = machine.directory / "vmdefs" / "web.toml"
        place.write_text(place.read_text().replace("vcpus = 1", f"vcpus = {vcpus}"))
        machine.ok("up", "web", "--wait", "ready")
        taken.append(schedulers(machine)["vda"])
        machine.ok("down", "web")
        machine.outside("/var/log/kvmlaunch/web/console.log").unlink()

    assert taken == ["mq-deadline", "none"]
