"""The capabilities of a QEMU binary as a line of JSON, for the cache."""

import json
from pathlib import PurePosixPath

from kvmlaunch.model.qemu import MachineType, QemuCaps

# Counts up whenever what is asked or kept changes, so that an older cache is asked again.
SCHEMA = 3


def render_caps(caps: QemuCaps) -> str:
    """Give the JSON of capabilities."""
    machines = [[item.name, item.alias, item.cpu_max, item.deprecated, item.default] for item in caps.machines]
    return json.dumps(
        {
            "binary": str(caps.binary),
            "version": caps.version,
            "package": caps.package,
            "machines": machines,
            "cpu_models": caps.cpu_models,
            "devices": {name: sorted(properties) for name, properties in caps.devices.items()},
            "objects": sorted(caps.objects),
            "aio": sorted(caps.aio),
            "qcow2": sorted(caps.qcow2),
            "options": caps.options,
            "bare_options": sorted(caps.bare_options),
            "machine_properties": sorted(caps.machine_properties),
            "switches": sorted(caps.switches),
            "accelerators": sorted(caps.accelerators),
        },
        separators=(",", ":"),
    )


def parse_caps(value: object) -> QemuCaps:
    """Give the capabilities of JSON that `render_caps` wrote; ValueError for any other.

    The shape is ours, so it is trusted as far as it unpacks.
    """
    if not isinstance(value, dict):
        message = "capabilities are an object"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    try:
        major, minor, micro = value["version"]
        return QemuCaps(
            binary=PurePosixPath(value["binary"]),
            version=(int(major), int(minor), int(micro)),
            package=str(value["package"]),
            machines=tuple(parse_machine(item) for item in value["machines"]),
            cpu_models=tuple(value["cpu_models"]),
            devices={name: frozenset(properties) for name, properties in value["devices"].items()},
            objects=frozenset(value["objects"]),
            aio=frozenset(value["aio"]),
            qcow2=frozenset(value["qcow2"]),
            options={group: dict(parameters) for group, parameters in value["options"].items()},
            bare_options=frozenset(value["bare_options"]),
            machine_properties=frozenset(value["machine_properties"]),
            switches=frozenset(value["switches"]),
            accelerators=frozenset(value["accelerators"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"the cached capabilities have another shape: {error!r}"
        raise ValueError(message) from error


def parse_machine(row: list[object]) -> MachineType:
    """Give a machine type of its row."""
    name, alias, cpu_max, deprecated, default = row
    return MachineType(
        name=str(name),
        alias=str(alias),
        cpu_max=int(str(cpu_max)),
        deprecated=deprecated is True,
        default=default is True,
    )
