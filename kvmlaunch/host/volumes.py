"""LVM's volumes: looked up, made, grown and removed with LVM's own tools."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kvmlaunch.errors import HostFailed, PreflightFailed, Report
from kvmlaunch.host.command import run_tool
from kvmlaunch.model.volume import VolumeName
from kvmlaunch.storage.snapshot import MAKING
from kvmlaunch.storage.volume import (
    Group,
    Volume,
    create_volume,
    extend_volume,
    list_groups,
    list_volumes,
    parse_groups,
    parse_volumes,
    remove_volume,
    rename_volume,
)
from kvmlaunch.units import render_size

SECONDS = 120.0
LONGEST_STEM: Final = 120  # of 127 characters that a volume's name may have: lvm(8)


def run_lvm(argv: tuple[str, ...]) -> str:
    """Give what one of LVM's tools printed; raises HostFailed with its own words."""
    done = run_tool(argv, timeout=SECONDS)
    if done.status != 0:
        lines = [line.strip() for line in done.err.splitlines() if line.strip() and "WARNING" not in line]
        hint = "" if os.geteuid() == 0 else "the same command as root: LVM's tools need it"
        raise HostFailed(
            Report(
                code="host.tool.failed",
                message=f"{argv[0]} failed",
                where=" ".join(argv),
                why="\n".join(lines),
                hint=hint,
            )
        )
    return done.out


def find_volume(name: VolumeName) -> Volume | None:
    """Give a volume, None when there is none of this name."""
    return next((each for each in parse_volumes(run_lvm(list_volumes())) if each.name == name), None)


def find_group(name: VolumeName) -> Group:
    """Give the group of a volume; raises PreflightFailed `host.group.missing`, naming those that there are."""
    groups = parse_groups(run_lvm(list_groups()))
    found = next((group for group in groups if group.name == name.group), None)
    if found is None:
        there = ", ".join(group.name for group in groups) or "none"
        raise PreflightFailed(
            Report(
                code="host.group.missing",
                message=f"there is no volume group {name.group}",
                where=f"/dev/{name.text}",
                why=f"volume groups of this host: {there}",
                hint=f"vgcreate {name.group} DEVICE",
            )
        )
    return found


def refuse_room(group: Group, name: VolumeName, more: int) -> None:
    """Refuse what a group has no room for (`host.space`)."""
    if more > group.free:
        raise PreflightFailed(
            Report(
                code="host.space",
                message=f"{render_size(more)} are needed in the volume group {group.name}",
                where=f"/dev/{name.text}",
                why=f"{render_size(group.free)} of {render_size(group.size)} are free",
                hint=f"vgextend {group.name} DEVICE   # or a smaller size",
            )
        )


def check_room(name: VolumeName, size: int, pool: str = "") -> int:
    """Give the size that a new volume would have, in whole extents.

    Raises PreflightFailed `host.group.missing` for no such group or thin pool, `host.space` for no room.
    """
    group = find_group(name)
    if not pool:
        refuse_room(group, name, group.rounded(size))
    elif find_volume(VolumeName(group=name.group, volume=pool)) is None:
        raise PreflightFailed(
            Report(
                code="host.group.missing",
                message=f"there is no thin pool {pool} in {name.group}",
                where=f"/dev/{name.text}",
                hint=f"lvcreate --type thin-pool --size 100G --name {pool} {name.group}",
            )
        )
    return group.rounded(size)


def make_volume(name: VolumeName, size: int, pool: str = "") -> int:
    """Make a volume and give its size, which is rounded up to whole extents; raises PreflightFailed, HostFailed."""
    size = check_room(name, size, pool)
    run_lvm(create_volume(name, size, pool))
    made = find_volume(name)
    return made.size if made else size


@contextmanager
def new_volume(name: VolumeName, size: int) -> Iterator[VolumeName]:
    """Give a volume to be filled, which has its own name when the block ends; on any failure it is removed.

    One that a killed command left is made anew.  Raises PreflightFailed, HostFailed.
    """
    making = VolumeName(group=name.group, volume=f"{name.volume[:LONGEST_STEM]}{MAKING}")
    if find_volume(making):
        drop_volume(making)
    make_volume(making, size)
    try:
        yield making
        run_lvm(rename_volume(making, name))
    except BaseException:
        if find_volume(making):
            drop_volume(making)
        raise


def grow_volume(volume: Volume, size: int) -> int:
    """Make a volume larger and give its size; raises PreflightFailed, HostFailed."""
    group = find_group(volume.name)
    if not volume.pool:
        refuse_room(group, volume.name, group.rounded(size) - volume.size)
    run_lvm(extend_volume(volume.name, size))
    grown = find_volume(volume.name)
    return grown.size if grown else size


def drop_volume(name: VolumeName) -> None:
    """Remove a volume; LVM refuses one that is in use.  Raises HostFailed."""
    run_lvm(remove_volume(name))
