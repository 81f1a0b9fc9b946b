"""The definition of a clone, as text that is read back: what it inherits, what is its own, odd names."""

import json
import tomllib
from pathlib import PurePosixPath
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.define.clone import clone_paths, inherited_keys, own_addresses, render_clone
from kvmlaunch.define.layers import Source
from kvmlaunch.define.load import Surroundings, load_definition
from kvmlaunch.host.definitions import load_profiles
from kvmlaunch.model.definition import Definition

SURROUNDINGS: Final = Surroundings(environment={}, home=PurePosixPath("/root"), working_directory=PurePosixPath("/w"))
PROFILES: Final = load_profiles()
FILE: Final = PurePosixPath("/vm/web.toml")
UUID: Final = "123e4567-e89b-42d3-a456-426614174000"
ROOT: Final = '[disk.root]\npath = "web.img"\n'


def defined(text: str) -> Definition:
    """Give a definition."""
    loaded = load_definition("web", [Source(path=FILE, text=text)], (), SURROUNDINGS, PROFILES)
    assert loaded.definition, loaded.findings
    return loaded.definition


def rendered(text: str, *, overlay: bool = True) -> str:
    """Give the text of a clone of a definition."""
    definition = defined(text)
    paths = clone_paths(definition.disk, "new", overlay=overlay)
    formats = dict.fromkeys(definition.disk, "qcow2" if overlay else "raw")
    return render_clone(definition, "new", paths, formats, overlay=overlay)


def document(text: str, *, overlay: bool = True) -> Any:  # noqa: ANN401 - any document
    """Give the definition of a clone, as it is read."""
    return tomllib.loads(rendered(text, overlay=overlay))


def test_a_clone_extends_the_original_and_has_a_disk_over_its() -> None:
    assert document(ROOT) == {
        "extends": ["web.toml"],
        "disk": {"root": {"path": "new.qcow2", "format": "qcow2", "readonly": False, "backing": "web.img"}},
    }


def test_a_full_clone_rests_on_nothing() -> None:
    assert document(ROOT, overlay=False)["disk"] == {"root": {"path": "new.img", "format": "raw", "readonly": False}}


def test_of_several_disks_each_has_the_name_of_its_own() -> None:
    disks = defined(f'{ROOT}[disk.data]\npath = "data"\n').disk

    overlays = clone_paths(disks, "new", overlay=True)
    copies = clone_paths(disks, "new", overlay=False)

    assert list(map(str, overlays.values())) == ["/vm/new-root.qcow2", "/vm/new-data.qcow2"]
    assert list(map(str, copies.values())) == ["/vm/new-root.img", "/vm/new-data"]


def test_a_clone_lies_beside_each_original() -> None:
    disks = defined('[disk.a]\npath = "/srv/a.img"\n[disk.b]\npath = "below/b.img"\n').disk

    paths = clone_paths(disks, "new", overlay=True)

    assert list(map(str, paths.values())) == ["/srv/new-a.qcow2", "/vm/below/new-b.qcow2"]


@pytest.mark.parametrize("where", ["/srv/web.img", "below/web.img", "../web.img"])
@pytest.mark.parametrize("overlay", [True, False])
def test_the_paths_of_a_clone_mean_the_files_that_are_made(where: str, *, overlay: bool) -> None:
    base = defined(f'[disk.root]\npath = "{where}"\n')
    made = clone_paths(base.disk, "new", overlay=overlay)["root"]

    own = document(f'[disk.root]\npath = "{where}"\n', overlay=overlay)["disk"]["root"]
    read = defined("".join(f"disk.root.{key} = {json.dumps(value)}\n" for key, value in own.items())).disk["root"]

    assert read.path == made
    assert read.backing == (base.disk["root"].path if overlay else None)


def test_a_volume_has_its_copy_in_the_same_group() -> None:
    text = '[disk.root]\npath = "lvm:vg0/web"\n'

    assert document(text, overlay=False)["disk"]["root"]["path"] == "/dev/vg0/new"


@pytest.mark.parametrize(
    ("more", "overlay", "full"),
    [
        ("", (), ()),
        ('size = "8MiB"', ("disk.root.size",), ()),
        ('size = "8MiB"\npreallocation = "full"', ("disk.root.preallocation", "disk.root.size"), ()),
        ('backing = "base.qcow2"', ("disk.root.backing",), ("disk.root.backing",)),
        ('size = "8MiB"\nthin_pool = "pool0"', ("disk.root.thin_pool", "disk.root.size"), ("disk.root.thin_pool",)),
    ],
)
def test_how_the_original_was_made_is_not_inherited(more: str, overlay: tuple[str, ...], full: tuple[str, ...]) -> None:
    path = "lvm:vg0/web" if "thin_pool" in more else "web.qcow2" if "backing" in more else "web.img"
    definition = defined(f'[disk.root]\npath = "{path}"\n{more}\n')

    assert inherited_keys(definition, "root", overlay=True) == overlay
    assert inherited_keys(definition, "root", overlay=False) == full


def test_an_address_that_is_written_is_not_inherited() -> None:
    text = '[network.a]\nmac = "52:54:00:00:00:01"\n[network.b]\ntype = "user"\n'

    assert own_addresses(defined(text)) == ("network.a.mac",)
    assert own_addresses(defined(f'uuid = "{UUID}"\n{text}')) == ("uuid", "network.a.mac")
    assert document(text)["unset"] == ["network.a.mac"]


def test_all_that_is_unset_is_one_list() -> None:
    text = f'{ROOT}size = "8MiB"\n[network.a]\nmac = "52:54:00:00:00:01"\n'

    assert document(text)["unset"] == ["network.a.mac", "disk.root.size"]


@given(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
        lambda name: name != "."
    )
)
def test_an_image_of_any_name_is_named_in_the_clones_definition_as_it_is(name: str) -> None:
    definition = defined(ROOT)
    path = PurePosixPath("/vm") / name

    text = render_clone(definition, "new", {"root": path}, {"root": "raw"}, overlay=False)

    assert tomllib.loads(text)["disk"]["root"]["path"] == path.name or path.name == ""
