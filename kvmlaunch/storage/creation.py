"""How a disk is made: the image with its options, or the volume, each with its reason."""

from pathlib import PurePosixPath
from typing import Final

from kvmlaunch.model.choice import MEASURED, Choice, Origin
from kvmlaunch.model.definition import AUTO, THIN_PROFILES, Definition, Disk, Preallocation
from kvmlaunch.model.value import frozen

OVERLAY_CLUSTER: Final = 128 << 10
COPIES_ON_WRITE = "btrfs"  # where an image is kept out of that: it would lie in pieces soon
OVERLAY_OPTIONS: Final = (f"cluster_size={OVERLAY_CLUSTER}", "extended_l2=on")
FULL: Final = ("falloc", "full")


@frozen(kw_only=True)
class Creation:
    """A disk to be made; `size` in bytes, None for an overlay that is as large as its backing file.

    `backing` is the image beneath, None for a disk of its own; `nocow` keeps the file out of copy-on-write.
    """

    table: str
    path: PurePosixPath
    format: str
    size: int | None
    preallocation: Choice[Preallocation]
    backing: PurePosixPath | None = None
    backing_format: str = ""
    nocow: bool = False

    @property
    def claimed(self) -> int:
        """Bytes of the store that the new image takes at once, 0 when it grows as it is written."""
        return (self.size or 0) if self.preallocation.value in FULL else 0


def plan_preallocation(definition: Definition, name: str, disk: Disk, format_: str) -> Choice[Preallocation]:
    """Choose which blocks a new image is given at once."""
    key = f"disk.{name}.preallocation"
    origin = definition.origin(key)
    if disk.preallocation is not AUTO:
        return Choice(value=disk.preallocation, reason="", source="", origin=origin)
    if disk.backing is not None:
        reason = "an overlay holds what differs from its backing file only"
        return Choice(value="off", reason=reason, source="qemu-img(1), backing_file", origin=origin)
    if definition.profile in THIN_PROFILES:
        by_profile = Origin(kind="profile", place=definition.profile, key=key)
        reason = f"the profile {definition.profile}: blocks are taken as they are written"
        return Choice(value="off", reason=reason, source="kvmlaunch: profiles", origin=by_profile)
    if format_ == "qcow2":
        reason = "no metadata is allocated while the guest writes: 3 to 6 times the IOPS of a plain new qcow2"
        return Choice(value="metadata", reason=reason, source=MEASURED, origin=origin)
    reason = "every block has its place at once: the space is there for certain, and aio=native fits"
    return Choice(value="falloc", reason=reason, source=MEASURED, origin=origin)


def plan_creation(
    definition: Definition, name: str, format_: str, *, filesystem: str, backing_format: str = ""
) -> Creation:
    """Give how an image is made on a file system; `format_` is the disk's as planned."""
    disk = definition.disk[name]
    preallocation = plan_preallocation(definition, name, disk, format_)
    return Creation(
        table=f"disk.{name}",
        path=disk.path,
        format=format_,
        size=None if disk.size is None else int(disk.size),
        preallocation=preallocation,
        backing=disk.backing,
        backing_format=backing_format,
        nocow=filesystem == COPIES_ON_WRITE,
    )


def render_creation(creation: Creation, place: PurePosixPath) -> tuple[str, ...]:
    """Give the command that makes the image at a place, which then takes the disk's name."""
    options = [f"preallocation={creation.preallocation.value}"]
    beneath: tuple[str, ...] = ()
    if creation.backing is not None:
        # A name without a directory: overlay and backing file may be moved together.
        same = creation.backing.parent == creation.path.parent
        name = as_file(creation.backing.name) if same else str(creation.backing)
        beneath = ("-b", name, "-F", creation.backing_format)
        options = list(OVERLAY_OPTIONS)
    if creation.nocow:
        options.append("nocow=on")
    size = () if creation.size is None else (str(creation.size),)
    return ("qemu-img", "create", "-q", "-f", creation.format, *beneath, "-o", ",".join(options), str(place), *size)


def as_file(name: str) -> str:
    """Give a name in the same directory so that QEMU reads no protocol in it: `nbd:x` is a file here."""
    return f"./{name}" if ":" in name else name
