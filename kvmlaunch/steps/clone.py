"""`clone`: a VM like another, on overlays of its disks or on copies; the original is left as it is."""

import os
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from kvmlaunch.define.clone import clone_paths, render_clone, shared_keys
from kvmlaunch.define.rules import check_vm_name
from kvmlaunch.errors import Busy, DefinitionInvalid, PreflightFailed, Report
from kvmlaunch.host.files import write_new
from kvmlaunch.host.images import exists_already, remove_image
from kvmlaunch.host.tree import failed
from kvmlaunch.host.volumes import drop_volume
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.model.volume import parse_volume_name
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.disk_check import Info, look_at, refuse_unsound
from kvmlaunch.steps.disk_convert import Conversion, convert_target
from kvmlaunch.steps.disk_create import create
from kvmlaunch.steps.disks import (
    Progress,
    Target,
    at_rest,
    find_disks,
    need_file,
    need_format,
    no_progress,
    refuse_damaged,
    refuse_disorder,
    refuse_elsewhere,
    refuse_locked,
    refuse_running,
)
from kvmlaunch.steps.load import load_subject
from kvmlaunch.storage.image import Image


@frozen(kw_only=True)
class Cloned:
    """A clone: its definition, its disks with what they rest on, the topmost first, and what both VMs have alike.

    `shared` are keys whose values two VMs cannot both have; `overlaid` tells whether the original wants to write to
    what overlays rest on.  `common` are disks that both only read.
    """

    file: Path
    text: str
    chains: tuple[tuple[str, tuple[Image, ...]], ...] = ()
    shared: tuple[str, ...] = ()
    overlaid: bool = False
    common: tuple[str, ...] = ()


def clone(
    caller: Caller, new: str, base: str, *, full: bool = False, dry_run: bool = False, progress: Progress = no_progress
) -> Cloned:
    """Make a clone of a VM that is down: a definition beside its, and its disks; on any failure neither stays.

    Raises DefinitionInvalid `def.name`, Busy `vm.exists`, `vm.state`, PreflightFailed, HostFailed.
    """
    if wrong := check_vm_name(new):
        raise DefinitionInvalid(Report(code=wrong.code, message=wrong.message, hint=wrong.hint))
    definition = load_subject(caller, base).definition
    found = find_disks(caller, base)
    targets = tuple(target for target in found if not target.disk.readonly) or found  # all of a base that never runs
    common = tuple(target.name for target in found if target not in targets)
    for target in targets:
        refuse_running(caller, target, "cloned")
        check_source(target, f"kvmlaunch clone {new} --from {shlex.quote(base)} --full", full=full)
    file = Path(definition.file).with_name(f"{new}.toml")
    if os.path.lexists(file):
        hint = f"another name; or, where a clone was cut off: kvmlaunch up {new} --create   # makes what lacks"
        raise Busy(Report(code="vm.exists", message=f"{file} is there already", where=str(file), hint=hint))
    formats = {target.name: need_format(target) if full else "qcow2" for target in targets}
    if not full:  # an overlay lies beside the image itself, wherever a link to it does
        real = {target.name: evolve(target.disk, path=target.image) for target in targets}
        definition = evolve(definition, disk={**definition.disk, **real})
    disks = clone_paths({target.name: definition.disk[target.name] for target in targets}, new, overlay=not full)
    text = render_clone(definition, new, disks, formats, overlay=not full)
    for path in disks.values():
        if os.path.lexists(path) and not full:  # a copy that compares equal is taken: a killed command made it
            raise exists_already(path)
    shared, overlaid = shared_keys(definition), not full and any(not target.disk.readonly for target in targets)
    cloned = Cloned(file=file, text=text, shared=shared, overlaid=overlaid, common=common)
    with ExitStack() as stack:
        for target in targets[:1]:  # one VM has them all
            stack.enter_context(at_rest(caller, target, "cloned"))
        for target in targets:
            refuse_unsound(target)
        if dry_run:
            return cloned
        made = make(caller, file, text, targets, disks, full=full, progress=progress)
    return evolve(cloned, chains=made)


