"""RAM and what backs it: hugepages of a mount of the VM's own, or ordinary memory with THP."""

from kvmlaunch.builder.option import BUILT_IN, Part, by_hand, field, fixed, pairs, value, wiring
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts, HostNode
from kvmlaunch.model.plan import Field, MemoryPlan, MemoryPromise, Option, Place
from kvmlaunch.model.value import frozen
from kvmlaunch.units import GIB, MIB, count, parse_size, render_size

HUGE = 2 * MIB
POLICY = "kvmlaunch docs, reference (memory)"
HUGETLB = "kernel docs, admin-guide/mm/hugetlbpage.rst"


@frozen(kw_only=True)
class Backing:
    """The decision about hugepages: the page size (None for ordinary memory), why, and is it a fallback."""

    page_size: int | None
    choice: Choice[str]
    fell_back: bool = False


def pages_needed(size: int, page_size: int) -> int:
    """Give ⌈size / page size⌉."""
    return -(-size // page_size)


def obstacle(host: HostFacts, page_size: int, pages: int, host_numa_node: int | None) -> str:
    """Give why hugepages cannot be had without asking anybody, "" when they can."""
    pool = host.pool(page_size, host_numa_node)
    if pool is None:
        return f"this kernel has no pool of {render_size(page_size)} pages"
    if host.holds_mount(page_size, pages):
        return ""
    if host.hugepages_refused:
        return host.hugepages_refused
    limit = host.hugetlb_cgroup.get(page_size)
    if limit is not None and limit < pages * page_size:
        return f"the cgroup allows {render_size(limit)} of hugepages, {render_size(pages * page_size)} are needed"
    return (
        room_obstacle(host, page_size, pages, host_numa_node)
        if host.privileged
        else prepared_obstacle(host, page_size, pages)
    )


def prepared_obstacle(host: HostFacts, page_size: int, pages: int) -> str:
    """Give why an ordinary user, who does not hold the mount that he needs, has none."""
    if host.held.mount_size is None:
        return "only root reserves them, and nothing is prepared"
    there = f"{render_size(host.held.mount_size)} for uid {host.held.mount_uid}"
    return f"the prepared mount has {there}, not {render_size(pages * page_size)} for uid {host.user.uid}"


def room_obstacle(host: HostFacts, page_size: int, pages: int, host_numa_node: int | None) -> str:
    """Give why the host has no room for so many pages, "" when it has."""
    missing = host.pages_short(page_size, pages, host_numa_node) * page_size
    left = max(0, host.memory.available - missing) // MIB * MIB
    if missing and left < host.kept_memory:
        return (
            f"{render_size(missing)} more would leave the host {render_size(left)}"
            f" of the {render_size(host.kept_memory // MIB * MIB)} that it keeps"
        )
    return ""


def other_wish(definition: Definition) -> str:
    """Give the written wish that hugepages would thwart, so that auto leaves them; "" for none."""
    if definition.memory.ksm == "on":
        return "memory.ksm is on, and hugepages cannot be merged"
    if definition.memory.balloon == "on":
        return "memory.balloon is on, and hugepages are not given back page by page"
    return ""


def plan_backing(definition: Definition, host: HostFacts, host_numa_node: int | None) -> Backing:
    """Choose the page size: as written; auto takes 2 MiB pages when they can be had, else says why not."""
    written, origin = definition.memory.hugepages, definition.origin("memory.hugepages")
    if written == "off":
        return Backing(page_size=None, choice=Choice(value="off", reason="", source="", origin=origin))
    if written is not AUTO:
        return Backing(page_size=parse_size(written), choice=Choice(value=written, reason="", source="", origin=origin))
    pages = pages_needed(definition.memory.size, HUGE)
    fact = Origin(kind="host", place="hugepage pools", key="memory.hugepages")
    wish = other_wish(definition)
    if wish:
        thwarted = definition.origin("memory.ksm" if definition.memory.ksm == "on" else "memory.balloon")
        return Backing(page_size=None, choice=Choice(value="off", reason=wish, source=HUGETLB, origin=thwarted))
    problem = obstacle(host, HUGE, pages, host_numa_node)
    if problem:
        return Backing(
            page_size=None, fell_back=True, choice=Choice(value="off", reason=problem, source=HUGETLB, origin=fact)
        )
    reason = f"{count(pages, 'page')} of 2MiB cover {render_size(definition.memory.size)}"
    return Backing(page_size=HUGE, choice=Choice(value="2MiB", reason=reason, source=HUGETLB, origin=fact))


def plan_node(definition: Definition, host: HostFacts) -> Choice[int | None]:
    """Choose the host NUMA node to bind to: none on a host with one; auto takes the freest that fits the VM whole."""
    written, origin = definition.memory.numa, definition.origin("memory.numa")
    if written == "none":
        return Choice(value=None, reason="", source="", origin=origin)
    if written is not AUTO:
        return Choice(value=int(written), reason="", source="", origin=origin)
    fact = Origin(kind="host", place="NUMA nodes", key="memory.numa")
    source = "kernel docs, admin-guide/mm/numa_memory_policy.rst"
    if len(host.nodes) < 2:  # noqa: PLR2004 - one node is no choice
        return Choice(value=None, reason="the host has one NUMA node", source=source, origin=fact)
    held = host.held.host_numa_node
    if held is not None and host.node(held):
        return Choice(value=held, reason=f"this VM has its memory on node {held} already", source=source, origin=fact)
    fitting = [node for node in host.nodes if fits(node, definition)]
    if not fitting:
        return Choice(value=None, reason="no NUMA node fits the whole VM", source=source, origin=fact)
    best = max(fitting, key=lambda node: node.memory_free)
    return Choice(
        value=best.number,
        reason=f"node {best.number} fits the VM whole, {render_size(best.memory_free // MIB * MIB)} free",
        source=source,
        origin=fact,
    )


def fits(node: HostNode, definition: Definition) -> bool:
    """Have a node's free memory (pool included) and CPUs room for the whole VM."""
    pooled = sum(pool.free * pool.page_size for pool in node.pools)
    return node.memory_free + pooled >= definition.memory.size and len(node.cpus) >= definition.cpu.vcpus


def plan_memory(definition: Definition, host: HostFacts) -> MemoryPlan:
    """Give what backs the guest's RAM, with the number of pages."""
    node = plan_node(definition, host).value
    backing = plan_backing(definition, host, node)
    pages = pages_needed(definition.memory.size, backing.page_size) if backing.page_size else 0
    return MemoryPlan(
        size=pages * backing.page_size if backing.page_size else definition.memory.size,
        backing="hugepages" if backing.page_size else "ordinary",
        page_size=backing.page_size or 4096,
        pages=pages,
        host_numa_node=node,
        asked=definition.memory.hugepages is not AUTO,
        node_asked=definition.memory.numa is not AUTO,
        lock=definition.memory.lock,
    )


def check_backing(definition: Definition, host: HostFacts, memory: MemoryPlan) -> tuple[Finding, ...]:
    """Say a fallback of auto (`host.hugepages.none`), a THP that is off, a node that is not there."""
    backing = plan_backing(definition, host, memory.host_numa_node)
    found: list[Finding] = []
    if backing.fell_back:
        pages = pages_needed(definition.memory.size, HUGE)
        fix = (
            f"sudo kvmlaunch preflight {definition.name} --apply --user {host.user.name or host.user.uid}"
            if not host.privileged
            else "--set memory.hugepages=2MiB   # an error in place of this fallback"
        )
        found.append(
            warning(
                code="host.hugepages.none",
                message=f"ordinary memory in place of {count(pages, 'huge page')}",
                key="memory.hugepages",
                why=backing.choice.reason,
                hint=fix,
            )
        )
    if memory.size != definition.memory.size:
        pages_text = f"{count(memory.pages, 'page')} of {render_size(memory.page_size)}"
        found.append(
            warning(
                code="host.hugepages.rounded",
                message=f"the guest gets {render_size(memory.size)}",
                key="memory.size",
                why=f"{render_size(definition.memory.size)} take {pages_text}",
                hint=f'memory = "{render_size(memory.size)}"',
            )
        )
    if memory.backing == "ordinary" and host.thp == "never":
        found.append(
            warning(
                code="host.thp.never",
                message="ordinary memory without transparent huge pages",
                key="memory.hugepages",
                why="/sys/kernel/mm/transparent_hugepage/enabled is never",
                hint=host.written_by_root("madvise", "/sys/kernel/mm/transparent_hugepage/enabled"),
            )
        )
    if memory.host_numa_node is not None and host.node(memory.host_numa_node) is None:
        there = ", ".join(str(node.number) for node in host.nodes) or "none"
        found.append(
            error(
                code="def.value.range",
                message=f"host NUMA node {memory.host_numa_node} does not exist",
                key="memory.numa",
                why=f"nodes of this host: {there}",
                hint='memory.numa = "auto"',
            )
        )
    return tuple(found)


def render_memory_size(size: int) -> str:
    """Give `-m`'s spelling of a size in bytes, exact: a bare number there means MiB."""
    for unit, length in (("G", GIB), ("M", MIB), ("K", 1024)):
        if size % length == 0:
            return f"{size // length}{unit}"
    return f"{size}B"


def size_field(definition: Definition, memory: MemoryPlan) -> Choice[str]:
    """Give the size as `-m` takes it: whole pages, as QEMU 10 refuses a file-backed size that is not."""
    written = "memory.size" in definition.origins
    if memory.size != definition.memory.size:
        return Choice(
            value=render_memory_size(memory.size),
            reason=f"{render_size(definition.memory.size)} rounded up to {count(memory.pages, 'whole page')}",
            source="measured: QEMU 10.0.2 refuses a size that is no multiple of the page",
            origin=definition.origin("memory.size"),
        )
    return Choice(
        value=render_memory_size(memory.size),
        reason="" if written else "the built-in default",
        source="" if written else "kvmlaunch: defaults",
        origin=definition.origin("memory.size"),
    )


def plan_prealloc(definition: Definition, memory: MemoryPlan) -> Choice[bool]:
    """Choose preallocation: with hugepages, so that a shortage shows at the start and not later as SIGBUS."""
    if definition.memory.prealloc is not AUTO:
        return by_hand(definition, "memory.prealloc", definition.memory.prealloc)
    if memory.backing == "hugepages":
        return Choice(
            value=True,
            reason="a shortage shows at the start, not later as SIGBUS",
            source="QEMU man page, -mem-prealloc",
            origin=BUILT_IN,
        )
    return Choice(
        value=False,
        reason="ordinary memory comes when the guest touches it",
        source="QEMU man page, -mem-prealloc",
        origin=BUILT_IN,
    )


def mount_choice(definition: Definition, host: HostFacts, memory: MemoryPlan) -> Choice[Place]:
    """Give the mount as the value of mem-path."""
    backing = plan_backing(definition, host, memory.host_numa_node).choice
    pages = f"{count(memory.pages, 'page')} of {render_size(memory.page_size)}"
    reason = f"a mount of the VM's own: the kernel reserves its {pages} for it alone"
    return Choice(value=Place(root="hugepages"), reason=reason, source=HUGETLB, origin=backing.origin)


def backend_fields(memory: MemoryPlan, *, shared: bool) -> tuple[Field, ...]:
    """Give the kind of an explicit backend, and its id."""
    source = "QEMU docs, tools/virtiofsd" if shared else "QEMU man page, -object"
    if memory.backing == "hugepages":
        kind, reason = "memory-backend-file", "hugepages are files of hugetlbfs"
    elif shared:
        kind, reason = "memory-backend-memfd", "virtiofsd reads and writes the guest's memory"
    else:
        kind, reason = "memory-backend-ram", "ordinary memory, bound to a node"
    return (field("", "memory.backend", fixed(kind, reason, source)), wiring("id", "memory", "mem0"))


def backend_option(definition: Definition, host: HostFacts, memory: MemoryPlan, *, shared: bool) -> Option:
    """Give an explicit backend: bound to a host NUMA node, shared with virtiofsd, or both."""
    size = Choice(
        value=memory.size, reason="as -m", source="QEMU man page, -object", origin=definition.origin("memory.size")
    )
    share = fixed(value=True, reason="virtiofsd maps it too", source="QEMU docs, tools/virtiofsd")
    mount = field("mem-path", "memory.hugepages.mount", mount_choice(definition, host, memory))
    node = memory.host_numa_node
    return pairs(
        "-object",
        "memory",
        *backend_fields(memory, shared=shared),
        *([mount] if memory.backing == "hugepages" else []),
        field("size", "memory.size", size),
        *([field("share", "memory.share", share)] if shared else []),
        field("prealloc", "memory.prealloc", plan_prealloc(definition, memory)),
        *(() if node is None else bound_fields(plan_node(definition, host), node)),
    )


def bound_fields(chosen: Choice[int | None], node: int) -> tuple[Field, ...]:
    """Give what binds a backend to a host NUMA node, and why that one."""
    number: Choice[int] = Choice(value=node, reason=chosen.reason, source=chosen.source, origin=chosen.origin)
    policy: Choice[str] = fixed("bind", "no page from a far node", "mbind(2)")  # type: ignore[assignment]
    return (field("host-nodes", "memory.numa", number), field("policy", "memory.numa.policy", policy))


def node_option() -> Option:
    """Give the guest's NUMA node that uses the backend."""
    node = fixed("node", "one guest NUMA node on one host node", "QEMU man page, -numa")
    return pairs("-numa", "memory", field("", "memory.guest-node", node), wiring("memdev", "memory", "mem0"))


def backing_options(definition: Definition, host: HostFacts, memory: MemoryPlan, *, shared: bool) -> tuple[Option, ...]:
    """Give `-m` and what backs it."""
    size = value("-m", "memory", "memory.size", size_field(definition, memory))
    if memory.host_numa_node is not None:
        return (size, backend_option(definition, host, memory, shared=shared), node_option())
    if shared:
        return (size, backend_option(definition, host, memory, shared=True))
    options = [size]
    if memory.backing == "hugepages":
        options.append(value("-mem-path", "memory", "memory.hugepages.mount", mount_choice(definition, host, memory)))
    prealloc = plan_prealloc(definition, memory)
    if prealloc.value:
        options.append(
            Option(flag="-mem-prealloc", form="bare", table="memory", fields=(field("", "memory.prealloc", prealloc),))
        )
    return tuple(options)


def lock_options(definition: Definition) -> tuple[Option, ...]:
    """Give `-overcommit mem-lock=on` where it is asked for."""
    if not definition.memory.lock:
        return ()
    lock: Choice[bool] = by_hand(definition, "memory.lock", definition.memory.lock)
    return (pairs("-overcommit", "memory", field("mem-lock", "memory.lock", lock)),)


def balloon_obstacle(definition: Definition, memory: MemoryPlan) -> tuple[str, Origin] | None:
    """Give why a balloon would give nothing back, or what another key asked for, with where that comes from."""
    if memory.backing == "hugepages":
        return "hugepages are not given back page by page", BUILT_IN
    if definition.memory.lock:
        return "locked memory is not given back", definition.origin("memory.lock")
    if definition.memory.prealloc is True:
        return "it would give back what prealloc took", definition.origin("memory.prealloc")
    return None


def plan_balloon(definition: Definition, memory: MemoryPlan) -> Choice[str]:
    """Choose the balloon: as written; else none where nothing can be given back, so that free pages return to the host.

    A profile wishes for one, and yields to what is written for the memory.
    """
    written, thwarted = definition.memory.balloon, balloon_obstacle(definition, memory)
    origin = definition.origin("memory.balloon")
    if written is not AUTO and (origin.kind != "profile" or thwarted is None):
        return by_hand(definition, "memory.balloon", written)
    if thwarted is not None:
        return Choice(value="off", reason=thwarted[0], source=POLICY, origin=thwarted[1])
    if definition.os == "windows":
        return Choice(
            value="off", reason="Windows needs a driver for it", source=POLICY, origin=definition.origin("os")
        )
    return Choice(
        value="on",
        reason="free pages of the guest return to the host",
        source="QEMU man page, virtio-balloon free-page-reporting",
        origin=BUILT_IN,
    )


def build_balloon(definition: Definition, memory: MemoryPlan) -> Part:
    """Give the balloon device."""
    balloon = plan_balloon(definition, memory)
    if balloon.value == "off":
        return Part()
    device: Choice[str] = Choice(
        value="virtio-balloon-pci", reason=balloon.reason, source=balloon.source, origin=balloon.origin
    )
    return Part(
        options=(
            pairs(
                "-device",
                "memory",
                field("", "memory.balloon", device),
                wiring("id", "memory.balloon", "balloon0"),
                field(
                    "free-page-reporting",
                    "memory.balloon.free-page-reporting",
                    fixed(value=True, reason="the guest names its free pages", source="QEMU virtio-balloon, 5.1"),
                ),
                field(
                    "deflate-on-oom",
                    "memory.balloon.deflate-on-oom",
                    fixed(value=True, reason="a guest short of memory takes it back", source="virtio 1.1, 5.5.6"),
                ),
            ),
        )
    )


def hugepage_choice(definition: Definition, host: HostFacts, memory: MemoryPlan) -> Field:
    """Give the decision on hugepages for `explain`, also where it leaves no argument."""
    backing = plan_backing(definition, host, memory.host_numa_node).choice
    return field("", "memory.hugepages", backing)


def build_memory(definition: Definition, host: HostFacts, memory: MemoryPlan, *, shared: bool) -> Part:
    """Give `-m` and its backing, with the promise that smaps must keep; `shared` with another process."""
    promise = MemoryPromise(
        size=memory.size,
        page_size=memory.page_size,
        lock=memory.lock,
        merge=definition.memory.ksm == "on" and memory.backing == "ordinary" and not shared,
        prealloc=plan_prealloc(definition, memory).value,
    )
    return Part(
        options=(*backing_options(definition, host, memory, shared=shared), *lock_options(definition)),
        promises=(promise,),
        findings=check_backing(definition, host, memory),
    )
