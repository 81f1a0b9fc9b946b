"""Memory: is there enough, and which pool and mount must be made."""

from collections.abc import Iterator

from kvmlaunch.model.change import Change, MountChange, PoolChange
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Places, Plan
from kvmlaunch.units import GIB, MIB, count, render_size

LEAST_GUEST = 64 * MIB  # bytes: with less no guest of today boots


def has_mount(plan: Plan, host: HostFacts) -> bool:
    """Has this VM its mount already, exactly as the plan wants it."""
    return host.holds_mount(plan.memory.page_size, plan.memory.pages)


def pages_missing(plan: Plan, host: HostFacts) -> int:
    """Give the pages by which the pool must be raised, 0 with ordinary memory."""
    memory = plan.memory
    return (
        host.pages_short(memory.page_size, memory.pages, memory.host_numa_node) if memory.backing == "hugepages" else 0
    )


def check_hugepages(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Check that pages can be had: the pool is there, the caller may raise it, the host keeps enough."""
    memory, key = plan.memory, "memory.hugepages"
    if memory.backing != "hugepages":
        return
    yield from check_cgroup(plan, host)
    if has_mount(plan, host):
        return
    pages = f"{count(memory.pages, 'huge page')} of {render_size(memory.page_size)}"
    if host.pool(memory.page_size, memory.host_numa_node) is None:
        there = ", ".join(render_size(pool.page_size) for pool in host.pools) or "none"
        yield error(
            code="host.hugetlbfs.pagesize",
            message=f"this kernel has no pool of {render_size(memory.page_size)} pages",
            key=key,
            why=f"page sizes of this host: {there}",
            hint='memory.hugepages = "auto"',
        )
        return
    if not host.privileged:
        user = host.user.name or str(host.user.uid)
        held = host.held.mount_size
        why = f"{pages} are asked for, and " + (
            "nothing is prepared" if held is None else f"what is prepared has {render_size(held)}"
        )
        yield error(
            code="host.privilege",
            message="only root reserves hugepages",
            key=key,
            why=why,
            hint=f"sudo kvmlaunch preflight {plan.name} --apply --user {user}",
        )
        return
    yield from check_reserve(plan, host, pages)


def check_reserve(plan: Plan, host: HostFacts, pages: str) -> Iterator[Finding]:
    """Refuse a reservation that would leave the host less than it keeps (`host.memory.short`)."""
    missing = pages_missing(plan, host) * plan.memory.page_size
    left = host.memory.available - missing
    if missing and left < host.kept_memory:
        why = (
            f"{render_size(missing)} must be reserved, {render_size(host.memory.available // MIB * MIB)} are available,"
            f" and the host keeps {render_size(host.kept_memory // MIB * MIB)}"
        )
        largest = host.memory.available - host.kept_memory + plan.memory.reserved - missing
        yield error(
            code="host.memory.short",
            message=f"the host has no room for {pages}",
            key="memory.size",
            why=why,
            hint=smaller_hint(largest) or "end other programs, or --set memory.hugepages=off",
        )


def check_cgroup(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Refuse more hugepages than the cgroup allows (`host.hugepages.cgroup`): QEMU would die of SIGBUS later."""
    limit = host.hugetlb_cgroup.get(plan.memory.page_size)
    if limit is not None and limit < plan.memory.reserved:
        yield error(
            code="host.hugepages.cgroup",
            message=f"the cgroup allows {render_size(limit)} of hugepages",
            key="memory.hugepages",
            why=f"{render_size(plan.memory.reserved)} are needed; beyond its limit QEMU dies of SIGBUS",
            hint="raise hugetlb.*.limit_in_bytes (hugetlb.*.max) of the cgroup",
        )


def check_ordinary(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Refuse a guest larger than the host's RAM (`host.memory.short`); warn when more than is available."""
    if plan.memory.backing != "ordinary":
        return
    size, total, available = plan.memory.size, host.memory.total, host.memory.available
    whole, rest = render_size(total // MIB * MIB), render_size(available // MIB * MIB)
    numbers = f"{render_size(size)} are asked for, the host has {whole}, {rest} available"
    if size > total:
        yield error(
            code="host.memory.short",
            message="the guest is larger than the host",
            key="memory.size",
            why=numbers,
            hint=smaller_hint(available - host.kept_memory),
        )
    elif size > available and not host.held.running:  # what it has itself is not among what is available
        yield warning(
            code="host.memory.short",
            message="the guest may use more memory than is available",
            key="memory.size",
            why=numbers,
            hint=smaller_hint(available - host.kept_memory),
        )


def smaller_hint(room: int) -> str:
    """Give how to ask for what there is room for, in whole units; "" for none."""
    unit = GIB if room >= GIB else MIB
    return f"the same command with --set memory.size={render_size(room // unit * unit)}" if room >= LEAST_GUEST else ""


def check_stacked(plan: Plan, host: HostFacts, places: Places) -> Iterator[Finding]:
    """Refuse a mount point that carries more than one mount (`host.hugetlbfs.stacked`)."""
    stacked = [mount for mount in host.mounts if mount.path == places.hugepages]
    if plan.memory.backing == "hugepages" and len(stacked) > 1:
        yield error(
            code="host.hugetlbfs.stacked",
            message=f"{len(stacked)} mounts are stacked on {places.hugepages}",
            key="memory.hugepages",
            where=str(places.hugepages),
            why="the lower ones keep their pages, and nobody sees them",
            hint=f"umount {places.hugepages}   # until one is left",
        )


def check_lock(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Refuse locked memory beyond the user's hard limit (`host.limit.memlock`); root raises its own."""
    hard = host.user.memlock_hard
    need = plan.memory.size + GIB
    user = host.user.name or host.user.uid
    if plan.memory.lock and not host.privileged and hard is not None and hard < need:
        yield error(
            code="host.limit.memlock",
            message="the memory may not be locked",
            key="memory.lock",
            why=f"RLIMIT_MEMLOCK of {user} is {render_size(hard)}, {render_size(need)} are needed",
            hint=f"{host.user.name or host.user.uid} - memlock {need >> 10}   # in /etc/security/limits.conf",
        )


def plan_memory_changes(plan: Plan, host: HostFacts, places: Places) -> tuple[Change, ...]:
    """Give the changes that put the VM's pages beneath a mount of its own: pool, mount."""
    if plan.memory.backing != "hugepages" or has_mount(plan, host):
        return ()
    memory, missing = plan.memory, pages_missing(plan, host)
    raise_pool = (
        (
            PoolChange(
                page_size=memory.page_size, pages=missing, host_numa_node=memory.host_numa_node, compact=memory.asked
            ),
        )
        if missing
        else ()
    )
    mount = MountChange(
        path=str(places.hugepages),
        page_size=memory.page_size,
        size=memory.reserved,
        uid=host.user.uid,
        gid=host.user.gid,
        host_numa_node=memory.host_numa_node,
    )
    return (*raise_pool, mount)
