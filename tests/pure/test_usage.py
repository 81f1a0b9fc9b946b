"""What a VM uses, from the texts of /proc and QEMU's answer: garbage counts as nothing, and a counter may go back."""

from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.cli.show import table_lines
from kvmlaunch.cli.top import amount, fitted, latency_text, pages_text, row_of, rows_of, usage_document
from kvmlaunch.facts.usage import (
    KIB,
    Counters,
    build_counters,
    build_usage,
    parse_blocks,
    parse_numbers,
    parse_ticks,
)

STAT: Final = "42 (qemu (x) S) S 1 2 3 0 -1 4 5 0 6 0 700 30 0 0 20 0 4 0 99 12345 678\n"
STATUS: Final = "Name:\tqemu\nVmRSS:\t  2048 kB\nVmSwap:\t   16 kB\nHugetlbPages:\t 4096 kB\nThreads:\t4\n"
ROLLUP: Final = "7f-80 ---p 0 00:00 0 [rollup]\nAnonHugePages:   2048 kB\nShmemPmdMapped:     64 kB\n"
KSM: Final = "5\n"
NONE: Final = {"reads": 0, "writes": 0, "read_bytes": 0, "written_bytes": 0, "busy_ns": 0}
STATS: Final = {
    "rd_operations": 1,
    "wr_operations": 2,
    "flush_operations": 3,
    "unmap_operations": 4,
    "rd_bytes": 5,
    "wr_bytes": 6,
    "rd_total_time_ns": 7,
    "wr_total_time_ns": 8,
    "flush_total_time_ns": 9,
    "unmap_total_time_ns": 10,
}
SCALARS: Final = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANSWERS: Final = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["stats", *STATS]), inner, max_size=5),
    max_leaves=12,
)


def counted(**more: Any) -> Counters:  # noqa: ANN401 - the fields of Counters
    """Give counters."""
    return Counters(**more)


def read_of(**texts: Any) -> Counters:  # noqa: ANN401 - whatever was read
    """Give the counters of a VM of which this was read, and nothing else."""
    nothing: dict[str, Any] = {"stat": "", "status": "", "rollup": "", "ksm": "", "blocks": None, "network": None}
    return build_counters(**{**nothing, **texts}, page_size=4096)


def test_what_is_read_of_a_vm_is_counted() -> None:
    found = read_of(
        stat=STAT, status=STATUS, rollup=ROLLUP, ksm=KSM, blocks=[{"stats": STATS}, {"stats": STATS}], network=(8, 9)
    )

    assert (found.ticks, found.resident, found.swapped, found.hugetlb) == (730, 2048 * KIB, 16 * KIB, 4096 * KIB)
    assert (found.huge, found.merged) == ((2048 + 64) * KIB, 5 * 4096)
    assert (found.reads, found.writes, found.read_bytes, found.written_bytes) == (2, 18, 10, 12)
    assert (found.busy_ns, found.received, found.sent) == (68, 8, 9)


def test_what_cannot_be_read_counts_as_nothing() -> None:
    assert read_of() == counted()


@pytest.mark.parametrize(
    "stat",
    [
        *("", ")", "42 (x)", "42 (x) S 1 2", "(" * 9, "\0" * 60, "42 (x) " + "a " * 40, "42 (x) " + "- " * 40),
        *("42 (x) " + "1e9 " * 40, "42 (x) " + "² " * 40, "42 (x) S " + f"{'9' * 5000} " * 40),
    ],
    ids=range(11),
)
def test_a_stat_that_is_garbage_counts_as_nothing(stat: str) -> None:
    assert parse_ticks(stat) == 0


@given(st.text(max_size=200))
def test_no_text_of_proc_makes_an_error(text: str) -> None:
    read_of(stat=text, status=text, rollup=text, ksm=text)
    read_of(stat=f"1 (x) {text} " * 3, status=f"VmRSS: {text}", ksm=f"ksm_merging_pages {text}")


@pytest.mark.parametrize(
    "line", ["VmRSS: -5 kB", "VmRSS: x kB", "VmRSS: 9999999999999999999 kB", "VmRSS: ٣ kB", "VmRSS:"]
)
def test_a_number_that_is_none_is_passed_over(line: str) -> None:
    assert parse_numbers(f"{line}\nVmSwap: 1 kB\n") == {"VmSwap": 1}


@pytest.mark.parametrize(
    "answer",
    [
        *(None, {}, [], "x", 5, [None], [[]], [{}], [{"stats": None}], [{"stats": []}], {"stats": STATS}),
        [{"stats": {key: wrong for key in STATS for wrong in ("7",)}}],
        [{"stats": dict.fromkeys(STATS, True)}],
        [{"stats": dict.fromkeys(STATS, float("nan"))}],
        [{"stats": {key: {} for key in STATS}}],
    ],
)
def test_an_answer_of_another_form_counts_as_nothing(answer: object) -> None:
    assert parse_blocks(answer) == (NONE if isinstance(answer, list) else {})


