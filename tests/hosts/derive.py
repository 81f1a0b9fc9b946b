"""Derive the captured hosts from the real one: `python tests/hosts/derive.py`.

`debian12-pvm` was captured on a machine (its ids, cgroup paths and kernel suffix replaced), then
given the paths below.  Every other host here is that capture with the differences that this file
states; `tests/pure/test_facts_hosts.py` fails when a directory and this file disagree.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from kvmlaunch.facts.sources import PATH, Captured  # noqa: E402 - run as a script, the package may not be installed
from kvmlaunch.host.saved import load_capture, save_capture  # noqa: E402
from kvmlaunch.units import GIB, KIB, MIB, render_cpus  # noqa: E402

BASE = "debian12-pvm"
CPUS = "/sys/devices/system/cpu"
NODES = "/sys/devices/system/node"
POOLS = "/sys/kernel/mm/hugepages"
NVME = {"name": "nvme0n1", "scheduler": "[none] mq-deadline kyber bfq", "rotational": "0", "queues": 8}
HDD = {"name": "sda", "scheduler": "none [mq-deadline] kyber bfq", "rotational": "1", "queues": 1}
SMALL = 2 * MIB
TMP = "/tmp"  # noqa: S108 - a path of the fake hosts
Files = dict[str, str]
Probes = dict[str, Any]


def regular(number: int, size: int, **other: object) -> dict[str, object]:
    """Give a file of root's on the system's NVMe disk: fully allocated, O_DIRECT works."""
    return {
        "kind": "file",
        "size": size,
        "allocated": size,
        "inode": f"259:2:{number}",
        "owner": "root",
        "mode": 0o600,
        "readable": True,
        "writable": True,
        "header": "",
        "backing": "",
        "o_direct": True,
        "refusal": "",
        "disks": [NVME],
        **other,
    }


OTHER_VM = {"pid": 4711, "command": "qemu-system-x86", "vm": "mail01", "writes": True}
READ_ONLY = {"mode": 0o644, "writable": True}
# Names that QEMU's syntax, a shell or a terminal would read otherwise.
HOSTILE = (
    *("a,,b.img", "-device.img", "$(reboot).img", "`id`.img", "nbd:localhost:10809.img", "fat:rw:..img", "json:{.img"),
    *("http:", "tab\there.img", "line\nbreak.img", 'it\'s "quoted".img', "größe 数据 🚀.img", "back\\slash.img"),
    *("file.img,readonly=on,snapshot=on", "kernel,share=on", "initrd a,b"),
)
PATHS: Mapping[str, dict[str, object]] = {
    "/srv/vm/web01.img": regular(1001, 10 * GIB),
    "/srv/vm/data.img": regular(1002, 20 * GIB),
    "/srv/vm/sparse.img": regular(1003, 10 * GIB, allocated=3 * GIB),
    "/srv/vm/clone.qcow2": regular(1004, 196 * KIB, header="qcow2", backing="/srv/vm/golden.qcow2"),
    "/srv/vm/golden.qcow2": regular(1005, 2 * GIB, header="qcow2"),
    "/srv/vm/disguised.img": regular(1006, 196 * KIB, header="qcow2"),
    "/srv/vm/locked.img": regular(1007, 10 * GIB, holders=[OTHER_VM]),
    "/srv/vm/shared.img": regular(1008, 10 * GIB, holders=[{**OTHER_VM, "writes": False}]),
    "/srv/vm/link.img": regular(1001, 10 * GIB, real="/srv/vm/web01.img"),
    "/srv/vm/a,b=c d.img": regular(1009, 1 * GIB),
    "/srv/vm/readonly.img": regular(1010, 1 * GIB, mode=0o444, writable=False),
    "/srv/vm/secret.img": regular(1011, 1 * GIB, readable=False, writable=False, o_direct=None, owner="nobody"),
    "/srv/vm/pipe": {"kind": "fifo", "inode": "259:2:1012", "owner": "root", "mode": 0o644},
    "/srv/vm": {"kind": "directory", "readable": True, "inode": "259:2:1013", "owner": "root", "mode": 0o711},
    "/srv/vm/missing.img": {"kind": "missing", "refusal": "No such file or directory"},
    "/srv/vm/vmlinuz": regular(1014, 8 * MIB, **READ_ONLY),
    "/srv/vm/initrd.img": regular(1015, 4 * MIB, **READ_ONLY),
    "/srv/vm/foreign.qcow2": regular(1016, 196 * KIB, header="qcow2", backing="/etc/shadow"),
    "/srv/vm/torn.qcow2": regular(1017, 196 * KIB),
    "/srv/vm/socket": {"kind": "socket", "inode": "259:2:1018", "owner": "root", "mode": 0o755},
    "/srv/vm/image": regular(1019, 1 * GIB),
    "/srv/vm/db01-wal.qcow2": regular(1020, 4 * GIB, header="qcow2"),
    "/srv/vm/reports.img": regular(1021, 1 * GIB, **READ_ONLY),
    "/srv/vm/thin.qcow2": regular(
        1022, 2 * GIB, header="qcow2", virtual_size=400 * GIB, cluster_size=64 * KIB, qcow2_version=3
    ),
    "/srv/vm/huge.qcow2": regular(
        1023, 4097 * GIB, allocated=2 * GIB, header="qcow2", virtual_size=4096 * GIB, cluster_size=64 * KIB
    ),
    "/srv/vm/base.qcow2": regular(1024, 2 * GIB, header="qcow2", overlays=["/srv/vm/one.qcow2", "/srv/vm/two.qcow2"]),
    "/srv/vm/kept.img": regular(
        1025, 10 * GIB, overlays=["/srv/vm/kept.img.since-a.qcow2"], since=["/srv/vm/kept.img.since-a.qcow2"]
    ),
    "/srv/vm/kept.img.since-a.qcow2": regular(1026, 400 * KIB, header="qcow2", backing="kept.img"),
    "/srv/vm/cut-off.img": regular(1027, 10 * GIB, committing=True),
    "/srv/vm/forked.img": regular(
        1028, 10 * GIB, stray=["/srv/vm/forked.img.since-a.qcow2", "/srv/vm/forked.img.since-b.qcow2"]
    ),
    **{f"/srv/vm/{name}": regular(1601 + place, 1 * GIB) for place, name in enumerate(HOSTILE)},
    "/srv/private/hidden.img": {"kind": "denied", "refusal": "Permission denied"},
    "/srv/kvmlaunch/vmdefs/web01.img": regular(1701, 32 * MIB),
    "/srv/kvmlaunch/vmdefs/web01.vmlinuz": regular(1702, 7 * MIB, **READ_ONLY),
    "/srv/kvmlaunch/vmdefs/web01.initrd": regular(1703, 1 * MIB, **READ_ONLY),
    "/srv/kvmlaunch/vmdefs/win11.qcow2": regular(1704, 9 * GIB, header="qcow2"),
    "/srv/kvmlaunch/vmdefs/Win11.iso": regular(1705, 5 * GIB, **READ_ONLY),
    "/srv/kvmlaunch/vmdefs/virtio-win.iso": regular(1706, 700 * MIB, volume_id="virtio-win-0.1.266", **READ_ONLY),
    "/srv/hdd/archive.img": regular(1101, 100 * GIB, inode="8:1:1101", disks=[HDD]),
    "/srv/loop/disk.img": regular(1802, 1 * GIB, allocated=0, inode="7:0:1802", disks=[{**NVME, "name": "loop0"}]),
    "/srv/zfs/disk.img": regular(1801, 1 * GIB, allocated=0, inode="0:63:1801", disks=[]),
    "/srv/4k/disk.img": regular(1803, 1 * GIB, inode="8:2:1803", disks=[{**NVME, "physical": 4096}]),
    "/srv/stick/disk.img": regular(1901, 1 * GIB, inode="8:33:1901", disks=[HDD]),
    "/srv/nfs/data.img": regular(1201, 10 * GIB, inode="0:61:1201", disks=[]),
    "/srv/iso/debian.iso": regular(1301, 650 * MIB, **READ_ONLY),
    "/srv/iso/virtio-win.iso": regular(1302, 700 * MIB, volume_id="virtio-win-0.1.266", **READ_ONLY),
    "/srv/iso/virtio-win-old.iso": regular(1304, 500 * MIB, volume_id="virtio-win-0.1.185", **READ_ONLY),
    "/srv/iso/virtio-win-torn.iso": regular(1305, 1 * MIB, **READ_ONLY),
    "/srv/iso/win11.iso": regular(1303, 5 * GIB, **READ_ONLY),
    f"{TMP}/nodirect.img": regular(
        1401, 1 * GIB, inode="0:62:1401", o_direct=False, refusal="open: Invalid argument", disks=[]
    ),
    "/dev/vg0/web01": regular(301, 50 * GIB, kind="block", real="/dev/dm-0", inode="0:6:301", mode=0o660),
    "/dev/vg0/db01": regular(302, 200 * GIB, kind="block", real="/dev/dm-1", inode="0:6:302", mode=0o660),
    "/dev/vg0/db01-root": regular(303, 20 * GIB, kind="block", real="/dev/dm-2", inode="0:6:303", mode=0o660),
    "/dev/vg0/db01-data": regular(304, 200 * GIB, kind="block", real="/dev/dm-3", inode="0:6:304", mode=0o660),
    "/dev/sdb": regular(305, 100 * GIB, kind="block", inode="0:6:305", mode=0o660, no_discard=True, disks=[HDD]),
    "/dev/sdc": regular(
        306, 100 * GIB, kind="block", inode="0:6:306", mode=0o660, no_discard=True, disks=[HDD], header="qcow2"
    ),
    "/dev/vg0/gone": {"kind": "missing", "refusal": "No such file or directory"},
    "/dev/zero": {"kind": "character", "inode": "0:6:4", "owner": "root", "mode": 0o666},
    **{
        f"/usr/share/OVMF/{name}.fd": regular(1501 + place, SMALL, **READ_ONLY)
        for place, name in enumerate(
            (
                *("OVMF_CODE_4M", "OVMF_VARS_4M", "OVMF_CODE", "OVMF_VARS"),
                *("OVMF_CODE_4M.ms", "OVMF_VARS_4M.ms", "OVMF_CODE.ms", "OVMF_VARS.ms"),
            )
        )
    },
    **{
        f"/usr/share/{name}": {"kind": "missing", "refusal": "No such file or directory"}
        for name in (
            *(
                "edk2/ovmf/OVMF_CODE.fd",
                "edk2/ovmf/OVMF_VARS.fd",
                "edk2/x64/OVMF_CODE.4m.fd",
                "edk2/x64/OVMF_VARS.4m.fd",
            ),
            *("qemu/ovmf-x86_64-4m-code.bin", "qemu/ovmf-x86_64-4m-vars.bin"),
            *("edk2/ovmf/OVMF_CODE.secboot.fd", "edk2/ovmf/OVMF_VARS.secboot.fd"),
            *("qemu/ovmf-x86_64-smm-ms-code.bin", "qemu/ovmf-x86_64-smm-ms-vars.bin"),
        )
    },
}
MOUNTS = """\
24 1 259:2 / / rw,relatime - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
25 24 0:22 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
26 24 0:23 / /sys rw,nosuid,nodev,noexec,relatime - sysfs sysfs rw
27 24 0:6 / /dev rw,nosuid,relatime - devtmpfs udev rw,size=16384000k,nr_inodes=4096000,mode=755
28 27 0:24 / /dev/shm rw,nosuid,nodev - tmpfs tmpfs rw
29 24 0:25 / /run rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,size=3276800k,mode=755
30 26 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
31 27 0:27 / /dev/hugepages rw,relatime - hugetlbfs hugetlbfs rw,pagesize=2M
32 24 8:1 / /srv/hdd rw,relatime - xfs /dev/sda1 rw
33 24 0:61 / /srv/nfs rw,relatime - nfs4 nas:/export/vm rw,vers=4.2
34 24 0:62 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw
35 24 0:63 / /srv/zfs rw,relatime - zfs tank/vm rw,xattr
36 24 7:0 / /srv/loop rw,relatime - ext4 /dev/loop0 rw
37 24 8:33 / /srv/stick rw,relatime - exfat /dev/sdc1 rw
"""
INTEL = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht syscall nx "
    "pdpe1gb rdtscp lm constant_tsc pni pclmulqdq vmx ssse3 fma cx16 sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx "
    "f16c rdrand lahf_lm abm ept vpid fsgsbase bmi1 avx2 smep bmi2 erms invpcid rdseed adx smap clflushopt sha_ni"
)


def with_cpus(files: Files, cores: int, threads: int) -> None:
    """Give the host Intel CPUs; the threads of a core are `cores` apart, as Linux numbers them."""
    for path in [path for path in files if path.startswith(f"{CPUS}/cpu")]:
        del files[path]
    total = cores * threads
    files[f"{CPUS}/online"] = f"{render_cpus(tuple(range(total)))}\n"
    files[f"{CPUS}/cpu0/cpufreq/scaling_governor"] = "performance\n"
    for cpu in range(total):
        siblings = tuple(range(cpu % cores, total, cores))
        files[f"{CPUS}/cpu{cpu}/topology/thread_siblings_list"] = ",".join(map(str, siblings)) + "\n"
    files["/proc/cpuinfo"] = (
        f"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6338\nflags\t\t: {INTEL}\n"
    )


def with_memory(files: Files, total: int) -> None:
    """Give the host an amount of memory, nine tenths of it available."""
    available = total // 10 * 9 // KIB
    files["/proc/meminfo"] = (
        f"MemTotal:       {total // KIB} kB\nMemFree:        {available} kB\nMemAvailable:   {available} kB\n"
        "SwapTotal:      0 kB\nSwapFree:       0 kB\n"
    )


def with_node(files: Files, number: int, cpus: tuple[int, ...], memory: int) -> None:
    """Give the host a NUMA node, with empty pools."""
    place = f"{NODES}/node{number}"
    files[f"{place}/cpulist"] = f"{render_cpus(cpus)}\n"
    free = memory // 10 * 9 // KIB
    files[f"{place}/meminfo"] = f"Node {number} MemTotal: {memory // KIB} kB\nNode {number} MemFree: {free} kB\n"
    for size in ("2048", "1048576"):
        for name in ("nr", "free", "surplus"):
            files[f"{place}/hugepages/hugepages-{size}kB/{name}_hugepages"] = "0\n"


def with_pages(files: Files, place: str, size: int, total: int) -> None:
    """Give a pool pages, all of them free."""
    for name in ("nr", "free"):
        files[f"{place}/hugepages-{size // KIB}kB/{name}_hugepages"] = f"{total}\n"


def kvm_intel(files: Files, probes: Probes) -> None:
    """Eight CPUs with SMT, KVM, 32 GiB, systemd; the plainest real host, on which the others rest."""
    files["/proc/sys/kernel/osrelease"] = "6.1.0-37-amd64\n"
    files["/proc/1/comm"] = "systemd\n"
    files["/proc/self/mountinfo"] = MOUNTS
    files["/proc/self/cgroup"] = "0::/user.slice/user-0.slice/session-1.scope\n"
    for path in [path for path in files if path.startswith(("/sys/class/net/ifb", "/proc/sys/kernel/io_uring"))]:
        del files[path]
    with_cpus(files, 4, 2)
    with_memory(files, 32 * GIB)
    with_node(files, 0, tuple(range(8)), 32 * GIB)
    probes.update(kvm="", modules=["kvm", "kvm_intel"], tools={**probes["tools"], "swtpm": "/usr/bin/swtpm"})


def two_nodes(files: Files, _: Probes) -> None:
    """Two NUMA nodes of eight CPUs and 32 GiB, each with four pages of 1 GiB and 512 of 2 MiB."""
    with_cpus(files, 16, 1)
    with_memory(files, 64 * GIB)
    for number in range(2):
        with_node(files, number, tuple(range(number * 8, number * 8 + 8)), 32 * GIB)
        with_pages(files, f"{NODES}/node{number}/hugepages", GIB, 4)
        with_pages(files, f"{NODES}/node{number}/hugepages", 2 * MIB, 512)
    with_pages(files, POOLS, GIB, 8)
    with_pages(files, POOLS, 2 * MIB, 1024)


def no_kvm(_: Files, probes: Probes) -> None:
    """No KVM at all, as inside a guest without nesting."""
    probes.update(kvm="ENOENT", modules=[])


def user_alice(_: Files, probes: Probes) -> None:
    """Make the user an ordinary one in no group: neither /dev/kvm nor root's images, only web01.img is hers."""
    probes["user"] = {"uid": 1000, "gid": 1000, "name": "alice", "groups": ["alice"]}
    probes.update(caller={"uid": 1000}, kvm="EACCES", vhost="EACCES")
    refused = {"readable": False, "writable": False, "o_direct": None, "refusal": "Permission denied"}
    for name, probe in probes.items():
        if name.startswith(PATH) and probe["kind"] in {"file", "block"}:
            closed = probe["mode"] & 0o004 == 0
            probes[name] = {**probe, **({**refused, "header": ""} if closed else {"writable": False})}
    for name in ("web01.img", "link.img", "sparse.img"):
        hers = {"owner": "alice", "readable": True, "writable": True, "o_direct": True, "refusal": ""}
        probes[f"{PATH}/srv/vm/{name}"] |= hers


