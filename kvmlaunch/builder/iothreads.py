"""I/O threads, and which disk works in which."""

from collections.abc import Iterator, Mapping

from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Field, Option
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.model.value import frozen
from kvmlaunch.units import count

GAIN = "qemu-devel 2025-11-04, aio_add_sqe v6 (20 % more IOPS)"
MOST_MAPPED = 4  # threads of one disk; more was not seen to help
LEAST_VCPUS_MAPPED = 4
LEAST_SPARE_MAPPED = 2
THREADED_BUSES = ("virtio-blk", "virtio-scsi")


@frozen(kw_only=True)
class DiskLoad:
    """What the decision needs to know of a disk, in the order of the file."""

    name: str
    bus: str
    aio: str
    fast: bool
    written: bool | None  # iothread by hand, None for auto
    shares: bool = False  # a later disk of the one virtio-scsi controller
    barred: bool = False  # another disk of that controller is to have none, by hand


@frozen(kw_only=True)
class IothreadPlan:
    """The thread ids, and the ids of each disk's threads; several are a queue mapping."""

    ids: Choice[tuple[str, ...]]
    of_disk: Mapping[str, tuple[str, ...]]
    reasons: Mapping[str, str]


def spare_cpus(definition: Definition, host: HostFacts) -> int:
    """Give the host CPUs that the vCPUs leave free."""
    return max(0, len(host.cpus.online) - definition.cpu.vcpus)


def reason_against(load: DiskLoad, spare: int) -> str:
    """Give why auto gives a disk no thread, "" when it does."""
    if load.bus not in THREADED_BUSES:
        return f"{load.bus} works in QEMU's main thread"
    if load.barred:
        return "another disk of the controller says iothread = false"
    if load.shares:
        return "the thread of the controller serves it"
    if load.aio == "threads":
        return "aio=threads has its own threads"
    if spare < 1:
        return "no host CPU is left beside the vCPUs"
    return ""


def wants(load: DiskLoad, spare: int) -> bool:
    """Is this disk to have a thread: as written, else when nothing is against it."""
    return load.written if load.written is not None else not reason_against(load, spare)


def plan_count(definition: Definition, wanting: int, spare: int) -> Choice[int]:
    """Choose how many threads: one a disk that profits, never more than spare host CPUs."""
    if definition.iothreads.count is not AUTO:
        return by_hand(definition, "iothreads.count", definition.iothreads.count)
    number = min(wanting, max(spare, 1))
    return Choice(
        value=number,
        reason=f"{wanting} disks profit, {spare} host CPUs are spare",
        source=GAIN,
        origin=Origin(kind="host", place="CPUs", key="iothreads.count"),
    )


def maps_queues(load: DiskLoad, definition: Definition, caps: QemuCaps, spare: int) -> bool:
    """Is it worth spreading one disk's queues over several threads: NVMe-class store, vCPUs and CPUs to spare."""
    able = caps.device_has("virtio-blk-pci", "iothread-vq-mapping") and load.bus == "virtio-blk"
    return (
        able
        and load.fast
        and load.written is None
        and definition.cpu.vcpus >= LEAST_VCPUS_MAPPED
        and spare >= LEAST_SPARE_MAPPED
    )


def plan_iothreads(
    definition: Definition, host: HostFacts, caps: QemuCaps, loads: tuple[DiskLoad, ...]
) -> IothreadPlan:
    """Choose the threads of every disk."""
    spare = spare_cpus(definition, host)
    wanting = [load for load in loads if wants(load, spare)]
    reasons = {load.name: "" if wants(load, spare) else reason_against(load, spare) for load in loads}
    alone = len(wanting) == 1 and definition.iothreads.count is AUTO
    if alone and maps_queues(wanting[0], definition, caps, spare):
        ids = tuple(f"io{number}" for number in range(min(MOST_MAPPED, definition.cpu.vcpus, spare)))
        reason = f"the queues of a fast disk spread over {len(ids)} threads; {spare} host CPUs are spare"
        mapped: Choice[tuple[str, ...]] = Choice(
            value=ids,
            reason=reason,
            source="QEMU 9.0, iothread-vq-mapping",
            origin=Origin(kind="qemu", place="iothread-vq-mapping", key="iothreads.count"),
        )
        return IothreadPlan(ids=mapped, of_disk={wanting[0].name: ids}, reasons=reasons)
    number = plan_count(definition, len(wanting), spare)
    ids = tuple(f"io{index}" for index in range(number.value))
    chosen: Choice[tuple[str, ...]] = Choice(
        value=ids, reason=number.reason, source=number.source, origin=number.origin
    )
    return IothreadPlan(
        ids=chosen,
        reasons=reasons,
        of_disk={load.name: (ids[index % len(ids)],) for index, load in enumerate(wanting) if ids},
    )


