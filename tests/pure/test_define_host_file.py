"""host.toml: all mistakes at once, each with its place; sizes and pools that no kernel takes."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.define.host_file import load_wishes
from kvmlaunch.model.wishes import HostWishes

pytestmark = pytest.mark.pure

PLACE = PurePosixPath("/etc/kvmlaunch/host.toml")


def test_an_empty_file_wishes_nothing_by_hand() -> None:
    assert load_wishes(PLACE, b"") == (HostWishes(), ())


def test_every_mistake_is_told_at_once_with_its_place() -> None:
    text = b'scheduler = "deadlin"\nswapiness = 10\ngovernor = 5\n[ksm]\npages_to_scan = 0\nsmart = true\n'

    wishes, findings = load_wishes(PLACE, text)

    assert wishes is None
    assert [finding.report.where.split()[0] for finding in findings] == [
        f"{PLACE}:1:13", f"{PLACE}:2:1", f"{PLACE}:3:12", f"{PLACE}:5:17", f"{PLACE}:6:1",
    ]  # fmt: skip
    assert findings[0].report.hint == 'scheduler = "deadline"'
    assert "swappiness" in findings[1].report.hint


@pytest.mark.parametrize(
    "line",
    [
        'hugepage_pools = { "4MiB" = 10 }',
        'hugepage_pools = { "2MiB" = -1 }',
        'read_ahead = "6KiB"',
        'read_ahead = "1GiB"',
        "read_ahead = 0",
        'hugetlbfs = "mnt/huge"',
        'hugetlbfs = "/mnt/../etc"',
        'hugetlbfs = "/mnt/a\\nb"',
        'scheduler = "none"\nelevator = "noop"',
        "swappiness = 201",
        "[ksm]\nmode = true",
    ],
)
def test_a_wish_that_no_kernel_could_meet_is_a_mistake_with_its_place(line: str) -> None:
    wishes, findings = load_wishes(PLACE, line.encode())

    assert wishes is None
    assert [finding.report.where.startswith(f"{PLACE}:") for finding in findings] == [True]


def test_a_bare_read_ahead_was_meant_as_the_kernel_counts_it() -> None:
    _, (finding,) = load_wishes(PLACE, b"read_ahead = 128\n")

    assert finding.report.hint == 'read_ahead = "128KiB"'
    wishes, _ = load_wishes(PLACE, finding.report.hint.encode())
    assert wishes is not None
    assert wishes.read_ahead == 128 << 10


def test_notes_of_ones_own_are_no_mistakes() -> None:
    assert load_wishes(PLACE, b'x-note = "by me"\n') == (HostWishes(), ())


@given(text=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_no_text_whatever_raises(text: bytes) -> None:
    wishes, findings = load_wishes(PLACE, text)

    assert (wishes is None) is bool(findings)