def user_alice_kvm(_: Files, probes: Probes) -> None:
    """Put the same user in group kvm."""
    probes["user"] |= {"groups": ["alice", "kvm"]}
    probes.update(kvm="")


def prepared(files: Files, _: Probes) -> None:
    """Reserve 8 GiB for alice's VM `prepared`, as root does with `preflight --apply --user alice`."""
    files["/proc/self/mountinfo"] += (
        "37 29 0:64 / /run/kvmlaunch/hugepages/1000/prepared/mount rw,relatime - hugetlbfs hugetlbfs "
        f"rw,uid=1000,gid=1000,mode=700,pagesize=2M,size={8 * GIB},min_size={8 * GIB}\n"
    )
    with_pages(files, POOLS, 2 * MIB, 4096)
    files[f"{POOLS}/hugepages-2048kB/resv_hugepages"] = "4096\n"


def system_user(_: Files, probes: Probes) -> None:
    """Root starts VMs, and the system user kvmlaunch reaches all that they need."""
    probes["user"] = {"uid": 997, "gid": 997, "name": "kvmlaunch", "groups": ["kvmlaunch", "kvm"]}


def thp_never_ksm(files: Files, _: Probes) -> None:
    """Transparent huge pages switched off, KSM running."""
    files["/sys/kernel/mm/transparent_hugepage/enabled"] = "always madvise [never]\n"
    files["/sys/kernel/mm/ksm/run"] = "1\n"
    files["/sys/kernel/mm/ksm/pages_shared"] = "1200\n"
    files["/sys/kernel/mm/ksm/pages_sharing"] = "5300\n"


