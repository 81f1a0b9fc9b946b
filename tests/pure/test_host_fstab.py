"""Every way in which an edit of fstab can go wrong, over files of the test's own and the findmnt of this machine."""

import fcntl
import os
import subprocess  # noqa: TID253 - several commands at once
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

from kvmlaunch.errors import Busy, HostFailed, KvmlaunchError, PreflightFailed
from kvmlaunch.host.files import temporary_name
from kvmlaunch.host.fstab import FS_IOC_GETFLAGS, TRIES, remove_region, set_region
from kvmlaunch.tune.fstab import BEGIN, FstabLine, parse_region, render_line, render_region

TEMPORARY: Final = temporary_name("fstab.kvmlaunch")
FS_IOC_SETFLAGS: Final = 0x40086602
IMMUTABLE: Final = 0x10


@pytest.fixture
def fstab(tmp_path: Path) -> Path:
    """Give an fstab alone in its directory, with a broken line, an unknown device and no final newline."""
    (tmp_path / "etc").mkdir(mode=0o755)
    file = tmp_path / "etc" / "fstab"
    file.write_bytes(b"# caf\xe9\nnot a\nUUID=gone /nowhere ext4 defaults 0 2\n\ntmpfs /tmp tmpfs defaults 0 0")
    return file


@pytest.fixture
def line(tmp_path: Path) -> str:
    """Give a line that findmnt finds nothing wrong with: its mount point is there."""
    target = tmp_path / "my pages"
    target.mkdir()
    return render_line(FstabLine(source="none", target=PurePosixPath(target), type="tmpfs"))


def text_of(file: Path) -> str:
    return file.read_bytes().decode(errors="surrogateescape")


def refused(fstab: Path, *lines: str) -> KvmlaunchError:
    """Give the refusal of lines, which leaves everything as it was."""
    before = fstab.read_bytes(), fstab.stat()

    with pytest.raises(KvmlaunchError) as raised:
        set_region(fstab, lines, deadline=0.05)

    assert (fstab.read_bytes(), fstab.stat().st_ino, fstab.stat().st_mtime_ns) == (
        before[0],
        before[1].st_ino,
        before[1].st_mtime_ns,
    )
    assert TEMPORARY not in os.listdir(fstab.parent)
    return raised.value


@pytest.mark.parametrize("text", [b"", b"tmpfs /tmp tmpfs defaults 0 0", b"#\xff\r\ntmpfs /tmp tmpfs defaults 0 0\r\n"])
def test_lines_come_and_go_and_the_bytes_of_others_stay(fstab: Path, line: str, text: bytes) -> None:
    fstab.write_bytes(text)

    assert set_region(fstab, [line])
    with_lines = fstab.read_bytes()
    assert remove_region(fstab)

    assert with_lines.startswith(text)
    assert parse_region(with_lines.decode(errors="surrogateescape")) == (line,)
    assert fstab.read_bytes() == text
    assert os.listdir(fstab.parent) == ["fstab"]


def test_a_second_time_changes_nothing(fstab: Path, line: str) -> None:
    set_region(fstab, [line])
    inode = fstab.stat().st_ino

    assert not set_region(fstab, [line])
    assert fstab.stat().st_ino == inode
    assert remove_region(fstab)
    assert not remove_region(fstab)


def test_a_broken_line_of_the_users_own_stays_and_is_no_reason_to_refuse(fstab: Path, line: str) -> None:
    before = text_of(fstab)

    set_region(fstab, [line])

    assert text_of(fstab) == render_region(before, [line])


def test_lines_in_the_middle_move_the_users_broken_line_and_it_is_still_his(fstab: Path, line: str) -> None:
    fstab.write_text(render_region("", [line]) + "not a\n")

    assert set_region(fstab, ["# a comment", line])
    assert fstab.read_text().endswith("\nnot a\n")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("none /nowhere/at/all tmpfs defaults 0 0", "/nowhere/at/all: [E] unreachable"),
        ("rubbish", "cannot be parsed: rubbish"),
        ("/dev/null {target} nosuchfs noauto 0 0", "[W]"),
    ],
)
def test_a_new_problem_is_refused_also_when_it_is_a_warning(
    fstab: Path, tmp_path: Path, wrong: str, words: str
) -> None:
    error = refused(fstab, wrong.format(target=tmp_path))

    assert error.report.code == "host.fstab.invalid"
    assert words in error.report.why


