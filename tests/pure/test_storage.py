"""Images and volumes: how they are made, as argv, and what their tools answer, which is input like any other."""

import json
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.define.layers import Source
from kvmlaunch.define.load import Surroundings, load_definition
from kvmlaunch.facts.block import parse_layout
from kvmlaunch.facts.sources import Wanted, parse_captured
from kvmlaunch.host.capture import capture_host
from kvmlaunch.host.definitions import load_profiles
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.volume import VolumeName, parse_volume_name
from kvmlaunch.storage.creation import Creation, plan_creation, render_creation
from kvmlaunch.storage.image import Checked, Image, parse_check, parse_info, parse_progress
from kvmlaunch.storage.volume import (
    Group,
    Volume,
    create_volume,
    extend_volume,
    parse_groups,
    parse_volumes,
    remove_volume,
)
from kvmlaunch.units import GIB, KIB, MIB
from tests.pure.test_backing import qcow2

SURROUNDINGS: Final = Surroundings(environment={}, home=PurePosixPath("/root"), working_directory=PurePosixPath("/w"))
PLACE: Final = PurePosixPath("/vm/.new.making")
WEB: Final = VolumeName(group="vg0", volume="web01")

# qemu-img 7.2 of an overlay with subclusters; one image beneath it.
INFO: Final = """
[
    {
        "backing-filename-format": "qcow2",
        "virtual-size": 16777216,
        "filename": "/vm/over.qcow2",
        "cluster-size": 131072,
        "format": "qcow2",
        "actual-size": 397312,
        "format-specific": {
            "type": "qcow2",
            "data": {
                "compat": "1.1",
                "compression-type": "zlib",
                "lazy-refcounts": false,
                "refcount-bits": 16,
                "corrupt": false,
                "extended-l2": true
            }
        },
        "full-backing-filename": "/vm/data.qcow2",
        "backing-filename": "data.qcow2",
        "dirty-flag": false
    },
    {
        "virtual-size": 16777216,
        "filename": "/vm/data.img",
        "format": "raw",
        "actual-size": 266240,
        "dirty-flag": true
    }
]
"""
CHECK: Final = """
{
    "image-end-offset": 17104896,
    "total-clusters": 256,
    "check-errors": 0,
    "corruptions": 8,
    "allocated-clusters": 250,
    "leaks": 3,
    "filename": "/vm/data.qcow2",
    "format": "qcow2"
}
"""
# LVM 2.03; a thick volume, a thin pool and a volume in it.
LVS: Final = """
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg0", "lv_name":"web01", "lv_size":"21474836480", "pool_lv":""},
                  {"vg_name":"vg0", "lv_name":"pool0", "lv_size":"107374182400", "pool_lv":""},
                  {"vg_name":"vg0", "lv_name":"db-1", "lv_size":"1099511627776", "pool_lv":"pool0"}
              ]
          }
      ]
  }
"""
VGS: Final = """
  {
      "report": [
          {
              "vg": [
                  {"vg_name":"vg0", "vg_size":"62914560", "vg_free":"54525952", "vg_extent_size":"4194304"}
              ]
          }
      ]
  }
"""
NO_IMAGES: Final = ["", "null", "{}", "[]", "[1]", "[null]", "qemu-img: no", '[{"virtual-size": "1"}]', "[" * 100_000]
NO_CHECKS: Final = ["", "null", "[]", "1", '{"leaks": "3"}', '{"leaks": true}', '{"leaks": 1.5}', "[" * 100_000]
NO_REPORTS: Final = [
    *("", "null", "[]", "1", '{"report": 1}', '{"report": [1]}', '{"report": [{"lv": 1, "vg": 1}]}', "[" * 100_000),
    *('{"report": [{"lv": [1], "vg": [1]}]}', '{"report": [{"lv": [{"lv_size": 1}], "vg": [{"vg_free": 1}]}]}'),
    '{"report": [{"lv": {"vg_name": "a"}, "vg": {"vg_name": "a"}}]}',
]
INCOMPLETE: Final = [
    '{"report": [{"lv": [{}], "vg": [{}]}]}',
    '{"report": [{"lv": [{"vg_name": "a", "lv_size": "1"}], "vg": [{"vg_name": "a", "vg_size": "1"}]}]}',
    '{"report": [{"lv": [{"vg_name": "a", "lv_name": "b", "lv_size": ""}], "vg": [{"vg_name": "a", "vg_size": ""}]}]}',
]
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["report", "lv", "vg", "lv_size", "vg_name", "lv_name", "virtual-size", "data", "leaks"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


def definition_of(text: str) -> Definition:
    """Give a definition with one disk, `root`."""
    source = Source(path=PurePosixPath("/vm/web.toml"), text=text)
    loaded = load_definition("web", [source], (), SURROUNDINGS, load_profiles())
    assert loaded.definition, loaded.findings
    return loaded.definition


def planned(disk: str, *, profile: str = "server", filesystem: str = "ext4", format_: str = "raw") -> Creation:
    """Give how the disk of a definition is made; `disk` is the text of its table."""
    definition = definition_of(f'profile = "{profile}"\n[disk.root]\n{disk}\n')
    return plan_creation(definition, "root", format_, filesystem=filesystem, backing_format="qcow2")


def test_the_chain_of_an_overlay_is_read_from_the_top() -> None:
    top, base = parse_info(INFO)

    assert top == Image(
        path="/vm/over.qcow2",
        format="qcow2",
        size=16 * MIB,
        allocated=397312,
        cluster_size=128 * KIB,
        extended_l2=True,
        backing="data.qcow2",
        backing_path="/vm/data.qcow2",
        backing_format="qcow2",
    )
    assert base == Image(path="/vm/data.img", format="raw", size=16 * MIB, allocated=266240, dirty=True)


@pytest.mark.parametrize("data", ["null", "[]", '"x"', "{}"])
def test_details_of_a_format_may_be_of_any_form(data: str) -> None:
    image = parse_info(f'[{{"filename": "a", "format": "vmdk", "format-specific": {{"data": {data}}}}}]')[0]

    assert (image.format, image.extended_l2, image.corrupt) == ("vmdk", False, False)


@pytest.mark.parametrize("text", NO_IMAGES)
def test_what_tells_of_no_image_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_info(text)


def test_a_check_is_read() -> None:
    assert parse_check(CHECK) == Checked(corruptions=8, leaks=3, allocated=250, total=256)


@pytest.mark.parametrize("text", NO_CHECKS)
def test_what_tells_of_no_check_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_check(text)


@pytest.mark.parametrize(
    ("text", "far"),
    [
        ("", None),
        ("    (0.00/100%)\r", 0.0),
        ("    (0.00/100%)\r    (12.50/100%)\r", 0.125),
        ("    (100.00/100%)\r    \n", 1.0),
        ("    (999.99/100%)\r", 1.0),
        ("(1234.00/100%) (١٢.٠٠/100%) (1.0/100%) (-1.00/100%)", None),
    ],
)
def test_progress_is_the_last_that_was_said(text: str, far: float | None) -> None:
    assert parse_progress(text) == far


@given(st.text(alphabet="(0123456789./%) \r") | st.text())
def test_progress_lies_between_nothing_and_all(text: str) -> None:
    far = parse_progress(text)

    assert far is None or 0 <= far <= 1


@given(JSON | st.binary().map(repr))
def test_whatever_the_tools_answer_only_a_value_error_escapes(document: object) -> None:
    text = json.dumps(document)

    for parse in (parse_info, parse_check, parse_volumes, parse_groups):
        with suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/dev/vg0/web01", WEB),
        ("/dev/vg.0+a/_web-01", VolumeName(group="vg.0+a", volume="_web-01")),
        ("/dev/vg0", None),
        ("/dev/mapper/vg0/web01", None),
        ("/srv/vg0/web01", None),
        ("dev/vg0/web01", None),
        ("/dev/-vg/web01", None),
        ("/dev/vg0/-f", None),
        ("/dev/vg0/web 01", None),
        ("/dev/vg0/wëb", None),
        (f"/dev/vg0/{'w' * 128}", None),
        ("/dev/vg0/web\n", None),
    ],
)
def test_a_volume_is_known_by_the_form_of_its_path(path: str, name: VolumeName | None) -> None:
    assert parse_volume_name(PurePosixPath(path)) == name


