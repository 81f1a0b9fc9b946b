"""What a QEMU binary can do, as it answered itself."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from kvmlaunch.model.value import frozen

OLDEST_VERSION: Final = (7, 2)  # the oldest that the tests run
EVERY_FEATURE: Final = "max-x86_64-cpu"  # the device whose properties are the features of every CPU model


def machine_version(name: str) -> tuple[int, int] | None:
    """Give the release whose hardware a versioned machine type keeps: 5, 2 of `pc-q35-5.2`; None of another name."""
    match = re.fullmatch(r"pc-(?:q35|i440fx)-([0-9]{1,3})\.([0-9]{1,3})(?:\..*)?", name)
    return (int(match[1]), int(match[2])) if match else None


@frozen(kw_only=True)
class MachineType:
    """A row of query-machines."""

    name: str
    alias: str = ""
    cpu_max: int = 1
    deprecated: bool = False
    default: bool = False


@frozen(kw_only=True)
class QemuCaps:
    """The capabilities of one binary.

    `devices` maps the devices that kvmlaunch may emit to their properties, without those that this
    QEMU lacks; `objects` are the object types of query-qmp-schema, `aio` the members of its BlockdevAioOptions,
    `qcow2` the members of its qcow2 options; `options` maps a group of query-command-line-options to its
    parameters with their types; `bare_options` are the words of `-help` (without the dash);
    `machine_properties` those of the newest q35.  `switches` are the features of CPUs that are on or off, none where
    this was not told.
    """

    binary: PurePosixPath
    version: tuple[int, int, int]
    package: str = ""
    machines: tuple[MachineType, ...]
    cpu_models: tuple[str, ...]
    devices: Mapping[str, frozenset[str]]
    objects: frozenset[str]
    aio: frozenset[str]
    qcow2: frozenset[str]
    options: Mapping[str, Mapping[str, str]]
    bare_options: frozenset[str]
    machine_properties: frozenset[str] = frozenset()
    switches: frozenset[str] = frozenset()
    accelerators: frozenset[str] = frozenset({"kvm", "tcg"})

    @property
    def version_text(self) -> str:
        """The version as people write it: `7.2.22`."""
        return ".".join(str(part) for part in self.version)

    def machine(self, name: str) -> MachineType | None:
        """Give a machine type by name or alias; "" is the name of none."""
        return next((machine for machine in self.machines if name and name in {machine.name, machine.alias}), None)

    def has_feature(self, name: str) -> bool:
        """Knows it a CPU feature of this name; QEMU takes `_` for `-`.

        True where it was not asked, and for `legacy-…`, which device-list-properties leaves out.
        """
        known = self.devices.get(EVERY_FEATURE)
        return known is None or name.startswith("legacy-") or not known.isdisjoint({name, name.replace("_", "-")})

    def is_switch(self, name: str) -> bool | None:
        """Is a CPU feature on or off, and has no other value; None where this was not told."""
        if not self.switches or name.startswith("legacy-"):
            return None
        return not self.switches.isdisjoint({name, name.replace("_", "-")})

    def device_has(self, device: str, prop: str) -> bool:
        """Has this device this property."""
        return prop in self.devices.get(device, frozenset())
