"""Pools raised and lowered over a made-up /sys, files written in steps, directories entered without following links."""

import os
import threading
from pathlib import Path, PurePosixPath

import pytest

from kvmlaunch.errors import HostFailed, PreflightFailed
from kvmlaunch.host.files import read_text_at, temporary_name, write_all, write_atomically
from kvmlaunch.host.pool import apply_pool, pool_path, undo_pool
from kvmlaunch.host.tree import entered, make_owned, remove_empty
from kvmlaunch.model.change import Entry, PoolChange

CHANGE = PoolChange(page_size=2 << 20, pages=16)
COMPACTING = PoolChange(page_size=2 << 20, pages=16, compact=True)


def make_pool(root: Path, *, total: int, free: int, reserved: int = 0, surplus: int = 0) -> None:
    """Make the files of a pool of 2 MiB pages."""
    for name, number in (("nr", total), ("free", free), ("resv", reserved), ("surplus", surplus)):
        place = pool_path(CHANGE, f"{name}_hugepages", root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{number}\n")
    (root / "proc/sys/vm").mkdir(parents=True, exist_ok=True)
    (root / "proc/sys/vm/compact_memory").write_text("")


def total(root: Path) -> int:
    return int(pool_path(CHANGE, "nr_hugepages", root).read_text())


def test_a_pool_is_raised_by_what_is_missing(tmp_path: Path) -> None:
    make_pool(tmp_path, total=5, free=0)

    assert apply_pool(CHANGE, 5, root=tmp_path) == 21
    assert total(tmp_path) == 21


def test_a_pool_that_cannot_be_written_is_said_with_its_place(tmp_path: Path) -> None:
    make_pool(tmp_path, total=5, free=0)
    place = pool_path(CHANGE, "nr_hugepages", tmp_path)
    place.unlink()
    place.symlink_to("/dev/full")

    with pytest.raises(HostFailed) as raised:
        apply_pool(CHANGE, 5, root=tmp_path)

    assert raised.value.report.where == str(place)


@pytest.mark.parametrize(
    ("meanwhile", "writes", "free", "why"),
    [
        (0, [21, 21, 5], "4194304", "memory is fragmented: 4GiB are free, in pieces"),
        (4, [21, 25, 9], "8192", "there is too little memory: 16MiB lack and 8MiB are free"),
    ],
)
def test_a_kernel_that_grants_less_is_rolled_back_and_the_numbers_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: int, writes: list[int], free: str, why: str
) -> None:
    make_pool(tmp_path, total=5, free=0)
    (tmp_path / "proc/meminfo").write_text(f"MemFree:        {free} kB\n")
    most, written = 12, []

    def grant(place: Path, text: str) -> None:
        """Play the kernel: it has seven pages, one more once memory is compacted; then an administrator adds some."""
        nonlocal most
        if place.name == "compact_memory":
            most += 1 + meanwhile
            pool_path(CHANGE, "nr_hugepages", tmp_path).write_text(f"{total(tmp_path) + meanwhile}\n")
        else:
            written.append(int(text))
            place.write_text(f"{min(int(text), most)}\n")

    monkeypatch.setattr("kvmlaunch.host.pool.write_control", grant)
    with pytest.raises(PreflightFailed) as raised:
        apply_pool(COMPACTING, 5, root=tmp_path)

    report = raised.value.report
    assert report.code == "host.hugepages.partial"
    assert "16 pages were asked for beside the 5 there, the kernel granted 8" in report.why
    assert why in report.why
    assert "compaction freed 1 more page" in report.why
    assert written == writes
    assert total(tmp_path) == 5 + meanwhile


@pytest.mark.parametrize(
    ("now", "free", "reserved", "after", "back"),
    [
        (121, 16, 0, 121, 16),  # all idle
        (121, 10, 0, 121, 10),  # some are in use by another VM
        (121, 16, 12, 121, 4),  # some are promised to another VM
        (121, 16, 20, 121, 0),  # more is promised than is free
        (126, 21, 0, 121, 16),  # somebody added five: they stay
        (8, 8, 0, 121, 8),  # somebody lowered the pool: never below zero
        (0, 0, 0, 121, 0),  # somebody took it all
        (111, 6, 0, 111, 6),  # the kernel granted six of sixteen
        (121, 16, 0, None, 16),  # killed before the result was written down
        (105, 0, 0, None, 0),  # killed before anything was written
        (111, 6, 0, None, 6),  # a signal stopped the kernel in the middle
        (126, 21, 0, None, 16),  # killed, and then somebody added five: they stay
        (100, 0, 0, None, 0),  # killed, and then somebody lowered the pool
    ],
)
def test_a_pool_is_lowered_by_what_was_gained_and_by_nothing_in_use(
    tmp_path: Path, now: int, free: int, reserved: int, after: int | None, back: int
) -> None:
    make_pool(tmp_path, total=now, free=free, reserved=reserved)

    list(undo_pool(Entry(change=CHANGE, before=105, after=after), CHANGE, tmp_path))

    assert total(tmp_path) == now - back


