"""CD drives: read-only images on SATA, served through the host's page cache."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from kvmlaunch.builder import names
from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs, wiring
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import DrivePromise, Field, PlannedDisk

# Volumes are called virtio-win-0.1.240.  Which are old is ours to say.
DRIVERS = r"(?a)virtio-win-([0-9]{1,4}(?:\.[0-9]{1,5}){1,3})"
OLDEST_DRIVERS = (0, 1, 229)
DRIVER_SOURCE = "virtio-win, the name of the ISO volume"
CACHE_REASON = "the host's page cache serves a read-only image"
CACHE_SOURCE = "kvmlaunch docs, performance"


def drive_fields(definition: Definition, name: str) -> tuple[Field, ...]:
    """Give the fields of `-drive`."""
    table = f"cdrom.{name}"
    path: Choice[PurePosixPath] = by_hand(definition, f"{table}.path", definition.cdrom[name].path)
    return (
        field("file", f"{table}.path", path),
        field(
            "format",
            f"{table}.format",
            fixed("raw", "an ISO image is raw; content is never probed", "QEMU security page"),
        ),
        wiring("if", table, "none", "the device below is attached by hand"),
        wiring("id", table, names.cdrom_id(name)),
        wiring("node-name", table, names.cdrom_node_name(name)),
        field("media", f"{table}.media", fixed("cdrom", "a CD-ROM", "QEMU man page, -drive media")),
        field(
            "readonly",
            f"{table}.readonly",
            fixed(value=True, reason="nobody writes to a CD image", source="QEMU man page, -drive"),
        ),
        field("cache", f"{table}.cache", fixed("writeback", CACHE_REASON, CACHE_SOURCE)),
    )


def driver_version(host: HostFacts, path: PurePosixPath) -> tuple[int, ...]:
    """Give the version of the virtio drivers for Windows on an image, by its volume's name; () for another image."""
    facts = host.paths.get(path)
    match = re.fullmatch(DRIVERS, facts.volume_id) if facts else None
    return tuple(map(int, match[1].split("."))) if match else ()


def driver_rows(definition: Definition, host: HostFacts) -> Iterator[Field]:
    """Give the version of the drivers for `explain`."""
    for name, cdrom in definition.cdrom.items():
        version = driver_version(host, cdrom.path)
        if version:
            origin = Origin(kind="host", place=f"the volume's name of {cdrom.path}", key=f"cdrom.{name}.drivers")
            reason = "virtio drivers for Windows; a driver that is newer than the guest's is installed within it"
            text = ".".join(map(str, version))
            choice = Choice(value=text, reason=reason, source=DRIVER_SOURCE, origin=origin)
            yield field("", f"cdrom.{name}.drivers", choice)


def check_drivers(definition: Definition, host: HostFacts) -> Iterator[Finding]:
    """Warn of old drivers for Windows (`cdrom.drivers.old`)."""
    for name, cdrom in definition.cdrom.items():
        if definition.os != "windows":
            continue
        version, facts = driver_version(host, cdrom.path), host.paths.get(cdrom.path)
        told = f"are {'.'.join(map(str, version))}" if version else "tell no version"
        unknown = not version and cdrom.path.name.startswith("virtio-win") and facts is not None and facts.readable
        if unknown or (version and version < OLDEST_DRIVERS):
            yield warning(
                code="cdrom.drivers.old",
                message=f"the virtio drivers on {cdrom.path.name} {told}",
                key=f"cdrom.{name}.path",
                why="the volume on it has another name than theirs: is it whole"
                if unknown
                else f"drivers before {'.'.join(map(str, OLDEST_DRIVERS))} count as old here",
                hint="https://fedorapeople.org/groups/virt/virtio-win   # has newer ones",
            )


def build_cdrom(definition: Definition, name: str, *, bus: str, boot: Choice[int]) -> Part:
    """Give a CD-ROM's drive and device; `bus` is its SATA or IDE port."""
    table = f"cdrom.{name}"
    device = [
        field("", f"{table}.device", fixed("ide-cd", "every guest reads it without a driver", "QEMU docs")),
        wiring("drive", table, names.cdrom_id(name)),
        field(
            "id",
            f"{table}.id",
            fixed(names.cdrom_device_id(name), "an id computed from the name", "kvmlaunch: names, not numbers"),
        ),
        wiring("bus", table, bus, "its port"),
    ]
    device.append(field("bootindex", f"{table}.boot", boot))
    promise = DrivePromise(
        table=table,
        id=names.cdrom_id(name),
        path=definition.cdrom[name].path,
        format="raw",
        readonly=True,
        direct=False,
        no_flush=False,
        writeback=True,
        detect_zeroes="off",
    )
    return Part(
        options=(pairs("-drive", table, *drive_fields(definition, name)), pairs("-device", table, *device)),
        promises=(promise,),
    )


def planned(definition: Definition, name: str) -> PlannedDisk:
    """Give the CD-ROM as the checks want it."""
    return PlannedDisk(
        table=f"cdrom.{name}",
        path=definition.cdrom[name].path,
        format="raw",
        format_written=True,
        readonly=True,
        cache="writeback",
    )
