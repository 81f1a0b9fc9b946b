"""The text of control files, sysctl.d and buddyinfo becomes the host's knobs."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.facts.tuning import parse_knob, parse_tuning
from kvmlaunch.host.capture_tuning import capture_page_holders, capture_tuning
from kvmlaunch.model.tuning import Knob
from tests.tuningbook import FILES, queue, tuning

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("text", "value", "offered"),
    [
        ("[none] mq-deadline kyber bfq \n", "none", ("none", "mq-deadline", "kyber", "bfq")),
        ("none [mq-deadline]\n", "mq-deadline", ("none", "mq-deadline")),
        ("always [madvise] never\n", "madvise", ("always", "madvise", "never")),
        ("none\n", "none", ()),
        ("200000\n", "200000", ()),
        ("", "", ()),
    ],
)
def test_a_knob_is_the_word_in_brackets_or_the_whole(text: str, value: str, offered: tuple[str, ...]) -> None:
    assert parse_knob({"/knob": text}, "/knob") == Knob(path="/knob", value=value, offered=offered)


def test_free_memory_is_counted_by_blocks_and_by_node() -> None:
    zones = ("Node 0, zone      DMA 1 0 0 0 0 0 0 0 0 0 1 ", "Node 0, zone Normal 1 1 0 0 0 0 0 0 0 2 0 ")
    text = "\n".join((*zones, "Node 1, zone Normal 4 0", ""))

    found = tuning(files={"/proc/buddyinfo": text})

    assert found.nodes == 2
    assert found.largest_block == 4 << 20
    assert found.free_in_blocks(2 << 20) == 2 * (2 << 20) + (4 << 20)
    assert found.free_in_blocks(4096) == 2 * (2 << 20) + (4 << 20) + 2 * 4096 + 8192 + 4 * 4096


def test_sysctl_files_are_read_in_the_order_of_sysctl_system() -> None:
    files = {
        "/proc/1/comm": "init\n",
        "/usr/lib/sysctl.d/50-default.conf": "vm.swappiness = 60\n",
        "/etc/sysctl.d/80-kvmlaunch.conf": "vm.swappiness = 10\nvm/nr_hugepages = 512\n# vm.swappiness = 7\n",
        "/usr/lib/sysctl.d/80-kvmlaunch.conf": "vm.swappiness = 99\n",
        "/run/sysctl.d/90-run.conf": "-vm.swappiness=30\n",
        "/etc/sysctl.conf": "vm.swappiness = 5\n",
        "/etc/sysctl.d/README": "vm.swappiness = 1\n",
    }

    lines = tuning(files=files).boot_lines

    assert [(line.name, line.value) for line in lines] == [
        ("vm.swappiness", "60"),
        ("vm.swappiness", "10"),
        ("vm.nr_hugepages", "512"),
        ("vm.swappiness", "30"),
        ("vm.swappiness", "5"),
    ]


def test_lines_of_tmpfiles_are_read_as_they_may_be_written() -> None:
    text = 'w+ /sys/a - - - - 1\nw "/sys/b" - - - - 2\nw /sys/cpu*/c - - - - 3\n'

    lines = tuning(files={"/etc/tmpfiles.d/a.conf": text}).boot_lines

    assert [(line.name, line.value) for line in lines] == [("/sys/a", "1"), ("/sys/b", "2"), ("/sys/cpu*/c", "3")]


def test_rules_for_a_module_and_for_read_ahead_by_another_name_are_read() -> None:
    text = (
        'ACTION=="add|change", SUBSYSTEM=="module", KERNEL=="kvm", ATTR{parameters/halt_poll_ns}="0"\n'
        'SUBSYSTEM=="block", KERNEL=="cciss/c0d0", ATTR{bdi/read_ahead_kb}="64"\n'
    )

    lines = tuning(devices={"cciss!c0d0": 1}, files={"/etc/udev/rules.d/a.rules": text}).boot_lines

    assert [(line.name, line.value, line.sure) for line in lines] == [
        ("/sys/module/kvm/parameters/halt_poll_ns", "0", True),
        ("/sys/block/cciss!c0d0/queue/read_ahead_kb", "64", True),
    ]


RULES = """\
# ATTR{queue/scheduler}="never"
ACTION=="add|change", KERNEL=="sd*|vd[a-z]", ATTR{queue/rotational}=="0", ATTR{queue/scheduler}="none"
ACTION=="add|change", KERNEL=="vda", ATTR{queue/rotational}=="1", ATTR{queue/scheduler}="bfq"
SUBSYSTEM!="block", ATTR{queue/scheduler}="kyber"
KERNEL=="vda", ENV{ID_SERIAL}=="x", \\
  ATTR{queue/scheduler}="mq-deadline", ATTR{queue/read_ahead_kb}="64"
