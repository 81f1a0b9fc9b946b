"""What a qcow2 header makes QEMU open beside the image is found, and refused where it lies elsewhere."""

import fcntl
from pathlib import Path, PurePosixPath

import pytest

from kvmlaunch.facts.sources import Wanted, parse_captured
from kvmlaunch.host.capture import capture_host
from kvmlaunch.model.host import PathFacts
from kvmlaunch.model.plan import PlannedDisk
from kvmlaunch.model.value import evolve
from kvmlaunch.preflight.disk import check_backing, check_format, check_room

EXTERNAL = 1 << 2
NAME_AT = 112


def qcow2(path: Path, backing: str = "", features: int = 0) -> Path:
    """Write the header of a qcow2 image, version 3, with the name of its backing file."""
    name = backing.encode()
    head = b"QFI\xfb" + (3).to_bytes(4, "big")
    head += (NAME_AT if name else 0).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    head = head.ljust(72, b"\0") + features.to_bytes(8, "big")
    path.write_bytes(head.ljust(NAME_AT, b"\0") + name.ljust(8192, b"\0"))
    return path


def facts_of(path: Path) -> PathFacts:
    """Give what a capture of this host says of an image."""
    named = PurePosixPath(path)
    return parse_captured(capture_host(Wanted(paths=(named,), overlays=True))).paths[named]


def planned(path: Path) -> PlannedDisk:
    """Give an image as a plan has it."""
    return PlannedDisk(
        table="disk.root",
        path=PurePosixPath(path),
        format="qcow2",
        format_written=False,
        readonly=False,
        cache="none",
    )


def refusals(path: Path) -> list[str]:
    """Give the codes with which an image is refused for what it rests on."""
    return [finding.report.code for finding in check_backing(planned(path), facts_of(path))]


def test_an_image_beside_its_backing_file_is_taken(tmp_path: Path) -> None:
    qcow2(tmp_path / "base.qcow2")

    overlay = qcow2(tmp_path / "overlay.qcow2", "base.qcow2")

    assert refusals(overlay) == []


@pytest.mark.parametrize("backing", ["../base.qcow2", "/etc/passwd", "nbd:localhost:1", "json:{}"])
def test_a_backing_file_elsewhere_is_refused(tmp_path: Path, backing: str) -> None:
    overlay = qcow2(tmp_path / "overlay.qcow2", backing)

    assert refusals(overlay) == ["disk.backing"]


def test_a_path_that_only_seems_to_lie_beneath_is_refused(tmp_path: Path) -> None:
    overlay = qcow2(tmp_path / "overlay.qcow2", f"{tmp_path}/../../etc/passwd")

    assert refusals(overlay) == ["disk.backing"]


def test_the_second_file_of_a_chain_is_looked_at_too(tmp_path: Path) -> None:
    qcow2(tmp_path / "middle.qcow2", "/etc/passwd")

    overlay = qcow2(tmp_path / "overlay.qcow2", "middle.qcow2")

    assert refusals(overlay) == ["disk.backing"]


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.qcow2").symlink_to("/etc/passwd")

    overlay = qcow2(tmp_path / "overlay.qcow2", "base.qcow2")

    assert refusals(overlay) == ["disk.backing"]


def test_data_in_another_file_is_refused(tmp_path: Path) -> None:
    image = qcow2(tmp_path / "image.qcow2", features=EXTERNAL)

    assert refusals(image) == ["disk.backing"]


def test_a_backing_file_that_is_gone_is_named_before_anything_starts(tmp_path: Path) -> None:
    overlay = qcow2(tmp_path / "overlay.qcow2", "base.qcow2")

    found = list(check_backing(planned(overlay), facts_of(overlay)))

    assert [each.report.code for each in found] == ["disk.backing"]
    assert found[0].report.why == f"{tmp_path}/base.qcow2: No such file or directory"


@pytest.mark.parametrize(("place", "codes"), [("a/base.qcow2", []), ("a/b/base.qcow2", ["disk.backing"])])
def test_a_backing_file_lies_where_its_overlays_are_sought(tmp_path: Path, place: str, codes: list[str]) -> None:
    base = tmp_path / place
    base.parent.mkdir(parents=True)
    qcow2(base)

    overlay = qcow2(tmp_path / "overlay.qcow2", place)

    assert refusals(overlay) == codes
    assert facts_of(base).overlays == (() if codes else (str(overlay),))


@pytest.mark.parametrize(
    "name",
    ["file:base.qcow2", 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}', "twin.qcow2"],
)
def test_a_base_is_known_by_whatever_name_its_overlay_has_for_it(tmp_path: Path, name: str) -> None:
    base = qcow2(tmp_path / "base.qcow2")
    (tmp_path / "twin.qcow2").hardlink_to(base)

    overlay = qcow2(tmp_path / "overlay.qcow2", name)

    assert facts_of(base).overlays == (str(overlay),)


def test_an_odd_image_beside_another_is_no_trouble_of_its(tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base.qcow2")
    qcow2(tmp_path / "odd.qcow2", "base\0.qcow2")
    qcow2(tmp_path / "nested.qcow2", "json:" + "[" * 900)

    assert facts_of(base).overlays == ()
    assert refusals(tmp_path / "odd.qcow2") == ["disk.backing"]


def test_an_overlay_that_is_called_raw_is_refused_as_nobody_would_find_it(tmp_path: Path) -> None:
    qcow2(tmp_path / "base.qcow2")

    overlay = qcow2(tmp_path / "overlay.img", "base.qcow2")

    assert refusals(overlay) == ["disk.backing"]
    assert facts_of(tmp_path / "base.qcow2").overlays == ()


def test_what_a_killed_command_left_of_an_overlay_rests_on_nothing(tmp_path: Path) -> None:
    qcow2(tmp_path / "base.qcow2")
    making = qcow2(tmp_path / ".new.qcow2.making", "base.qcow2")

    left = facts_of(tmp_path / "base.qcow2").overlays
    with making.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = facts_of(tmp_path / "base.qcow2").overlays

    assert (left, made) == ((), (str(making),))


@pytest.mark.parametrize(
    ("size", "features", "codes"),
    [(50, 0, ["disk.corrupt"]), (8192, 2, ["disk.corrupt"]), (8192, 0, []), (8192, 1, [])],
)
def test_an_image_that_qemu_does_not_open_is_refused(
    tmp_path: Path, size: int, features: int, codes: list[str]
) -> None:
    image = qcow2(tmp_path / "image.qcow2", features=features)
    head = bytearray(image.read_bytes())
    head[20:24] = (16).to_bytes(4, "big")
    image.write_bytes(bytes(head[:size]))

    found = list(check_format(planned(image), facts_of(image), "web"))

    assert [each.report.code for each in found] == codes


@pytest.mark.parametrize(("more", "codes"), [(0, ["disk.room"]), (393_216, []), (393_215, ["disk.room"])])
def test_a_device_that_a_qcow2_image_may_outgrow_is_told(tmp_path: Path, more: int, codes: list[str]) -> None:
    image = qcow2(tmp_path / "image.qcow2")
    facts = evolve(facts_of(image), kind="block", size=(1 << 30) + more, virtual_size=1 << 30, cluster_size=1 << 16)

    found = list(check_room(planned(image), facts, "web"))

    assert [each.report.code for each in found] == codes
