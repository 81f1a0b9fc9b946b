"""`explain KEY`: what a key may hold, its default and its sentence, said by the model alone."""

import pytest

from kvmlaunch.define.keys import key_paths
from kvmlaunch.define.meaning import meanings


@pytest.mark.parametrize("path", list(key_paths()))
def test_every_key_of_the_format_has_a_meaning(path: str) -> None:
    key, *beneath = meanings(path)

    assert key.path.removesuffix(".NAME") == path.removesuffix(".NAME")
    assert key.sentence
    assert key.holds
    assert all(each.path.startswith(f"{key.path}.") for each in beneath)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("disk.cache", "disk.NAME.cache"),
        ("disk.root.cache", "disk.NAME.cache"),
        ("disk.cache.path", "disk.NAME.path"),
        ("disk.root", "disk.NAME"),
        ("disk.limits.iops", "disk.NAME.limits.iops"),
        ("disk.root.limits.iops", "disk.NAME.limits.iops"),
        ("cpu.features.pmu", "cpu.features"),
        ("labels.team", "labels"),
        ("vcpus", "cpu.vcpus"),
        ("extends", "extends"),
        ("memory", "memory"),
    ],
)
def test_a_key_is_found_as_people_write_it(path: str, found: str) -> None:
    assert meanings(path)[0].path == found


@pytest.mark.parametrize("path", ["", "nope", "disk.cach", "disk.root.nope", "accel.kvm", "vars.x", "memory."])
def test_what_is_no_key_has_no_meaning(path: str) -> None:
    assert meanings(path) == ()


def test_a_table_tells_its_keys() -> None:
    assert [each.path for each in meanings("disk.limits")] == [
        "disk.NAME.limits",
        "disk.NAME.limits.iops",
        "disk.NAME.limits.bandwidth",
    ]


def test_values_and_defaults_are_plain_words() -> None:
    key = meanings("memory.hugepages")[0]

    assert key.holds == "auto, off, 2MiB, 1GiB"
    assert key.default == "auto"
