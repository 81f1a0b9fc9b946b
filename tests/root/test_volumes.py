"""Block devices and LVM volumes as disks: loop devices of the test's own, LVM's real tools on one of them.

Without device-mapper LVM can keep its books, but makes no device: `activation = 0` in a configuration that the machine
alone sees.  Thin volumes need device-mapper for their pool: there LVM's tools are fakes that write down what they hear.
"""

import json
import os
import shutil
import subprocess  # noqa: TID253 - loop devices are the host's: made and detached outside of the machine
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import frozen

from tests.sandbox import PATH, TINY, Machine, Result

MIB: Final = 1 << 20
CONF: Final = """
global {{ activation = 0 locking_dir = "{directory}/lock" event_activation = 0 }}
backup {{ backup = 0 archive = 0 }}
devices {{ use_devicesfile = 0 hints = "none" filter = ["a|^{device}$|", "r|.*|"] }}
"""
FAKE: Final = (
    '#!/bin/sh\necho "${{0##*/}} $*" >>{directory}/heard\ncat {directory}/answer-${{0##*/}} 2>/dev/null\n'
    'if [ "${{0##*/}}" = lvcreate ]; then mv {directory}/answer-made {directory}/answer-lvs; fi\nexit 0\n'
)


@contextmanager
def loop_device(machine: Machine, name: str, size: int) -> Iterator[str]:
    """Give a loop device over a file of zeros; it is detached when nothing of the machine is left."""
    file = machine.directory / name
    with file.open("wb") as image:
        image.truncate(size)
    words = ("losetup", "--find", "--show", str(file))
    done = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603
    device = done.stdout.strip()
    try:
        yield device
    finally:
        machine.close()
        subprocess.run(("losetup", "--detach", device), check=True)  # noqa: S603, S607


@pytest.fixture
def device(machine: Machine) -> Iterator[str]:
    """Give a block device of 16 MiB."""
    with loop_device(machine, "device", 16 * MIB) as found:
        yield found


