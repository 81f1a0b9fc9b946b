"""Networks: a backend and its NIC."""

from collections.abc import Iterator

from kvmlaunch.builder import names
from kvmlaunch.builder.option import BUILT_IN, Part, by_hand, field, fixed, pairs, wiring
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, Definition, Forward, Network
from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Field, PlannedListener, PlannedNetwork
from kvmlaunch.model.value import frozen

MOST_QUEUES = 8
RINGS = "QEMU docs, devices/virtio (rings); tx above 256 needs vhost-user"
TAP_SOURCE = "kvmlaunch docs, reference (networks)"


@frozen(kw_only=True)
class NetworkPlan:
    """A network with everything resolved that other parts ask for."""

    name: str
    network: Network
    type: Choice[str]
    ifname: str
    queues: Choice[int]
    vhost: Choice[bool]

    @property
    def table(self) -> str:
        """The definition's table."""
        return f"network.{self.name}"


def networks_of(definition: Definition) -> dict[str, Network]:
    """Give the networks; one with user networking where none is written."""
    return dict(definition.network) or {names.DEFAULT_NETWORK: Network()}


def plan_type(definition: Definition, name: str, network: Network) -> Choice[str]:
    """Choose the backend: what the other keys of the table say, else user networking."""
    key = f"network.{name}.type"
    if network.type is not AUTO:
        return by_hand(definition, key, network.type)
    if network.bridge:
        return Choice(
            value="bridge",
            reason=f"a tap of ours joins {network.bridge}",
            source=TAP_SOURCE,
            origin=definition.origin(f"network.{name}.bridge"),
        )
    if network.ifname:
        return Choice(
            value="tap",
            reason=f"{network.ifname} exists already and is only checked",
            source=TAP_SOURCE,
            origin=definition.origin(f"network.{name}.ifname"),
        )
    return Choice(
        value="user",
        reason="no bridge is named: the guest reaches out, only forwards reach in",
        source="QEMU man page, -netdev user",
        origin=definition.origin(key),
    )


def plan_queues(definition: Definition, name: str, network: Network, type_: str) -> Choice[int]:
    """Choose the queue pairs: one a vCPU up to 8 with a tap of ours, else one."""
    if network.queues is not AUTO:
        return by_hand(definition, f"network.{name}.queues", network.queues)
    if type_ == "bridge" and network.model == "virtio-net":
        number = min(definition.cpu.vcpus, MOST_QUEUES)
        return Choice(
            value=number,
            reason=f"one a vCPU, at most {MOST_QUEUES}",
            source="kernel docs, networking/scaling",
            origin=definition.origin("cpu.vcpus"),
        )
    return Choice(
        value=1, reason="several queues need a tap of ours", source="QEMU man page, -netdev tap queues", origin=BUILT_IN
    )


def plan_vhost(definition: Definition, name: str, network: Network, host: HostFacts, type_: str) -> Choice[bool]:
    """Choose the in-kernel backend: exactly where /dev/vhost-net opens, as QEMU 7.2 aborts without it."""
    if network.vhost is not AUTO:
        return by_hand(definition, f"network.{name}.vhost", network.vhost)
    fact = Origin(kind="host", place="/dev/vhost-net", key=f"network.{name}.vhost")
    if type_ not in {"bridge", "tap"}:
        return Choice(value=False, reason="vhost serves taps only", source=TAP_SOURCE, origin=fact)
    reason = "/dev/vhost-net opens" if host.vhost_net else "/dev/vhost-net does not open (modprobe vhost_net)"
    return Choice(value=host.vhost_net, reason=reason, source=TAP_SOURCE, origin=fact)


def plan_network(definition: Definition, name: str, network: Network, host: HostFacts) -> NetworkPlan:
    """Resolve what stands at auto."""
    type_ = plan_type(definition, name, network)
    ifname = names.tap_name(host.caller_uid, definition.name, name) if type_.value == "bridge" else network.ifname or ""
    return NetworkPlan(
        name=name,
        network=network,
        type=type_,
        ifname=ifname,
        queues=plan_queues(definition, name, network, type_.value),
        vhost=plan_vhost(definition, name, network, host, type_.value),
    )


