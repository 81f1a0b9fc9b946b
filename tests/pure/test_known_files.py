"""By what the files of a VM are known, so that a plan made of them need not be made again."""

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmlaunch.steps.resolve import known_file

pytestmark = pytest.mark.pure


def grow(image: Path) -> None:
    os.truncate(image, 8192)


def replace(image: Path) -> None:
    other = image.with_name("other")
    other.write_bytes(image.read_bytes())
    other.rename(image)


@pytest.mark.parametrize(
    "change",
    [
        grow,
        replace,
        Path.unlink,
        lambda image: image.chmod(0o400),
        lambda image: image.with_name("web.img.since-s1.qcow2").touch(),
        lambda image: image.with_name("web.img.committing").touch(),
        lambda image: image.with_name(".web.img.moved").touch(),
        lambda image: image.with_name("new-root.qcow2").touch(),
        lambda image: (image.parent.parent / "new-root.qcow2").touch(),
        lambda image: image.parent.chmod(0o500),
    ],
    ids=["grown", "replaced", "removed", "rights", "snapshot", "mark", "moved", "clone", "clone above", "directory"],
)
def test_a_change_of_a_file_or_of_a_name_beside_it_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    image = tmp_path / "vmdefs" / "web.img"
    image.parent.mkdir()
    image.write_bytes(bytes(4096))
    os.utime(image, ns=(0, 0))
    before = known_file(str(image))

    change(image)

    assert known_file(str(image)) != before


def test_a_lock_of_another_process_is_seen(tmp_path: Path) -> None:
    image = tmp_path / "web.img"
    image.write_bytes(bytes(4096))
    before = known_file(str(image))

    with image.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        while_locked = known_file(str(image))

    assert while_locked != before
    assert known_file(str(image)) == before


def test_what_lies_elsewhere_changes_nothing(tmp_path: Path) -> None:
    image = tmp_path / "a" / "b" / "web.img"
    image.parent.mkdir(parents=True)
    image.write_bytes(bytes(4096))
    before = known_file(str(image))

    (tmp_path / "data.img").touch()

    assert known_file(str(image)) == before