@given(st.text(), st.text())
def test_what_counts_as_a_volume_is_no_option_of_lvm(group: str, volume: str) -> None:
    name = parse_volume_name(PurePosixPath(f"/dev/{group}/{volume}"))

    assert name is None or not name.text.startswith("-")
    assert name is None or PurePosixPath(f"/dev/{name.text}") == PurePosixPath(f"/dev/{group}/{volume}")


def test_volumes_thick_and_thin_are_read() -> None:
    web, pool, db = parse_volumes(LVS)

    assert web == Volume(name=WEB, size=20 * GIB)
    assert pool.pool == ""
    assert db == Volume(name=VolumeName(group="vg0", volume="db-1"), size=1024 * GIB, pool="pool0")


def test_groups_are_read() -> None:
    assert parse_groups(VGS) == (Group(name="vg0", size=60 * MIB, free=52 * MIB, extent=4 * MIB),)


def test_a_host_without_volumes_has_none() -> None:
    assert parse_volumes('{"report": [{"lv": []}]}') == ()
    assert parse_groups('{"report": [{"vg": []}], "log": []}') == ()


@pytest.mark.parametrize("text", [*NO_REPORTS, *INCOMPLETE])
def test_what_is_no_report_of_volumes_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_volumes(text)


@pytest.mark.parametrize("text", [*NO_REPORTS, *INCOMPLETE])
def test_what_is_no_report_of_groups_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_groups(text)