def io_uring_disabled(files: Files, probes: Probes) -> None:
    """No io_uring for anybody, and the contexts of native aio used up."""
    files["/proc/sys/kernel/io_uring_disabled"] = "2\n"
    files["/proc/sys/kernel/io_uring_group"] = "-1\n"
    files["/proc/sys/fs/aio-nr"] = files["/proc/sys/fs/aio-max-nr"]
    probes.update(io_uring="Operation not permitted")


def with_device(files: Files, name: str, **attributes: str) -> None:
    """Give the host a network device that is up."""
    place = f"/sys/class/net/{name}"
    for attribute, text in {"mtu": "1500", "flags": "0x1003", **attributes}.items():
        files[f"{place}/{attribute.replace('__', '/')}"] = f"{text}\n"


def vhost(files: Files, probes: Probes) -> None:
    """Add a bridge with two taps and vhost-net; ports 22 and 8080 are taken."""
    with_device(files, "eno1")
    with_device(files, "br0", bridge__stp_state="0")
    with_device(files, "tap-web01", tun_flags="0x1002", owner="0")
    with_device(files, "tap-alice", tun_flags="0x1102", owner="1000")
    with_device(files, "br9000", bridge__stp_state="0", mtu="9000")
    with_device(files, "br-down", bridge__stp_state="0", flags="0x1002")
    with_device(files, "tap-down", tun_flags="0x1002", owner="0", flags="0x1002")
    probes.update(vhost="", masters={"eno1": "br0", "tap-web01": "br0", "tap-alice": "br0"})
    rest = "00000000:0000 0A 00000000:00000000 00:00000000 00000000"
    files["/proc/net/tcp"] = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        f"   0: 00000000:0016 {rest}     0        0 1210 1 0 100 0 0 10 0\n"
        f"   1: 0100007F:1F90 {rest}  1000        0 1211 1 0 100 0 0 10 0\n"
    )
    probes["sockets"] = {"1211": {"pid": 990, "command": "python3", "vm": "", "writes": False}}


