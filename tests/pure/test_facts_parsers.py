"""The parsers of captured text: what they read, and that they fail with a sentence only."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmlaunch.facts import block, cpu, hugepages, kvm, limits, memory, mounts, network, numa, process
from kvmlaunch.facts.sources import PATH, Captured, parse_captured
from kvmlaunch.model.host import Holder, HostCpus, Listener, UserFacts
from kvmlaunch.units import GIB, KIB, MIB

pytestmark = pytest.mark.pure

ROOT = UserFacts(uid=0, gid=0)
ALICE = UserFacts(uid=1000, gid=1000)
POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"
SCHEDULERS = [("none [mq-deadline] kyber bfq\n", "mq-deadline"), ("[none]", "none"), ("none\n", "none"), ("", "")]
HEADERS = [
    (b"QFI\xfb\x00\x00\x00\x03", "qcow2"),
    (b"QFI\xfb\x00\x00\x00\x01", "qcow"),
    (b"KDMV\x01", "vmdk"),
    (b"<<< Oracle VM VirtualBox Disk Image", "vdi"),
    (b"vhdxfile", "vhdx"),
    (b"LUKS\xba\xbe\x00\x02", "luks"),
    (b"\x00" * 16, ""),
    (b"", ""),
    (b"QFI", ""),
]
CMDLINES = [
    ("qemu-system-x86_64\0-name\0guest=web01,process=kvm\0", "web01"),
    ("qemu-system-x86_64\0-name\0web01\0", "web01"),
    ("qemu-system-x86_64\0-name\0debug-threads=on,guest=a,,b\0", "a,b"),
    ("qemu-system-x86_64\0-name\0debug-threads=on\0", ""),
    ("qemu-system-x86_64\0-name\0", ""),
    ("cat\0", ""),
    ("", ""),
]
ADDRESSES = [
    ("0100007F", "127.0.0.1"),
    ("00000000", "0.0.0.0"),  # noqa: S104 - read, not bound
    ("00000000000000000000000000000000", "::"),
    ("00000000000000000000000001000000", "::1"),
    ("B80D01200000000000000000010000FF", "2001:db8::ff00:1"),
]


def test_cpus_of_a_laptop() -> None:
    files = {
        cpu.ONLINE: "0-3\n",
        cpu.CPUINFO: "processor: 0\nvendor_id\t: GenuineIntel\nmodel name\t: i\nflags\t\t: vmx sse\n\nprocessor: 1\n",
        cpu.GOVERNOR: "powersave\n",
        "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,2\n",
        "/sys/devices/system/cpu/cpu2/topology/thread_siblings_list": "0,2\n",
    }
    expected = HostCpus(
        online=(0, 1, 2, 3),
        vendor="GenuineIntel",
        model="i",
        flags=frozenset({"vmx", "sse"}),
        siblings={0: (0, 2), 2: (0, 2)},
        governor="powersave",
    )
    assert cpu.parse_host_cpus(files) == expected


def test_memory_in_bytes() -> None:
    files = {memory.MEMINFO: "MemTotal: 2048 kB\nMemFree: 8 kB\nMemAvailable: 1024 kB\nHugePages_Total: 4\n"}
    assert memory.parse_memory(files).available == 1024 * KIB
    assert "HugePages_Total" not in memory.parse_meminfo(files[memory.MEMINFO])


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemAvailable: 1 kB\n", "MemTotal: x kB\n"])
def test_memory_without_its_lines_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"meminfo has no Mem"):
        memory.parse_memory({memory.MEMINFO: text})


@pytest.mark.parametrize(("text", "word"), [("always [madvise] never", "madvise"), ("", None), ("always", None)])
def test_transparent_huge_pages(text: str, word: str | None) -> None:
    assert memory.parse_thp({memory.THP: text}) == word


def test_a_pool_counts_what_is_reserved_as_gone() -> None:
    names = {"nr": 64, "free": 64, "resv": 60, "surplus": 2, "nr_overcommit": 5}
    pool = hugepages.parse_pools({f"{POOL}/{name}_hugepages": f"{number}\n" for name, number in names.items()})[0]
    assert (pool.page_size, pool.total, pool.available, pool.surplus, pool.overcommit) == (2 * MIB, 64, 4, 2, 5)


def test_a_node_has_its_pools() -> None:
    node = "/sys/devices/system/node/node1"
    files = {
        f"{node}/cpulist": "8-15\n",
        f"{node}/meminfo": "Node 1 MemTotal:  4096 kB\nNode 1 MemFree: 2048 kB\nNode 1 MemUsed: 1 kB\n",
        f"{node}/hugepages/hugepages-1048576kB/nr_hugepages": "3\n",
        f"{node}/hugepages/hugepages-1048576kB/free_hugepages": "2\n",
    }
    (found,) = numa.parse_nodes(files, hugepages.parse_node_pools(files))
    assert (found.number, found.cpus, found.memory_total) == (1, tuple(range(8, 16)), 4096 * KIB)
    assert (found.pools[0].page_size, found.pools[0].free, found.pools[0].reserved) == (GIB, 2, None)


def test_mounts_are_unescaped_and_the_last_one_covers() -> None:
    text = (
        "22 1 254:0 / / rw - ext4 /dev/vda rw,discard\n"
        "23 22 0:40 / /srv/a\\040b rw,nosuid shared:1 master:2 - tmpfs tmp\\134fs rw,size=1k\n"
        "24 22 0:41 / /srv/a\\040b rw - hugetlbfs none rw,pagesize=2M,size=8M\n"
    )
    found = mounts.parse_mounts({mounts.MOUNTINFO: text})
    assert [mount.source for mount in found] == ["/dev/vda", "tmp\\fs", "none"]
    assert found[1].option("nosuid") == ""
    covering = mounts.find_mount(found, PurePosixPath("/srv/a b/c"))
    assert covering is not None
    assert (covering.type, covering.option("size")) == ("hugetlbfs", "8M")
    assert mounts.find_mount(found, PurePosixPath("/srv/a bc")) == found[0]


@pytest.mark.parametrize("line", ["x", "22 1 254:0 / / rw ext4 /dev/vda rw", "22 1 254:0 - ext4 /dev/vda rw"])
def test_a_mount_of_another_shape_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="another shape"):
        mounts.parse_mount(line)


@pytest.mark.parametrize(("refusal", "device"), [("", "usable"), ("EACCES", "denied"), ("ENOENT", "missing")])
def test_kvm_by_the_way_it_opened(refusal: str, device: str) -> None:
    assert kvm.parse_kvm(refusal, ["kvm_intel", "kvm"], {}).device == device


def test_kvm_of_pvm_alone_runs_no_ordinary_guest() -> None:
    assert not kvm.parse_kvm("", ["kvm", "kvm_pvm"], {}).runs_guests
    assert kvm.parse_kvm("", ["kvm", "kvm_amd", "kvm_pvm"], {}).runs_guests


def test_a_parameter_of_kvm_that_is_on_is_an_ability() -> None:
    files = {
        "/sys/module/kvm_intel/parameters/nested": "Y\n",
        "/sys/module/kvm_intel/parameters/enable_apicv": "N\n",
        "/sys/module/kvm_amd/parameters/avic": "1\n",
    }

    assert kvm.parse_kvm("", ["kvm_intel"], files).abilities == {"kvm_intel.nested", "kvm_amd.avic"}


@pytest.mark.parametrize(
    ("switch", "user", "tried", "refusal"),
    [
        ("0", ALICE, None, ""),
        ("1", ROOT, None, ""),
        ("1", ALICE, None, "kernel.io_uring_disabled is 1"),
        ("2", ROOT, None, "kernel.io_uring_disabled is 2"),
        ("2", ROOT, "Operation not permitted", "Operation not permitted"),
        ("1", ALICE, "", ""),
    ],
)
def test_io_uring_as_tried_else_as_the_switch_says(
    switch: str, user: UserFacts, tried: str | None, refusal: str
) -> None:
    files = {limits.IO_URING_DISABLED: f"{switch}\n", limits.AIO_USED: "5\n", limits.AIO_MOST: "65536\n"}
    found = limits.parse_aio(files, tried, user)
    assert (found.used, found.most, found.io_uring_refusal) == (5, 65536, refusal)


@pytest.mark.parametrize(("text", "limit"), [("8388608", 8388608), ("unlimited", limits.UNLIMITED)])
def test_locked_memory(text: str, limit: int) -> None:
    line = f"Max locked memory         8388608              {text}            bytes     \n"
    assert limits.parse_memlock({limits.LIMITS: f"Limit  Soft  Hard  Units\n{line}"}) == limit
    assert limits.parse_memlock({}) is None


def test_hugetlb_limit_of_a_parent_group_counts() -> None:
    files = {
        limits.CGROUP: "0::/a/b\n",
        limits.MOUNTINFO: "30 26 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "/sys/fs/cgroup/a/hugetlb.2MB.max": "4194304\n",
        "/sys/fs/cgroup/a/b/hugetlb.2MB.max": "max\n",
        "/sys/fs/cgroup/a/b/hugetlb.1GB.max": "2147483648\n",
        "/sys/fs/cgroup/a/b/hugetlb.1GB.rsvd.max": "1073741824\n",
        "/sys/fs/cgroup/other/hugetlb.2MB.max": "0\n",
    }
    assert limits.parse_hugetlb_cgroup(files) == {2 * MIB: 4 * MIB, GIB: GIB}


def test_hugetlb_limit_of_version_one() -> None:
    files = {
        limits.CGROUP: "5:hugetlb:/docker/x\n0::/\n",
        limits.MOUNTINFO: "30 26 0:26 /docker /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb\n",
        "/sys/fs/cgroup/hugetlb/x/hugetlb.2MB.limit_in_bytes": "2097152\n",
        "/sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes": "9223372036852678656\n",
    }
    assert limits.parse_hugetlb_cgroup(files) == {2 * MIB: 2 * MIB}


@pytest.mark.parametrize(("cmdline", "name"), CMDLINES)
def test_the_vm_that_a_process_runs(cmdline: str, name: str) -> None:
    assert process.parse_vm_name(cmdline) == name


@pytest.mark.parametrize(("head", "name"), HEADERS)
def test_image_headers(head: bytes, name: str) -> None:
    assert block.parse_header(head) == name


@pytest.mark.parametrize(
    ("version", "length", "extensions", "name"),
    [
        (3, 112, "6803f857 00000004 00000000 00000000 e2792aca 00000005 71636f7732000000 00000000 00000000", "qcow2"),
        (2, 0, "e2792aca 00000003 7261770000000000", "raw"),
        (3, 104, "00000000 00000000 e2792aca 00000003 7261770000000000", ""),
        (3, 104, "6803f857 ffffffff", ""),
        (3, 104, "", ""),
    ],
)
def test_the_format_of_a_backing_file_is_what_the_image_says(
    version: int, length: int, extensions: str, name: str
) -> None:
    fields = b"QFI\xfb" + version.to_bytes(4, "big")
    head = (fields.ljust(100, b"\0") + length.to_bytes(4, "big")).ljust(length, b"\0") if length else fields.ljust(72)

    assert block.parse_backing_format(head + bytes.fromhex(extensions)) == name


def test_the_backing_file_of_a_qcow2_image() -> None:
    head = b"QFI\xfb" + (3).to_bytes(4, "big") + (104).to_bytes(8, "big") + (9).to_bytes(4, "big")
    assert block.parse_backing_place(head) == (104, 9)
    assert block.parse_backing_place(b"\0" * 64) == (0, 0)
    with pytest.raises(ValueError, match="2000 bytes"):
        block.parse_backing_place(head[:16] + (2000).to_bytes(4, "big"))


@pytest.mark.parametrize(("text", "word"), SCHEDULERS)
def test_the_scheduler_is_the_word_in_brackets(text: str, word: str) -> None:
    assert block.parse_scheduler(text) == word


def test_locks_of_proc_and_of_fdinfo() -> None:
    text = (
        "1: OFDLCK ADVISORY  READ -1 fd:00:2359 100 101\n"
        "2: FLOCK  ADVISORY  WRITE 12 fd:00:2360 0 EOF\n"
        "3: POSIX  ADVISORY  WRITE 12 08:01:7 0 EOF\n"
        "lock:\t1: OFDLCK ADVISORY  READ -1 00:1a:9 201 201\n"
    )
    found = [(lock.inode, lock.writes) for lock in block.parse_locks(text)]
    assert found == [("253:0:2359", True), ("8:1:7", True), ("0:26:9", False)]


def test_of_several_disks_one_that_rotates_tells() -> None:
    disks: list[object] = [{"name": "sda", "rotational": "0"}, {"name": "sdb", "rotational": "1"}]
    assert block.parse_disk(disks) == block.Disk(name="sda", rotational=True)


@pytest.mark.parametrize(("text", "address"), ADDRESSES)
def test_addresses(text: str, address: str) -> None:
    assert network.parse_address(text) == address


def test_bound_ports_without_connections_and_peers() -> None:
    rest = "00000000:00000000 00:00000000 00000000     0        0"
    text = (
        "  sl  local_address rem_address   st\n"
        f"   0: 0100007F:1F90 00000000:0000 0A {rest} 1210 1 0000000 100 0 0 10 0\n"
        f"   1: 0100007F:1F90 0200007F:0050 01 {rest} 1211 1\n"
    )
    kept = network.parse_bound(text)
    assert kept.count("\n") == 2
    holder = Holder(pid=7, command="nc")
    found = network.parse_listeners({"/proc/net/tcp": kept}, {"1210": holder})
    assert found == (Listener(protocol="tcp", address="127.0.0.1", port=8080, holder=holder),)


def test_network_devices() -> None:
    files = {
        **{f"/sys/class/net/{name}/mtu": "1500\n" for name in ("br0", "tap0", "tun0")},
        "/sys/class/net/br0/bridge/stp_state": "0\n",
        "/sys/class/net/br0/flags": "0x1002\n",
        "/sys/class/net/tap0/flags": "0x1003\n",
        "/sys/class/net/tap0/tun_flags": "0x1102\n",
        "/sys/class/net/tap0/owner": "1000\n",
        "/sys/class/net/tun0/tun_flags": "0x1001\n",
        "/sys/class/net/tun0/owner": "-1\n",
    }
    found = network.parse_network_devices(files, {"tap0": "br0"})
    assert [(device.kind, device.up) for device in found.values()] == [
        ("bridge", False),
        ("tap", True),
        ("other", False),
    ]
    assert (found["tap0"].owner_uid, found["tap0"].multi_queue, found["tap0"].master) == (1000, True, "br0")
    assert found["tun0"].owner_uid is None


KNOWN_PATHS = [
    *(cpu.CPUINFO, cpu.ONLINE, memory.MEMINFO, memory.THP, f"{memory.KSM}/run", mounts.MOUNTINFO, *limits.FILES),
    *(f"{POOL}/nr_hugepages", f"{POOL}/free_hugepages", "/proc/net/tcp", "/proc/net/udp6", "/sys/class/net/x/mtu"),
    *("/sys/devices/system/node/node0/cpulist", "/sys/class/net/x/tun_flags", "/sys/fs/cgroup/hugetlb.2MB.max"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
PROBES = ("caller", "user", "kvm", "vhost", "io_uring", "modules", "tools", "masters", "sockets", f"{PATH}/a")
LINES = st.text(st.sampled_from("0123456789abcdefkB MemTotal:/-,.[]\n\t\\"))
PARSERS: list[Callable[[str], object]] = [
    block.parse_locks,
    block.parse_scheduler,
    memory.parse_meminfo,
    mounts.parse_mount,
    network.parse_bound,
    network.parse_sockets,
    process.parse_vm_name,
    cpu.parse_first_cpu,
    limits.parse_cgroup_mounts,
]


@pytest.mark.parametrize("parser", PARSERS)
@settings(deadline=None)
@given(text=st.text() | LINES)
def test_no_text_makes_a_parser_fail_but_with_a_sentence(parser: Callable[[str], object], text: str) -> None:
    with suppress(ValueError):
        parser(text)


@settings(deadline=None)
@given(
    files=st.dictionaries(st.sampled_from(KNOWN_PATHS), st.text() | LINES),
    probes=st.dictionaries(st.sampled_from(PROBES), JSON),
)
def test_no_capture_makes_it_fail_but_with_a_sentence(files: Mapping[str, str], probes: Mapping[str, object]) -> None:
    sound = {"user": {"uid": 1, "gid": 1, "name": "", "groups": []}, "caller": {"uid": 1}, "kvm": ""}
    needed = {cpu.ONLINE: "0\n", memory.MEMINFO: "MemTotal: 1 kB\nMemAvailable: 1 kB\n"}
    with suppress(ValueError):
        parse_captured(Captured(files={**needed, **files}, probes={**sound, **probes}))


@settings(deadline=None)
@given(head=st.binary(max_size=64))
def test_no_bytes_make_the_header_fail_but_with_a_sentence(head: bytes) -> None:
    block.parse_header(head)
    with suppress(ValueError):
        block.parse_backing_place(b"QFI\xfb" + head)
