"""Disks: a `-drive` and its device, with cache mode and aio chosen by where the image lies."""

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from posixpath import normpath
from shlex import quote

from kvmlaunch.builder import names
from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs, wiring
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, DIRECT, Aio, CacheMode, Definition, Disk
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts, PathFacts
from kvmlaunch.model.image import SUFFIXES
from kvmlaunch.model.plan import DrivePromise, Field, FieldValue, Option, PlannedDisk
from kvmlaunch.model.qemu import QemuCaps, machine_version
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.units import render_size

WRITE_THROUGH = ("writethrough", "directsync")
FIRST_QUEUE_PER_VCPU = (5, 2)  # machine types before it keep one queue
TELLS_BLOCKS = frozenset({"virtio-blk", "virtio-scsi", "sata", "ide"})
BLOCKS = tuple(1 << shift for shift in range(10, 17))  # bytes, of physical blocks larger than 512, up to 64 KiB
LONGEST_SERIAL = 20
QUEUES = {"virtio-blk": "num-queues", "nvme": "max_ioqpairs"}  # those of virtio-scsi are the controller's
# File systems whose fallocate makes no holes: Linux fs/fat/file.c; the others have no fallocate.
NO_HOLES = frozenset({"vfat", "msdos", "exfat", "hfs", "hfsplus", "9p"})
SNAPSHOTS = "QEMU docs, interop/live-block-operations"
DEVICES = {"virtio-blk": "virtio-blk-pci", "virtio-scsi": "scsi-hd", "nvme": "nvme", "sata": "ide-hd", "ide": "ide-hd"}


Engine = Callable[[PathFacts, str, str], Choice[Aio]]  # by the image, the cache mode and the format


@frozen(kw_only=True)
class DiskPlan:
    """A disk with everything resolved that other parts ask for.

    `l2_cache` is in bytes; None of it, or of `no_unref`, leaves QEMU's default.
    Where the image has `snapshots`, `disk` and `facts` are those of the newest one's overlay.
    """

    name: str
    disk: Disk
    facts: PathFacts
    snapshots: tuple[str, ...]
    format: Choice[str]
    bus: Choice[str]
    cache: Choice[CacheMode]
    aio: Choice[Aio]
    l2_cache: Choice[int] | None = None
    no_unref: Choice[bool] | None = None

    @property
    def table(self) -> str:
        """The definition's table."""
        return f"disk.{self.name}"


def plan_format(definition: Definition, name: str, disk: Disk, facts: PathFacts) -> Choice[str]:
    """Choose the format by the kind and the suffix of the path, never by content; "" when neither tells."""
    key = f"disk.{name}.format"
    if disk.format is not AUTO:
        return by_hand(definition, key, disk.format)
    source = "QEMU security page: probing lets a guest choose its own format"
    origin = definition.origin(f"disk.{name}.path")
    if facts.kind == "block":
        return Choice(
            value="raw", reason="a block device holds the guest's bytes as they are", source=source, origin=origin
        )
    suffix = disk.path.suffix
    if facts.kind == "missing" and suffix not in SUFFIXES and disk.path.is_relative_to("/dev"):
        return Choice(value="raw", reason="a block device, once it is there", source=source, origin=origin)
    return Choice(
        value=SUFFIXES.get(suffix, ""),
        reason=f"the suffix {suffix}; content is never probed",
        source=source,
        origin=origin,
    )


def plan_bus(definition: Definition, name: str, disk: Disk, machine: str) -> Choice[str]:
    """Choose the bus: virtio-blk; for Windows sata, IDE on i440fx, until the definition says that its driver is in."""
    if disk.bus is not AUTO:
        return by_hand(definition, f"disk.{name}.bus", disk.bus)
    if definition.os == "windows":
        return Choice(
            value="sata" if "q35" in machine else "ide",
            reason="Windows boots from it without a driver; for virtio attach a second, small disk on virtio-blk, let "
            'Windows install its driver, shut down, then write bus = "virtio-blk" here',
            source="virtio-win",
            origin=definition.origin("os"),
        )
    return Choice(
        value="virtio-blk",
        reason="the shortest way between guest and host",
        source="QEMU docs, devices/virtio",
        origin=definition.origin("os"),
    )


