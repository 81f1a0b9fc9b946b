"""What a qcow2 image costs: its L2 tables' cache and its clusters' allocation, by the numbers in its header."""

from pathlib import PurePosixPath
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.builder.qcow2 import (
    DEFAULT_CACHE,
    LARGEST_CACHE,
    check_allocation,
    explain_rows,
    plan_l2_cache,
    tables_size,
)
from kvmlaunch.model.host import PathFacts
from kvmlaunch.units import GIB, KIB, MIB, TIB

PATH: Final = PurePosixPath("/vm/web.qcow2")


def image(
    virtual_size: int, *, cluster_size: int = 64 * KIB, extended_l2: bool = False, size: int = MIB, backing: str = ""
) -> PathFacts:
    """Give what a header says of an image; `size` is that of its file."""
    return PathFacts(
        path=PATH,
        kind="file",
        size=size,
        virtual_size=virtual_size,
        cluster_size=cluster_size,
        extended_l2=extended_l2,
        backing=backing,
    )


def advised(facts: PathFacts, *, profile: str = "server", readonly: bool = False) -> list[str]:
    """Give the codes of what is advised for an image."""
    found = check_allocation("disk.root", PATH, facts, vm="web", profile=profile, readonly=readonly)
    return [finding.report.code for finding in found]


def rows(facts: PathFacts) -> dict[str, object]:
    """Give the rows of `explain` by their keys."""
    return {field.key: field.choice.value for field in explain_rows("disk.root", PATH, facts)}


@pytest.mark.parametrize(
    ("facts", "size"),
    [
        (image(0), 0),
        (image(GIB, cluster_size=0), 0),
        (image(1), 8),
        (image(64 * KIB + 1), 16),
        (image(256 * GIB), 32 * MIB),
        (image(256 * GIB, extended_l2=True), 64 * MIB),
        (image(256 * GIB, cluster_size=2 * MIB), MIB),
    ],
)
def test_an_entry_of_8_bytes_a_cluster_and_twice_that_with_subclusters(facts: PathFacts, size: int) -> None:
    assert tables_size(facts) == size


@pytest.mark.parametrize(
    ("facts", "value"),
    [
        (image(256 * GIB), None),
        (image(256 * GIB + 1), 32 * MIB + 64 * KIB),
        (image(TIB), 128 * MIB),
        (image(2 * TIB), 256 * MIB),
        (image(8 * TIB), 256 * MIB),
        (image(256 * GIB, extended_l2=True, cluster_size=128 * KIB), None),
        (image(128 * GIB + 1, extended_l2=True), 32 * MIB + 64 * KIB),
        (image(TIB, cluster_size=2 * MIB), None),
        (image(TIB, cluster_size=0), None),
    ],
)
def test_the_cache_is_written_only_where_the_default_does_not_cover_the_image(
    facts: PathFacts, value: int | None
) -> None:
    chosen = plan_l2_cache("disk.root", PATH, facts)

    assert (chosen and chosen.value) == value


def test_a_cache_that_covers_a_part_says_how_much() -> None:
    whole, part = plan_l2_cache("disk.root", PATH, image(2 * TIB)), plan_l2_cache("disk.root", PATH, image(8 * TIB))

    assert whole
    assert "the most" not in whole.reason
    assert part
    assert "enough for 2TiB" in part.reason


@given(st.integers(0, (1 << 63) - 1), st.integers(9, 21), st.booleans())
def test_a_cache_is_whole_clusters_and_within_its_bounds(size: int, bits: int, extended: bool) -> None:  # noqa: FBT001
    facts = image(size, cluster_size=1 << bits, extended_l2=extended)

    chosen = plan_l2_cache("disk.root", PATH, facts)

    assert (chosen is None) == (tables_size(facts) <= DEFAULT_CACHE)
    if chosen is not None:
        assert DEFAULT_CACHE < chosen.value <= LARGEST_CACHE
        assert chosen.value % facts.cluster_size == 0
        assert chosen.value >= min(tables_size(facts), LARGEST_CACHE)


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (image(4 * GIB), "allocates as it grows"),
        (image(4 * GIB, size=4 * GIB), "metadata allocated"),
        (image(4 * GIB, backing="base.qcow2"), "overlay"),
    ],
)
def test_explain_says_what_the_image_is(facts: PathFacts, state: str) -> None:
    assert rows(facts) == {"disk.root.qcow2": state, "disk.root.l2_cache": DEFAULT_CACHE}


def test_explain_leaves_a_cache_of_ours_to_the_option_and_a_raw_image_alone() -> None:
    assert rows(image(TIB)).keys() == {"disk.root.qcow2"}
    assert rows(image(TIB, cluster_size=0)) == {}


def test_an_image_that_allocates_as_it_grows_is_advised_of() -> None:
    finding = next(check_allocation("disk.root", PATH, image(GIB), vm="web", profile="server", readonly=False))

    assert finding.report.code == "disk.qcow2.unallocated"
    assert "kvmlaunch disk convert web:root /vm/web-whole.qcow2" in finding.report.hint


@pytest.mark.parametrize("profile", ["density", "scratch"])
def test_what_is_thin_by_intent_is_not_spoken_of(profile: str) -> None:
    assert advised(image(GIB), profile=profile) == []


@pytest.mark.parametrize(
    "facts",
    [
        image(GIB - 1),
        image(GIB, size=GIB),
        image(GIB, backing="base.qcow2"),
        image(GIB, cluster_size=0),
    ],
)
def test_what_is_small_allocated_an_overlay_or_raw_is_not_spoken_of(facts: PathFacts) -> None:
    assert advised(facts) == []


def test_a_disk_that_is_not_written_to_is_not_spoken_of() -> None:
    assert advised(image(GIB), readonly=True) == []