@given(st.integers(0, 1 << 50), st.sampled_from([0, 4 * KIB, 4 * MIB, 3 * MIB]))
def test_a_volume_has_whole_extents_and_not_one_too_many(size: int, extent: int) -> None:
    rounded = Group(name="vg0", size=0, free=0, extent=extent).rounded(size)

    assert size <= rounded < size + max(1, extent)
    assert not extent or rounded % extent == 0


def test_lvm_is_asked_in_bytes_and_never_asks_back() -> None:
    assert create_volume(WEB, GIB, "") == ("lvcreate", "--yes", "--size", f"{GIB}b", "--name", "web01", "vg0")
    assert create_volume(WEB, GIB, "pool0")[2:6] == ("--virtualsize", f"{GIB}b", "--thinpool", "pool0")
    assert extend_volume(WEB, GIB) == ("lvextend", "--size", f"{GIB}b", "vg0/web01")
    assert remove_volume(WEB) == ("lvremove", "--yes", "vg0/web01")


@pytest.mark.parametrize(
    ("profile", "disk", "format_", "expected"),
    [
        ("server", 'path = "a.img"', "raw", "falloc"),
        ("desktop", 'path = "a.img"', "raw", "falloc"),
        ("server", 'path = "a.qcow2"', "qcow2", "metadata"),
        ("density", 'path = "a.img"', "raw", "off"),
        ("density", 'path = "a.qcow2"', "qcow2", "off"),
        ("scratch", 'path = "a.img"', "raw", "off"),
        ("server", 'path = "a.qcow2"\nbacking = "b.qcow2"', "qcow2", "off"),
        ("density", 'path = "a.img"\npreallocation = "full"', "raw", "full"),
        ("server", 'path = "a.img"\npreallocation = "off"', "raw", "off"),
    ],
)
def test_which_blocks_a_new_image_gets(profile: str, disk: str, format_: str, expected: str) -> None:
    creation = planned(disk, profile=profile, format_=format_)

    assert creation.preallocation.value == expected


def test_what_was_chosen_has_its_reason_and_what_was_written_has_none() -> None:
    chosen, written = planned('path = "a.img"'), planned('path = "a.img"\npreallocation = "falloc"')

    assert chosen.preallocation.reason
    assert (chosen.preallocation.origin.kind, written.preallocation.origin.kind) == ("default", "file")
    assert written.preallocation.reason == ""
    assert planned('path = "a.img"', profile="density").preallocation.origin.place == "density"


@pytest.mark.parametrize(
    ("preallocation", "claimed"), [("off", 0), ("falloc", 8 * MIB), ("full", 8 * MIB), ("auto", 8 * MIB)]
)
def test_only_blocks_that_are_given_at_once_are_claimed(preallocation: str, claimed: int) -> None:
    creation = planned(f'path = "a.img"\nsize = "8MiB"\npreallocation = "{preallocation}"')

    assert creation.claimed == claimed


def test_a_raw_image_is_made_at_the_place_and_not_at_its_name() -> None:
    argv = render_creation(planned('path = "a.img"\nsize = "8MiB"'), PLACE)

    assert argv == ("qemu-img", "create", "-q", "-f", "raw", "-o", "preallocation=falloc", str(PLACE), str(8 * MIB))


def test_an_overlay_names_what_lies_beside_it_without_a_directory_and_has_no_size_of_its_own() -> None:
    argv = render_creation(planned('path = "a.qcow2"\nbacking = "b.qcow2"', format_="qcow2"), PLACE)

    assert argv[4:] == (
        *("qcow2", "-b", "b.qcow2", "-F", "qcow2"),
        *("-o", "cluster_size=131072,extended_l2=on", str(PLACE)),
    )


