"""Networks: bridges and taps are there, ports are free; which taps must be made."""

from collections.abc import Iterator

from kvmlaunch.model.address import collide
from kvmlaunch.model.change import Change, TapChange
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts, Listener, NetworkDevice
from kvmlaunch.model.plan import Plan, PlannedListener, PlannedNetwork
from kvmlaunch.units import count


def overlaps(wanted: PlannedListener, there: Listener) -> bool:
    """Would binding fail: the same port, at addresses that collide."""
    same_port = wanted.protocol == there.protocol and wanted.port == there.port
    return same_port and collide(wanted.address, there.address)


def is_own(there: Listener, host: HostFacts) -> bool:
    """Is a port the running VM's own, as far as that can be seen."""
    return host.held.running and (there.holder is None or there.holder.pid == host.held.pid)


def check_ports(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Refuse a port that is taken (`host.port.used`), naming who has it; the VM's own does not count."""
    for wanted in plan.listeners:
        for there in host.listeners:
            if overlaps(wanted, there) and not is_own(there, host):
                holder = there.holder
                who = f"pid {holder.pid} ({holder.command})" if holder else "a process that cannot be seen from here"
                yield error(
                    code="host.port.used",
                    message=f"{wanted.protocol} port {wanted.port} of {wanted.address} is taken",
                    key=wanted.key,
                    why=f"{who} listens on {there.address or 'every address'}",
                    hint=f"ss -lpn 'sport = :{wanted.port}'   # shows who; or choose another host port",
                )
                break


def check_bridge(network: PlannedNetwork, host: HostFacts) -> Iterator[Finding]:
    """Check that the bridge is there (`host.bridge.missing`)."""
    device = host.network_devices.get(network.bridge)
    if network.type == "bridge" and network.bridge and (device is None or device.kind != "bridge"):
        bridges = ", ".join(name for name, each in host.network_devices.items() if each.kind == "bridge") or "none"
        what = "is no bridge" if device else "does not exist"
        make = host.by_root(f"ip link add {network.bridge} type bridge", f"ip link set {network.bridge} up")
        yield error(
            code="host.bridge.missing",
            message=f"{network.bridge} {what}",
            key=f"{network.table}.bridge",
            why=f"bridges of this host: {bridges}",
            hint="ip -br link show type bridge   # lists those there are; or another name" if device else make,
        )


def check_tap(network: PlannedNetwork, host: HostFacts) -> Iterator[Finding]:
    """Check a tap: it is there and the VM's user may open it (`host.tap.missing`)."""
    device = host.network_devices.get(network.ifname)
    if network.type == "tap" and (device is None or device.kind != "tap"):
        yield error(
            code="host.tap.missing",
            message=f"{network.ifname} {'is no tap' if device else 'does not exist'}",
            key=f"{network.table}.ifname",
            why="type tap uses an existing one",
            hint="ip tuntap show   # lists those there are; or another name"
            if device
            else host.by_root(f"ip tuntap add {network.ifname} mode tap user {host.user.name or host.user.uid}"),
        )
    elif device and device.kind == "tap" and host.user.uid not in {0, device.owner_uid}:
        yield error(
            code="host.tap.missing",
            message=f"{network.ifname} belongs to another user",
            key=f"{network.table}.ifname",
            why=f"its owner is uid {device.owner_uid}, QEMU runs as {host.user.uid}",
            hint=host.by_root(
                f"ip tuntap del {network.ifname} mode tap{' multi_queue' if device.multi_queue else ''}",
                f"ip tuntap add {network.ifname} mode tap{' multi_queue' if network.queues > 1 else ''}"
                f" user {host.user.name or host.user.uid}",
            ),
        )
    elif device and network.type == "tap" and device.multi_queue != (network.queues > 1):
        many = network.queues > 1
        yield error(
            code="host.tap.missing",
            message=f"{network.ifname} has {'one queue' if many else 'several queues'}",
            key=f"{network.table}.queues",
            why=f"the NIC has {count(network.queues, 'queue')}, and a tap is opened as it was made",
            hint=host.by_root(
                f"ip tuntap del {network.ifname} mode tap",
                f"ip tuntap add {network.ifname} mode tap multi_queue user {host.user.name or host.user.uid}",
            )
            if many
            else f"queues = 2   # in [{network.table}]: so a tap with several is opened",
        )


def check_own_tap(plan: Plan, network: PlannedNetwork, host: HostFacts) -> Iterator[Finding]:
    """Check that a tap of ours is there or can be made: only root makes one (`host.privilege`)."""
    device = host.network_devices.get(network.ifname)
    if network.owned and not is_as_planned(network, device, host) and not host.privileged:
        user = host.user.name or str(host.user.uid)
        yield error(
            code="host.privilege",
            message=f"only root makes a tap on {network.bridge}",
            key=f"{network.table}.bridge",
            why="it is prepared otherwise" if device else "nothing is prepared",
            hint=f"sudo kvmlaunch preflight {plan.name} --apply --user {user}",
        )
    elif network.owned and device is not None:
        yield from check_tap(network, host)


def check_state(network: PlannedNetwork, host: HostFacts) -> Iterator[Finding]:
    """Tell of a bridge or tap through which nothing would pass, or no packet as large as the guest is told it may send.

    Down is a warning (`host.network.down`), as it may come up later; so is a port of the bridge with a smaller MTU.  A
    tap that is not ours keeps its own: a larger wish is an error (`host.network.mtu`).
    """
    name = network.bridge if network.type == "bridge" else network.ifname
    device, wanted = host.network_devices.get(name), network.mtu or 0
    if device is None:
        return
    if not device.up:
        yield warning(
            code="host.network.down",
            message=f"{name} is down: nothing passes",
            key=f"{network.table}.{'bridge' if network.type == 'bridge' else 'ifname'}",
            why=f"the flags of /sys/class/net/{name} lack IFF_UP",
            hint=host.by_root(f"ip link set {name} up"),
        )
    if network.type == "tap" and device.mtu < wanted:
        yield error(
            code="host.network.mtu",
            message=f"{name} takes packets of {device.mtu} bytes, the guest is told {wanted}",
            key=f"{network.table}.mtu",
            why="a tap that exists is used as it is",
            hint=host.by_root(f"ip link set {name} mtu {wanted}"),
        )
    # What another VM's tap takes is that VM's matter.
    ports = [each for each in host.network_devices.values() if each.master == name and each.kind != "tap"]
    for port in ports if network.type == "bridge" else ():
        if port.mtu < wanted:
            yield warning(
                code="host.network.mtu",
                message=f"{port.name} of {name} takes packets of {port.mtu} bytes, the guest is told {wanted}",
                key=f"{network.table}.mtu",
                why="larger ones that are to pass there are lost",
                hint=host.by_root(f"ip link set {port.name} mtu {wanted}"),
            )


def check_networks(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Check every network of a plan."""
    for network in plan.networks:
        yield from check_state(network, host)
        yield from check_bridge(network, host)
        yield from check_own_tap(plan, network, host) if network.owned else check_tap(network, host)


def is_as_planned(network: PlannedNetwork, device: NetworkDevice | None, host: HostFacts) -> bool:
    """Is a tap of ours there, its user's, up, with its queues and MTU, and joined to the bridge that is wanted now."""
    if device is None:
        return False
    mtu = network.mtu or device.mtu
    wanted = (network.bridge, True, network.queues > 1, mtu, host.user.uid)
    return (device.master, device.up, device.multi_queue, device.mtu, device.owner_uid) == wanted


def plan_network_changes(plan: Plan, host: HostFacts) -> tuple[Change, ...]:
    """Give the taps that must be made."""
    return tuple(
        TapChange(
            ifname=network.ifname,
            bridge=network.bridge,
            uid=host.user.uid,
            multi_queue=network.queues > 1,
            mtu=network.mtu,
        )
        for network in plan.networks
        if network.owned and not is_as_planned(network, host.network_devices.get(network.ifname), host)
    )