def check_source(target: Target, copying: str, *, full: bool) -> None:
    """Refuse a disk that cannot be cloned so: in use, or for an overlay no image, or one with snapshots.

    `copying` is the command that copies it instead.
    """
    need_file(target)
    refuse_disorder(target)
    refuse_elsewhere(target)
    refuse_damaged(target)
    refuse_locked(target)
    if target.facts.kind != "file" and parse_volume_name(target.disk.path) is None:
        copy = f"kvmlaunch disk convert {target.word} IMAGE   # then a definition with that path"
        raise PreflightFailed(
            Report(
                code="disk.type",
                message=f"{target.disk.path} is a device: a clone has none of its own",
                where=target.table,
                why="an overlay lies beside its backing file, and a copy beside the original",
                hint=copy,
            )
        )
    if full:
        return
    if target.facts.kind != "file":
        raise PreflightFailed(
            Report(
                code="disk.type",
                message=f"{target.disk.path} is a volume: nothing can be an overlay of it",
                where=target.table,
                why="an overlay lies in the directory of its backing file",
                hint=f"{copying}   # copies it",
            )
        )
    if target.facts.since:
        raise PreflightFailed(
            Report(
                code="disk.snapshot",
                message=f"{target.word} has snapshots, and its image is older than the disk",
                where=str(target.disk.path),
                why="an overlay of the image would show what was before the first snapshot",
                hint=f"kvmlaunch disk snapshot commit {target.word}   # or: {copying}",
            )
        )


def make(
    caller: Caller,
    file: Path,
    text: str,
    targets: tuple[Target, ...],
    disks: Mapping[str, PurePosixPath],
    *,
    full: bool,
    progress: Progress,
) -> tuple[tuple[str, tuple[Image, ...]], ...]:
    """Write the definition and make its disks; gives the chain of each.

    Copies come before the definition: of one that is there alone, `up --create` would make empty disks.
    Undone on a failure is what was made here: a disk that somebody else made meanwhile is refused, and stays.
    """
    plain = evolve(caller, file="", overrides=())
    made: list[PurePosixPath] = []
    written = False
    try:
        if full:
            copy(caller, targets, disks, progress, made)
        write(file, text)
        written = True
        if not full:
            for target in targets:
                create(plain, f"{file}:{target.name}", progress=progress)
                made.append(disks[target.name])
        return tuple((each.target.name, chain_of(each)) for each in look_at(plain, str(file)))
    except BaseException:
        for path in made:
            drop(path)
        if written:
            file.unlink(missing_ok=True)
        raise


def chain_of(found: Info) -> tuple[Image, ...]:
    """Give what a disk rests on; raises what stands in the way of telling."""
    if found.error is not None:
        raise found.error
    return found.chain


def drop(path: PurePosixPath) -> None:
    """Remove a disk that was made here: an image, or a volume."""
    name = parse_volume_name(path)
    if name is not None:
        drop_volume(name)
    else:
        remove_image(path)


def copy(
    caller: Caller,
    targets: tuple[Target, ...],
    disks: Mapping[str, PurePosixPath],
    progress: Progress,
    made: list[PurePosixPath],
) -> None:
    """Copy disks, each compared with its original, as one that is there already is; those made are added to `made`."""
    for place, target in enumerate(targets):

        def share(far: float, place: int = place) -> None:
            progress((place + far) / len(targets))

        path = disks[target.name]
        done = convert_target(caller, target, Conversion(goal=str(path), format=target.format), share)
        if not done.already:
            made.append(path)


def write(file: Path, text: str) -> None:
    """Write a definition that is not there yet; raises Busy `vm.exists`, HostFailed."""
    try:
        write_new(file, text)
    except FileExistsError as error:
        raise Busy(Report(code="vm.exists", message=f"{file} is there already", where=str(file))) from error
    except OSError as error:
        raise failed(str(file), error) from error