def plan_cache(definition: Definition, name: str, disk: Disk, facts: PathFacts, format_: str) -> Choice[CacheMode]:
    """Choose the cache mode: none where O_DIRECT works on this very path, else writeback; both honour a flush."""
    key = f"disk.{name}.cache"
    if disk.cache is not AUTO:
        origin = definition.origin(key)
        reason = f"the profile {origin.place}" if origin.kind == "profile" else ""
        return Choice(value=disk.cache, reason=reason, source="kvmlaunch: profiles" if reason else "", origin=origin)
    where = f"{disk.path}" + (f" ({facts.filesystem})" if facts.filesystem else "")
    fact = Origin(kind="host", place=f"O_DIRECT on {disk.path}", key=key)
    source = "RHEL 10, virtualization guide (disk caching); kvmlaunch docs, performance"
    if format_ == "raw" and facts.ends_within_block and not disk.readonly:
        reason = f"its {facts.size} bytes end within a block; a guest's flush is honoured"
        return Choice(value="writeback", reason=reason, source="QEMU block/file-posix.c", origin=fact)
    if facts.o_direct:
        return Choice(
            value="none", reason=f"O_DIRECT works on {where}; a guest's flush is honoured", source=source, origin=fact
        )
    refusal = facts.refusal or "not tried"
    return Choice(
        value="writeback",
        reason=f"no O_DIRECT on {where}: {refusal}; a guest's flush is honoured",
        source=source,
        origin=fact,
    )


def plan_disk(definition: Definition, name: str, host: HostFacts, engine: Engine, *, machine: str) -> DiskPlan:
    """Resolve what stands at auto; `engine` chooses aio, `machine` is the type by its versioned name."""
    disk = definition.disk[name]
    facts = host.paths.get(disk.path) or PathFacts(path=disk.path, kind="missing")
    format_ = plan_format(definition, name, disk, facts)
    snapshots = facts.since
    if snapshots:
        format_ = evolve(format_, value="qcow2", reason="what was written since a snapshot", source=SNAPSHOTS)
        disk = evolve(disk, path=PurePosixPath(snapshots[-1]))
        facts = host.paths.get(disk.path) or PathFacts(path=disk.path, kind="missing")
    cache = plan_cache(definition, name, disk, facts, format_.value)
    return DiskPlan(
        name=name,
        disk=disk,
        facts=facts,
        snapshots=snapshots,
        format=format_,
        bus=plan_bus(definition, name, disk, machine),
        cache=cache,
        aio=engine(facts, cache.value, format_.value),
    )


def check_image(plan: DiskPlan, definition: Definition) -> Iterator[Finding]:
    """Say where an image that is there is another one than the definition would make: smaller, or over another base."""
    facts, disk, vm = plan.facts, plan.disk, definition.name
    size = facts.virtual_size if plan.format.value == "qcow2" else facts.size
    if facts.kind not in {"file", "block"} or disk.path != definition.disk[plan.name].path:  # a snapshot's overlay
        return
    known = size > 0 or (facts.kind == "file" and plan.format.value == "raw")
    if disk.size is not None and known and size < disk.size:
        yield warning(
            code="disk.size",
            message=f"{disk.path.name} has {render_size(size)}, the definition says {render_size(disk.size)}",
            key=f"{plan.table}.size",
            why="size is for an image that is made",
            hint=f"kvmlaunch disk resize {vm}:{plan.name} {render_size(disk.size)}",
        )
    beneath = normpath(disk.path.parent / facts.backing.removeprefix("file:")) if facts.backing else ""
    if disk.backing is not None and beneath and str(disk.backing) not in {beneath, *facts.chain[:1]}:
        yield warning(
            code="disk.backing",
            message=f"{disk.path.name} rests on {beneath}, the definition says {disk.backing}",
            key=f"{plan.table}.backing",
            why="backing is for an image that is made",
            hint=f"kvmlaunch disk info {vm}:{plan.name}   # shows what it rests on",
        )


