"""Huge pages for all VMs that start with the host, transparent huge pages, swapping, NUMA balancing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from kvmlaunch.model.choice import Choice
from kvmlaunch.model.definition import AUTO
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts, HugepagePool
from kvmlaunch.model.tuning import HostTuning, Knob, Setting
from kvmlaunch.model.wishes import HOST_FILE, PAGE_SIZES, HostWishes
from kvmlaunch.tune.fleet import VmWish, names_text, pages_of
from kvmlaunch.tune.wish import KEEP, by_hand, chosen, switch
from kvmlaunch.units import GIB, MIB, count, render_size

SWAPPINESS: Final = "vm.swappiness"
BALANCING: Final = "kernel.numa_balancing"
POOL_SOURCE: Final = "Linux Documentation/admin-guide/mm/hugetlbpage.rst"
THP_SOURCE: Final = "Linux Documentation/admin-guide/mm/transhuge.rst; QEMU asks for huge pages by madvise"


def pool_path(page_size: int) -> str:
    """Give the file that holds a pool's total."""
    return f"/sys/kernel/mm/hugepages/hugepages-{page_size >> 10}kB/nr_hugepages"


def plan_pool(page_size: int, wishes: HostWishes, vms: Sequence[VmWish]) -> Choice[str] | None:
    """Give the pages that a pool should have; None where it stays as it is found."""
    word = render_size(page_size)
    if word in wishes.hugepage_pools:
        return by_hand(wishes.hugepage_pools[word], f"hugepage_pools.{word}")
    if wishes.hugepages is AUTO:
        need = [vm for vm in vms if vm.page_size == page_size]
        pages = pages_of(vms, page_size)
        reason = f"the sum for {names_text([f'{vm.name} {vm.pages}' for vm in need])}"
        return chosen(pages, reason, POOL_SOURCE, key="memory.hugepages") if pages else None
    return None


def plan_pools(
    host: HostFacts, wishes: HostWishes, vms: Sequence[VmWish]
) -> Iterator[tuple[HugepagePool, Choice[str], bool]]:
    """Give each pool with the pages that it should have, and whether the host has room for it beside the others.

    Beyond all pools together the host keeps max(1 GiB, 10 %) of its RAM.
    """
    room = host.memory.available - host.kept_memory
    for pool in host.pools:
        wanted = plan_pool(pool.page_size, wishes, vms)
        if wanted is not None:
            more = max(0, int(wanted.value) - pool.total) * pool.page_size
            fits = not more or more <= room
            room -= more if fits else 0
            yield pool, wanted, fits


def build_pools(host: HostFacts, wishes: HostWishes, vms: Sequence[VmWish]) -> Iterator[Setting]:
    """Give the pools that should be larger, unless that would leave the host less than it keeps."""
    for pool, wanted, fits in plan_pools(host, wishes, vms):
        if fits:
            yield Setting(
                key=f"hugepages.{render_size(pool.page_size)}",
                knob=Knob(path=pool_path(pool.page_size), value=str(pool.total)),
                wanted=wanted,
                keeper="boot" if pool.page_size == GIB else "sysctl",
                cost=f"{render_size(int(wanted.value) * pool.page_size)} of memory that nothing else can use",
                counted=True,
            )


