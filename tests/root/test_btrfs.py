"""Images on a real btrfs: every one that is made there is kept out of copy on write, which breaks guests' disks up."""

import shutil
import subprocess  # noqa: TID253 - a loop device is the host's: made and detached outside of the machine
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox import PATH, TINY, Machine

pytestmark = pytest.mark.root


@pytest.fixture
def store(machine: Machine) -> Iterator[Path]:
    """Give a directory of the machine's on a btrfs of its own."""
    if not shutil.which("mkfs.btrfs", path=PATH) or "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("images on btrfs need btrfs-progs, and a kernel with btrfs")
    disk, place = machine.directory / "btrfs", machine.directory / "store"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(("mkfs.btrfs", "-q", str(disk)), check=True, capture_output=True)  # noqa: S603, S607
    made = machine.execute("mount", "-o", "loop", disk, place)
    assert made.code == 0, made.err
    yield place
    machine.execute("umount", place)


def test_every_image_that_is_made_there_is_kept_out_of_copy_on_write(machine: Machine, store: Path) -> None:
    disks = "".join(
        f'[disk.{name}]\npath = "{store}/{name}.{suffix}"\nsize = "8MiB"\n'
        for name, suffix in (("root", "img"), ("data", "qcow2"))
    )
    machine.define("web", f"{TINY}{disks}")

    machine.ok("disk", "create", "web")
    machine.ok("disk", "convert", "web:root", f"{store}/copy.qcow2")
    machine.ok("disk", "snapshot", "create", "web", "s1")
    listed = machine.execute("lsattr", store).out.splitlines()

    names = {"root.img", "data.qcow2", "copy.qcow2", "root.img.since-s1.qcow2", "data.qcow2.since-s1.qcow2"}
    flags = {Path(path).name: word for word, path in (line.split() for line in listed)}
    assert flags.keys() == names
    assert {name for name, word in flags.items() if "C" not in word} == set()
