"""The name of an LVM volume."""

import re
from pathlib import PurePosixPath
from typing import Final

from kvmlaunch.model.value import frozen

# lvm(8), "Valid names"; a hyphen may not come first.
NAME: Final = r"(?a)(?!\.{1,2}$)[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}"
# Directories of /dev that are no volume groups.
NO_GROUPS: Final = {
    *("block", "bus", "char", "cpu", "disk", "dri", "fd", "hugepages", "input", "mapper", "md", "mqueue", "net"),
    *("pts", "shm", "snd", "usb", "vfio", "zvol"),
}


@frozen(kw_only=True)
class VolumeName:
    """A volume of a group."""

    group: str
    volume: str

    @property
    def text(self) -> str:
        """The name as LVM's tools take it."""
        return f"{self.group}/{self.volume}"

    @property
    def path(self) -> PurePosixPath:
        """Where its device lies."""
        return PurePosixPath("/dev", self.group, self.volume)


def parse_volume_name(path: PurePosixPath) -> VolumeName | None:
    """Give the volume that a path /dev/GROUP/VOLUME would be; None for another path.

    Whether there is such a group only LVM can tell; what the kernel and udev keep beneath /dev is none (devices.rst).
    """
    parts = path.parts
    if len(parts) != len(("/", "dev", "group", "volume")) or parts[:2] != ("/", "dev"):
        return None
    group, volume = parts[2:]
    if group in NO_GROUPS:
        return None
    return VolumeName(group=group, volume=volume) if re.fullmatch(NAME, group) and re.fullmatch(NAME, volume) else None