@frozen(kw_only=True)
class Group:
    """A volume group of the machine's, with 15 extents of 4 MiB."""

    machine: Machine
    name: str

    def volumes(self) -> dict[str, int]:
        """Give the sizes of its volumes, as LVM has them."""
        words = ("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "lv_name,lv_size", self.name)
        rows = json.loads(self.machine.execute(*words).out)["report"][0]["lv"]
        return {row["lv_name"]: int(row["lv_size"]) for row in rows}

    def define(self, size: int, volume: str = "web01") -> None:
        """Write a definition whose disk is a volume of the group."""
        disk = f'[disk.root]\npath = "lvm:{self.name}/{volume}"\nsize = "{size // MIB}MiB"\n'
        self.machine.define("web", f"{TINY}{disk}")


@pytest.fixture
def group(machine: Machine) -> Iterator[Group]:
    """Give a volume group of 60 MiB on a loop device, which only the machine's LVM looks at."""
    if not shutil.which("lvs", path=PATH):
        pytest.skip("volumes need lvm2")
    directory, name = machine.directory / "lvm", f"kl{uuid.uuid4().hex[:12]}"
    directory.mkdir()
    with loop_device(machine, "physical", 64 * MIB) as found:
        (directory / "lvm.conf").write_text(CONF.format(directory=directory, device=found))
        assert machine.execute("mount", "--bind", directory, "/etc/lvm").code == 0
        made = machine.execute("vgcreate", name, found)
        assert made.code == 0, made.err
        yield Group(machine=machine, name=name)


@pytest.fixture
def node(machine: Machine, group: Group, device: str) -> str:
    """Give the path of the volume web01 in a /dev of the machine's own, where another device stands for it.

    LVM's lvcreate and lvrename are wrapped: they make the path and move it, as device-mapper would.
    """
    directory = machine.directory / "dev"
    directory.mkdir()
    needed = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/loop*"
    script = (
        f"mount -t tmpfs -o mode=755 tmpfs dev && cp -a {needed} dev && mkdir dev/{group.name} && mount --move dev /dev"
    )
    made = machine.execute("sh", "-euc", script)
    assert made.code == 0, made.err
    path = f"/dev/{group.name}/web01"
    (machine.directory / "tools").mkdir()
    create = f'while [ "$1" != --name ]; do shift; done; ln -sfn {device} /dev/{group.name}/$2'
    for tool, then in (("lvcreate", create), ("lvrename", "mv /dev/$1/$2 /dev/$1/$3")):
        wrapper = machine.directory / f"tools/{tool}"
        wrapper.write_text(f'#!/bin/sh\n/usr/sbin/{tool} "$@" || exit\n{then}\n')
        wrapper.chmod(0o755)
    return path


def with_nodes(machine: Machine, *words: str) -> Result:
    """Run kvmlaunch with the tools that make the volume's path."""
    return machine.run(*words, env={"PATH": f"{machine.directory}/tools:{PATH}"})


def convert(machine: Machine, goal: str, *words: str) -> Result:
    """Convert the disk of the definition."""
    return machine.run("disk", "convert", "web:root", goal, *words)


def image(machine: Machine, size: int) -> Path:
    """Define and make a sparse image that holds something; give its path."""
    disk = f'[disk.root]\npath = "web.img"\nsize = "{size // MIB}MiB"\npreallocation = "off"\n'
    path = machine.define("web", f"{TINY}{disk}").with_name("web.img")
    machine.ok("disk", "create", "web")
    with path.open("r+b") as file:
        file.write(b"guest" * 1000)
    return path


def test_a_disk_is_written_to_a_device_and_compared_and_a_second_time_is_fine(machine: Machine, device: str) -> None:
    path = image(machine, 8 * MIB)

    done = convert(machine, device, "--overwrite")
    again = convert(machine, device, "--remove-source")

    assert (done.code, again.code) == (0, 0), done.err + again.err
    assert "already" in again.err
    assert Path(device).read_bytes()[: 8 * MIB].startswith(b"guest" * 1000)
    assert not path.exists()


def test_what_a_device_holds_is_not_written_over_unasked(machine: Machine, device: str) -> None:
    image(machine, 8 * MIB)
    with Path(device).open("r+b") as file:
        file.write(b"theirs")

    refused = convert(machine, device)
    before = Path(device).read_bytes()
    done = convert(machine, device, "--overwrite")

    assert (refused.code, refused.codes) == (6, {"disk.exists"})
    assert "--overwrite" in refused.err
    assert before.startswith(b"theirs")
    assert done.code == 0, done.err


@pytest.mark.parametrize("words", [(), ("--overwrite",)])
def test_a_device_that_is_smaller_than_the_disk_is_refused_and_stays_as_it_is(
    machine: Machine, device: str, words: tuple[str, ...]
) -> None:
    image(machine, 32 * MIB)

    refused = convert(machine, device, *words)

    assert refused.code == 6
    assert "guest" not in Path(device).read_bytes()[:64].decode()
    assert refused.codes == {"disk.small"}


def test_a_device_that_is_mounted_is_refused(machine: Machine, device: str) -> None:
    image(machine, 8 * MIB)
    (machine.directory / "mnt").mkdir()
    made = machine.execute("sh", "-euc", f"mkfs.ext4 -q {device} && mount {device} mnt && echo precious > mnt/file")
    assert made.code == 0, made.err

    refused = convert(machine, device, "--overwrite")

    assert (refused.code, refused.codes) == (6, {"disk.locked"})
    assert machine.outside(machine.directory / "mnt/file").read_text() == "precious\n"


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_a_device_takes_the_format_that_is_asked_for(machine: Machine, device: str, format_: str) -> None:
    image(machine, 8 * MIB)

    unasked = convert(machine, device, "--format", format_)
    done = convert(machine, device, "--format", format_, "--overwrite")

    assert (unasked.code, unasked.codes) == (6, {"disk.exists"})
    assert done.code == 0, done.err


def device_disk(machine: Machine, device: str) -> None:
    """Define a disk that is a device."""
    machine.define("web", f'{TINY}[disk.root]\npath = "{device}"\nsize = "32MiB"\n')


def test_a_device_is_a_disk_that_is_there_and_is_neither_grown_nor_removed(machine: Machine, device: str) -> None:
    device_disk(machine, device)

    created = machine.ok("disk", "create", "web", "--json").json["disks"][0]
    info = machine.ok("disk", "info", "web", "--json").json["disks"][0]
    resized, removed = machine.run("disk", "resize", "web"), machine.run("disk", "remove", "web:root", "--yes")

    assert (created["already"], created["size"]) == (True, 16 * MIB)
    assert (info["kind"], info["format"], info["size"], info["volume"]) == ("block", "raw", 16 * MIB, None)
    assert (resized.code, "disk.type" in resized.codes) == (6, True)
    assert (removed.code, "disk.type" in removed.codes) == (6, True)


def test_a_device_that_the_host_has_mounted_is_refused_under_every_name(machine: Machine, device: str) -> None:
    status = Path(device).stat()
    alias = machine.directory / "alias"
    machine.execute("mknod", str(alias), "b", str(os.major(status.st_rdev)), str(os.minor(status.st_rdev)))
    place = machine.directory / "mounted"
    made = machine.execute("sh", "-euc", f"mkfs.ext4 -q {device}; mkdir {place}; mount {device} {place}")
    assert made.code == 0, made.err
    device_disk(machine, str(alias))

    refused = [machine.run(*words) for words in (("up", "web", "--paused"), ("disk", "convert", "web:root", "new.img"))]
    readonly = machine.run("preflight", "web", "--set", "disk.root.readonly=true")
    machine.execute("umount", place)
    free = machine.run("preflight", "web")

    assert [(each.code, each.codes) for each in refused] == [(6, {"disk.locked"})] * 2
    assert (readonly.code, free.code) == (0, 0), readonly.err + free.err


@pytest.mark.parametrize("first", ["device", "file"])
def test_a_device_and_what_it_is_made_of_are_one_disk(machine: Machine, device: str, first: str) -> None:
    paths = {"device": device, "file": str(machine.directory / "device"), "name": str(machine.directory / "name")}
    status = os.stat(device)
    machine.execute("mknod", paths["name"], "b", str(os.major(status.st_rdev)), str(os.minor(status.st_rdev)))
    for name, path in paths.items():
        machine.define(name, f'{TINY}[disk.root]\npath = "{path}"\nformat = "raw"\n')
    image(machine, 4 * MIB)
    machine.ok("up", first, "--paused")

    starts = {name: machine.run("up", name, "--paused").codes for name in paths if name != first}
    written = machine.run("disk", "convert", "web:root", device, "--overwrite")

    assert starts == {name: {"disk.locked"} for name in paths if name != first}
    assert written.codes == {"disk.locked"}


def test_a_device_that_is_made_of_the_source_is_no_copy_of_it(machine: Machine) -> None:
    path = image(machine, 8 * MIB)
    made = machine.execute("losetup", "-f", "--show", path)
    device = made.out.strip()

    try:
        refused = convert(machine, device, "--remove-source")
    finally:
        machine.execute("losetup", "-d", device)

    assert (refused.code, refused.codes) == (6, {"disk.exists"})
    assert path.read_bytes().startswith(b"guest")


def test_an_overlay_of_the_source_is_no_copy_of_it(machine: Machine) -> None:
    path = image(machine, 8 * MIB)
    goal = machine.directory / "elsewhere/copy.qcow2"
    goal.parent.mkdir()
    machine.execute("qemu-img", "create", "-q", "-f", "qcow2", "-b", path, "-F", "raw", goal)

    refused = convert(machine, str(goal), "--remove-source")

    assert (refused.code, refused.codes) == (6, {"disk.exists"})
    assert path.read_bytes().startswith(b"guest")


def test_root_converts_a_users_raw_image_to_a_place_of_its_own(machine: Machine) -> None:
    path, home = image(machine, 8 * MIB), "/var/lib/kvmlaunch/theirs"
    machine.execute("install", "-d", "-o", "4242", home)
    machine.execute("install", "-o", "4242", "-m", "600", path, f"{home}/web.img")
    machine.define("web", f'{TINY}[disk.root]\npath = "{home}/web.img"\n')

    done = convert(machine, "vmdefs/new.img")

    assert done.code == 0, done.err
    assert (machine.directory / "vmdefs/new.img").read_bytes() == path.read_bytes()


def test_a_device_becomes_an_image(machine: Machine, device: str) -> None:
    device_disk(machine, device)
    with Path(device).open("r+b") as file:
        file.write(b"guest")

    done = convert(machine, "vmdefs/new.img")

    assert done.code == 0, done.err
    assert (machine.directory / "vmdefs/new.img").read_bytes() == Path(device).read_bytes()


def test_a_device_cannot_be_removed_and_so_is_not_converted_first(machine: Machine, device: str) -> None:
    device_disk(machine, device)

    refused = convert(machine, "vmdefs/new.img", "--remove-source")

    assert "disk.type" in refused.codes
    assert refused.code == 6
    assert not (machine.directory / "vmdefs/new.img").exists()


def test_a_volume_is_made_in_whole_extents(machine: Machine, group: Group) -> None:
    group.define(10 * MIB)

    made = machine.ok("disk", "create", "web", "--json").json["disks"][0]

    assert (made["size"], made["already"], made["format"]) == (12 * MIB, False, "raw")
    assert group.volumes() == {"web01": 12 * MIB}


def test_a_dry_run_makes_no_volume_and_says_what_would_become_of_it(machine: Machine, group: Group) -> None:
    group.define(10 * MIB)

    planned = machine.ok("disk", "create", "web", "-n", "--json").json["disks"][0]

    assert group.volumes() == {}
    assert planned["size"] == 12 * MIB


def test_a_volume_without_a_device_is_not_made_twice(machine: Machine, group: Group) -> None:
    group.define(10 * MIB)
    machine.ok("disk", "create", "web")

    again = machine.run("disk", "create", "web")

    assert "internal.bug" not in again.codes
    assert "not active" in again.err or "inactive" in again.err or "lvchange" in again.err, again.err
    assert group.volumes() == {"web01": 12 * MIB}


@pytest.mark.parametrize("words", [(), ("-n",)])
def test_a_group_that_is_not_there_is_said_with_those_that_are(
    machine: Machine, group: Group, words: tuple[str, ...]
) -> None:
    group.define(8 * MIB)

    refused = machine.run("disk", "create", "web", *words, "--set", "disk.root.path=lvm:nogroup/web01")

    assert (refused.code, refused.codes) == (6, {"host.group.missing"})
    assert group.name in refused.err


def test_a_volume_that_has_no_room_is_refused_and_the_whole_group_can_be_had(machine: Machine, group: Group) -> None:
    group.define(61 * MIB)

    refused = machine.run("disk", "create", "web")
    none = group.volumes()
    group.define(60 * MIB)
    machine.ok("disk", "create", "web")

    assert (refused.code, refused.codes) == (6, {"host.space"})
    assert none == {}
    assert group.volumes() == {"web01": 60 * MIB}


def test_a_pool_that_is_not_there_is_told_before_anything_is_made(machine: Machine, group: Group) -> None:
    group.define(8 * MIB)

    refused = machine.run("disk", "create", "web", "--set", "disk.root.thin_pool=pool0")

    assert (refused.code, refused.codes) == (6, {"host.group.missing"})
    assert "no thin pool pool0" in refused.err
    assert group.volumes() == {}


def test_a_volume_that_was_made_for_a_conversion_goes_with_its_failure(machine: Machine, group: Group) -> None:
    path = image(machine, 8 * MIB)

    failed = convert(machine, f"lvm:{group.name}/web01", "--remove-source")

    assert failed.code != 0, "there is no device-mapper, so there is no device to write to"
    assert "internal.bug" not in failed.codes
    assert group.volumes() == {}
    assert path.exists()


@pytest.mark.usefixtures("node")
def test_a_volume_that_is_there_is_not_made_again_and_is_said_to_be_one(machine: Machine, group: Group) -> None:
    group.define(16 * MIB)

    made, again = (with_nodes(machine, "disk", "create", "web", "--json") for _ in range(2))
    info = machine.ok("disk", "info", "web", "--json").json["disks"][0]

    assert made.code == 0, made.err
    assert again.json["disks"][0]["already"]
    assert (info["kind"], info["volume"], info["thin_pool"]) == ("block", {"group": group.name, "name": "web01"}, "")
    assert "LVM volume" in machine.ok("disk", "info", "web").out


@pytest.mark.usefixtures("node")
def test_a_volume_grows_by_whole_extents_and_is_never_made_smaller(machine: Machine, group: Group) -> None:
    group.define(16 * MIB)
    with_nodes(machine, "disk", "create", "web")

    grown = machine.ok("disk", "resize", "web:root", "+1MiB", "--json").json
    smaller, larger = (machine.run("disk", "resize", "web:root", size) for size in ("16MiB", "64MiB"))

    assert (grown["before"], grown["after"]) == (16 * MIB, 20 * MIB)
    assert (smaller.code, "disk.shrink" in smaller.codes) == (6, True)
    assert (larger.code, "host.space" in larger.codes) == (6, True)
    assert group.volumes() == {"web01": 20 * MIB}


@pytest.mark.usefixtures("node")
def test_a_volume_is_removed_and_no_other(machine: Machine, group: Group) -> None:
    machine.execute("lvcreate", "--yes", "--size", "4m", "--name", "web0", group.name)
    group.define(16 * MIB)
    with_nodes(machine, "disk", "create", "web")

    machine.ok("disk", "remove", "web:root", "--yes")

    assert group.volumes() == {"web0": 4 * MIB}


def test_a_disk_becomes_a_volume_that_is_made_for_it(machine: Machine, group: Group, node: str, device: str) -> None:
    path = image(machine, 16 * MIB)

    done = with_nodes(machine, "disk", "convert", "web:root", f"lvm:{group.name}/web01", "--remove-source", "--json")

    assert done.code == 0, done.err
    assert (done.json["to"], done.json["already"], done.json["removed"]) == (node, False, True)
    assert group.volumes() == {"web01": 16 * MIB}
    assert Path(device).read_bytes().startswith(b"guest" * 1000)
    assert not path.exists()


@pytest.mark.usefixtures("node")
def test_a_volume_that_a_killed_conversion_left_is_made_anew(machine: Machine, group: Group) -> None:
    path = image(machine, 8 * MIB)
    left = machine.execute("lvcreate", "--yes", "--size", "4M", "--name", "web01.making", group.name)

    done = with_nodes(machine, "disk", "convert", "web:root", f"lvm:{group.name}/web01")

    assert left.code == 0, left.err
    assert done.code == 0, done.err
    assert group.volumes() == {"web01": 8 * MIB}
    assert path.exists()


@pytest.mark.usefixtures("node")
def test_a_disk_that_is_no_whole_number_of_extents_becomes_a_larger_volume(machine: Machine, group: Group) -> None:
    path = image(machine, 10 * MIB)
    with path.open("r+b") as file:
        file.truncate(10 * MIB + 100)

    done = with_nodes(machine, "disk", "convert", "web:root", f"lvm:{group.name}/web01")

    assert done.code == 0, done.err
    assert group.volumes() == {"web01": 12 * MIB}


def report(kind: str, **row: str) -> str:
    """Give a report of LVM's with one row."""
    return json.dumps({"report": [{kind: [row]}]})


def faked(machine: Machine, *words: str) -> tuple[Result, list[str]]:
    """Run kvmlaunch with LVM's tools as fakes, on a full group with the thin pool pool0; give what they were told."""
    tools = machine.directory / "fakes"
    tools.mkdir()
    answers: dict[str, Any] = {
        "lvs": report("lv", vg_name="vg0", lv_name="pool0", lv_size=str(60 * MIB), pool_lv=""),
        "made": report("lv", vg_name="vg0", lv_name="web01", lv_size=str(12 * MIB), pool_lv="pool0"),
        "vgs": report("vg", vg_name="vg0", vg_size=str(60 * MIB), vg_free="0", vg_extent_size=str(4 * MIB)),
    }
    for name in ("lvs", "vgs", "lvcreate", "lvextend", "lvremove"):
        (tools / name).write_text(FAKE.format(directory=tools))
        (tools / name).chmod(0o755)
    for name, answer in answers.items():
        (tools / f"answer-{name}").write_text(answer)
    result = machine.run(*words, env={"PATH": f"{tools}:{PATH}"})
    heard = (tools / "heard").read_text().splitlines() if (tools / "heard").exists() else []
    return result, heard


def test_a_thin_volume_is_made_in_its_pool_however_full_the_group_is(machine: Machine) -> None:
    disk = '[disk.root]\npath = "lvm:vg0/web01"\nsize = "10MiB"\nthin_pool = "pool0"\n'
    machine.define("web", f"{TINY}{disk}")

    result, heard = faked(machine, "disk", "create", "web", "--json")

    changing = [line for line in heard if line.startswith("lvcreate")]
    assert result.code == 0, result.err
    assert result.json["disks"][0]["size"] == 12 * MIB
    assert "thin" in result.json["disks"][0]["how"]
    assert changing == [f"lvcreate --yes --virtualsize {12 * MIB}b --thinpool pool0 --name web01 vg0"]


def test_a_dry_run_changes_no_volume(machine: Machine) -> None:
    disk = '[disk.root]\npath = "lvm:vg0/web01"\nsize = "10MiB"\nthin_pool = "pool0"\n'
    machine.define("web", f"{TINY}{disk}")

    result, heard = faked(machine, "disk", "create", "web", "-n")

    assert result.code == 0, result.err
    assert not [line for line in heard if line.startswith(("lvcreate", "lvextend", "lvremove"))]
