"""What `/etc/kvmlaunch/host.toml` may say.  Every key stands here once: type, default, one sentence.

`auto` is kvmlaunch's own choice, which `tune plan` explains; `keep` leaves a setting as it is found.
"""

from collections.abc import Mapping
from typing import Final, Literal

from kvmlaunch.model.definition import AUTO, Auto, ReadAhead, key, table
from kvmlaunch.model.value import Factory, frozen
from kvmlaunch.units import GIB, MIB

HOST_FILE: Final = "/etc/kvmlaunch/host.toml"
PAGE_SIZES: Final[Mapping[str, int]] = {"2MiB": 2 * MIB, "1GiB": GIB}  # of the pools, in bytes

Scheduler = Literal["none", "mq-deadline", "kyber", "bfq"]
OldScheduler = Literal["deadline", "noop", "cfq"]  # of kernels before 5.0: understood, and translated
Keep = Literal["keep"]


@frozen(kw_only=True)
class KsmWishes:
    """`[ksm]`."""

    mode: Auto | Keep | Literal["on", "off", "unmerge"] = key(
        "Merging of equal pages: off stops and keeps what is merged, unmerge takes it apart; auto is on where a VM "
        "asks for it, else as it is found.",
        AUTO,
    )
    pages_to_scan: Auto | Keep | int = key(
        "Pages a round; auto lets the kernel's advisor choose, and on older kernels chooses as it would.",
        AUTO,
        least=1,
        most=1_000_000,
    )
    sleep_millisecs: Keep | int = key("Milliseconds between rounds.", "keep", least=0, most=3_600_000)
    smart_scan: Auto | Keep | Literal["on", "off"] = key(
        "Skip pages that were never merged before; auto is on where the kernel has it.", AUTO
    )
    merge_across_nodes: Auto | Keep | Literal["on", "off"] = key(
        "Merge pages of different NUMA nodes; auto is off where there are several, while nothing is merged yet.", AUTO
    )


@frozen(kw_only=True)
class HostWishes:
    """The host as its administrator wants it."""

    scheduler: Auto | Keep | Scheduler | OldScheduler = key(
        "I/O scheduler of every device beneath a VM's disk; auto is by the kind of device.", AUTO
    )
    elevator: Scheduler | OldScheduler | None = key(
        "The word of the boot argument of kernels before 5.4; means `scheduler`.", None
    )
    schedulers: Mapping[str, Keep | Scheduler | OldScheduler] = key(
        'By device, before `scheduler`: `{ sda = "bfq" }`.', Factory(dict)
    )
    read_ahead: Keep | ReadAhead = key(
        "Read-ahead of the devices that are opened: a logical volume, a RAID, or the disk itself.", "keep"
    )
    thp: Auto | Keep | Literal["always", "madvise", "never"] = key(
        "Transparent huge pages; auto changes never to madvise where a VM has ordinary memory.", AUTO
    )
    hugepages: Auto | Keep = key(
        "Pages of the host's pools; auto is the sum for the VMs that start with the host.", AUTO
    )
    hugepage_pools: Mapping[str, int] = key('By page size, before `hugepages`: `{ "2MiB" = 512 }`.', Factory(dict))
    hugetlbfs: str = key("Where a shared hugetlbfs of 2 MiB pages is mounted; kvmlaunch's own VMs need none.", "")
    ksm: KsmWishes = table(KsmWishes, "Kernel samepage merging.")
    governor: Keep | str = key("CPU frequency governor, a word of scaling_available_governors.", "keep")
    swappiness: Keep | int = key("vm.swappiness.", "keep", least=0, most=200)
    numa_balancing: Keep | Literal["on", "off"] = key("kernel.numa_balancing.", "keep")
    halt_poll_ns: Keep | int = key("Nanoseconds that KVM polls before a vCPU sleeps.", "keep", least=0, most=10_000_000)
