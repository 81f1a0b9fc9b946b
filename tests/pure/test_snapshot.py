"""Snapshots by the names of their overlays and what these rest on; the facts, the plan and the refusals they make."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.host.capture_path import capture_snapshots
from kvmlaunch.model.host import PathFacts
from kvmlaunch.preflight.disk import check_base, check_snapshots
from kvmlaunch.storage.snapshot import (
    NAME,
    is_overlay_name,
    mark_path,
    order,
    overlay_path,
    snapshot_name,
)
from tests.pure.test_backing import qcow2

IMAGE: Final = PurePosixPath("/vm/web.img")
NAMES: Final = st.from_regex(NAME, fullmatch=True)


def over(name: str) -> PurePosixPath:
    """Give the overlay of a snapshot."""
    return overlay_path(IMAGE, name)


def lying(*pairs: tuple[str, str]) -> dict[PurePosixPath, PurePosixPath]:
    """Give overlays with what each rests on, both by the names of snapshots, "" for the image."""
    return {over(name): over(beneath) if beneath else IMAGE for name, beneath in pairs}


def names_of(overlays: Sequence[PurePosixPath]) -> list[str]:
    """Give the names of snapshots."""
    return [snapshot_name(each) for each in overlays]


def codes(path: PurePosixPath, **facts: object) -> Mapping[str, str]:
    """Give the hints of the refusals of an image, by their code."""
    seen = PathFacts(path=path, kind="file", **facts)  # type: ignore[arg-type] # as the test says
    found = [*check_snapshots(path, seen, "disk.root", "web"), *check_base(path, seen, "disk.root")]
    return {each.report.code: each.report.hint for each in found}


@given(NAMES)
def test_the_name_of_a_snapshot_is_read_back_from_its_overlays(name: str) -> None:
    path = over(name)

    assert (path.parent, snapshot_name(path)) == (IMAGE.parent, name)
    assert is_overlay_name(path.name, IMAGE.name)


@given(NAMES, st.text(min_size=1, max_size=20).filter(lambda text: "/" not in text and text not in {".", ".."}))
def test_an_overlay_belongs_to_one_image_whatever_its_name_is(name: str, image: str) -> None:
    path = overlay_path(PurePosixPath("/vm", image), name)

    assert is_overlay_name(path.name, image)
    assert snapshot_name(path) == name
    assert not is_overlay_name(path.name, f"x{image}")
    assert not is_overlay_name(path.name, path.name)


@pytest.mark.parametrize(
    "file",
    [
        *("", "web.img", ".since-a.qcow2", "web.img.since-.qcow2", "web.img.since-A.qcow2", "web.img.since-a.img"),
        *("web.img.since--a.qcow2", "web.img.since-a.qcow2.bak", "web.img.since-a\n.qcow2", "web.img.since-é.qcow2"),
        *("web.img.since-a.qcow2.since-b.qcow2", ".web.img.since-a.qcow2.making"),
        f"web.img.since-{41 * 'a'}.qcow2",
        *("web.imgXsince-a.qcow2", "web.img.since-a.b.qcow2", "web.img.since-٣.qcow2", "web.img.committing"),
    ],
)
def test_a_file_of_another_name_is_no_overlay(file: str) -> None:
    assert not is_overlay_name(file, "web.img")


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a.b", "a/b", "..", "a b", "a\n", "é", "a" * 41, "٣"])
def test_a_name_that_is_none(name: str) -> None:
    assert not NAME.fullmatch(name)


def test_overlays_that_lie_over_one_another_are_in_order_however_they_are_listed() -> None:
    chain = order(IMAGE, lying(("c", "a"), ("a", "z"), ("z", "")))

    assert tuple(map(snapshot_name, chain.overlays)) == ("z", "a", "c")
    assert chain.stray == ()


def test_no_overlays_are_no_snapshots() -> None:
    chain = order(IMAGE, {})

    assert (chain.overlays, chain.stray) == ((), ())


@pytest.mark.parametrize(
    ("pairs", "line", "stray"),
    [
        ((("a", ""), ("b", "")), [], ["a", "b"]),
        ((("a", ""), ("b", "a"), ("c", "a")), ["a"], ["b", "c"]),
        ((("a", ""), ("b", "c"), ("c", "b")), ["a"], ["b", "c"]),
        ((("a", "a"),), [], ["a"]),
        ((("a", ""), ("b", "b")), ["a"], ["b"]),
        ((("b", "a"),), [], ["b"]),
        ((("a", ""), ("c", "b")), ["a"], ["c"]),
        ((("a", ""), ("b", "a"), ("x", "nothing")), ["a", "b"], ["x"]),
    ],
)
def test_overlays_that_fork_loop_or_miss_one_beneath_are_stray(
    pairs: tuple[tuple[str, str], ...], line: list[str], stray: list[str]
) -> None:
    chain = order(IMAGE, lying(*pairs))

    assert (names_of(chain.overlays), names_of(chain.stray)) == (line, stray)


def test_an_image_that_rests_on_its_own_overlay_ends_all_the_same() -> None:
    chain = order(IMAGE, {over("a"): IMAGE, IMAGE: over("a")})

    assert over("a") in {*chain.overlays, *chain.stray}


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["", *"abcdefg"])))
def test_every_overlay_is_either_in_the_line_or_stray_and_each_in_it_rests_on_the_one_before(
    pairs: dict[str, str],
) -> None:
    backings = lying(*pairs.items())

    chain = order(IMAGE, backings)

    assert sorted((*chain.overlays, *chain.stray)) == sorted(backings)
    assert [backings[each] for each in chain.overlays] == [IMAGE, *chain.overlays][: len(chain.overlays)]


def test_what_lies_beside_an_image_is_seen_with_its_mark_and_what_is_no_overlay_of_it_is_not(tmp_path: Path) -> None:
    image = tmp_path / "web.img"
    image.write_bytes(bytes(512))
    qcow2(tmp_path / "web.img.since-b.qcow2", "web.img.since-a.qcow2")
    for name in ("web.img.since-a.qcow2", "web.img.since-A.qcow2", "eb.img.since-a.qcow2"):
        qcow2(tmp_path / name, "web.img")
    (tmp_path / "web.img.committing").write_text("merged\n")

    seen = capture_snapshots(str(image))

    assert seen == {"since": [f"{tmp_path}/web.img.since-{each}.qcow2" for each in "ab"], "committing": True}


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", bytes(4096), b"QFI\xfb" + b"\xff" * 4092])
def test_what_is_called_an_overlay_and_is_none_is_stray(tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "web.img"
    image.write_bytes(bytes(512))
    (tmp_path / "web.img.since-a.qcow2").write_bytes(content)

    assert capture_snapshots(str(image)) == {"stray": [f"{tmp_path}/web.img.since-a.qcow2"]}


@pytest.mark.parametrize("backing", ["", "../web.img", "web.im", "nbd:web.img", "/etc/passwd"])
def test_an_overlay_of_something_else_is_stray(tmp_path: Path, backing: str) -> None:
    image = tmp_path / "web.img"
    image.write_bytes(bytes(512))
    qcow2(tmp_path / "web.img.since-a.qcow2", backing)

    assert capture_snapshots(str(image)) == {"stray": [f"{tmp_path}/web.img.since-a.qcow2"]}


@pytest.mark.parametrize("kind", ["directory", "link", "fifo", "dangling"])
def test_what_is_called_an_overlay_and_is_no_file_is_stray_and_nothing_waits_for_it(tmp_path: Path, kind: str) -> None:
    image, overlay = tmp_path / "web.img", tmp_path / "web.img.since-a.qcow2"
    image.write_bytes(bytes(512))
    qcow2(tmp_path / "other.qcow2", "web.img")
    if kind == "directory":
        overlay.mkdir()
    elif kind == "fifo":
        os.mkfifo(overlay)
    else:
        overlay.symlink_to("other.qcow2" if kind == "link" else "nothing")

    assert capture_snapshots(str(image)) == {"stray": [str(overlay)]}


def test_a_snapshot_that_cannot_be_read_is_no_stray_one() -> None:
    found = codes(IMAGE, unread=("/vm/web.img.since-a.qcow2",), stray=("/vm/web.img.since-b.qcow2",))

    assert found.keys() == {"disk.permission"}
    assert "ls -l /vm/web.img.since-a.qcow2" in found["disk.permission"]


def test_an_unfinished_commit_is_refused_with_what_finishes_it_and_strays_are_not_told_then() -> None:
    found = codes(IMAGE, committing=True, stray=("/vm/web.img.since-a.qcow2",))

    assert found == {"disk.snapshot": "kvmlaunch disk snapshot commit web:root   # finishes it"}


def test_strays_are_refused_and_a_line_is_not() -> None:
    assert codes(IMAGE, stray=("/vm/web.img.since-a.qcow2",)).keys() == {"disk.snapshot"}
    assert codes(IMAGE, since=("/vm/web.img.since-a.qcow2",)) == {}


def test_an_image_that_overlays_rest_on_is_refused_with_their_names() -> None:
    facts = PathFacts(path=IMAGE, kind="file", overlays=tuple(f"/vm/{each}.qcow2" for each in "abcd"))

    found = list(check_base(IMAGE, facts, "disk.root"))

    assert [each.report.code for each in found] == ["disk.base"]
    assert "a.qcow2, b.qcow2, c.qcow2, …" in found[0].report.why
    assert "4 overlays" in found[0].report.message


def test_a_mark_lies_beside_its_image() -> None:
    assert mark_path(IMAGE) == PurePosixPath("/vm/web.img.committing")