def check_network(plan: NetworkPlan, host: HostFacts) -> Iterator[Finding]:
    """Check that the table's keys agree and that what was written by hand can be had."""
    table, network, type_ = plan.table, plan.network, plan.type.value
    if type_ == "bridge" and not network.bridge:
        yield error(
            code="def.value.choice",
            message="type bridge needs the bridge's name",
            key=f"{table}.type",
            why="bridge is not written",
            hint='bridge = "br0"',
        )
    if type_ == "tap" and not network.ifname:
        yield error(
            code="def.value.choice",
            message="type tap needs the tap's name",
            key=f"{table}.type",
            why="ifname is not written",
            hint='ifname = "tap0"',
        )
    if network.forwards and type_ != "user":
        yield error(
            code="def.value.choice",
            message="forwards belong to user networking",
            key=f"{table}.forwards",
            why=f"the type is {type_}",
            hint='type = "user"',
        )
    if (
        network.queues is not AUTO
        and network.queues > 1
        and (type_ not in {"bridge", "tap"} or network.model != "virtio-net")
    ):
        yield error(
            code="def.value.choice",
            message="several queues need virtio-net on a tap",
            key=f"{table}.queues",
            why=f"{network.model}, {type_}",
            hint='queues = "auto"',
        )
    if type_ == "user" and any(":" in forward.address for forward in network.forwards):
        yield error(
            code="qemu.capability",
            message="user networking forwards from IPv4 addresses only",
            key=f"{table}.forwards",
            why="QEMU 7.2 and 10.0 refuse an IPv6 address in hostfwd",
            hint=", ".join(
                f'"{each.protocol}:127.0.0.1:{each.host_port}:{each.guest_port}"'
                for each in network.forwards
                if ":" in each.address
            ),
        )
    if network.vhost is True and not host.vhost_net:
        yield error(
            code="host.vhost.missing",
            message="/dev/vhost-net cannot be opened",
            key=f"{table}.vhost",
            why="QEMU 7.2 aborts without it",
            hint=host.by_root("modprobe vhost_net"),
        )


def forward_text(forward: Forward) -> str:
    """Give QEMU's spelling of a forward: `tcp:127.0.0.1:8080-:80`."""
    address = f"[{forward.address}]" if ":" in forward.address else forward.address
    return f"{forward.protocol}:{address}:{forward.host_port}-:{forward.guest_port}"


def backend_fields(plan: NetworkPlan, definition: Definition) -> Iterator[Field]:
    """Give the fields of `-netdev`."""
    table = plan.table
    tap = plan.type.value in {"bridge", "tap"}
    yield field(
        "",
        f"{table}.type",
        Choice(
            value="tap" if tap else "user", reason=plan.type.reason, source=plan.type.source, origin=plan.type.origin
        ),
    )
    yield wiring("id", table, names.netdev_id(plan.name))
    if not tap:
        for forward in plan.network.forwards:
            yield field(
                "hostfwd",
                f"{table}.forwards",
                by_hand(definition, f"{table}.forwards", forward_text(forward)),
            )
        return
    if plan.network.ifname:
        yield field(
            "ifname",
            f"{table}.ifname",
            by_hand(definition, f"{table}.ifname", plan.ifname),
        )
    else:
        yield field(
            "ifname",
            f"{table}.ifname",
            fixed(plan.ifname, "a tap of ours, named by a hash of user, VM and network", TAP_SOURCE),
        )
    for script in ("script", "downscript"):
        yield field(
            script,
            f"{table}.{script}",
            fixed("no", "QEMU runs no script; the sandbox would kill it", "QEMU man page, -netdev tap"),
        )
    yield field("vhost", f"{table}.vhost", plan.vhost)
    if plan.queues.value > 1:
        yield field("queues", f"{table}.queues", plan.queues)