def test_an_overlay_names_what_lies_elsewhere_in_full() -> None:
    argv = render_creation(planned('path = "a.qcow2"\nbacking = "base/b.qcow2"\nsize = "1GiB"', format_="qcow2"), PLACE)

    assert argv[argv.index("-b") + 1] == "/vm/base/b.qcow2"
    assert argv[-1] == str(GIB)


def test_images_on_btrfs_are_kept_out_of_copy_on_write() -> None:
    on_btrfs = render_creation(planned('path = "a.img"\nsize = "8MiB"', filesystem="btrfs"), PLACE)
    on_xfs = render_creation(planned('path = "a.img"\nsize = "8MiB"', filesystem="xfs"), PLACE)

    assert "preallocation=falloc,nocow=on" in on_btrfs
    assert "nocow" not in "".join(on_xfs)


def header(*, version: int = 3, bits: int = 16, size: int = GIB, features: int = 0) -> bytes:
    """Give the first bytes of a qcow2 file."""
    head = b"QFI\xfb" + version.to_bytes(4, "big") + bytes(12) + bits.to_bytes(4, "big") + size.to_bytes(8, "big")
    first_table = (16).to_bytes(4, "big") + (192 * KIB).to_bytes(8, "big")  # its entries, and where it lies
    return (head.ljust(36, b"\0") + first_table).ljust(72, b"\0") + features.to_bytes(8, "big") + bytes(24)


def test_the_layout_of_a_qcow2_file_is_in_its_header() -> None:
    plain = parse_layout(header())
    with_subclusters = parse_layout(header(bits=17, features=1 << 4))

    assert plain == {
        "qcow2_version": 3,
        "virtual_size": GIB,
        "cluster_size": 64 * KIB,
        "extended_l2": False,
        "least": 192 * KIB + 128,
    }
    assert with_subclusters == {**plain, "cluster_size": 128 * KIB, "extended_l2": True}


def test_a_header_of_version_2_has_no_features() -> None:
    assert parse_layout(header(version=2, features=1 << 4))["extended_l2"] is False


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"QFI\xfb",
        header()[:79],
        header(bits=8),
        header(bits=22),
        header(bits=1 << 31),
        header(size=1 << 63),
        b"\0" * 104,
        b"QFI\xfb\x00\x00\x00\x01".ljust(104, b"\0"),
    ],
)
def test_an_unsound_header_has_no_layout(head: bytes) -> None:
    assert parse_layout(head) == {}


@given(st.binary(max_size=120).map(lambda tail: b"QFI\xfb" + tail) | st.binary(max_size=120))
def test_whatever_a_header_holds_its_layout_is_within_what_qcow2_allows(head: bytes) -> None:
    layout = parse_layout(head)

    assert not layout or layout["cluster_size"] in {1 << bits for bits in range(9, 22)}


def overlays_of(path: Path) -> list[str]:
    """Give the names of the overlays that a capture of this host finds for an image."""
    named = PurePosixPath(path)
    facts = parse_captured(capture_host(Wanted(paths=(named,), overlays=True))).paths[named]
    return [PurePosixPath(each).name for each in facts.overlays]


def test_overlays_beside_an_image_and_above_it_are_found(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    base = qcow2(tmp_path / "bases" / "base.qcow2")
    qcow2(tmp_path / "bases" / "a.qcow2", "base.qcow2")
    qcow2(tmp_path / "b.qcow2", "bases/base.qcow2")
    qcow2(tmp_path / "c.qcow2", str(base))

    assert sorted(overlays_of(base)) == ["a.qcow2", "b.qcow2", "c.qcow2"]


def test_an_image_that_is_reached_by_a_link_has_the_same_overlays(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    base = qcow2(tmp_path / "bases" / "base.qcow2")
    qcow2(tmp_path / "bases" / "a.qcow2", "base.qcow2")
    (tmp_path / "link.qcow2").symlink_to(base)

    assert overlays_of(tmp_path / "link.qcow2") == ["a.qcow2"]


def test_neighbours_that_rest_on_something_else_are_no_overlays(tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base.qcow2")
    qcow2(tmp_path / "alone.qcow2")
    qcow2(tmp_path / "other.qcow2", "another.qcow2")
    qcow2(tmp_path / "itself.qcow2", "itself.qcow2")
    (tmp_path / "torn.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 40)
    (tmp_path / "notes.txt").write_text("base.qcow2")
    (tmp_path / "dangling.qcow2").symlink_to("base.qcow2.gone")

    assert overlays_of(base) == []


def test_an_image_that_is_not_there_has_no_overlays(tmp_path: Path) -> None:
    qcow2(tmp_path / "a.qcow2", "base.qcow2")

    assert overlays_of(tmp_path / "base.qcow2") == []
