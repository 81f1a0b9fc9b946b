"""`disk resize`: a disk grows, of a VM that is down or that runs; it is never made smaller."""

import errno
import os

from kvmlaunch.builder.names import drive_id
from kvmlaunch.builder.qcow2 import is_allocated
from kvmlaunch.errors import Busy, DefinitionInvalid, HostFailed, PreflightFailed, Report
from kvmlaunch.host.images import free_space, held_images
from kvmlaunch.host.volumes import grow_volume
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.control import query
from kvmlaunch.steps.disk_check import refuse_unsound
from kvmlaunch.steps.disk_live import file_in_chain
from kvmlaunch.steps.disks import (
    Target,
    at_rest,
    failed_tool,
    find_disk,
    need_file,
    need_format,
    qemu_img,
    read_chain,
    refuse_base,
    refuse_damaged,
    refuse_locked,
    refuse_running,
    seen_of,
    top_of,
    volume_of,
)
from kvmlaunch.steps.observe import Seen
from kvmlaunch.storage.volume import Volume
from kvmlaunch.units import render_rounded, render_size

BLOCK = 4096
METADATA_SHARE = 6553  # of a qcow2's size: 8 bytes of L2 table and 2 of refcount for each cluster of 64 KiB
SECONDS = 60.0  # that QEMU may take


@frozen(kw_only=True)
class Resized:
    """A disk as it was and is, sizes in bytes; `pid` of the QEMU that was told, None where the VM is down.

    `sparse` tells that what was added takes its place as it is written, although the image had all of its own; `free`
    are the bytes that are free where a running VM's image lies, None for another.
    """

    target: Target
    before: int
    after: int
    pid: int | None = None
    sparse: bool = False
    free: int | None = None

    @property
    def already(self) -> bool:
        """Is it as large as was asked for."""
        return self.before == self.after


def resize(caller: Caller, word: str, size: int | None, *, more: bool = False, dry_run: bool = False) -> Resized:
    """Grow a disk to a size in bytes, by it with `more`, or to what its definition says (None).

    Raises PreflightFailed `disk.shrink`, `disk.locked`, `host.space`; Busy; HostFailed.
    """
    found = find_disk(caller, word)
    need_file(found)
    with held_images([found.image]):  # a snapshot takes the size from what it is laid over
        return resize_held(caller, word, size, more=more, dry_run=dry_run)


def resize_held(caller: Caller, word: str, size: int | None, *, more: bool, dry_run: bool) -> Resized:
    """Grow a disk that no other command works on."""
    target = find_disk(caller, word)
    need_file(target)
    seen = seen_of(caller, target)
    runs = seen is not None and seen.lives
    refuse_damaged(target, runs=runs)
    if not runs:
        refuse_running(caller, target, "grown")
    volume, resized = plan_resize(target, size, more=more, runs=runs)
    done = evolve(resized, pid=seen.pid if seen else None)
    if resized.already and target.facts.kind != "block":
        return done
    if seen is not None and runs:
        refuse_readonly(target)
        file_in_chain(seen, target, top_of(target))
        if dry_run:
            return done
        return grow(target, seen, volume, resized)
    with at_rest(caller, target, "grown"):
        refuse_unsound(target)
        volume, resized = plan_resize(target, size, more=more, runs=False)
        if dry_run:
            return resized
        return grow(target, None, volume, resized)


def refuse_readonly(target: Target) -> None:
    """Refuse to grow beneath a running VM what it was given to read only: QEMU does not (`vm.state`)."""
    if target.disk.readonly:
        raise Busy(
            Report(
                code="vm.state",
                message=f"{target.word} is read-only, and a running QEMU grows no such disk",
                where=target.table,
                why="it opened the image for reading",
                hint=f"kvmlaunch down {target.subject.definition.name}   # then the same command",
            )
        )


def plan_resize(target: Target, size: int | None, *, more: bool, runs: bool) -> tuple[Volume | None, Resized]:
    """Give the volume that a disk is, None for none, and what is to come of the disk; refuses what cannot be."""
    refuse_base(target)
    if not runs:
        refuse_locked(target)
    volume = volume_of(target)
    before = (
        volume.size if volume else target.facts.size if target.facts.kind == "block" else read_chain(target)[0].size
    )
    wanted = wanted_size(target, before, size, more=more)
    refuse_smaller(target, before, wanted)
    if target.facts.kind == "block" and volume is None:
        wanted = before = refuse_device(target, before, wanted)
    elif wanted > before and volume is None and not runs:  # QEMU gives what it adds its place as it is written
        refuse_room(target, wanted - before)
    free = free_space(target.image) if runs and target.facts.kind == "file" else None
    return volume, Resized(target=target, before=before, after=wanted, free=free)


