"""The whole VM: every part in argv's order.  The only module here that knows the parts."""

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from kvmlaunch.builder import (
    aio,
    boot,
    cdrom,
    cloud_init,
    console,
    controllers,
    cpu,
    disk,
    display,
    guest_agent,
    iothreads,
    machine,
    memory,
    names,
    network,
    qcow2,
    raw,
    security,
    share,
    tpm,
)
from kvmlaunch.builder.option import Part, field, fixed
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Field, IdentityPromise, Places, Plan, Promise
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.model.value import evolve

FAST_SCHEDULERS = ("none",)


def wanted_paths(definition: Definition) -> tuple[PurePosixPath, ...]:
    """Give every path of the host that a decision about this VM depends on."""
    return (
        *(each.path for each in definition.disk.values()),
        *(each.path for each in definition.cdrom.values()),
        *(each.path for each in definition.share.values()),
        *(each.path for each in boot.boot_files(definition)),
        *boot.firmware_paths(definition),
    )


def needs_io_uring(definition: Definition, host: HostFacts, caps: QemuCaps) -> bool:
    """Does a decision depend on whether io_uring can be used, so that it has to be tried."""
    return any(
        plan.disk.aio == "io_uring" or (plan.disk.aio is AUTO and plan.aio.value != "native")
        for plan in plan_disks(definition, host, caps)
    )


def plan_disks(definition: Definition, host: HostFacts, caps: QemuCaps) -> tuple[disk.DiskPlan, ...]:
    """Give every disk with all that stands at auto resolved."""
    kind = machine.plan_machine(definition, caps).value
    plans = tuple(
        disk.plan_disk(definition, name, host, partial(aio.plan_aio, definition, name, host, caps), machine=kind)
        for name in definition.disk
    )
    return tuple(
        evolve(
            plan,
            l2_cache=qcow2.plan_l2_cache(plan.table, plan.disk.path, plan.facts),
            no_unref=qcow2.plan_no_unref(
                plan.facts, caps, trims=disk.plan_discard(plan, definition).value == "unmap" and not plan.disk.readonly
            ),
        )
        if plan.format.value == "qcow2"
        else plan
        for plan in plans
    )


def qcow2_of(plans: tuple[disk.DiskPlan, ...]) -> Iterator[disk.DiskPlan]:
    """Give the disks whose images are qcow2."""
    return (plan for plan in plans if plan.format.value == "qcow2")


def check_allocations(definition: Definition, plans: tuple[disk.DiskPlan, ...]) -> Iterator[Finding]:
    """Advise on images whose clusters are yet to be allocated."""
    for plan in qcow2_of(plans):
        yield from qcow2.check_allocation(
            plan.table,
            plan.disk.path,
            plan.facts,
            vm=definition.name,
            profile=definition.profile,
            readonly=plan.disk.readonly,
        )


def disk_loads(plans: tuple[disk.DiskPlan, ...]) -> tuple[iothreads.DiskLoad, ...]:
    """Give what the decision on I/O threads needs to know of each disk."""
    scsi = [plan for plan in plans if plan.bus.value == "virtio-scsi"]
    first_scsi, barred = scsi[0].name if scsi else "", any(plan.disk.iothread is False for plan in scsi)
    return tuple(
        iothreads.DiskLoad(
            name=plan.name,
            bus=plan.bus.value,
            aio=plan.aio.value,
            shares=plan.bus.value == "virtio-scsi" and plan.name != first_scsi,
            barred=plan.bus.value == "virtio-scsi" and barred,
            fast=plan.facts.rotational is False and plan.facts.scheduler in FAST_SCHEDULERS,
            written=None if plan.disk.iothread is AUTO else plan.disk.iothread,
        )
        for plan in plans
    )


def build_disks(
    definition: Definition,
    host: HostFacts,
    caps: QemuCaps,
    plans: tuple[disk.DiskPlan, ...],
    machine_name: str,
    boot_from: str,
) -> Iterator[Part]:
    """Give threads, controller, disks and CD drives."""
    loads = disk_loads(plans)
    threads = iothreads.plan_iothreads(definition, host, caps, loads)
    buses = {plan.name: plan.bus.value for plan in plans}
    seats = controllers.seats_of(definition, buses, machine_name)
    scsi = [name for name, bus in buses.items() if bus == "virtio-scsi"]
    yield iothreads.build_iothreads(definition, host, threads, loads)
    scsi_threads = next((threads.of_disk[name] for name in scsi if name in threads.of_disk), ())
    yield controllers.build_controllers(definition, buses, machine_name, scsi_threads)
    indexes = boot.plan_indexes(definition, instead=boot_from)
    for plan in plans:
        yield Part(findings=tuple(aio.check_aio(plan.table, plan.disk.aio, host, caps)))
        yield disk.build_disk(
            plan,
            definition,
            caps,
            machine=machine_name,
            threads=threads.of_disk.get(plan.name, ()),
            bus=seats.get(plan.table, ""),
            boot=indexes.get(plan.table),
        )
    for name in definition.cdrom:
        table = f"cdrom.{name}"
        yield cdrom.build_cdrom(definition, name, bus=seats[table], boot=indexes[table])


