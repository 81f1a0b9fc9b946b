"""`disk create`: what a definition wants and is not there is made; a second time changes nothing."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from kvmlaunch.define.tree import quote as quote_toml
from kvmlaunch.errors import DefinitionInvalid, PreflightFailed, Report
from kvmlaunch.facts.sources import Wanted
from kvmlaunch.host.capture_path import find_overlays
from kvmlaunch.host.images import forget_making, free_space, new_image, owner_of
from kvmlaunch.host.volumes import check_room, make_volume
from kvmlaunch.model.image import overlay_directories
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.model.volume import VolumeName, parse_volume_name
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
    refuse_absent,
    refuse_kind,
    refuse_led,
    seen_of,
)
from kvmlaunch.steps.lost import lost_images, replaced
from kvmlaunch.steps.resolve import look_at_host
from kvmlaunch.storage.creation import Creation, plan_creation, render_creation
from kvmlaunch.storage.snapshot import is_overlay_name
from kvmlaunch.units import count, render_rounded, render_size


@frozen(kw_only=True)
class Created:
    """A disk that was made, would be, or is there already; `size` in bytes, `how` why it is as it is."""

    target: Target
    size: int
    already: bool = False
    how: str = ""


@frozen(kw_only=True)
class Intent:
    """A disk that is to be made, everything about it checked: a `volume`, or an image by its `creation`."""

    target: Target
    size: int
    how: str
    volume: VolumeName | None = None
    creation: Creation | None = None


def create(
    caller: Caller, word: str, *, dry_run: bool = False, progress: Progress = no_progress
) -> tuple[Created, ...]:
    """Make the disks of a word that are not there; all are checked before the first is made.

    Raises DefinitionInvalid `def.disk.size`, PreflightFailed `host.space`, `host.group.missing`, `disk.backing`,
    `disk.type`, `disk.permission`.
    """
    targets = beneath_first(find_disks(caller, word))
    for target in targets:
        refuse_led(target)
    coming = {target.disk.path: target for target in targets if target.facts.kind == "missing"}
    for target in coming.values():
        refuse_orphans(target)
        refuse_held(caller, target)
    intents = [None if is_there(target) else plan_one(caller, target, coming) for target in targets]
    refuse_space([intent.creation for intent in intents if intent and intent.creation])
    done = []
    for target, intent in zip(targets, intents, strict=True):
        if intent is None:
            forget_making(target.disk.path)
            done.append(Created(target=target, size=size_there(target), already=True))
            continue
        size = intent.size if dry_run else make_one(intent, progress)
        done.append(Created(target=target, size=size, how=intent.how))
    return tuple(done)


def refuse_orphans(target: Target) -> None:
    """Refuse to make an empty image where overlays rest on one that is gone (`disk.base`): it would be another disk."""
    directory = target.image.parent
    names: list[str] = []
    with suppress(OSError):  # no directory yet, or none that we may list
        names = sorted(os.listdir(directory))
    own = [str(directory / name) for name in names if is_overlay_name(name, target.image.name)]
    found = [*own, *(each for each in find_overlays({"kind": "file", "real": str(target.image)}) if each not in own)]
    if found:
        rest = ", ".join(PurePosixPath(each).name for each in found[:3])
        raise PreflightFailed(
            Report(
                code="disk.base",
                message=f"{target.disk.path} is gone, and {count(len(found), 'overlay')} would rest on an empty one",
                where=target.table,
                why=f"{rest}: what they hold is over what it held",
                hint=f"put {target.image.name} back, or remove them if their data are of no use",
            )
        )


def refuse_held(caller: Caller, target: Target) -> None:
    """Refuse to make an image that the running VM still has, though nothing lies at its path (`disk.replaced`)."""
    seen = seen_of(caller, target)
    path = PurePosixPath(os.path.realpath(target.disk.path))
    if seen is not None and any(image.path == path for image in lost_images(seen)):
        raise replaced(seen, path, target.table, "another one at its place would not be the guest's")


def beneath_first(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Give disks so that an image comes before the overlays that are to rest on it; a circle stays as it is written."""
    left, ordered = list(targets), []
    while left:
        paths = {target.disk.path for target in left}
        ready = [target for target in left if target.disk.backing not in paths] or left
        ordered += ready
        names = {target.name for target in ready}
        left = [target for target in left if target.name not in names]
    return tuple(ordered)


def is_there(target: Target) -> bool:
    """Is a disk there; raises PreflightFailed for what is there and can be none."""
    refuse_kind(target.disk.path, target.facts, target.table)
    if target.facts.kind in {"file", "block"}:
        return True
    refuse_absent(target)
    return False


def plan_one(caller: Caller, target: Target, coming: Mapping[PurePosixPath, Target]) -> Intent:
    """Give how a disk is made; `coming` are those that will be there when it is its turn."""
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
    volume = parse_volume_name(target.disk.path)
    if volume is not None:
        return plan_volume(target, volume)
    if target.disk.path.is_relative_to("/dev"):
        raise PreflightFailed(
            Report(
                code="disk.missing",
                message=f"{target.disk.path} does not exist",
                where=target.table,
                why="a device is made by its driver; kvmlaunch makes files, and volumes by lvm:GROUP/VOLUME",
                hint=f'path = "{target.name}.img"   # in [{target.table}]; or of a device that is there',
            )
        )
    beneath = beneath_of(caller, target, coming)
    if beneath is not None:
        refuse_led_away(target, beneath)
    return plan_image(caller, target, beneath)