def wanted_size(target: Target, before: int, size: int | None, *, more: bool) -> int:
    """Give the size to grow to; raises DefinitionInvalid where nothing says it."""
    if size is not None:
        return before + size if more else size
    if target.disk.size is not None:
        return max(before, int(target.disk.size))
    if target.facts.kind == "block" and volume_of(target) is None:
        return before  # it was grown by its own tools, and QEMU is told
    raise DefinitionInvalid(
        Report(
            code="def.disk.size",
            message=f"nothing says how large {target.word} is to be",
            where=f"{target.subject.definition.file} {target.table}",
            hint=f"kvmlaunch disk resize {target.word} SIZE   # above {render_size(before)}; it never becomes smaller",
        )
    )


def whole_blocks(size: int) -> int:
    """Give the next size in bytes that is whole blocks."""
    return -(-size // BLOCK) * BLOCK


def refuse_smaller(target: Target, before: int, wanted: int) -> None:
    """Refuse to cut off what a guest may have written (`disk.shrink`), and a new size that is no whole blocks."""
    if wanted < before:
        raise PreflightFailed(
            Report(
                code="disk.shrink",
                message=f"{target.word} is {render_size(before)}, and is never made smaller",
                where=str(target.disk.path),
                why=f"what lies behind {render_size(wanted)} would be lost",
            )
        )
    if wanted > before and wanted % BLOCK:
        raise DefinitionInvalid(
            Report(
                code="def.value.range",
                message=f"{wanted} bytes are no whole blocks of {BLOCK}",
                where=target.table,
                why="direct I/O to such an image fails at its end, and a definition may not say such a size",
                hint=f"kvmlaunch disk resize {target.word} {render_size(whole_blocks(wanted))}",
            )
        )


def refuse_device(target: Target, before: int, wanted: int) -> int:
    """Refuse to grow a block device that is no volume; one that was grown already is told to QEMU as it is."""
    if wanted != before:
        raise PreflightFailed(
            Report(
                code="disk.type",
                message=f"{target.disk.path} is a block device of {render_size(before)}",
                where=target.table,
                why="kvmlaunch grows images and LVM volumes; a partition or a device is grown by its own tools",
                hint=f"grow it by those, then: kvmlaunch disk resize {target.word}   # tells a running VM",
            )
        )
    return before


def refuse_room(target: Target, more: int) -> None:
    """Refuse a growth that has no room, where every block is given its place (`host.space`)."""
    free, how = free_space(target.disk.path), kept_allocation(target)
    needed = {"falloc": more, "metadata": more // METADATA_SHARE}.get(how, 0)
    if needed > free:
        raise PreflightFailed(
            Report(
                code="host.space",
                message=f"{render_rounded(needed)} more are needed for {target.disk.path.name}",
                where=str(target.disk.path.parent),
                why=f"{render_rounded(free)} are free, and all of the image is given its place",
            )
        )


def kept_allocation(target: Target) -> str:
    """Give the word of qemu-img's `--preallocation` for what is added to an image, as the image itself is allocated."""
    facts = target.facts
    if target.format == "raw":
        return "falloc" if facts.fully_allocated else "off"
    if facts.backing or not is_allocated(facts):
        return "off"
    return "falloc" if facts.fully_allocated else "metadata"


def grow(target: Target, seen: Seen | None, volume: Volume | None, resized: Resized) -> Resized:
    """Grow what lies beneath, then tell QEMU."""
    after = resized.after
    if volume is not None and after > volume.size:
        after = grow_volume(volume, after)
    if seen is not None and seen.pid is not None:
        try:
            query(seen, ("block_resize", {"device": drive_id(target.name), "size": after}), seconds=SECONDS)
        except HostFailed as error:
            raise no_room(target, after, error) from error
        sparse = target.facts.kind == "file" and kept_allocation(target) != "off"
        return evolve(resized, after=after, pid=seen.pid, sparse=sparse)
    if target.facts.kind == "file":
        run_resize(target, after)
    return evolve(resized, after=after)


def no_room(target: Target, size: int, error: HostFailed) -> HostFailed | PreflightFailed:
    """Give QEMU's refusal to grow a disk: `host.space` where the file system holds no such file."""
    said = error.report.message
    if not any(os.strerror(number) in said for number in (errno.EFBIG, errno.ENOSPC)):
        return error
    message = f"{target.word} cannot be grown to {render_size(size)}"
    return PreflightFailed(Report(code="host.space", message=message, where=str(target.disk.path), why=said))


def run_resize(target: Target, size: int) -> None:
    """Grow an image of a VM that is down: what had its place at once has it for what is added too."""
    format_, path = need_format(target), target.disk.path
    how = f"--preallocation={kept_allocation(target)}"
    done = qemu_img("resize", "-q", "-f", format_, how, str(path), str(size), paths=(path,))
    if done.status != 0:
        failure = failed_tool(done, path)
        if "lock" in failure.report.why:
            report = Report(code="disk.locked", message=f"{path} is in use", where=str(path), why=failure.report.why)
            raise PreflightFailed(report)
        raise failure
