"""`disk create`: what a definition wants and is not there is made; a second time changes nothing."""

import os
from collections.abc import Mapping
from pathlib import PurePosixPath

from attrs import evolve

from kvmlaunch.errors import DefinitionInvalid, PreflightFailed, Report
from kvmlaunch.facts.sources import Wanted
from kvmlaunch.host.images import free_space, new_image, owner_of
from kvmlaunch.host.volumes import make_volume
from kvmlaunch.model.value import frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.disks import (
    Progress,
    Target,
    failed_tool,
    find_disks,
    keeper_of,
    need_format,
    no_progress,
    qemu_img,
    read_chain,
)
from kvmlaunch.steps.resolve import look_at_host
from kvmlaunch.storage.creation import Creation, plan_creation, render_creation
from kvmlaunch.storage.volume import VolumeName, parse_volume_name
from kvmlaunch.units import render_size


@frozen(kw_only=True)
class Created:
    """A disk that was made, would be, or is there already; `size` in bytes, `how` why it is as it is."""

    target: Target
    size: int
    already: bool = False
    how: str = ""
    argv: tuple[str, ...] = ()


def create(
    caller: Caller, word: str, *, dry_run: bool = False, progress: Progress = no_progress
) -> tuple[Created, ...]:
    """Make the disks of a word that are not there; all are checked before the first is made.

    Raises DefinitionInvalid `def.disk.size`, PreflightFailed `host.space`, `host.group.missing`, `disk.backing`.
    """
    targets = find_disks(caller, word)
    coming = {target.disk.path: target for target in targets} if dry_run else {}
    for target in targets:
        if target.facts.kind == "missing":
            check_wanted(target)
    return tuple(create_one(caller, target, coming, dry_run=dry_run, progress=progress) for target in targets)


def check_wanted(target: Target) -> None:
    """Refuse a disk of which nothing says how large it is to be."""
    need_format(target)
    if target.disk.size is None and target.disk.backing is None:
        raise DefinitionInvalid(
            Report(
                code="def.disk.size",
                message=f"nothing says how large {target.word} is to be",
                where=f"{target.subject.definition.file} {target.table}",
                why=f"{target.disk.path} does not exist, and {target.table}.size is not written",
                hint=f'size = "20GiB"   # in [{target.table}]',
            )
        )


def create_one(
    caller: Caller, target: Target, coming: Mapping[PurePosixPath, Target], *, dry_run: bool, progress: Progress
) -> Created:
    """Make one disk; `coming` are those that a dry run would have made."""
    if target.facts.kind != "missing":
        return Created(target=target, size=size_there(target), already=True)
    volume = parse_volume_name(target.disk.path)
    if volume is not None:
        return create_volume(target, volume, dry_run=dry_run)
    if target.disk.path.is_relative_to("/dev"):
        raise PreflightFailed(
            Report(
                code="disk.missing",
                message=f"{target.disk.path} does not exist",
                where=target.table,
                why="a device is made by its driver; of volumes, kvmlaunch makes lvm:GROUP/VOLUME",
            )
        )
    backing = target.disk.backing
    beneath = coming.get(backing) if backing else None
    if beneath is None or beneath.facts.kind != "missing":
        beneath = beneath_of(caller, target)
    return create_image(caller, target, beneath, dry_run=dry_run, progress=progress)


def size_there(target: Target) -> int:
    """Give the size of a disk, as a guest sees it; of one that is not there what it is to be."""
    if target.facts.kind == "missing":
        return int(target.disk.size or 0)
    return read_chain(target)[0].size if target.facts.kind == "file" and target.format else target.facts.size


def create_volume(target: Target, name: VolumeName, *, dry_run: bool) -> Created:
    """Make an LVM volume, thick or thin."""
    size, pool = int(target.disk.size or 0), target.disk.thin_pool or ""
    how = f"thin, in {name.group}/{pool}" if pool else "thick: every block has its place"
    made = size if dry_run else make_volume(name, size, pool)
    return Created(target=target, size=made, how=how)


def create_image(
    caller: Caller, target: Target, beneath: Target | None, *, dry_run: bool, progress: Progress
) -> Created:
    """Make an image file, over the one beneath it where there is one."""
    path, definition = target.disk.path, target.subject.definition
    wanted = Wanted(paths=(nearest_directory(path),), locks=False)
    filesystem = next(iter(look_at_host(caller, wanted, None).paths.values())).filesystem
    creation = plan_creation(
        definition, target.name, target.format, filesystem=filesystem, backing_format=beneath.format if beneath else ""
    )
    refuse_space(creation)
    size = creation.size or (size_there(beneath) if beneath else 0)
    how = ": ".join(part for part in (creation.preallocation.value, creation.preallocation.reason) if part)
    if beneath is not None:
        how = f"an overlay of {beneath.disk.path.name}, with subclusters"
    argv = render_creation(creation, path)
    if not dry_run:
        make_file(target, creation, progress)
    return Created(target=target, size=size, how=how, argv=argv)


def make_file(target: Target, creation: Creation, progress: Progress) -> None:
    """Run qemu-img under the making name; raises HostFailed with its words."""
    path = target.disk.path
    maker = owner_of(path.parent)
    with new_image(path, maker, keeper_of(target.subject.definition, path, maker)) as making:

        def look(_: str) -> None:
            progress(os.fstat(making.fd).st_blocks * 512 / max(1, creation.size or 0))

        argv = render_creation(creation, making.place)
        done = qemu_img(*argv[1:], paths=(path.parent,), lock_fd=making.fd, look=look)
        if done.status != 0:
            raise failed_tool(done, path)


def beneath_of(caller: Caller, target: Target) -> Target | None:
    """Give the image that a disk is to be an overlay of; raises PreflightFailed `disk.backing` where there is none."""
    backing = target.disk.backing
    if backing is None:
        return None
    facts = look_at_host(caller, Wanted(paths=(backing,), locks=False), None).paths[backing]
    if facts.kind not in {"file", "block"}:
        raise PreflightFailed(
            Report(
                code="disk.backing",
                message=f"the backing file {backing} is not there",
                where=f"{target.table}.backing",
                why=facts.refusal or f"it is of kind {facts.kind}",
            )
        )
    format_ = {".qcow2": "qcow2"}.get(backing.suffix, "raw")
    if format_ != (facts.header or "raw"):
        raise PreflightFailed(
            Report(
                code="disk.header",
                message=f"{backing.name} is called {format_}, and has a {facts.header or 'raw'} header",
                where=f"{target.table}.backing",
                why="the format of a backing file is told by its suffix, never by its content",
                hint=f"mv {backing} {backing.with_suffix('.' + (facts.header or 'img'))}",
            )
        )
    disk = target.disk
    return Target(
        subject=target.subject, name=target.name, disk=evolve(disk, path=backing), facts=facts, format=format_
    )


def nearest_directory(path: PurePosixPath) -> PurePosixPath:
    """Give the nearest directory above a file that is there."""
    return next(each for each in path.parents if os.path.isdir(each))


def refuse_space(creation: Creation) -> None:
    """Refuse an image whose blocks have no room (`host.space`), before a file system is filled."""
    free = free_space(creation.path)
    if creation.claimed > free:
        raise PreflightFailed(
            Report(
                code="host.space",
                message=f"{render_size(creation.claimed)} are needed for {creation.path.name}",
                where=str(creation.path.parent),
                why=f"{render_size(free >> 20 << 20)} are free, and preallocation is {creation.preallocation.value}",
                hint=f'preallocation = "off"   # in [{creation.table}]: blocks are taken as they are written',
            )
        )
