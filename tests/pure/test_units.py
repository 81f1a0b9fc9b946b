"""Sizes, durations and CPU lists: what is rendered reads back, and what is wrong is told."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.units import (
    LARGEST_CPU,
    LARGEST_SIZE,
    DecimalUnitError,
    count,
    parse_bandwidth,
    parse_cpus,
    parse_duration,
    parse_size,
    render_bandwidth,
    render_cpus,
    render_duration,
    render_size,
)

pytestmark = pytest.mark.pure


@given(st.integers(1, LARGEST_SIZE >> 10).map(lambda kib: kib << 10))
def test_a_size_reads_back(size: int) -> None:
    assert parse_size(render_size(size)) == size


@given(st.integers(1, LARGEST_SIZE >> 10).map(lambda kib: kib << 10))
def test_a_bandwidth_reads_back(rate: int) -> None:
    assert parse_bandwidth(render_bandwidth(rate)) == rate


@given(st.integers(1, 7 * 24 * 3600 * 1000))
def test_a_duration_reads_back_to_the_millisecond(milliseconds: int) -> None:
    assert parse_duration(render_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.sets(st.integers(0, LARGEST_CPU), max_size=40))
def test_a_cpu_list_reads_back_sorted(cpus: set[int]) -> None:
    assert parse_cpus(render_cpus(tuple(cpus))) == tuple(sorted(cpus))


@given(st.text(max_size=30))
def test_no_text_whatever_gives_another_error_than_value_error(text: str) -> None:
    for parse in (parse_size, parse_bandwidth, parse_duration, parse_cpus):
        with suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 << 30), ("512M", 512 << 20), ("1.5G", 3 << 29), ("8 GiB", 8 << 30), ("0.5K", 512)],
)
def test_our_units_and_qemus_mean_the_same(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "GiB", "8gib", "8XiB", "-1GiB", "0GiB", "0.3K", "8388608TiB", "1e3M", "٣GiB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_size(text)


def test_powers_of_ten_are_told_from_other_units() -> None:
    with pytest.raises(DecimalUnitError, match='write "8GiB"'):
        parse_size("8GB")


@pytest.mark.parametrize("text", ["9-2", "1,,2", "a", "1-", "8192", "1 2"])
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_cpus(text)


def test_a_noun_agrees_with_its_number() -> None:
    assert [count(1, "page"), count(2, "page"), count(0, "index", "indices")] == ["1 page", "2 pages", "0 indices"]
