"""What the kernel says of a live QEMU: its mappings, its descriptors, its status."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.facts.evidence import guest_ram, parse_open_flags, parse_smaps, parse_status

pytestmark = pytest.mark.pure

SMAPS = """\
55d0c8a00000-55d0c8b23000 r-xp 00000000 08:01 1835 /usr/bin/qemu-system-x86_64 (deleted)
Size:               1164 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                 900 kB
VmFlags: rd ex mr mw me sd
7f2a40000000-7f2a50000000 rw-p 00000000 00:2f 4242  /run/kvmlaunch/hugepages/0/web/mount/qemu_back_mem (deleted)
Size:             262144 kB
KernelPageSize:     2048 kB
MMUPageSize:        2048 kB
Rss:                   0 kB
Private_Hugetlb:  262144 kB
VmFlags: rd wr mr mw me de ht dd sd
7f2a60000000-7f2a70000000 rw-p 00000000 00:00 0
Size:             262144 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                1024 kB
VmFlags: rd wr mr mw me ac dd hg sd
7f2a70000000-7f2a70001000 ---p 00000000 00:00 0
Size:                  4 kB
KernelPageSize:        4 kB
Rss:                   0 kB
VmFlags: mr mw me sd
"""


def test_every_mapping_is_read_with_its_page_size_and_flags() -> None:
    code, huge, ordinary, guard = parse_smaps(SMAPS)

    assert code.name == "/usr/bin/qemu-system-x86_64 (deleted)"
    assert (huge.size, huge.page_size, huge.resident) == (256 << 20, 2 << 20, 256 << 20)
    assert {"ht", "dd"} <= huge.flags
    assert (ordinary.page_size, ordinary.resident, ordinary.name) == (4096, 1 << 20, "")
    assert guard.size == 4096


def test_small_mappings_are_left_out_where_one_asks_for_large_ones() -> None:
    assert [mapping.size for mapping in parse_smaps(SMAPS, least=2 << 20)] == [256 << 20, 256 << 20]


def test_the_rams_mapping_is_that_of_hugetlbfs_where_there_is_one() -> None:
    mappings = tuple(parse_smaps(SMAPS))

    assert [mapping.page_size for mapping in guest_ram(mappings, 256 << 20)] == [2 << 20]


def test_without_hugetlbfs_the_rams_mapping_is_the_smallest_nameless_one_that_fits() -> None:
    mappings = tuple(mapping for mapping in parse_smaps(SMAPS) if "ht" not in mapping.flags)

    assert [mapping.resident for mapping in guest_ram(mappings, 256 << 20)] == [1 << 20]
    assert guest_ram(mappings, 512 << 20) == ()


@given(text=st.text(max_size=200) | st.lists(st.sampled_from(SMAPS.splitlines()), max_size=20).map("\n".join))
def test_whatever_smaps_says_is_read_without_an_error(text: str) -> None:
    assert all(mapping.size >= 0 for mapping in parse_smaps(text))


@given(text=st.text(max_size=100))
def test_whatever_the_kernel_says_of_a_process_only_valueerror_comes_out(text: str) -> None:
    for parse in (parse_open_flags, parse_status):
        try:
            parse(text)
        except ValueError:
            continue