def check_disk(plan: DiskPlan, definition: Definition, machine: str) -> Iterator[Finding]:
    """Check what was written by hand against the image and the machine, and say what is risky."""
    yield from check_direct(plan)
    yield from check_image(plan, definition)
    if not plan.format.value:
        yield error(
            code="def.disk.format",
            message=f"the format of {plan.disk.path.name} is not known by its suffix",
            key=f"{plan.table}.path",
            why="content is never probed: a guest could choose its own format",
            hint=f'format = "raw"   # or "qcow2", in [{plan.table}]',
        )
    if plan.cache.value == "unsafe":
        yield warning(
            code="disk.cache.unsafe",
            message=f"disk {plan.name}: cache=unsafe ignores the guest's flushes",
            key=f"{plan.table}.cache",
            why="a crash of the host, or of QEMU, loses data that the guest believes safe",
            hint='cache = "none"',
        )
    if plan.disk.discard == "unmap" and frees_nothing(plan):
        yield warning(
            code="disk.discard",
            message=f"disk {plan.name}: a guest's trim frees nothing",
            key=f"{plan.table}.discard",
            why=frees_nothing(plan),
            hint='discard = "ignore"',
        )
    if plan.bus.value == "nvme" and plan.disk.readonly:
        yield warning(
            code="disk.readonly",
            message=f"disk {plan.name}: the guest is not told that it is read-only",
            key=f"{plan.table}.readonly",
            why="QEMU's NVMe has no write protection to show: what the guest writes fails, at last",
            hint='bus = "virtio-blk"',
        )
    lacks, has = ("ide", "sata") if "q35" in machine else ("sata", "ide")
    if plan.bus.value == lacks:
        yield error(
            code="qemu.capability",
            message=f"{'q35' if has == 'sata' else 'i440fx'} has no {lacks.upper()} controller",
            key=f"{plan.table}.bus",
            why=f"the machine is {machine}",
            hint=f'bus = "{has}"',
        )


def check_direct(plan: DiskPlan) -> Iterator[Finding]:
    """Refuse a direct cache mode by hand where O_DIRECT is refused (`disk.direct`), and native without direct I/O."""
    cache, key = plan.cache.value, f"{plan.table}.cache"
    readable = plan.facts.kind in {"file", "block"} and plan.facts.readable
    if plan.disk.cache is not AUTO and cache in DIRECT and readable and not plan.facts.o_direct:
        yield error(
            code="disk.direct",
            message=f"cache={cache} needs O_DIRECT, which {plan.disk.path} refuses",
            key=key,
            why=f"{plan.facts.filesystem or 'its store'}: {plan.facts.refusal}",
            hint='cache = "writeback"',
        )
    elif cache in DIRECT and plan.format.value == "raw" and plan.facts.ends_within_block and not plan.disk.readonly:
        message = f"cache={cache} cannot be had for {plan.disk.path.name}, which ends within a block"
        why = f"it has {plan.facts.size} bytes"
        hint = f'cache = "writeback"   # or: truncate -s %4096 {quote(str(plan.disk.path))}'
        yield error(code="disk.direct", message=message, key=key, why=why, hint=hint)
    if plan.aio.value == "native" and cache not in DIRECT:
        yield error(
            code="def.disk.aio",
            message=f"aio=native needs direct I/O, and cache is {cache}",
            key=f"{plan.table}.aio",
            why=plan.cache.reason,
            hint='cache = "none"   # or aio = "io_uring"',
        )


def field_by_hand(name: str, key: str, value: FieldValue, definition: Definition) -> Field:
    """Give a field whose value was written."""
    return field(name, key, by_hand(definition, key, value))


def drive_fields(plan: DiskPlan, definition: Definition) -> Iterator[Field]:
    """Give the fields of `-drive`, the path first."""
    table = plan.table
    yield field("file", f"{table}.path", plan_path(plan, definition))
    yield field("format", f"{table}.format", plan.format)
    yield wiring("if", table, "none", "the device below is attached by hand")
    yield wiring("id", table, names.drive_id(plan.name))
    yield wiring("node-name", table, names.node_name(plan.name))
    yield field("cache", f"{table}.cache", plan.cache)
    yield field("aio", f"{table}.aio", plan.aio)
    yield field("discard", f"{table}.discard", plan_discard(plan, definition))
    if plan.no_unref is not None:
        yield field("discard-no-unref", f"{table}.discard_no_unref", plan.no_unref)
    if plan.disk.detect_zeroes != "off":
        yield field_by_hand("detect-zeroes", f"{table}.detect_zeroes", plan.disk.detect_zeroes, definition)
    if plan.disk.readonly:
        yield field_by_hand("readonly", f"{table}.readonly", plan.disk.readonly, definition)
    if plan.l2_cache is not None:
        yield field("l2-cache-size", f"{table}.l2_cache", plan.l2_cache)
    for name, number in (("iops", plan.disk.limits.iops), ("bandwidth", plan.disk.limits.bandwidth)):
        if number is not None:
            word = {"iops": "throttling.iops-total", "bandwidth": "throttling.bps-total"}[name]
            yield field_by_hand(word, f"{table}.limits.{name}", int(number), definition)


