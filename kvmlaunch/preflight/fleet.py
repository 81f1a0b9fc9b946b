"""Whether several VMs can run on this host at once: what all of them take together, pure.

The VMs are gone through in the order of their definitions, those that run before all others.  One that fits beside
those before it takes its share; one that does not is named and takes nothing.  So each is named that does not fit, and
no other.  Every claim is looked up by what is claimed, so the work grows with the number of VMs and no faster.
"""

from collections.abc import Callable, Iterator, Sequence
from shlex import quote
from typing import Final

from attrs import Factory, define

from kvmlaunch.model.address import clashing
from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.host import HostFacts, HostNode, HugepagePool
from kvmlaunch.model.plan import Plan, PlannedDisk, PlannedListener
from kvmlaunch.model.value import frozen
from kvmlaunch.units import GIB, MIB, count, render_cpus, render_size

PORTS: Final = range(1024, 1 << 16)
SMALLEST_GUEST: Final = 64 * MIB  # below it no smaller guest is proposed


@frozen(kw_only=True)
class Member:
    """A VM of the fleet: its plan, and the host that it was planned on, with what this VM holds there already."""

    plan: Plan
    host: HostFacts

    @property
    def holds_memory(self) -> bool:
        """Has it its memory already, so that what is free and available lacks it."""
        memory = self.plan.memory
        prepared = memory.backing == "hugepages" and self.host.holds_mount(memory.page_size, memory.pages)
        return prepared or self.host.held.running


@frozen(kw_only=True)
class Demand:
    """What a VM takes of the host's memory: free pages, `new` bytes beyond them, and ordinary memory that it has.

    `new` are pages that its pool must grow by, or ordinary memory.  `node` is the host NUMA node that gives all this.
    """

    pages: int = 0
    new: int = 0
    has: int = 0
    node: int | None = None


@frozen(kw_only=True)
class Use:
    """Who uses a file of the host, and as what."""

    vm: str
    table: str
    readonly: bool


@define(kw_only=True)
class Budget:
    """Bytes that the host can give: `whole`, in words `what`, less what it keeps and what was taken of it."""

    whole: int
    what: str
    kept: int
    taken: int = 0

    @property
    def left(self) -> int:
        """Bytes that can still be taken; below 0 where too much was taken before."""
        return self.whole - self.kept - self.taken


@define(kw_only=True)
class Claims:
    """What the VMs that fit have taken so far; lives as long as one check_fleet.

    `free` are free pages by page size and host NUMA node, None for the whole host.  `available` is what can be had
    now, `outside` what lies outside the pools, whoever has it now: a VM that runs may not have touched all of its own.
    Ports are looked up by protocol and number, then by address; `bound` are those of this host's processes,
    `offered` those that a hint names already, and `searched` where the search for one ended.
    """

    available: Budget
    outside: Budget
    nodes: dict[int, Budget]
    free: dict[tuple[int, int | None], int]
    bound: frozenset[tuple[str, int]]
    cpus: dict[int, str] = Factory(dict)
    ports: dict[tuple[str, int], dict[str, str]] = Factory(dict)
    uuids: dict[str, str] = Factory(dict)
    macs: dict[str, str] = Factory(dict)
    taps: dict[str, str] = Factory(dict)
    files: dict[str, Use] = Factory(dict)
    offered: set[tuple[str, int]] = Factory(set)
    searched: dict[tuple[str, int], int] = Factory(dict)


def check_fleet(members: Sequence[Member], host: HostFacts) -> tuple[tuple[Finding, ...], ...]:
    """Give for each VM, in their order, why it cannot run beside those before it: an error a conflict, none if it can.

    Findings: `host.hugepages.short`, `host.memory.short`, `host.port.used`, `disk.locked`, `fleet.pin`, `fleet.mac`,
    `fleet.tap`, `fleet.uuid`.  A VM is counted as planned, whether or not something else stands in its way.
    """
    claims = open_claims(host)
    found: dict[int, tuple[Finding, ...]] = {}
    for index in sorted(range(len(members)), key=lambda index: not members[index].host.held.running):
        member = members[index]
        found[index] = tuple(finding for check, _ in SUBJECTS for finding in check(member, claims))
        if not found[index] or member.host.held.running:
            for _, claim in SUBJECTS:
                claim(member, claims)
    return tuple(found[index] for index in range(len(members)))