def test_a_mount_point_that_somebody_else_mounts_is_refused_and_both_lines_are_shown(fstab: Path, line: str) -> None:
    theirs = line.replace("my", "./my").replace("defaults", "noauto")
    fstab.write_text(f"{theirs}\n")

    error = refused(fstab, line)

    assert error.report.code == "host.fstab.invalid"
    assert theirs in error.report.why
    assert line in error.report.why


def test_markers_that_do_not_fit_are_refused_for_both_ways(fstab: Path, line: str) -> None:
    fstab.write_text(f"{BEGIN}\n{line}\n")

    error = refused(fstab, line)
    with pytest.raises(PreflightFailed) as raised:
        remove_region(fstab)

    assert error.report.code == raised.value.report.code == "host.fstab.invalid"
    assert "has no end" in error.report.why


def test_a_link_is_followed_and_stays_a_link(fstab: Path, line: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("second")
    (tmp_path / "second").symlink_to(fstab)

    assert set_region(link, [line])
    in_place = parse_region(text_of(fstab))
    assert remove_region(link)

    assert in_place == (line,)
    assert os.readlink(link) == "second"
    assert os.readlink(tmp_path / "second") == str(fstab)


def test_links_that_lead_in_a_circle_or_nowhere_are_said(tmp_path: Path, line: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("missing")

    with pytest.raises(PreflightFailed):
        set_region(tmp_path / "circle", [line])
    with pytest.raises(HostFailed, match="is not there"):
        set_region(tmp_path / "nowhere", [line])


def test_a_link_that_others_could_turn_is_not_followed(fstab: Path, line: str, tmp_path: Path) -> None:
    before = fstab.read_bytes()
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to(fstab)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to("open/link")

    with pytest.raises(PreflightFailed) as raised:
        set_region(tmp_path / "link", [line])

    assert raised.value.report.code == "host.dir.unsafe"
    assert fstab.read_bytes() == before


def test_a_file_that_is_not_there_has_no_lines_and_gets_none(tmp_path: Path, line: str) -> None:
    assert not remove_region(tmp_path / "fstab")
    with pytest.raises(HostFailed, match="is not there"):
        set_region(tmp_path / "fstab", [line])
    assert not (tmp_path / "fstab").exists()


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, line: str) -> None:
    os.mkfifo(tmp_path / "fstab")

    with pytest.raises(HostFailed, match="no regular file"):
        set_region(tmp_path / "fstab", [line])


def test_a_directory_that_others_may_write_is_refused(fstab: Path, line: str) -> None:
    fstab.parent.chmod(0o777)

    assert refused(fstab, line).report.code == "host.dir.unsafe"


def test_mode_owner_and_attributes_are_kept(fstab: Path, line: str) -> None:
    os.setxattr(fstab, "user.note", b"kept")
    if os.geteuid() == 0:
        os.chown(fstab, 61234, 61235)
    fstab.chmod(0o640)
    before = fstab.stat()

    set_region(fstab, [line])
    after = fstab.stat()

    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert os.getxattr(fstab, "user.note") == b"kept"


def test_what_a_crash_left_beside_the_file_is_replaced_and_a_planted_link_not_followed(
    fstab: Path, line: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (fstab.parent / TEMPORARY).symlink_to(target)

    assert set_region(fstab, [line])
    assert target.read_text() == "untouched"
    assert os.listdir(fstab.parent) == ["fstab"]


@contextmanager
def immutable(file: Path) -> Iterator[None]:
    """Make a file immutable for a while, as chattr does, where the file system and our rights allow it."""
    fd = os.open(file, os.O_RDONLY)
    try:
        flags = int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)), sys.byteorder)
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, (flags | IMMUTABLE).to_bytes(8, sys.byteorder))
    except OSError as error:
        os.close(fd)
        pytest.skip(f"no immutable files here: {error.strerror}")
    try:
        yield
    finally:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags.to_bytes(8, sys.byteorder))
        os.close(fd)


def test_an_immutable_file_is_said_in_words(fstab: Path, line: str) -> None:
    with immutable(fstab):
        error = refused(fstab, line)

    assert isinstance(error, HostFailed)
    assert error.report.message == "fstab is immutable or append-only"
    assert "chattr -i" in error.report.hint