def hugetlb_cgroup(files: Files, _: Probes) -> None:
    """Plenty of pages of 2 MiB in the pool, and a control group that may use 256 MiB of them."""
    with_pages(files, POOLS, 2 * MIB, 4096)
    with_pages(files, f"{NODES}/node0/hugepages", 2 * MIB, 4096)
    files["/sys/fs/cgroup/user.slice/hugetlb.2MB.max"] = f"{256 * MIB}\n"
    files["/sys/fs/cgroup/user.slice/hugetlb.1GB.max"] = "max\n"


def small(files: Files, _: Probes) -> None:
    """Two CPUs without SMT and 2 GiB: too small for most."""
    with_cpus(files, 2, 1)
    with_memory(files, 2 * GIB)
    with_node(files, 0, (0, 1), 2 * GIB)


def amd(files: Files, probes: Probes) -> None:
    """Put AMD's CPUs in the place of Intel's."""
    files["/proc/cpuinfo"] = (
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7543\nflags\t\t: svm sse4_2 avx2 topoext\n"
    )
    probes.update(modules=["kvm", "kvm_amd"])


def nested(files: Files, _: Probes) -> None:
    """Let Intel's KVM nest, and deliver interrupts by APICv."""
    for name in ("nested", "enable_apicv"):
        files[f"/sys/module/kvm_intel/parameters/{name}"] = "Y\n"


