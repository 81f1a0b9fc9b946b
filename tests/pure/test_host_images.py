"""An image has its name only when it is whole: made under another name, locked, never over a file that is there."""

import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest

from kvmlaunch.errors import HostFailed, KvmlaunchError
from kvmlaunch.host.images import Making, free_space, new_image, owner_of, remove_image
from kvmlaunch.host.rights import capture_user

pytestmark = pytest.mark.pure


def made(path: Path, fill: Callable[[Making], None] = lambda _: None) -> None:
    """Make an image as ourselves; `fill` has the place meanwhile."""
    us = capture_user()
    with new_image(PurePosixPath(path), us, us) as making:
        fill(making)


def refused(path: Path, fill: Callable[[Making], None] = lambda _: None) -> str:
    """Give the code with which the making of an image is refused."""
    with pytest.raises(KvmlaunchError) as raised:
        made(path, fill)
    return raised.value.report.code


def writing(path: Path, text: str) -> Callable[[object], None]:
    """Give what writes a file meanwhile."""

    def write(_: object) -> None:
        path.write_text(text)

    return write


def fail(_: Making) -> None:
    """Fail in the middle."""
    raise KeyboardInterrupt


def names(directory: Path) -> list[str]:
    """Give the names in a directory."""
    return sorted(os.listdir(directory))


def test_an_image_is_its_owners_alone_and_its_making_name_is_gone(tmp_path: Path) -> None:
    made(tmp_path / "a.img", writing(tmp_path / ".a.img.making", "data"))

    assert names(tmp_path) == ["a.img"]
    assert (tmp_path / "a.img").stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "a.img").stat().st_nlink == 1
    assert (tmp_path / "a.img").read_bytes() == b"data"


def test_directories_that_are_missing_are_made(tmp_path: Path) -> None:
    made(tmp_path / "b" / "c" / "a.img")

    assert (tmp_path / "b" / "c" / "a.img").is_file()


def test_nothing_has_the_name_before_it_is_whole(tmp_path: Path) -> None:
    seen: list[str] = []

    made(tmp_path / "a.img", lambda _: seen.extend(names(tmp_path)))

    assert seen == [".a.img.making"]


def test_what_ends_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "a.img", fail)

    assert names(tmp_path) == []


def test_a_file_that_came_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    code = refused(tmp_path / "a.img", writing(tmp_path / "a.img", "theirs"))

    assert code == "disk.exists"
    assert (tmp_path / "a.img").read_text() == "theirs"
    assert names(tmp_path) == ["a.img"]


def test_what_a_killed_command_left_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / ".a.img.making").write_text("half")

    made(tmp_path / "a.img")

    assert (tmp_path / "a.img").read_bytes() == b""
    assert names(tmp_path) == ["a.img"]


def test_what_another_command_makes_is_left_to_it(tmp_path: Path) -> None:
    with (tmp_path / ".a.img.making").open("w") as other:
        other.write("half")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)

        code = refused(tmp_path / "a.img")

    assert code == "disk.locked"
    assert (tmp_path / ".a.img.making").read_text() == "half"


def test_a_link_in_the_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".a.img.making").symlink_to(tmp_path / "precious")

    with new_image(PurePosixPath(tmp_path / "a.img"), capture_user(), capture_user()):
        pass

    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "a.img").is_symlink()


def test_a_name_that_is_a_dangling_link_counts_as_there(tmp_path: Path) -> None:
    (tmp_path / "a.img").symlink_to(tmp_path / "nowhere")

    assert refused(tmp_path / "a.img") == "disk.exists"
    assert names(tmp_path) == ["a.img"]


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert refused(tmp_path / "file" / "b" / "a.img") == "host.failed"


def test_room_is_that_of_the_nearest_directory(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)

    free = free_space(PurePosixPath(tmp_path / "b" / "c" / "a.img"))

    assert abs(free - room.f_bavail * room.f_frsize) < 1 << 30


def test_what_is_to_be_made_belongs_to_whom_the_directory_above_does(tmp_path: Path) -> None:
    assert owner_of(PurePosixPath(tmp_path / "b" / "c" / "a.img")).uid == os.stat(tmp_path).st_uid


def test_an_image_that_cannot_be_removed_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_text("")
    remove_image(PurePosixPath(tmp_path / "a.img"))

    with pytest.raises(HostFailed) as raised:
        remove_image(PurePosixPath(tmp_path / "a.img"))

    assert raised.value.report.code == "host.failed"


def test_an_image_that_still_has_the_making_name_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_text("guest")
    os.link(tmp_path / "a.img", tmp_path / ".a.img.making")
    (tmp_path / "a.img").rename(tmp_path / "kept.img")

    made(tmp_path / "a.img")

    assert (tmp_path / "kept.img").read_text() == "guest"
    assert names(tmp_path) == ["a.img", "kept.img"]


def test_of_many_commands_at_once_each_has_the_making_name_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    found: list[tuple[str, bool]] = []

    def look(making: Making) -> None:
        named = os.lstat(making.place).st_ino == os.fstat(making.fd).st_ino
        found.append(("making", named))

    def make_and_remove(_: int) -> None:
        try:
            made(path, look)
            remove_image(PurePosixPath(path))
        except KvmlaunchError as error:
            found.append((error.report.code, error.report.code in {"disk.exists", "disk.locked"}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make_and_remove, range(400)))

    assert ("making", True) in found
    assert [each for each in found if not each[1]] == []
    assert names(tmp_path) == []