def test_a_lock_that_is_held_is_waited_for_and_then_said(fstab: Path, line: str) -> None:
    before = text_of(fstab)
    set_region(fstab, [line])
    fd = os.open(fstab.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)

    error = refused(fstab, "# other")
    waiting = threading.Thread(target=remove_region, args=(fstab,))
    waiting.start()
    os.close(fd)
    waiting.join()

    assert isinstance(error, Busy)
    assert error.report.code == "host.locked"
    assert text_of(fstab) == before


def fake_findmnt(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a findmnt in front of the real one: something happens at the moment it runs."""
    place = directory / "bin"
    place.mkdir()
    (place / "findmnt").write_text(f"#!/bin/sh\n{script}\n")
    (place / "findmnt").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")


def test_what_another_editor_writes_meanwhile_is_kept(
    fstab: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstab.write_text("")
    script = f'[ -e {tmp_path}/done ] || {{ : > {tmp_path}/done; echo "# theirs" >> {fstab}; }}'
    fake_findmnt(tmp_path, script, monkeypatch)

    assert set_region(fstab, [line])
    assert fstab.read_text() == render_region("# theirs\n", [line])


def test_an_editor_that_puts_another_file_in_place_is_seen_too(
    fstab: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").write_text("# theirs\n")
    fake_findmnt(tmp_path, f"[ ! -e {tmp_path}/other ] || mv {tmp_path}/other {fstab}", monkeypatch)

    assert set_region(fstab, [line])
    assert fstab.read_text() == render_region("# theirs\n", [line])


def test_a_link_that_is_turned_meanwhile_is_followed_anew(
    fstab: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fstab.read_bytes()
    (tmp_path / "other").write_text("# theirs\n")
    (tmp_path / "link").symlink_to(fstab)
    fake_findmnt(tmp_path, f"ln -sfn {tmp_path}/other {tmp_path}/link", monkeypatch)

    assert set_region(tmp_path / "link", [line])
    assert fstab.read_bytes() == before
    assert (tmp_path / "other").read_text() == render_region("# theirs\n", [line])


def test_somebody_who_never_stops_changing_it_is_said(
    fstab: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstab.write_text("")
    fake_findmnt(tmp_path, f'echo "# theirs" >> {fstab}', monkeypatch)

    with pytest.raises(Busy, match="keeps changing") as raised:
        set_region(fstab, [line])

    assert raised.value.report.code == "host.locked"
    assert fstab.read_text() == "# theirs\n" * (2 * TRIES)
    assert os.listdir(fstab.parent) == ["fstab"]


def test_many_of_us_at_once_leave_one_region_and_lose_nothing(fstab: Path) -> None:
    before = text_of(fstab)
    code = "import sys, pathlib, kvmlaunch.host.fstab as f; f.set_region(pathlib.Path(sys.argv[1]), sys.argv[2:])"
    lines = [f"# {number}" for number in range(3)]

    commands = [subprocess.Popen([sys.executable, "-c", code, fstab, line]) for line in lines]  # noqa: S603 - our own
    statuses = [command.wait() for command in commands]

    assert statuses == [0, 0, 0]
    assert text_of(fstab) in {render_region(before, [line]) for line in lines}


def test_a_findmnt_that_fails_is_quoted_and_nothing_is_changed(
    fstab: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_findmnt(tmp_path, "echo unrecognized option >&2; exit 1", monkeypatch)

    error = refused(fstab, line)

    assert error.report.code == "host.tool.failed"
    assert "unrecognized option" in error.report.why


def test_without_findmnt_its_package_is_said_and_lines_can_still_be_taken_out(fstab: Path, line: str) -> None:
    before = fstab.read_bytes()
    set_region(fstab, [line])

    with pytest.raises(HostFailed) as raised:
        set_region(fstab, ["# other"], findmnt="/nowhere/findmnt")
    removed = set_region(fstab, [], findmnt="/nowhere/findmnt")

    assert raised.value.report.code == "host.tool.missing"
    assert raised.value.report.hint == "apt install util-linux"
    assert removed
    assert fstab.read_bytes() == before
    assert os.listdir(fstab.parent) == ["fstab"]