KERNEL=="nvme0n1", ATTR{queue/scheduler}="none"
"""


def test_rules_of_udev_count_where_their_conditions_may_hold() -> None:
    files = {"/usr/lib/udev/rules.d/60-disks.rules": RULES, **queue("vda", "none")}

    lines = tuning(files=files, devices={"vda": 1}).boot_lines

    assert [(line.name, line.value, line.sure) for line in lines] == [
        ("/sys/block/vda/queue/scheduler", "none", True),
        ("/sys/block/vda/queue/scheduler", "mq-deadline", False),
        ("/sys/block/vda/queue/read_ahead_kb", "64", False),
    ]


def test_lines_of_tmpfiles_that_write_are_read_in_the_order_of_their_names() -> None:
    files = {
        "/usr/lib/tmpfiles.d/b.conf": "w /sys/kernel/mm/ksm/run - - - - 0\nd /run/x 0755 root root -\n",
        "/etc/tmpfiles.d/a.conf": "# w /x - - - - 1\nw! /sys/kernel/mm/ksm/run - - - - 1\n",
    }

    lines = tuning(files=files).boot_lines

    assert [(line.keeper, line.name, line.value) for line in lines] == [
        ("tmpfiles", "/sys/kernel/mm/ksm/run", "1"),
        ("tmpfiles", "/sys/kernel/mm/ksm/run", "0"),
    ]


def test_governors_are_read_with_the_words_that_their_driver_offers() -> None:
    place = "/sys/devices/system/cpu/cpu{}/cpufreq"
    files = {
        f"{place.format(number)}/{name}": text
        for number in (0, 11)
        for name, text in (
            ("scaling_governor", "powersave\n"),
            ("scaling_available_governors", "performance powersave\n"),
        )
    }

    assert {number: knob.offered for number, knob in tuning(files=files).governors.items()} == {
        0: ("performance", "powersave"),
        11: ("performance", "powersave"),
    }


def test_processes_that_hold_pages_and_daemons_are_taken_from_their_probes_as_far_as_they_are_sound() -> None:
    found = tuning(
        page_holders=[{"pid": 7, "command": "qemu", "bytes": 4096}, {"pid": "x"}, 3],
        daemons={"tuned": 9, "numad": "no"},
    )

    assert [(holder.pid, holder.bytes) for holder in found.holders] == [(7, 4096)]
    assert found.daemons == {"tuned": 9}


SMAPS = """\
7f00-7f01 rw-s 00000000 00:3a 1 /mnt/mem
Size:            1048576 kB
KernelPageSize:  1048576 kB
Shared_Hugetlb:  1048576 kB
Private_Hugetlb:       0 kB
7f02-7f03 rw-p 00000000 00:3b 2 /mnt/other
KernelPageSize:     2048 kB
Shared_Hugetlb:     4096 kB
Private_Hugetlb:    2048 kB
7f04-7f05 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
"""


@pytest.mark.parametrize(
    ("smaps", "held"), [(SMAPS, [(1 << 30, 1 << 30), (2 << 20, 6 << 20)]), ("", [(0, (1 << 30) + (6 << 20))])]
)
def test_pages_are_told_by_size_where_a_processs_mappings_can_be_read(
    tmp_path: Path, smaps: str, held: list[tuple[int, int]]
) -> None:
    status = f"Name:\tpostgres\nHugetlbPages:\t  {((1 << 30) + (6 << 20)) // 1024} kB\n"
    make_tree(tmp_path, {"/proc/7/status": status, "/proc/7/comm": "postgres\n", "/proc/7/smaps": smaps})

    found = capture_page_holders(str(tmp_path), ["7"])

    assert [(each["page_size"], each["bytes"]) for each in found] == held


def make_tree(root: Path, files: dict[str, str]) -> None:
    """Write a tree of captured files."""
    for name, text in files.items():
        place = root / name.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def test_a_disk_is_followed_through_lvm_and_md_to_the_devices_at_the_bottom(tmp_path: Path) -> None:
    image = tmp_path / "srv/web01.img"
    make_tree(
        tmp_path,
        {**FILES, "/srv/web01.img": "", **queue("sda", "mq-deadline", rotational="1"), **queue("nvme0n1", "none")},
    )
    seen = image.stat()
    number = f"{seen.st_dev >> 8 & 0xFFF}:{seen.st_dev & 0xFF}"
    devices = tmp_path / "sys/devices"
    for name, dev, slaves in (("dm-0", number, ("md0",)), ("md0", "9:0", ("sda1", "nvme0n1p2"))):
        for slave in slaves:
            (devices / name / "slaves" / slave).mkdir(parents=True)
        (devices / name / "dev").write_text(f"{dev}\n")
    (devices / "dm-0/slaves/md0/dev").write_text("9:0\n")
    (devices / "md0/slaves/sda1/dev").write_text("8:1\n")
    (devices / "md0/slaves/nvme0n1p2/dev").write_text("259:2\n")
    for disk, part, dev in (("sda", "sda1", "8:1"), ("nvme0n1", "nvme0n1p2", "259:2")):
        (devices / disk / part).mkdir(parents=True)
        (devices / disk / part / "partition").write_text("1\n")
        link(tmp_path, dev, devices / disk / part)
        for queue_number in range(4 if disk == "nvme0n1" else 1):
            (devices / disk / "mq" / str(queue_number)).mkdir(parents=True)
    link(tmp_path, number, devices / "dm-0")
    link(tmp_path, "9:0", devices / "md0")

    captured = capture_tuning({"web01": [PurePosixPath("/srv/web01.img")]}, root=tmp_path)
    found = parse_tuning(captured.files, captured.probes)

    assert {device.name: (device.queues, device.rotational) for device in found.devices} == {
        "nvme0n1": (4, False),
        "sda": (1, True),
    }
    assert all(device.vms == ("web01",) for device in found.devices)


def link(root: Path, number: str, target: Path) -> None:
    """Make the entry of /sys/dev/block."""
    place = root / "sys/dev/block" / number
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


@given(files=st.dictionaries(st.sampled_from([*FILES, "/etc/sysctl.conf"]), st.text(max_size=80), max_size=4))
def test_whatever_the_kernel_says_knobs_are_read_without_an_error(files: dict[str, str]) -> None:
    found = parse_tuning({**FILES, **files}, {})

    assert found.largest_block >= 0