def refuse_led_away(target: Target, beneath: Target) -> None:
    """Refuse an overlay whose backing file a link leads elsewhere (`disk.backing`): it could not be started."""
    real = PurePosixPath(os.path.realpath(beneath.disk.path))
    if PurePosixPath(os.path.realpath(target.disk.path.parent)) not in overlay_directories(real):
        raise PreflightFailed(
            Report(
                code="disk.backing",
                message=f"{target.word} would rest on a file that lies elsewhere",
                where=f"{target.table}.backing",
                why=f"{beneath.disk.path} is a link, or lies behind one, to {real}",
                hint=f"path = {quote_toml(str(real.parent / target.disk.path.name))}   # in [{target.table}]",
            )
        )


def plan_volume(target: Target, name: VolumeName) -> Intent:
    """Give how a volume is made, thick or thin; raises PreflightFailed for one that is there and not active."""
    size, pool = int(target.disk.size or 0), target.disk.thin_pool or ""
    rounded = check_room(name, size, pool)
    how = f"thin, in {name.group}/{pool}" if pool else "thick: every block has its place"
    return Intent(target=target, size=rounded, how=how, volume=name)


def plan_image(caller: Caller, target: Target, beneath: Target | None) -> Intent:
    """Give how an image is made, over the one beneath it where there is one."""
    path, definition = target.disk.path, target.subject.definition
    wanted = Wanted(paths=(nearest_directory(path),), locks=False)
    filesystem = next(iter(look_at_host(caller, wanted, None).paths.values())).filesystem
    creation = plan_creation(
        definition, target.name, target.format, filesystem=filesystem, backing_format=beneath.format if beneath else ""
    )
    how = ": ".join(part for part in (creation.preallocation.value, creation.preallocation.reason) if part)
    if beneath is not None:
        how = f"an overlay of {beneath.disk.path.name}, with subclusters"
    covered = size_there(beneath) if beneath else 0
    size = creation.size or covered
    if size < covered:
        raise PreflightFailed(
            Report(
                code="disk.shrink",
                message=f"{target.word} would cut off what lies beneath it",
                where=f"{target.table}.size",
                why=f"{render_size(size)} is less than the {render_size(covered)} of {creation.backing}",
                hint=f'size = "{render_size(covered)}"   # in [{target.table}], or none: as large as that',
            )
        )
    return Intent(target=target, size=size, how=how, creation=creation)


def make_one(intent: Intent, progress: Progress) -> int:
    """Make a disk, and give its size."""
    if intent.volume is not None:
        return make_volume(intent.volume, intent.size, intent.target.disk.thin_pool or "")
    assert intent.creation is not None
    make_file(intent.target, intent.creation, progress)
    return intent.size


def size_there(target: Target) -> int:
    """Give the size of a disk, as a guest sees it; of one that is not there what it is to be."""
    if target.facts.kind == "missing":
        return int(target.disk.size or 0)
    return read_chain(target)[0].size if target.facts.kind == "file" and target.format else target.facts.size


def make_file(target: Target, creation: Creation, progress: Progress) -> None:
    """Run qemu-img under the making name; raises HostFailed with its words."""
    path = target.disk.path
    maker = owner_of(path.parent)
    with new_image(path, maker, keeper_of(target.subject.definition, path, maker)) as making:

        def look(_: str) -> None:
            progress(os.fstat(making.fd).st_blocks * 512 / max(1, creation.size or 0))

        argv = render_creation(creation, making.place)
        done = qemu_img(*argv[1:], paths=(path.parent,), fds=(making.fd,), look=look)
        if done.status != 0:
            raise failed_tool(done, path)


def beneath_of(caller: Caller, target: Target, coming: Mapping[PurePosixPath, Target]) -> Target | None:
    """Give the image that a disk is to be an overlay of; raises PreflightFailed `disk.backing` where there is none."""
    backing = target.disk.backing
    if backing is None or backing in coming:
        return coming[backing] if backing else None
    facts = look_at_host(caller, Wanted(paths=(backing,), locks=False), None).paths[backing]
    if facts.kind not in {"file", "block"}:
        raise PreflightFailed(
            Report(
                code="disk.backing",
                message=f"the backing file {backing} is not there",
                where=f"{target.table}.backing",
                why=facts.refusal or f"it is of kind {facts.kind}",
                hint=f"backing = NAME   # in [{target.table}]: of an image that is there, relative to the definition",
            )
        )
    format_ = {".qcow2": "qcow2"}.get(backing.suffix, "raw")
    if format_ == "qcow2" and not facts.header:
        raise PreflightFailed(
            Report(
                code="disk.header",
                message=f"{backing.name} is called qcow2, and has no header",
                where=f"{target.table}.backing",
                why="without it nobody knows where everything lies; read as raw it would be another disk",
                hint="go back to a backup of it",
            )
        )
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
    disk = evolve(target.disk, path=backing)
    return Target(subject=target.subject, name=target.name, disk=disk, facts=facts, format=format_)


def nearest_directory(path: PurePosixPath) -> PurePosixPath:
    """Give the nearest directory above a file that is there."""
    return next(each for each in path.parents if os.path.isdir(each))


def refuse_space(creations: Sequence[Creation]) -> None:
    """Refuse images whose blocks have no room together (`host.space`), before a file system is filled."""
    claimed: dict[int, int] = {}
    for creation in creations:
        store = os.stat(nearest_directory(creation.path)).st_dev
        claimed[store] = claimed.get(store, 0) + creation.claimed
        free = free_space(creation.path)
        if creation.claimed and claimed[store] > free:
            raise PreflightFailed(
                Report(
                    code="host.space",
                    message=f"{render_size(claimed[store])} are needed up to {creation.path.name}",
                    where=str(creation.path.parent),
                    why=f"{render_rounded(free)} free, preallocation {creation.preallocation.value}",
                    hint=f'preallocation = "off"   # in [{creation.table}]: blocks are taken as they are written',
                )
            )