def nic_fields(plan: NetworkPlan, definition: Definition, host: HostFacts) -> Iterator[Field]:
    """Give the fields of the NIC's `-device`."""
    table, network = plan.table, plan.network
    written = f"{table}.model" in definition.origins
    device = {"virtio-net": "virtio-net-pci", "e1000e": "e1000e"}[network.model]
    yield field(
        "",
        f"{table}.model",
        Choice(
            value=device,
            reason="" if written else "the fastest NIC that a guest has a driver for",
            source="" if written else "QEMU docs, devices/virtio",
            origin=definition.origin(f"{table}.model"),
        ),
    )
    yield wiring("netdev", table, names.netdev_id(plan.name))
    yield field(
        "id",
        f"{table}.device",
        fixed(names.nic_id(plan.name), "an id computed from the name", "kvmlaunch: names, not numbers"),
    )
    yield field("mac", f"{table}.mac", plan_mac(plan, definition, host))
    if network.model != "virtio-net":
        return
    if plan.queues.value > 1:
        yield field("mq", f"{table}.mq", fixed(value=True, reason="several queues", source="QEMU, virtio-net mq"))
        yield field(
            "vectors",
            f"{table}.vectors",
            fixed(
                2 * plan.queues.value + 2,
                "2 × queues + 2: one interrupt a queue, configuration and control",
                "linux-kvm wiki, Multiqueue",
            ),
        )
    if plan.type.value != "user":
        yield field("rx_queue_size", f"{table}.rx_queue_size", fixed(1024, "bursts are kept; tx stays 256", RINGS))
    if network.mtu:
        yield field(
            "host_mtu",
            f"{table}.mtu",
            by_hand(definition, f"{table}.mtu", network.mtu),
        )


def plan_mac(plan: NetworkPlan, definition: Definition, host: HostFacts) -> Choice[str]:
    """Choose the MAC: computed, so it is stable and differs from every other guest's."""
    if plan.network.mac is not AUTO:
        return by_hand(definition, f"{plan.table}.mac", str(plan.network.mac))
    mac = names.mac_address(host.machine_id, host.caller_uid, definition.name, plan.name)
    return Choice(
        value=mac,
        reason="computed from machine-id, user, VM and network: stable, and other for every other name",
        source="kvmlaunch: names, not numbers",
        origin=Origin(kind="host", place="/etc/machine-id", key=f"{plan.table}.mac"),
    )


def build_network(plan: NetworkPlan, definition: Definition, host: HostFacts) -> Part:
    """Give a network's backend and NIC; type none has neither."""
    findings = tuple(check_network(plan, host))
    if plan.type.value == "none":
        return Part(findings=findings)
    return Part(
        options=(
            pairs("-netdev", plan.table, *backend_fields(plan, definition)),
            pairs("-device", plan.table, *nic_fields(plan, definition, host)),
        ),
        findings=findings,
    )


def planned(plan: NetworkPlan, definition: Definition, host: HostFacts) -> PlannedNetwork:
    """Give the network as the checks want it."""
    return PlannedNetwork(
        table=plan.table,
        type=plan.type.value,
        mac=plan_mac(plan, definition, host).value if plan.type.value != "none" else "",
        bridge=plan.network.bridge or "",
        ifname=plan.ifname,
        owned=plan.type.value == "bridge",
        queues=plan.queues.value,
        mtu=plan.network.mtu,
        vhost=plan.vhost.value,
    )


def listeners(plan: NetworkPlan) -> tuple[PlannedListener, ...]:
    """Give the ports of the host that QEMU will bind."""
    return tuple(
        PlannedListener(
            key=f"{plan.table}.forwards",
            protocol=forward.protocol,
            address=forward.address,
            port=forward.host_port,
            guest_port=forward.guest_port,
        )
        for forward in (plan.network.forwards if plan.type.value == "user" else ())
    )