def beside_memory(definition: Definition, host: HostFacts) -> HostFacts:
    """Give the host with its NUMA nodes in the order in which CPUs are taken: first the one that the memory is on."""
    node = memory.plan_node(definition, host).value
    return evolve(host, nodes=tuple(sorted(host.nodes, key=lambda each: each.number != node)))


def build_parts(
    definition: Definition,
    host: HostFacts,
    caps: QemuCaps,
    plans: tuple[disk.DiskPlan, ...],
    nets: tuple[network.NetworkPlan, ...],
    boot_from: str,
    *,
    paused: bool,
) -> Iterator[Part]:
    """Give every part but the raw one, in argv's order."""
    uuid = names.vm_uuid(host.machine_id, host.caller_uid, definition.name)
    backing = memory.plan_memory(definition, host)
    machine_name = machine.plan_machine(definition, caps).value
    accelerator = machine.plan_accelerator(definition, host).value
    shared = share.is_shared(definition, host)
    yield machine.build_machine(
        definition,
        host,
        caps,
        uuid=uuid,
        hugepages=backing.backing == "hugepages",
        shared=shared and backing.host_numa_node is None,
    )
    yield boot.build_boot(definition, host)
    beside = beside_memory(definition, host)
    yield cpu.build_cpu(definition, beside, caps, accelerator=accelerator, machine=machine_name, paused=paused)
    yield memory.build_memory(definition, host, backing, shared=shared)
    yield from build_disks(definition, host, caps, plans, machine_name, boot_from)
    for plan in nets:
        yield network.build_network(plan, definition, host)
    yield console.build_small_devices(machine.real_name(machine_name, caps))
    yield memory.build_balloon(definition, backing)
    yield console.build_console(definition)
    yield share.build_shares(definition, host)
    yield cloud_init.build_seed(definition)
    yield guest_agent.build_agent(definition, installed=cloud_init.installs_agent(definition))
    yield tpm.build_tpm(definition, host)
    yield display.build_display(definition)
    yield console.build_monitors()
    yield machine.build_panic(definition)
    yield security.build_security(definition, host)


def explained_only(
    definition: Definition, host: HostFacts, caps: QemuCaps, plans: tuple[disk.DiskPlan, ...]
) -> tuple[Field, ...]:
    """Give the decisions that are no argument, or that leave none."""
    threads = iothreads.plan_iothreads(definition, host, caps, disk_loads(plans))
    backing, beside = memory.plan_memory(definition, host), beside_memory(definition, host)
    against = tuple(
        field("", f"disk.{name}.iothread", fixed("none", reason, iothreads.GAIN))
        for name, reason in threads.reasons.items()
        if reason
    )
    queues = tuple(
        field("", f"disk.{plan.name}.queues", choice)
        for plan in plans
        if (
            choice := disk.queue_default(
                plan, definition, machine.real_name(machine.plan_machine(definition, caps).value, caps)
            )
        )
    )
    return (
        field("", "boot.firmware", boot.firmware_choice(definition)),
        cpu.pin_choice(definition, beside),
        *cpu.iothread_pin_choice(definition, beside),
        memory.hugepage_choice(definition, host, backing),
        field("", "memory.balloon", memory.plan_balloon(definition, backing)),
        iothreads.count_choice(threads),
        *against,
        *queues,
        *(row for plan in qcow2_of(plans) for row in qcow2.explain_rows(plan.table, plan.disk.path, plan.facts)),
        *cdrom.driver_rows(definition, host),
        *cloud_init.seed_rows(definition),
        guest_agent.agent_row(definition, installed=cloud_init.installs_agent(definition)),
        security.user_choice(definition, host),
    )