@pytest.mark.parametrize(
    ("now", "free", "codes"),
    [
        (121, 16, []),
        (126, 21, []),  # more than was there: the five of somebody else stay, and nothing is wrong
        (121, 10, ["host.change.conflict"]),
        (8, 8, ["host.change.conflict"]),
        (0, 0, ["host.change.conflict"]),
    ],
)
def test_pages_that_cannot_be_given_back_are_said(tmp_path: Path, now: int, free: int, codes: list[str]) -> None:
    make_pool(tmp_path, total=now, free=free)

    found = list(undo_pool(Entry(change=CHANGE, before=105, after=121), CHANGE, tmp_path))

    assert [finding.report.code for finding in found] == codes


@pytest.mark.parametrize(
    ("before", "now", "lent", "written"),
    [
        (10, 42, 0, 0),  # the ten that were lent then became the pool's own: they are lent again
        (0, 47, 5, 10),  # five were lent since: they are not the pool's own
        (10, 52, 10, 10),  # lent as before, or lent anew: nobody loses a page of his own
    ],
)
def test_pages_that_the_kernel_lends_do_not_become_the_pools_own(
    tmp_path: Path, before: int, now: int, lent: int, written: int
) -> None:
    make_pool(tmp_path, total=now, free=32, surplus=lent)
    entry = Entry(change=PoolChange(page_size=2 << 20, pages=32), before=10, after=42, surplus=before)

    list(undo_pool(entry, PoolChange(page_size=2 << 20, pages=32), tmp_path))

    assert total(tmp_path) == written


def test_pages_of_a_qemu_that_is_just_ending_are_waited_for(tmp_path: Path) -> None:
    make_pool(tmp_path, total=121, free=16, reserved=12)
    (tmp_path / "none").write_text("0")
    promised = pool_path(CHANGE, "resv_hugepages", tmp_path)
    end = threading.Timer(0.05, (tmp_path / "none").replace, (promised,))
    end.start()

    found = list(undo_pool(Entry(change=CHANGE, before=105, after=121), CHANGE, tmp_path))
    end.join()

    assert found == []
    assert total(tmp_path) == 105


def test_a_file_is_whole_private_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / temporary_name("record")).write_text("left by a crash")

    write_atomically(fd, "record", "text")
    text = read_text_at(fd, "record")
    os.close(fd)

    assert text == "text"
    assert os.listdir(tmp_path) == ["record"]
    assert (tmp_path / "record").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("planted", ["record", ".record.new"])
def test_a_planted_link_is_replaced_and_never_followed(tmp_path: Path, planted: str) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    place = tmp_path / "place"
    place.mkdir()
    (place / planted).symlink_to(target)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)

    write_atomically(fd, "record", "text")
    os.close(fd)

    assert target.read_text() == "untouched"
    assert (place / "record").read_text() == "text"


def test_what_is_no_regular_file_is_read_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "directory").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    texts = [read_text_at(fd, name) for name in ("link", "directory", "missing")]
    os.close(fd)

    assert texts == [None, None, None]


def test_a_short_write_goes_on(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with open(tmp_path / "out", "wb") as file:
        write_all(file.fileno(), b"x" * 100_000)
    os.close(read_end)
    os.close(write_end)

    assert (tmp_path / "out").stat().st_size == 100_000


def own(path: Path) -> PurePosixPath:
    return PurePosixPath(path)


def test_a_directory_is_entered_step_by_step_and_a_link_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    with entered(own(tmp_path / "real"), os.geteuid()) as fd:
        inode = os.fstat(fd).st_ino

    assert inode == (tmp_path / "real").stat().st_ino
    with pytest.raises(PreflightFailed), entered(own(tmp_path / "link"), os.geteuid()):
        pass


@pytest.mark.parametrize(("name", "mode"), [("open", 0o777), ("kvmlaunch", 0o777), ("kvmlaunch", 0o775)])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name).chmod(mode)

    with pytest.raises(PreflightFailed) as raised, entered(own(tmp_path / name), os.geteuid()):
        pass

    assert raised.value.report.code == "host.dir.unsafe"


def test_a_group_may_write_above_our_own_directories(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log").chmod(0o775)

    with entered(own(tmp_path / "log"), os.geteuid()) as fd:
        inode = os.fstat(fd).st_ino

    assert inode == (tmp_path / "log").stat().st_ino


def test_a_directory_is_made_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        make_owned(own(tmp_path / "a" / "b"), os.geteuid(), os.getegid(), 0o700)
    finally:
        os.umask(before)

    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o711
    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o700


def test_empty_directories_go_up_to_the_first_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "kept").touch()

    remove_empty(own(tmp_path / "a" / "b" / "c" / "gone"), os.geteuid(), up_to=own(tmp_path))

    assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "kept").exists()
