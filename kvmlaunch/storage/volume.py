"""LVM volumes: what LVM's tools are asked, and what they answer.

Sources: lvm(8), lvcreate(8), lvextend(8), lvrename(8), lvremove(8), lvmreport(7).
"""

import json
from collections.abc import Mapping
from typing import Final

from kvmlaunch.model.value import frozen
from kvmlaunch.model.volume import VolumeName

UNITS: Final = ("--reportformat", "json", "--units", "b", "--nosuffix")


@frozen(kw_only=True)
class Volume:
    """A volume that is there; sizes in bytes, `pool` the thin pool that it lies in, "" for a thick one."""

    name: VolumeName
    size: int
    pool: str = ""


@frozen(kw_only=True)
class Group:
    """A volume group; sizes in bytes."""

    name: str
    size: int
    free: int
    extent: int

    def rounded(self, size: int) -> int:
        """Give the size of a volume made here: whole extents."""
        return -(-size // self.extent) * self.extent if self.extent else size


def list_volumes() -> tuple[str, ...]:
    """Give the command that lists all volumes."""
    return ("lvs", *UNITS, "-o", "vg_name,lv_name,lv_size,pool_lv")


def list_groups() -> tuple[str, ...]:
    """Give the command that lists all groups."""
    return ("vgs", *UNITS, "-o", "vg_name,vg_size,vg_free,vg_extent_size")


def create_volume(name: VolumeName, size: int, pool: str) -> tuple[str, ...]:
    """Give the command that makes a volume: thick, or thin in a pool.  LVM wipes old signatures at its beginning."""
    if pool:
        return ("lvcreate", "--yes", "--virtualsize", f"{size}b", "--thinpool", pool, "--name", name.volume, name.group)
    return ("lvcreate", "--yes", "--size", f"{size}b", "--name", name.volume, name.group)


def extend_volume(name: VolumeName, size: int) -> tuple[str, ...]:
    """Give the command that makes a volume larger."""
    return ("lvextend", "--size", f"{size}b", name.text)


def rename_volume(name: VolumeName, new: VolumeName) -> tuple[str, ...]:
    """Give the command that gives a volume another name in its group."""
    return ("lvrename", name.group, name.volume, new.volume)


def remove_volume(name: VolumeName) -> tuple[str, ...]:
    """Give the command that removes a volume; one that is in use is not removed."""
    return ("lvremove", "--yes", name.text)


def parse_volumes(text: str) -> tuple[Volume, ...]:
    """Give the volumes of a report; ValueError for no such text."""
    return tuple(
        Volume(
            name=VolumeName(group=column(row, "vg_name"), volume=column(row, "lv_name")),
            size=int(column(row, "lv_size")),
            pool=row.get("pool_lv", ""),
        )
        for row in parse_report(text, "lv")
    )


def column(row: Mapping[str, str], name: str) -> str:
    """Give a column of a report's row; ValueError where it has none."""
    if name not in row:
        message = f"a row of LVM's report has no {name}"
        raise ValueError(message)
    return row[name]


def parse_groups(text: str) -> tuple[Group, ...]:
    """Give the groups of a report; ValueError for no such text."""
    return tuple(
        Group(
            name=column(row, "vg_name"),
            size=int(column(row, "vg_size")),
            free=int(column(row, "vg_free")),
            extent=int(column(row, "vg_extent_size")),
        )
        for row in parse_report(text, "vg")
    )


def parse_report(text: str, kind: str) -> list[Mapping[str, str]]:
    """Give the rows of one kind of a report in JSON; ValueError for no such text."""
    try:
        reports = json.loads(text)["report"]
        rows = [row for report in reports for row in report.get(kind, ())]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"LVM's report has no {kind}"
        raise ValueError(message) from error
    if not all(isinstance(row, Mapping) and all(type(word) is str for word in row.values()) for row in rows):
        message = f"a row of LVM's {kind} is none"
        raise ValueError(message)
    return rows