@given(ANSWERS, ANSWERS)
def test_no_answer_makes_an_error_nor_do_two_of_them(first: object, second: object) -> None:
    before, after = read_of(blocks=first), read_of(blocks=second)

    usage = build_usage(before, after, 0.5, 100)

    assert rows_of({"web": usage})
    assert usage_document("web", usage)["name"] == "web"


@pytest.mark.parametrize("number", [10**30, 10**400, -(10**400)], ids=["large", "huge", "negative"])
def test_a_number_beyond_what_qemu_counts_to_makes_no_error(number: int) -> None:
    after = read_of(blocks=[{"stats": {**STATS, "wr_bytes": number, "rd_total_time_ns": number}}])

    usage = build_usage(counted(), after, 2.0, 100)

    assert row_of("web", usage)[0] == "web"


def test_rates_are_a_second_and_cpu_is_in_cpus() -> None:
    before = counted(ticks=100, reads=10, writes=20, read_bytes=0, written_bytes=1, busy_ns=0, received=5, sent=6)
    after = counted(
        ticks=400, reads=30, writes=60, read_bytes=4096, written_bytes=3, busy_ns=6_000_000, received=9, sent=16
    )

    usage = build_usage(before, after, 2.0, 100)

    assert (usage.cpu, usage.reads, usage.writes, usage.read_bytes, usage.written_bytes) == (1.5, 10, 20, 2048, 1)
    assert usage.latency == pytest.approx(100e-6)
    assert (usage.received, usage.sent) == (2, 5)


def test_counters_that_went_back_count_as_nothing() -> None:
    before = counted(ticks=9, reads=9, writes=9, read_bytes=9, written_bytes=9, busy_ns=9, received=9, sent=9)

    usage = build_usage(before, counted(**NONE, received=0, sent=0), 1.0, 100)

    assert (usage.cpu, usage.reads, usage.writes, usage.read_bytes, usage.written_bytes) == (0, 0, 0, 0, 0)
    assert (usage.latency, usage.received, usage.sent) == (None, 0, 0)


def test_without_requests_there_is_no_latency_and_without_a_tap_no_network() -> None:
    usage = build_usage(counted(), counted(busy_ns=10), 1.0, 100)

    assert (usage.latency, usage.received, usage.sent) == (None, None, None)
    assert row_of("web", usage)[-3:] == ("-", "-", "-")


def test_a_tap_that_came_or_went_between_the_looks_has_no_rate() -> None:
    came = build_usage(counted(), counted(received=1, sent=1), 1.0, 100)
    went = build_usage(counted(received=1, sent=1), counted(), 1.0, 100)

    assert (came.received, went.sent) == (None, None)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((None, "-"), (0, "0"), (0.4, "0"), (1023, "1023"), (1024, "1.0K"), (102_400, "100K"), (1 << 20, "1.0M")),
        *((1 << 30, "1.0G"), (5 << 40, "5120G")),
    ],
)
def test_an_amount_has_few_figures(size: float | None, text: str) -> None:
    assert amount(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.0, "0µs"), (42e-6, "42µs"), (1.5e-3, "1.5ms"), (2.0, "2000.0ms")]
)
def test_a_latency_for_people(seconds: float | None, text: str) -> None:
    assert latency_text(seconds) == text


def test_what_backs_memory_is_told_by_the_best_of_it() -> None:
    idle = build_usage(counted(), counted(), 1.0, 100)

    assert pages_text(idle) == "4K"
    assert pages_text(evolve(idle, now=counted(huge=2 << 20))) == "2.0M THP"
    assert pages_text(evolve(idle, now=counted(huge=2 << 20, hugetlb=1 << 30))) == "1.0G huge"
    assert pages_text(evolve(idle, now=counted(hugetlb=1 << 30, hugetlb_page=2 << 20))) == "512×2MiB"


def test_the_busiest_vm_comes_first_and_idle_ones_by_name() -> None:
    idle = build_usage(counted(), counted(), 1.0, 100)
    busy = build_usage(counted(), counted(ticks=90), 1.0, 100)

    rows = rows_of({"b": idle, "z": busy, "a": idle})

    assert [row[0] for row in rows] == ["VM", "z", "a", "b"]
    assert {len(row) for row in rows} == {13}


@pytest.mark.parametrize(("first", "last"), [(None, [{"stats": STATS}]), ([{"stats": STATS}], None), (None, None)])
def test_what_the_disks_of_a_silent_qemu_do_is_not_known(first: object, last: object) -> None:
    usage = build_usage(read_of(blocks=first), read_of(blocks=last), 1.0, 100)

    assert (usage.reads, usage.writes, usage.read_bytes, usage.written_bytes, usage.latency) == (None,) * 5
    assert row_of("web", usage)[6:11] == ("-",) * 5
    assert usage_document("web", usage)["reads"] is None


def test_a_table_is_cut_to_the_screen_and_says_what_is_below() -> None:
    rows = [("VM", "CPU%", "OUT"), *((f"vm{number}", "1", "0") for number in range(9))]

    wide, narrow, low = fitted(rows, 80, 24), fitted(rows, 11, 24), fitted(rows, 80, 5)

    assert wide == table_lines(rows)
    assert narrow[0] == "VM  CPU% OUT"
    assert (len(low), low[-1]) == (5, "… 6 more")