def check_thread_pins(definition: Definition, threads: int) -> Iterator[Finding]:
    """Refuse host CPUs by hand for I/O threads that are not there, or fewer than the threads (`def.value.range`)."""
    pins = definition.iothreads.pin
    if isinstance(pins, tuple) and definition.iothreads.count is AUTO and len(pins) != threads:
        yield error(
            code="def.value.range",
            message=f"{count(len(pins), 'host CPU')} for {count(threads, 'I/O thread')}",
            key="iothreads.pin",
            why="each thread is pinned to one of them, in their order",
            hint=f"iothreads.count = {len(pins)}" if threads else 'pin = "none"   # in [iothreads]',
        )


def check_iothreads(plan: IothreadPlan, loads: tuple[DiskLoad, ...]) -> tuple[Finding, ...]:
    """Check threads by hand: a bus that cannot (`qemu.capability`), a thread where there are none."""
    found = []
    for load in loads:
        if load.written and load.bus not in THREADED_BUSES:
            found.append(
                error(
                    code="qemu.capability",
                    message=f"a {load.bus} disk cannot have an I/O thread",
                    key=f"disk.{load.name}.iothread",
                    why="only virtio-blk and virtio-scsi leave QEMU's main thread",
                    hint='bus = "virtio-blk"',
                )
            )
        elif load.written and not plan.ids.value:
            found.append(
                error(
                    code="def.value.choice",
                    message="iothread = true, but iothreads.count is 0",
                    key=f"disk.{load.name}.iothread",
                    why="there is no thread to give",
                    hint="iothreads.count = 1",
                )
            )
        elif load.written is False and load.bus == "virtio-scsi" and serves_scsi(plan, loads):
            found.append(
                error(
                    code="def.value.choice",
                    message="iothread = false, but another disk of the controller has a thread",
                    key=f"disk.{load.name}.iothread",
                    why="disks of virtio-scsi share one controller, and so its thread",
                    hint='bus = "virtio-blk"   # or no iothread = false',
                )
            )
    return tuple(found)


def serves_scsi(plan: IothreadPlan, loads: tuple[DiskLoad, ...]) -> bool:
    """Has the controller of the virtio-scsi disks a thread."""
    return any(load.bus == "virtio-scsi" and load.name in plan.of_disk for load in loads)


def thread_option(definition: Definition, host: HostFacts, plan: IothreadPlan, id_: str) -> Option:
    """Give one thread; it does not poll where threads and vCPUs outnumber the host's CPUs."""
    kind: Choice[str] = Choice(value="iothread", reason=plan.ids.reason, source=plan.ids.source, origin=plan.ids.origin)
    fields: list[Field] = [
        field("", "iothreads.thread", kind),
        field("id", "iothreads.id", fixed(id_, "one of iothreads.count", GAIN)),
    ]
    if definition.cpu.vcpus + len(plan.ids.value) > len(host.cpus.online):
        crowded: Choice[int] = Choice(
            value=0,
            reason="vCPUs and I/O threads outnumber the host's CPUs: no polling",
            source="QEMU docs, iothread poll-max-ns",
            origin=Origin(kind="host", place="CPUs"),
        )
        fields.append(field("poll-max-ns", "iothreads.poll-max-ns", crowded))
    return pairs("-object", "iothreads", *fields)


def build_iothreads(definition: Definition, host: HostFacts, plan: IothreadPlan, loads: tuple[DiskLoad, ...]) -> Part:
    """Give the thread objects."""
    return Part(
        options=tuple(thread_option(definition, host, plan, id_) for id_ in plan.ids.value),
        findings=(*check_iothreads(plan, loads), *check_thread_pins(definition, len(plan.ids.value))),
    )


def count_choice(plan: IothreadPlan) -> Field:
    """Give the decision on the threads for `explain`, also where there are none."""
    number: Choice[int] = Choice(
        value=len(plan.ids.value), reason=plan.ids.reason, source=plan.ids.source, origin=plan.ids.origin
    )
    return field(
        "",
        "iothreads.count",
        number if plan.ids.reason or plan.ids.origin.kind != "default" else fixed(0, "no disk profits", GAIN),
    )