def plan_path(plan: DiskPlan, definition: Definition) -> Choice[PurePosixPath]:
    """Choose what is opened: the image as written, or the newest of its snapshots' overlays."""
    key = f"{plan.table}.path"
    if not plan.snapshots:
        return by_hand(definition, key, plan.disk.path)
    image = definition.disk[plan.name].path
    origin = Origin(kind="host", place=f"snapshots of {image}", key=key)
    reason = f"what was written since a snapshot of {image.name}; kvmlaunch disk snapshot list shows them"
    return Choice(value=plan.disk.path, reason=reason, source=SNAPSHOTS, origin=origin)


def frees_nothing(plan: DiskPlan) -> str:
    """Say why a guest's trim frees nothing, "" where it does: a qcow2 image frees its own clusters anywhere."""
    if plan.format.value != "raw":
        return ""
    if plan.facts.kind == "file" and plan.facts.filesystem in NO_HOLES:
        return f"{plan.facts.filesystem} knows no holes in a file: no block of {plan.disk.path.name} can be freed"
    return f"{plan.disk.path} takes no discard: its discard_max_bytes is 0" if plan.facts.no_discard else ""


def plan_discard(plan: DiskPlan, definition: Definition) -> Choice[str]:
    """Choose what a guest's trim does: free the blocks."""
    key = f"{plan.table}.discard"
    if plan.disk.discard is not AUTO:
        return by_hand(definition, key, plan.disk.discard)
    if frees_nothing(plan) and plan.disk.detect_zeroes != "unmap":
        return Choice(
            value="ignore",
            reason=f"a guest's trim would free nothing: {frees_nothing(plan)}",
            source="fallocate(2), FALLOC_FL_PUNCH_HOLE; Linux Documentation/ABI/stable/sysfs-block",
            origin=Origin(kind="host", place=str(plan.disk.path), key=key),
        )
    return Choice(
        value="unmap",
        reason="a guest's trim frees blocks on the host; a trimmed image is sparse, so aio may change at a later start",
        source="QEMU man page, -drive discard",
        origin=definition.origin(key),
    )


def device_fields(
    plan: DiskPlan, definition: Definition, caps: QemuCaps, threads: tuple[str, ...], bus: str, boot: Choice[int] | None
) -> Iterator[Field]:
    """Give the fields of the disk's `-device`."""
    table = plan.table
    yield field(
        "",
        f"{table}.bus",
        Choice(value=DEVICES[plan.bus.value], reason=plan.bus.reason, source=plan.bus.source, origin=plan.bus.origin),
    )
    yield wiring("drive", table, names.drive_id(plan.name))
    yield field(
        "id",
        f"{table}.device",
        fixed(names.device_id(plan.name), "an id computed from the name", "kvmlaunch: names, not numbers"),
    )
    if bus:
        yield wiring("bus", table, bus, "its place on the controller")
    if boot:
        yield field("bootindex", f"{table}.boot", boot)
    yield field("serial", f"{table}.serial", plan_serial(plan, definition))
    yield from physical_field(plan)
    if plan.disk.queues is not AUTO and plan.bus.value in QUEUES:
        yield field_by_hand(QUEUES[plan.bus.value], f"{table}.queues", plan.disk.queues, definition)
    yield from thread_fields(plan, threads)
    if (
        plan.facts.rotational is False
        and plan.bus.value in {"virtio-scsi", "sata", "ide"}
        and caps.device_has(DEVICES[plan.bus.value], "rotation_rate")
    ):
        origin = Origin(kind="host", place=f"queue/rotational of {plan.facts.device}")
        yield field(
            "rotation_rate",
            f"{table}.rotation_rate",
            Choice(
                value=1,
                reason="the store does not rotate, and the guest is told",
                source="QEMU, rotation_rate",
                origin=origin,
            ),
        )
    yield from error_fields(plan, definition)


def thread_fields(plan: DiskPlan, threads: tuple[str, ...]) -> Iterator[Field]:
    """Give the thread of a virtio-blk disk, or the list of threads that its queues are spread over."""
    if plan.bus.value != "virtio-blk" or not threads:
        return
    key = f"{plan.table}.iothread"
    if len(threads) == 1:
        yield field(
            "iothread",
            key,
            fixed(
                threads[0],
                "its I/O leaves QEMU's main thread",
                "qemu-devel 2025-11-04, aio_add_sqe v6 (20 % more IOPS)",
            ),
        )
    else:
        yield field(
            "iothread-vq-mapping",
            key,
            fixed(threads, "its queues are spread over the threads", "QEMU 9.0, iothread-vq-mapping"),
        )