def identity(definition: Definition, host: HostFacts, caps: QemuCaps) -> Promise:
    """Give what QEMU must say of itself."""
    return IdentityPromise(
        name=definition.name,
        uuid=machine.system_uuid(definition).value or names.vm_uuid(host.machine_id, host.caller_uid, definition.name),
        machine=machine.real_name(machine.plan_machine(definition, caps).value, caps),
        vcpus=definition.cpu.vcpus,
        uid=host.user.uid,
    )


def boot_hint(definition: Definition, boot_from: str) -> str:
    """Give how to boot from a CD drive that there is, or how to add the one that was meant."""
    if definition.cdrom:
        return f"kvmlaunch up {definition.name} --boot cdrom.{next(iter(definition.cdrom))}"
    return f'[cdrom.{boot_from.removeprefix("cdrom.")}]   # in the definition of {definition.name}\npath = "debian.iso"'


def check_boot_from(definition: Definition, boot_from: str) -> Iterator[Finding]:
    """Refuse to boot from a CD-ROM that the definition does not have."""
    if boot_from and boot_from not in {f"cdrom.{name}" for name in definition.cdrom}:
        there = ", ".join(f"cdrom.{name}" for name in definition.cdrom) or "none"
        yield error(
            code="def.value.choice",
            message=f"there is no {boot_from} to boot from",
            key="cdrom",
            why=f"CD drives of this VM: {there}",
            hint=boot_hint(definition, boot_from),
        )
    elif boot_from and definition.boot.kernel is not None:
        yield error(
            code="def.value.choice",
            message=f"a VM with boot.kernel does not boot from {boot_from}",
            key="boot.kernel",
            why="the kernel is what it starts",
            hint=f"kvmlaunch up {definition.name}   # without --boot",
        )


def build_sidecars(definition: Definition, host: HostFacts, places: Places) -> dict[str, tuple[str, ...]]:
    """Give the processes that a VM has beside QEMU, by the name of the socket that each serves."""
    return {**share.daemons(definition, host, places), **tpm.emulators(definition, host, places)}


def build_vm(
    definition: Definition, host: HostFacts, caps: QemuCaps, *, boot_from: str = "", paused: bool = False
) -> Plan:
    """Give the plan of a VM: a pure function of its arguments.

    `boot_from` is `cdrom.NAME` for a start that boots from it, `paused` one that waits for `resume`.
    Among the plan's findings what was asked for by hand and cannot be had is an error, a fallback of auto a warning.
    """
    plans = plan_disks(definition, host, caps)
    nets = tuple(
        network.plan_network(definition, name, each, host) for name, each in network.networks_of(definition).items()
    )
    parts = list(build_parts(definition, host, caps, plans, nets, boot_from, paused=paused))
    parts.append(raw.build_raw(definition, tuple(option for part in parts for option in part.options)))
    threads = iothreads.plan_iothreads(definition, host, caps, disk_loads(plans))
    firmware, beside = boot.plan_firmware(definition, host), beside_memory(definition, host)
    findings = (
        *(finding for part in parts for finding in part.findings),
        *check_allocations(definition, plans),
        *cdrom.check_drivers(definition, host),
        *check_boot_from(definition, boot_from),
        *controllers.check_slots(tuple(option for part in parts for option in part.options)),
    )
    return Plan(
        name=definition.name,
        digest=definition.digest,
        binary=caps.binary,
        uuid=names.vm_uuid(host.machine_id, host.caller_uid, definition.name),
        system_uuid=machine.system_uuid(definition).value,
        user=host.user.name or str(host.user.uid),
        options=tuple(option for part in parts for option in part.options),
        promises=(*(promise for part in parts for promise in part.promises), identity(definition, host, caps)),
        findings=findings,
        choices=explained_only(definition, host, caps, plans),
        memory=memory.plan_memory(definition, host),
        vcpus=definition.cpu.vcpus,
        accelerator=machine.plan_accelerator(definition, host).value,
        disks=(
            *(disk.planned(plan, definition) for plan in plans),
            *(cdrom.planned(definition, name) for name in definition.cdrom),
        ),
        networks=tuple(network.planned(plan, definition, host) for plan in nets),
        listeners=(*(each for plan in nets for each in network.listeners(plan)), *display.listeners(definition)),
        files=boot.boot_files(definition),
        variables=firmware.variables if firmware else None,
        vcpu_pins=cpu.plan_pins(definition, beside).value,
        iothread_pins=cpu.plan_iothread_pins(definition, beside).value,
        iothreads=threads.ids.value,
        serial=definition.console.serial,
    )