def check_pools(host: HostFacts, tuning: HostTuning, wishes: HostWishes, vms: Sequence[VmWish]) -> Iterator[Finding]:
    """Refuse a pool that the host has no room for, and a mount that would hide files; say which size is not there."""
    for pool, wanted, fits in plan_pools(host, wishes, vms):
        if not fits:
            word, available = render_size(pool.page_size), render_size(host.memory.available // MIB * MIB)
            more = render_size((int(wanted.value) - pool.total) * pool.page_size)
            why = f"{more} more are needed, {available} are available, and the host keeps "
            why += render_size(host.kept_memory // MIB * MIB) + (f"; {wanted.reason}" if wanted.reason else "")
            yield error(
                code="host.memory.short",
                message=f"the host has no room for {count(int(wanted.value), 'page')} of {word}",
                key=f"hugepage_pools.{word}",
                why=why,
                hint="kvmlaunch validate --together   # names the VMs that do not fit"
                if wanted.reason
                else f"fewer pages in [hugepage_pools] of {HOST_FILE}",
            )
    there = {pool.page_size for pool in host.pools}
    for word, page_size in PAGE_SIZES.items():
        if page_size not in there and plan_pool(page_size, wishes, vms):
            yield warning(
                code="host.hugetlbfs.pagesize",
                message=f"this kernel has no pages of {word}: skipped",
                key=f"hugepage_pools.{word}",
                why=f"page sizes of this host: {', '.join(map(render_size, sorted(there))) or 'none'}",
                hint="grep -E 'pse|pdpe1gb' /proc/cpuinfo",
            )
    if tuning.hidden:
        yield error(
            code="host.hugetlbfs.place",
            message=f"{wishes.hugetlbfs} is not empty",
            key="hugetlbfs",
            why=f"a mount would hide {count(tuning.hidden, 'file')} there",
            hint='hugetlbfs = "/mnt/huge"',
        )


def check_borrowed(
    settings: Sequence[Setting], raised: Mapping[str, Mapping[str, int]], again: str
) -> Iterator[Finding]:
    """Say of pages that fill a pool and are not there for good: a VM reserved them at its start.

    `raised` gives by a pool's control file the pages that each VM has in it by itself, `again` is what applies it.
    """
    for setting in settings:
        vms = raised.get(setting.knob.path, {})
        if setting.counted and int(setting.knob.value) - sum(vms.values()) < int(setting.wanted.value) and vms:
            yield warning(
                code="host.hugepages.borrowed",
                message=f"{count(sum(vms.values()), 'page')} of the pool will go when {names_text(list(vms))} stops",
                where=setting.knob.path,
                why=f"they were reserved at the start, and are given back then; {setting.wanted.value} are wished",
                hint=f"kvmlaunch down {' '.join(vms)} && {again}",
            )


def plan_thp(wishes: HostWishes, tuning: HostTuning, vms: Sequence[VmWish]) -> Choice[str] | None:
    """Give the mode of transparent huge pages; None where it stays as it is found."""
    if wishes.thp is not AUTO:
        return None if wishes.thp == KEEP else by_hand(wishes.thp, "thp")
    ordinary = [vm.name for vm in vms if not vm.pages]
    if tuning.thp is None or tuning.thp.value == "always" or not ordinary:
        return None
    return chosen(
        "madvise", f"{names_text(ordinary)} has ordinary memory, and QEMU asks for huge pages itself", THP_SOURCE
    )


def check_memory(tuning: HostTuning, wishes: HostWishes) -> Iterator[Finding]:
    """Say which wishes are not made, as this kernel has no such knob (`host.setting.refused`)."""
    wished = {
        "thp": (wishes.thp not in {AUTO, KEEP}, tuning.thp, "/sys/kernel/mm/transparent_hugepage/enabled"),
        "swappiness": (wishes.swappiness != KEEP, tuning.sysctls.get(SWAPPINESS), "/proc/sys/vm/swappiness"),
        "numa_balancing": (
            wishes.numa_balancing != KEEP,
            tuning.sysctls.get(BALANCING),
            "/proc/sys/kernel/numa_balancing",
        ),
    }
    for key, (asked, knob, path) in wished.items():
        if asked and knob is None:
            yield warning(
                code="host.setting.refused",
                message=f"{key} is not set: skipped",
                key=key,
                why=f"{path} is not there: this kernel has none",
                hint=f'{key} = "keep"   # in {HOST_FILE}',
            )


def build_memory(tuning: HostTuning, wishes: HostWishes, vms: Sequence[VmWish]) -> Iterator[Setting]:
    """Give the settings of transparent huge pages, swapping and NUMA balancing."""
    thp = plan_thp(wishes, tuning, vms)
    if thp and tuning.thp:
        yield Setting(key="thp.enabled", knob=tuning.thp, wanted=thp, keeper="tmpfiles")
    sysctls = {
        SWAPPINESS: None if wishes.swappiness == KEEP else by_hand(wishes.swappiness, "swappiness"),
        BALANCING: None if wishes.numa_balancing == KEEP else by_hand(switch(wishes.numa_balancing), "numa_balancing"),
    }
    for name, wanted in sysctls.items():
        if wanted and name in tuning.sysctls:
            yield Setting(key=name, knob=tuning.sysctls[name], wanted=wanted, keeper="sysctl")