def open_claims(host: HostFacts) -> Claims:
    """Give what the host has before the first VM takes of it; kept memory is shared by the nodes as they share RAM."""
    nodes = {
        node.number: Budget(
            whole=outside_pools(node.memory_total, node.pools),
            what=f"of NUMA node {node.number} lie outside its pools",
            kept=host.kept_memory * node.memory_total // max(1, sum(each.memory_total for each in host.nodes)),
        )
        for node in host.nodes
    }
    free: dict[tuple[int, int | None], int] = {(pool.page_size, None): pool.available for pool in host.pools}
    free |= {(pool.page_size, node.number): pool.free for node in host.nodes for pool in node.pools}
    return Claims(
        available=Budget(whole=host.memory.available, what="are available", kept=host.kept_memory),
        outside=Budget(
            whole=outside_pools(host.memory.total, host.pools),
            what="lie outside the hugepage pools",
            kept=host.kept_memory,
        ),
        nodes=nodes,
        free=free,
        bound=frozenset((listener.protocol, listener.port) for listener in host.listeners),
    )


def outside_pools(total: int, pools: Sequence[HugepagePool]) -> int:
    """Give the bytes that are in no hugepage pool: all that pools can grow by, and ordinary memory can be."""
    return total - sum(pool.total * pool.page_size for pool in pools)


def demand_on(member: Member, claims: Claims, node: int | None) -> Demand:
    """Give what a VM takes where this node gives it, None for any."""
    memory, held = member.plan.memory, member.host.held
    if member.holds_memory:
        return Demand(has=0 if memory.pages else memory.size, node=node)
    if memory.backing == "ordinary":
        return Demand(new=memory.size, node=node)
    own = (held.mount_size or 0) // memory.page_size if held.mount_page_size == memory.page_size else 0
    wanted = max(0, memory.pages - own)
    everywhere = claims.free.get((memory.page_size, None), 0)
    pages = min(wanted, everywhere, claims.free.get((memory.page_size, node), 0))
    return Demand(pages=pages, new=(wanted - pages) * memory.page_size, node=node)


def plan_demand(member: Member, claims: Claims) -> Demand:
    """Choose where a VM's memory comes from: its node by hand, or what it has; auto takes another node, then any.

    A start sees what those before it have taken, and chooses anew; the plans here were all made without each other.
    """
    memory = member.plan.memory
    if memory.host_numa_node is None or memory.node_asked or member.holds_memory:
        return demand_on(member, claims, memory.host_numa_node)
    others = sorted(member.host.nodes, key=lambda node: -claims.nodes[node.number].left)
    planned = [node for node in others if node.number == memory.host_numa_node]
    demands = (demand_on(member, claims, node.number) for node in (*planned, *others) if has_cpus(node, member.plan))
    fitting = (demand for demand in demands if tightest(demand, claims) is None)
    return next(fitting, None) or demand_on(member, claims, None)


def has_cpus(node: HostNode, plan: Plan) -> bool:
    """Has a node as many CPUs as the VM has vCPUs."""
    return len(node.cpus) >= plan.vcpus


def budgets_of(demand: Demand, claims: Claims) -> tuple[Budget, ...]:
    """Give the budgets that a demand draws on."""
    node = None if demand.node is None else claims.nodes.get(demand.node)
    return (claims.available, claims.outside, *([node] if node else []))


