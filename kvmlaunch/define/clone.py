"""The definition of a clone: what it extends, and the disks that are its own."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from kvmlaunch.define.tree import quote
from kvmlaunch.model.definition import AUTO, Definition, Disk

MAKING_KEYS = ("preallocation", "thin_pool", "backing", "size")


def clone_paths(disks: Mapping[str, Disk], new: str, *, overlay: bool) -> dict[str, PurePosixPath]:
    """Give where a clone's disks lie: beside the originals, named after the clone and, of several, the disk."""
    return {
        name: disk.path.with_name(
            f"{new}{f'-{name}' if len(disks) > 1 else ''}{'.qcow2' if overlay else disk.path.suffix}"
        )
        for name, disk in disks.items()
    }


def inherited_keys(definition: Definition, name: str, *, overlay: bool) -> tuple[str, ...]:
    """Give the keys of a disk that a clone must not inherit: how the original was made, and an overlay's own format."""
    found = [f"disk.{name}.{key}" for key in MAKING_KEYS if definition.origin(f"disk.{name}.{key}").kind == "file"]
    return tuple(found) if overlay else tuple(key for key in found if not key.endswith((".size", ".preallocation")))


def own_addresses(definition: Definition) -> tuple[str, ...]:
    """Give the UUID and MAC addresses that are written: a clone has others."""
    macs = (f"network.{name}.mac" for name, network in definition.network.items() if network.mac is not AUTO)
    return (*(["uuid"] if definition.uuid is not AUTO else []), *macs)


def shared_keys(definition: Definition) -> tuple[str, ...]:
    """Give the keys that a clone inherits, and that two VMs cannot both have: they collide as soon as both run."""
    networks = definition.network.items()
    forwards = [f"network.{name}.forwards" for name, network in networks if network.forwards]
    taps = [f"network.{name}.ifname" for name, network in networks if network.ifname]
    address = ["display.address"] if definition.origin("display.address").kind == "file" else []
    seed = ("cloud_init.hostname", "cloud_init.meta_data", "cloud_init.network", "lifecycle.autostart")
    return (*forwards, *taps, *address, *(key for key in seed if definition.origin(key).kind == "file"))


def render_clone(
    definition: Definition, new: str, disks: Mapping[str, PurePosixPath], formats: Mapping[str, str], *, overlay: bool
) -> str:
    """Give the text of a clone's definition; `disks` are its own, by name, with their formats."""
    unset = [
        *own_addresses(definition),
        *(key for name in disks for key in inherited_keys(definition, name, overlay=overlay)),
    ]
    how = "an overlay of each of its disks" if overlay else "a copy of each of its disks"
    lines = [f"# {new}: a clone of {definition.name}, {how}.", f'extends = ["{definition.file.name}"]']
    if unset:
        lines.append(f"unset = [{', '.join(map(quote, unset))}]")
    for name, path in disks.items():
        lines += ["", f"[disk.{name}]", f"path = {written(path, definition)}", f"format = {quote(formats[name])}"]
        lines.append("readonly = false")  # also where the original's is made so later, for both to run
        if overlay:
            lines.append(f"backing = {written(definition.disk[name].path, definition)}")
    return "\n".join(lines) + "\n"


def written(path: PurePosixPath, definition: Definition) -> str:
    """Give a path as a definition beside the other one writes it: what lies there too by its name alone."""
    return quote(path.name if path.parent == definition.file.parent else str(path))