def error_fields(plan: DiskPlan, definition: Definition) -> Iterator[Field]:
    """Give werror and rerror where the definition asks; auto is QEMU's own."""
    if plan.disk.on_error is AUTO:
        return
    key = f"{plan.table}.on_error"
    for name in ("werror", "rerror"):
        word = "report" if name == "rerror" and plan.disk.on_error == "enospc" else plan.disk.on_error
        yield field(name, key, by_hand(definition, key, word))


def physical_field(plan: DiskPlan) -> Iterator[Field]:
    """Tell the guest of larger blocks beneath, so that it aligns what it writes; its own stay 512 bytes."""
    block = plan.facts.physical_block
    if plan.bus.value in TELLS_BLOCKS and block in BLOCKS:
        told: Choice[int] = Choice(
            value=block,
            reason=f"{plan.facts.device} writes {block} bytes at once; logical blocks stay 512, for MBR images to boot",
            source="QEMU man page, -device physical_block_size; Linux Documentation/ABI/stable/sysfs-block",
            origin=Origin(kind="host", place=str(plan.disk.path), key=f"{plan.table}.physical_block_size"),
        )
        yield field("physical_block_size", f"{plan.table}.physical_block_size", told)


def plan_serial(plan: DiskPlan, definition: Definition) -> Choice[str]:
    """Choose the serial number: the disk's name, by which the guest finds it under /dev/disk/by-id."""
    key = f"{plan.table}.serial"
    if plan.disk.serial is not AUTO:
        return by_hand(definition, key, plan.disk.serial)
    return Choice(
        value=plan.name if len(plan.name) <= LONGEST_SERIAL else f"{plan.name[:11]}-{names.digest(plan.name)[:8]}",
        reason="the disk's name: /dev/disk/by-id in the guest is stable",
        source="virtio 1.1, 5.2.6 (20 bytes)",
        origin=definition.origin(f"{plan.table}.path"),
    )


def queue_default(plan: DiskPlan, definition: Definition, machine: str) -> Choice[int] | None:
    """Give QEMU's own number of request queues for `explain`; None where it was written or the bus has no choice."""
    if plan.disk.queues is not AUTO or plan.bus.value != "virtio-blk":
        return None
    version = machine_version(machine)
    old = version is not None and version < FIRST_QUEUE_PER_VCPU
    number = 1 if old else definition.cpu.vcpus
    one = (
        '; in a Linux guest with one, a udev rule sets its scheduler: ATTR{queue/scheduler}="none"'
        if number == 1 and definition.os == "linux"
        else ""
    )
    why = "machine types before 5.2 have one" if old else "QEMU's default: one a vCPU"
    origin = Origin(kind="qemu", place="num-queues of virtio-blk-pci", key=f"{plan.table}.queues")
    return Choice(value=number, reason=f"{why}{one}", source="measured: QEMU 7.2.22 and 10.0.2", origin=origin)


def planned(plan: DiskPlan, definition: Definition) -> PlannedDisk:
    """Give the disk as the checks want it."""
    return PlannedDisk(
        table=plan.table,
        path=plan.disk.path,
        format=plan.format.value,
        format_written=plan.disk.format is not AUTO,
        readonly=plan.disk.readonly,
        cache=plan.cache.value,
        image=definition.disk[plan.name].path,
        made=plan.disk.size is not None or plan.disk.backing is not None,
    )


def promise(plan: DiskPlan) -> DrivePromise:
    """Give what query-block and fdinfo must say."""
    cache, limits = plan.cache.value, plan.disk.limits
    return DrivePromise(
        table=plan.table,
        id=names.drive_id(plan.name),
        path=plan.disk.path,
        format=plan.format.value,
        readonly=plan.disk.readonly,
        direct=cache in DIRECT,
        no_flush=cache == "unsafe",
        writeback=cache not in WRITE_THROUGH,
        detect_zeroes=plan.disk.detect_zeroes,
        iops=limits.iops or 0,
        bandwidth=limits.bandwidth or 0,
    )


def build_disk(
    plan: DiskPlan,
    definition: Definition,
    caps: QemuCaps,
    *,
    machine: str,
    threads: tuple[str, ...],
    bus: str,
    boot: Choice[int] | None,
) -> Part:
    """Give a disk's drive and device; `bus` is its place on a controller, "" where it has none."""
    device = Option(
        flag="-device",
        form="json" if len(threads) > 1 else "pairs",
        table=plan.table,
        fields=tuple(device_fields(plan, definition, caps, threads, bus, boot)),
    )
    drive = pairs("-drive", plan.table, *drive_fields(plan, definition))
    return Part(
        options=(drive, device),
        promises=(promise(plan),),
        findings=tuple(check_disk(plan, definition, machine)),
    )
