"""Controllers and the PCI bus: where a device sits, and whether there is room for it."""

from collections.abc import Iterator, Mapping

from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs, wiring
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.plan import Field, Option
from kvmlaunch.units import count

SATA_PORTS = 6  # of the ICH9 controller that is part of q35
IDE_SEATS = 4  # two buses with two drives each, on the older pc
MOST_PCI = 30  # of 32 slots two are the machine's own: q35 and i440fx (measured with 7.2.22)
MANY = ("disk.", "network.", "share.")
PCI_DEVICES = {"VGA", "e1000e", "nvme", "qemu-xhci"}  # beside those that say so in their name
THREAD_SOURCE = "qemu-devel 2025-11-04, aio_add_sqe v6 (20 % more IOPS)"


def seats_of(definition: Definition, buses: Mapping[str, str], machine_name: str) -> dict[str, str]:
    """Give the place on a controller of each disk and CD-ROM that needs one, by table; `buses` is by disk name."""
    on_sata = [
        *(f"disk.{name}" for name, bus in buses.items() if bus in {"sata", "ide"}),
        *(f"cdrom.{name}" for name in definition.cdrom),
    ]
    per_bus = 1 if "q35" in machine_name else 2
    seats = {table: f"ide.{index // per_bus}" for index, table in enumerate(on_sata)}
    return seats | {f"disk.{name}": "scsi0.0" for name, bus in buses.items() if bus == "virtio-scsi"}


def check_seats(seats: Mapping[str, str], machine_name: str) -> Iterator[Finding]:
    """Refuse more SATA or IDE drives than the machine has ports (`qemu.capability`)."""
    seated = [table for table, seat in seats.items() if seat.startswith("ide.")]
    most = SATA_PORTS if "q35" in machine_name else IDE_SEATS
    if len(seated) > most:
        yield error(
            code="qemu.capability",
            message=f"machine {machine_name} has {most} ports for disks and CD drives",
            key=seated[most],
            why=f"{len(seated)} are asked for",
            hint='bus = "virtio-scsi"   # for a disk' if seated[most].startswith("disk.") else f"remove {seated[most]}",
        )


def controller_queues(definition: Definition, names: tuple[str, ...]) -> Iterator[Field]:
    """Give the queues of the controller: the most that is written for one of its disks, which share them."""
    numbers = {name: queues for name in names if (queues := definition.disk[name].queues) is not AUTO}
    if numbers:
        name = max(numbers, key=lambda each: numbers[each])
        key = f"disk.{name}.queues"
        yield field("num_queues", key, by_hand(definition, key, numbers[name]))


def scsi_controller(definition: Definition, names: tuple[str, ...], threads: tuple[str, ...]) -> tuple[Option, ...]:
    """Give the one virtio-scsi controller where a disk wants it."""
    if not names:
        return ()
    what = fixed("virtio-scsi-pci", "disks with bus virtio-scsi sit on it", "QEMU docs, devices/virtio")
    fields = [
        field("", "disk.controller", what),
        wiring("id", "disk.controller", "scsi0"),
        *controller_queues(definition, names),
    ]
    if threads:
        thread = fixed(threads[0], "its I/O leaves QEMU's main thread", THREAD_SOURCE)
        fields.append(field("iothread", "disk.controller.iothread", thread))
    return (pairs("-device", "disk", *fields),)


def build_controllers(
    definition: Definition, buses: Mapping[str, str], machine_name: str, scsi_threads: tuple[str, ...]
) -> Part:
    """Give the controllers that are no part of the machine, and check the ports of those that are."""
    scsi = tuple(name for name, bus in buses.items() if bus == "virtio-scsi")
    seats = seats_of(definition, buses, machine_name)
    return Part(
        options=scsi_controller(definition, scsi, scsi_threads), findings=tuple(check_seats(seats, machine_name))
    )


def check_slots(options: tuple[Option, ...]) -> Iterator[Finding]:
    """Refuse more PCI devices than the machine's bus has room for (`qemu.capability`)."""
    drivers = [(str(option.fields[0].choice.value), option.table) for option in options if option.flag == "-device"]
    tables = [table for driver, table in drivers if driver.endswith("-pci") or driver in PCI_DEVICES]
    tables.sort(key=lambda table: table.startswith(MANY))  # what a definition has many of comes last
    if len(tables) > MOST_PCI:
        yield error(
            code="qemu.capability",
            message=f"{count(len(tables), 'PCI device')}, and the machine has room for {MOST_PCI}",
            key=tables[-1],
            why="each disk on virtio-blk, each network and each share takes one",
            hint='bus = "virtio-scsi"   # for disks: one controller carries them all',
        )