def avic(files: Files, _: Probes) -> None:
    """Let AMD's KVM deliver interrupts by AVIC."""
    files["/sys/module/kvm_amd/parameters/avic"] = "1\n"


Edit = Callable[[Files, Probes], None]
HOSTS: Mapping[str, tuple[Edit, ...]] = {
    BASE: (),
    "kvm-intel-8cpu": (kvm_intel,),
    "two-nodes": (kvm_intel, two_nodes),
    "no-kvm": (kvm_intel, no_kvm),
    "user-alice": (kvm_intel, user_alice),
    "user-alice-kvm": (kvm_intel, user_alice, user_alice_kvm),
    "prepared": (kvm_intel, user_alice, user_alice_kvm, prepared),
    "system-user": (kvm_intel, system_user),
    "thp-never-ksm": (kvm_intel, thp_never_ksm),
    "io-uring-disabled": (kvm_intel, io_uring_disabled),
    "vhost": (kvm_intel, vhost),
    "hugetlb-cgroup": (kvm_intel, hugetlb_cgroup),
    "small": (kvm_intel, small),
    "kvm-amd": (kvm_intel, amd),
    "kvm-intel-nested": (kvm_intel, nested),
    "kvm-amd-avic": (kvm_intel, amd, avic),
}


def derive(name: str) -> Captured:
    """Give a host: the real capture with the paths, then its own differences."""
    real = load_capture(HERE / BASE)
    files = dict(real.files)
    probes = {probe: value for probe, value in real.probes.items() if not probe.startswith(PATH)}
    probes |= {f"{PATH}{path}": {"real": path, **probe} for path, probe in PATHS.items()}
    for edit in HOSTS[name]:
        edit(files, probes)
    return Captured(files=files, probes=probes)


if __name__ == "__main__":
    for host in HOSTS:
        save_capture(derive(host), HERE / host)