def tightest(demand: Demand, claims: Claims) -> Budget | None:
    """Give the budget that has least left where that is too little, None when all have enough."""
    budget = min(budgets_of(demand, claims), key=lambda budget: budget.left)
    return budget if demand.new and demand.new > budget.left else None


def check_memory(member: Member, claims: Claims) -> Iterator[Finding]:
    """Refuse pages (`host.hugepages.short`) or memory (`host.memory.short`) that the host does not have for all."""
    memory, demand = member.plan.memory, plan_demand(member, claims)
    budget = tightest(demand, claims)
    if budget is None:
        return
    huge = memory.backing == "hugepages"
    what = f"{count(memory.pages, 'huge page')} of {render_size(memory.page_size)}" if huge else rounded(memory.size)
    free = f"{count(demand.pages, 'page')} {'is' if demand.pages == 1 else 'are'} free, " if huge else ""
    why = (
        f"{free}{rounded(demand.new)} more are needed, {rounded(max(0, budget.left))} are left: "
        f"{rounded(budget.whole)} {budget.what}, the host keeps {rounded(budget.kept)},"
        f" the VMs that fit take {rounded(budget.taken)}"
    )
    yield error(
        code="host.hugepages.short" if huge else "host.memory.short",
        message=f"{what} cannot be had" + (" beside the other VMs" if budget.taken else ""),
        key="memory.size",
        why=why,
        hint=memory_hint(member.plan, memory.size - demand.new + budget.left),
    )


def memory_hint(plan: Plan, most: int) -> str:
    """Give the size that would fit, or how to leave the VM out."""
    if most < SMALLEST_GUEST:
        return f"lifecycle.autostart = false   # in the definition of {plan.name}: up --all then leaves it out"
    unit = GIB if most >= GIB else MIB
    return f"kvmlaunch up {plan.name} --set memory.size={render_size(most // unit * unit)}"


