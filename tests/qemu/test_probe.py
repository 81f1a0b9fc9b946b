"""The real binary answers what the stored capture says for its version, and is asked once."""

import json
import shutil
from pathlib import Path

import pytest

from kvmlaunch.facts import qemu
from kvmlaunch.host.qemu_probe import capture_answers, load_answers, probe_qemu
from kvmlaunch.model.qemu import QemuCaps

pytestmark = pytest.mark.qemu

QEMUS = Path(__file__).resolve().parents[1] / "qemus"
NAME = "qemu-system-x86_64"


@pytest.fixture(scope="module")
def binary() -> Path:
    found = shutil.which(NAME)
    assert found, f"{NAME} is not installed: apt install qemu-system-x86"
    return Path(found)


def stored(version: str) -> QemuCaps | None:
    """Give the stored capabilities of a version, None where none of it is stored."""
    found = [qemu.parse_answers(load_answers(place)) for place in QEMUS.iterdir() if place.is_dir()]
    return next((caps for caps in found if caps.version_text == version), None)


def test_the_binary_answers_as_its_capture(binary: Path) -> None:
    asked = qemu.parse_answers(capture_answers(binary))
    known = stored(asked.version_text)
    if known is None:
        pytest.skip(f"no capture of QEMU {asked.version_text}")
    # A newer package of the same version, and display modules installed apart, may differ.
    assert asked.machines == known.machines
    assert asked.options == known.options
    assert (asked.aio, asked.qcow2, asked.bare_options) == (known.aio, known.qcow2, known.bare_options)
    assert asked.machine_properties == known.machine_properties
    common = asked.devices.keys() & known.devices.keys()
    assert {name: asked.devices[name] for name in common} == {name: known.devices[name] for name in common}


def test_no_answer_is_lost(binary: Path) -> None:
    for _ in range(5):
        assert json.loads(capture_answers(binary)[qemu.TYPES]).keys() >= {qemu.COMMON_MACHINE, "tcg-accel"}


def test_a_second_probe_comes_from_the_cache(binary: Path, tmp_path: Path) -> None:
    first = probe_qemu(binary, cache=tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    document = json.loads(place.read_text())
    document["caps"]["package"] = "from the cache"
    place.write_text(json.dumps(document))
    assert probe_qemu(binary, cache=tmp_path / "cache").package == "from the cache"
    assert probe_qemu(binary, cache=None) == first


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"identity": null, "caps": {}}', "[" * 100_000])
def test_a_damaged_cache_is_made_again(binary: Path, tmp_path: Path, damage: str) -> None:
    first = probe_qemu(binary, cache=tmp_path)
    (place,) = tmp_path.iterdir()
    sound = place.read_text()
    place.write_text(damage or sound[: len(sound) // 2])
    assert probe_qemu(binary, cache=tmp_path) == first
    assert place.read_text() == sound


def test_another_binary_at_the_same_path_is_asked_again(binary: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / NAME
    wrapper.write_text(f'#!/bin/sh\nexec {binary} "$@"\n')
    wrapper.chmod(0o755)
    probe_qemu(wrapper, cache=tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    before = json.loads(place.read_text())["identity"]
    wrapper.write_text(f'#!/bin/sh\n# changed\nexec {binary} "$@"\n')
    probe_qemu(wrapper, cache=tmp_path / "cache")
    assert [item.name for item in (tmp_path / "cache").iterdir()] == [place.name]
    assert json.loads(place.read_text())["identity"] != before


def test_a_cache_that_cannot_be_written_is_gone_without(binary: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert probe_qemu(binary, cache=tmp_path / "file" / "cache").machines
