"""Hosts for the tests of tuning: the text of their knobs, as captured, with what a test wants otherwise."""

from collections.abc import Mapping

from attrs import evolve

from kvmlaunch.facts.boot_files import parse_boot_lines
from kvmlaunch.facts.tuning import parse_tuning
from kvmlaunch.model.host import AioFacts, HostCpus, HostFacts, HostMemory, HugepagePool, KvmFacts, UserFacts
from kvmlaunch.model.tuning import HostTuning
from kvmlaunch.units import GIB, MIB

KSM = {
    "run": "0\n", "pages_to_scan": "100\n", "sleep_millisecs": "20\n", "merge_across_nodes": "1\n",
    "pages_shared": "0\n", "pages_sharing": "0\n", "full_scans": "0\n", "general_profit": "0\n", "smart_scan": "1\n",
    "advisor_mode": "[none] scan-time\n",
}  # fmt: skip
FILES: Mapping[str, str] = {
    "/proc/1/comm": "systemd\n",
    "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet\n",
    "/proc/buddyinfo": "Node 0, zone   Normal   10   5   0   0   0   0   0   0   0   100   12000 \n",
    "/proc/sys/vm/swappiness": "60\n",
    "/proc/sys/kernel/numa_balancing": "1\n",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "/sys/kernel/mm/transparent_hugepage/defrag": "always defer defer+madvise [madvise] never\n",
    "/sys/module/kvm/parameters/halt_poll_ns": "200000\n",
    **{f"/sys/kernel/mm/ksm/{name}": text for name, text in KSM.items()},
}
NAMES = ("none", "mq-deadline", "kyber", "bfq")


def queue(device: str, scheduler: str, *, rotational: str = "0", offered: tuple[str, ...] = NAMES) -> dict[str, str]:
    """Give the files of a device's queue."""
    words = " ".join(f"[{name}]" if name == scheduler else name for name in offered)
    place = f"/sys/block/{device}/queue"
    return {
        f"{place}/scheduler": f"{words}\n",
        f"{place}/rotational": f"{rotational}\n",
        f"{place}/read_ahead_kb": "128\n",
    }


def tuning(
    *, devices: Mapping[str, int] | None = None, files: Mapping[str, str] | None = None, **probes: object
) -> HostTuning:
    """Give a host's knobs; `devices` maps names to hardware queues, all beneath web01."""
    found = {name: {"queues": queues, "vms": ["web01"]} for name, queues in (devices or {}).items()}
    captured = {**FILES, **(files or {})}
    knobs = parse_tuning(captured, {"devices": found, "opened": found, "udev": True, **probes})
    return evolve(knobs, boot_lines=tuple(parse_boot_lines(captured, knobs.queues)))


def host(*, total: int = 64 * GIB, available: int = 48 * GIB, pages: int = 0, systemd: bool = True) -> HostFacts:
    """Give a host's facts: memory in bytes, `pages` of 2 MiB in its pool."""
    pools = (
        HugepagePool(page_size=2 * MIB, total=pages, free=pages, surplus=0, reserved=0),
        HugepagePool(page_size=GIB, total=0, free=0, surplus=0, reserved=0),
    )
    return HostFacts(
        machine_id="m",
        boot_id="b",
        kernel="6.1.0",
        cpus=HostCpus(online=(0, 1)),
        memory=HostMemory(total=total, available=available, free=available),
        nodes=(),
        pools=pools,
        mounts=(),
        thp="madvise",
        ksm=None,
        kvm=KvmFacts(device="usable", modules=("kvm", "kvm_intel")),
        aio=AioFacts(used=0, most=65536),
        user=UserFacts(uid=0, gid=0, name="root"),
        caller_uid=0,
        vhost_net=True,
        systemd=systemd,
    )


def without_systemd(found: HostTuning, *, init: str = "init") -> HostTuning:
    """Give the same host with another process 1."""
    return evolve(found, init=init)