def rounded(size: int) -> str:
    """Give a size for people, down to whole MiB."""
    return render_size(size // MIB * MIB) if abs(size) >= MIB else "0MiB"


def claim_memory(member: Member, claims: Claims) -> None:
    """Take what a VM takes of pages and memory; what it holds already is lacking in both."""
    demand, page_size = plan_demand(member, claims), member.plan.memory.page_size
    for place in {None, demand.node} if demand.pages else ():
        claims.free[page_size, place] -= demand.pages
    for budget in budgets_of(demand, claims):
        budget.taken += demand.new + (0 if budget is claims.available else demand.has)


def thread_pins(member: Member) -> tuple[int, ...]:
    """Give the host CPUs that I/O threads have one each; what vCPUs leave is shared by all and claimed by none."""
    pins = member.plan.iothread_pins
    return pins if len(pins) == len(member.plan.iothreads) else ()


def check_pins(member: Member, claims: Claims) -> Iterator[Finding]:
    """Refuse a host CPU that another VM's vCPU or I/O thread is pinned to (`fleet.pin`)."""
    shared: dict[str, list[int]] = {}
    for cpu in dict.fromkeys((*member.plan.vcpu_pins, *thread_pins(member))):
        if cpu in claims.cpus:
            shared.setdefault(claims.cpus[cpu], []).append(cpu)
    if not shared:
        return
    cpus = tuple(cpu for each in shared.values() for cpu in each)
    free = free_cpus(member, claims)
    yield error(
        code="fleet.pin",
        message=f"another VM is pinned to host CPU {render_cpus(cpus)}",
        key="cpu.pin",
        why="; ".join(f"{vm} has CPU {render_cpus(tuple(its))}" for vm, its in shared.items())
        + f", {member.plan.name} wants {render_cpus((*member.plan.vcpu_pins, *thread_pins(member)))}",
        hint=f"kvmlaunch up {member.plan.name} --set cpu.pin={render_cpus(free) or 'none'}",
    )


def free_cpus(member: Member, claims: Claims) -> tuple[int, ...]:
    """Give CPUs of one node that nobody before is pinned to, as many as the VM wants; none where no node has them."""
    wanted = len(member.plan.vcpu_pins)
    free = (tuple(cpu for cpu in node.cpus if cpu not in claims.cpus) for node in member.host.nodes)
    return next((cpus[-wanted:] for cpus in free if len(cpus) >= wanted), ())


def claim_pins(member: Member, claims: Claims) -> None:
    """Take the host CPUs that a VM's vCPUs and I/O threads are pinned to."""
    for cpu in (*member.plan.vcpu_pins, *thread_pins(member)):
        claims.cpus.setdefault(cpu, member.plan.name)


def check_ports(member: Member, claims: Claims) -> Iterator[Finding]:
    """Refuse a port that another VM binds (`host.port.used`); every address overlaps each."""
    for wanted in member.plan.listeners:
        there = claims.ports.get((wanted.protocol, wanted.port), {})
        address = clashing(wanted.address, there)
        if address is not None:
            yield error(
                code="host.port.used",
                message=f"{wanted.protocol} port {wanted.port} of {wanted.address} is another VM's",
                key=wanted.key,
                why=f"{there[address]} binds {address or 'every address'}:{wanted.port}",
                hint=port_hint(member.plan, wanted, claims),
            )


def port_hint(plan: Plan, wanted: PlannedListener, claims: Claims) -> str:
    """Give the same forward or address with the next port that nobody before wants."""
    own: set[tuple[str, int]] = {(each.protocol, each.port) for each in plan.listeners}
    begin = claims.searched.get((wanted.protocol, wanted.port), wanted.port)
    later = (port for ports in (range(begin, PORTS.stop), PORTS) for port in ports)
    places = ((wanted.protocol, port) for port in later)
    free = next((port for _, port in (each for each in places if not is_taken(each, own, claims))), wanted.port)
    claims.offered.add((wanted.protocol, free))
    claims.searched[wanted.protocol, wanted.port] = free
    if wanted.guest_port is None:
        return f"kvmlaunch up {plan.name} --set {wanted.key}={wanted.address}:{free}"
    return f'"{wanted.protocol}:{wanted.address}:{free}:{wanted.guest_port}"   # in {wanted.key}'


def is_taken(place: tuple[str, int], own: set[tuple[str, int]], claims: Claims) -> bool:
    """Is a port wanted by this VM or one before it, offered to one, or bound by a process of this host."""
    return place in own or place in claims.ports or place in claims.bound or place in claims.offered


def claim_ports(member: Member, claims: Claims) -> None:
    """Take the ports that a VM binds."""
    for each in member.plan.listeners:
        claims.ports.setdefault((each.protocol, each.port), {}).setdefault(each.address, member.plan.name)


def check_networks(member: Member, claims: Claims) -> Iterator[Finding]:
    """Refuse a MAC address (`fleet.mac`) and a tap (`fleet.tap`) that another VM has."""
    for network in member.plan.networks:
        if network.mac in claims.macs:
            yield error(
                code="fleet.mac",
                message=f"{network.mac} is the MAC address of two VMs",
                key=f"{network.table}.mac",
                why=f"{claims.macs[network.mac]} has it too",
                hint=f'mac = "auto"   # in [{network.table}]: computed from the VM\'s name',
            )
        if network.ifname in claims.taps:
            device = member.host.network_devices.get(network.ifname)
            bridge = device.master if device and device.master else "br0"
            yield error(
                code="fleet.tap",
                message=f"{network.ifname} is the tap of two VMs",
                key=f"{network.table}.ifname",
                why=f"{claims.taps[network.ifname]} uses it too",
                hint=f'bridge = "{bridge}"   # in [{network.table}] in place of ifname: a tap of its own',
            )


def claim_networks(member: Member, claims: Claims) -> None:
    """Take the MAC addresses and taps of a VM."""
    for network in member.plan.networks:
        if network.mac:
            claims.macs.setdefault(network.mac, member.plan.name)
        if network.ifname:
            claims.taps.setdefault(network.ifname, member.plan.name)


def check_uuid(member: Member, claims: Claims) -> Iterator[Finding]:
    """Refuse a UUID that another VM has too, one of them by hand (`fleet.uuid`): guests are told apart by it."""
    uuid = member.plan.system_uuid or member.plan.uuid
    if uuid in claims.uuids:
        other = claims.uuids[uuid]
        where = "" if member.plan.system_uuid else f", in the definition of {other}"
        yield error(
            code="fleet.uuid",
            message=f"{uuid} is the UUID of two VMs",
            key="uuid",
            why=f"{other} has it too",
            hint=f'uuid = "auto"   # computed from the VM\'s name{where}',
        )


def claim_uuid(member: Member, claims: Claims) -> None:
    """Take the UUID of a VM."""
    claims.uuids.setdefault(member.plan.system_uuid or member.plan.uuid, member.plan.name)


def uses_of(member: Member, disk: PlannedDisk) -> Iterator[tuple[str, tuple[str, ...], Use]]:
    """Give every file that a disk opens: its path, what it is known by (inode and real path), and how it is used.

    A backing file is only read, and is known by its path alone.
    """
    facts, name = member.host.paths.get(disk.path), member.plan.name
    known = (facts.inode, facts.real or str(disk.path)) if facts else (str(disk.path),)
    use = Use(vm=name, table=disk.table, readonly=disk.readonly)
    yield str(disk.path), tuple(each for each in known if each), use
    for path in facts.chain if facts else ():
        yield path, (path,), Use(vm=name, table=disk.table, readonly=True)


def check_disks(member: Member, claims: Claims) -> Iterator[Finding]:
    """Refuse a file that another VM uses too (`disk.locked`), unless both only read it."""
    for disk in member.plan.disks:
        for path, known, use in uses_of(member, disk):
            others = (claims.files[each] for each in known if each in claims.files)
            other = next((each for each in others if not (each.readonly and use.readonly)), None)
            if other:
                yield error(
                    code="disk.locked",
                    message=f"{path} is used by two VMs",
                    key=f"{disk.table}.path",
                    why=f"{other.vm} {'reads' if other.readonly else 'writes'} it as {other.table},"
                    f" {use.vm} {'reads' if use.readonly else 'writes'} it",
                    hint=disk_hint(use, disk),
                )


def disk_hint(use: Use, disk: PlannedDisk) -> str:
    """Give how a VM gets an image of its own."""
    if disk.path.is_relative_to("/dev"):
        return f"readonly = true   # in [{disk.table}] of both VMs"
    name = disk.table.partition(".")[2]
    own = disk.path.with_name(f"{use.vm}-{name}{disk.path.suffix}")
    own = disk.path.with_name(f"{use.vm}-{name}-own{disk.path.suffix}") if own == disk.path else own
    words = f"{use.vm}:{name} {quote(str(own))}" + ("" if own.suffix else f" --format {disk.format}")
    return f'kvmlaunch disk convert {words}   # while neither runs; then path = "{own}" in [{disk.table}]'


def claim_disks(member: Member, claims: Claims) -> None:
    """Take the files of a VM; who writes one counts before who reads it."""
    for disk in member.plan.disks:
        for _, known, use in uses_of(member, disk):
            for each in known:
                if each not in claims.files or (claims.files[each].readonly and not use.readonly):
                    claims.files[each] = use


Check = Callable[[Member, Claims], Iterator[Finding]]
Claim = Callable[[Member, Claims], None]
SUBJECTS: Final[tuple[tuple[Check, Claim], ...]] = (
    (check_memory, claim_memory),
    (check_uuid, claim_uuid),
    (check_pins, claim_pins),
    (check_ports, claim_ports),
    (check_networks, claim_networks),
    (check_disks, claim_disks),
)
