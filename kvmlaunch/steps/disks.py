"""The disks that a word of the command line means, `VM` or `VM:DISK`, as they lie on this host."""

import errno
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from signal import Signals

from kvmlaunch.builder.disk import plan_format
from kvmlaunch.builder.security import SYSTEM_USER
from kvmlaunch.errors import Busy, DefinitionInvalid, HostFailed, KvmlaunchError, PreflightFailed, Report, UnknownVm
from kvmlaunch.facts.sources import Wanted
from kvmlaunch.host.definitions import definition_files
from kvmlaunch.host.images import owner_of, remove_image
from kvmlaunch.host.rights import capture_user
from kvmlaunch.host.rundir import claimed, remove_claimed
from kvmlaunch.host.volumes import find_volume
from kvmlaunch.model.definition import AUTO, Definition, Disk
from kvmlaunch.model.finding import Finding, errors_of
from kvmlaunch.model.host import HostFacts, PathFacts, UserFacts
from kvmlaunch.model.image import MARKED
from kvmlaunch.model.lifecycle import VmState
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.model.volume import parse_volume_name
from kvmlaunch.preflight.disk import (
    KINDS,
    check_base,
    check_beneath,
    check_chain,
    check_claimed,
    check_container,
    check_elsewhere,
    check_snapshots,
    holder_text,
    led_to_nothing,
    moved_away,
    repair_hint,
)
from kvmlaunch.run.tool import Finished, run_long
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import Subject, load_subject
from kvmlaunch.steps.names import name_of
from kvmlaunch.steps.observe import Seen, observe, who_holds
from kvmlaunch.steps.owners import process_owner
from kvmlaunch.steps.resolve import look_at_host
from kvmlaunch.storage.image import Image, parse_info
from kvmlaunch.storage.volume import Volume
from kvmlaunch.units import count

MOST_LINES = 6  # of a tool's words: a damaged image makes thousands
MOVING = (VmState.STARTING, VmState.BUSY, VmState.STOPPING, VmState.HALF)
Progress = Callable[[float], None]  # how far, from 0 to 1


def no_progress(_: float) -> None:
    """Show nobody how far it is."""


@frozen(kw_only=True)
class Target:
    """A disk of a definition, and what lies at its path; `format` is "" where nothing tells it.

    `top` is what is known of the newest snapshot's overlay, None where there is none.
    """

    subject: Subject
    name: str
    disk: Disk
    facts: PathFacts
    format: str
    top: PathFacts | None = None

    @property
    def image(self) -> PurePosixPath:
        """The image itself, where a link leads to it: overlays and marks lie beside it."""
        return PurePosixPath(self.facts.real) if self.facts.kind == "file" else self.disk.path

    @property
    def table(self) -> str:
        """The definition's table."""
        return f"disk.{self.name}"

    @property
    def word(self) -> str:
        """How the command line names it."""
        return f"{self.subject.definition.name}:{self.name}"


def parse_word(word: str) -> tuple[str, str]:
    """Give VM and disk of `VM:DISK`; the disk is "" where none is named, as in a file's path."""
    vm, colon, disk = word.rpartition(":")
    return (vm, disk) if colon and "/" not in disk else (word, "")


def find_disks(caller: Caller, word: str) -> tuple[Target, ...]:
    """Give the disks of a word: the one named, or all of the VM; raises UnknownVm `disk.unknown`, DefinitionInvalid."""
    vm, wanted = parse_word(word)
    subject = load_subject(caller, vm)
    disks = subject.definition.disk
    if wanted and wanted not in disks:
        raise UnknownVm(
            Report(
                code="disk.unknown",
                message=f"{subject.definition.name} has no disk {wanted}",
                why=f"its disks: {', '.join(disks) or 'none'}",
                hint=f"kvmlaunch disk info {subject.definition.name}",
            )
        )
    names = (wanted,) if wanted else tuple(disks)
    host = look_at_host(caller, Wanted(paths=tuple(disks[name].path for name in names), overlays=True), None)
    return tuple(target_of(subject, name, host.paths[disks[name].path], host) for name in names)


def target_of(subject: Subject, name: str, facts: PathFacts, host: HostFacts) -> Target:
    """Give a disk with what lies at its path."""
    disk = subject.definition.disk[name]
    format_ = plan_format(subject.definition, name, disk, facts).value
    if facts.kind == "missing" and disk.path.is_relative_to("/dev"):
        format_ = format_ or "raw"
    top = host.paths.get(PurePosixPath(facts.since[-1])) if facts.since else None
    return Target(subject=subject, name=name, disk=disk, facts=facts, format=format_, top=top)


def find_disk(caller: Caller, word: str) -> Target:
    """Give the one disk of a word; raises UnknownVm `disk.unknown` where the VM has several and none is named."""
    found = find_disks(caller, word)
    if len(found) == 1:
        return found[0]
    name = name_of(parse_word(word)[0])
    raise UnknownVm(
        Report(
            code="disk.unknown",
            message=f"{name} has {len(found)} disks" if found else f"{name} has no disk",
            why=f"which one is meant: {', '.join(target.name for target in found) or 'none is defined'}",
            hint=caller.again(word, f"{name}:{found[0].name}") if found else "",
        )
    )


def refuse_led(target: Target) -> None:
    """Refuse for root a path by which a user leads to what is not his (`host.dir.unsafe`): by a link of his own."""
    written = target.disk.path
    if os.geteuid() != 0 or written == target.image:
        return
    users: set[int] = set()
    for each in (written, *written.parents):
        with suppress(OSError):
            users.add(os.stat(each, follow_symlinks=False).st_uid)
    users -= {0, owner_of(target.image).uid}
    if users:
        uid = min(users)
        raise PreflightFailed(
            Report(
                code="host.dir.unsafe",
                message=f"{written} leads to {target.image} by a link that uid {uid} can change",
                where=target.table,
                why="root would change what is not that user's",
                hint=f'path = "{target.image}"',
            )
        )


def refuse_found(target: Target, findings: Iterable[Finding]) -> None:
    """Raise PreflightFailed for the first thing that a check of a start's finds, at the disk that is worked on."""
    for finding in errors_of(tuple(findings)):
        raise PreflightFailed(finding.report._replace(where=finding.report.where or target.table))


def refuse_container(target: Target) -> None:
    """Refuse an image that is raw by its name and has another format's header (`disk.header`), as a start does."""
    if target.format == "raw" and target.disk.format is AUTO:
        refuse_found(target, check_container(target.disk.path, target.facts, target.table, written=False))


def need_file(target: Target) -> None:
    """Refuse a disk that is not there, or is neither file nor block device, or that a user leads root to."""
    refuse_led(target)
    if target.facts.kind in {"file", "block"}:
        refuse_container(target)
        return
    refuse_absent(target)
    refuse_kind(target.disk.path, target.facts, target.table)
    raise PreflightFailed(
        Report(
            code="disk.missing",
            message=f"{target.disk.path} does not exist",
            where=target.table,
            why=target.facts.refusal,
            hint=missing_hint(target),
        )
    )


def refuse_kind(path: PurePosixPath, facts: PathFacts, where: str) -> None:
    """Refuse what is there and can be no disk (`disk.type`), or cannot be seen (`disk.permission`)."""
    if facts.kind in {"file", "block", "missing"}:
        return
    denied = facts.kind == "denied"
    raise PreflightFailed(
        Report(
            code="disk.permission" if denied else "disk.type",
            message=f"{path} is {'out of reach' if denied else KINDS[facts.kind]}",
            where=where,
            why=facts.refusal or "a disk is a regular file or a block device",
            hint=f"namei -l {shlex.quote(str(path))}   # shows which directory keeps you out" if denied else "",
        )
    )


def remove_file(target: Target) -> None:
    """Remove the image of a disk, and a link that leads to it; raises HostFailed."""
    remove_image(target.image)
    if target.image != target.disk.path and os.path.islink(target.disk.path):
        remove_image(target.disk.path)


def refuse_absent(target: Target) -> None:
    """Refuse what is missing and cannot be made: a volume that is there and not active, a link to nothing."""
    if target.facts.kind != "missing":
        return
    name = parse_volume_name(target.disk.path)
    if name is None:
        if target.facts.moved or target.facts.dangling:
            told = moved_away if target.facts.moved else led_to_nothing
            raise PreflightFailed(told(target.disk.path, target.facts, target.table).report)
        return
    try:
        volume = find_volume(name)
    except KvmlaunchError:  # without LVM's tools, or the right to ask: that it does not exist is all that is known
        return
    if volume is None:
        return
    raise PreflightFailed(
        Report(
            code="disk.missing",
            message=f"the volume {name.text} is there, and not active",
            where=target.table,
            why=f"{target.disk.path} does not exist",
            hint=f"lvchange --activate y {name.text}",
        )
    )


def missing_hint(target: Target) -> str:
    """Give how a disk that is not there comes to be: kvmlaunch makes images and LVM volumes."""
    if target.disk.path.is_relative_to("/dev") and parse_volume_name(target.disk.path) is None:
        return f"ls -l {target.disk.path.parent}   # a device is made by its driver"
    return f"kvmlaunch disk create {target.word}" if target.disk.size else ""


def need_format(target: Target) -> str:
    """Give the format of a disk; raises DefinitionInvalid `def.disk.format` where nothing tells it."""
    if target.format:
        return target.format
    raise DefinitionInvalid(
        Report(
            code="def.disk.format",
            message=f"the format of {target.disk.path.name} is not known by its suffix",
            where=f"{target.subject.definition.file} {target.table}",
            hint=f'format = "raw"   # or "qcow2", in [{target.table}]',
        )
    )


def refuse_running(caller: Caller, target: Target, deed: str) -> None:
    """Refuse what cannot be done to a disk of a VM that runs (`vm.state`)."""
    seen = seen_of(caller, target)
    if seen is not None and (seen.lives or seen.state in MOVING):
        held = seen.state in {VmState.STARTING, VmState.BUSY}
        raise Busy(
            Report(
                code="vm.state",
                message=f"{target.word} cannot be {deed} while the VM is {seen.state.value}",
                where=who_holds(seen),
                hint="the same command again, once that has ended" if held else f"kvmlaunch down {seen.name}",
            )
        )


@contextmanager
def at_rest(caller: Caller, target: Target, deed: str) -> Iterator[None]:
    """Keep the VM of a disk from being started for a while; raises Busy `vm.state` while it runs, `vm.locked`."""
    refuse_running(caller, target, deed)
    if seen_of(caller, target) is None:
        yield
        return
    run = caller.places(target.subject.definition.name).run
    there = os.path.isdir(run)
    status = os.stat(run if there else "/proc/self")
    with claimed(run, status.st_uid, status.st_gid) as claim:
        try:
            yield
        finally:
            if not there:
                remove_claimed(claim)


def refuse_locked(target: Target) -> None:
    """Refuse an image that somebody has locked, and a device that the host itself uses (`disk.locked`)."""
    refuse_found(target, check_claimed(target.disk.path, target.facts, target.table))
    holders = (*target.facts.lock_holders, *(target.top.lock_holders if target.top else ()))
    if holders:
        raise PreflightFailed(
            Report(
                code="disk.locked",
                message=f"{target.disk.path} is in use",
                where=target.table,
                why="locked by " + ", ".join(dict.fromkeys(map(holder_text, holders))),
                hint="the same command again, once that has ended",
            )
        )


def refuse_disorder(target: Target) -> None:
    """Refuse an image whose snapshots are not in order (`disk.snapshot`): what the disk is cannot be told then."""
    vm = target.subject.definition.name
    refuse_found(target, check_snapshots(target.disk.path, target.facts, target.table, vm))


def refuse_elsewhere(target: Target) -> None:
    """Refuse an image that makes QEMU open files which do not lie with it (`disk.backing`), as a start does."""
    if target.format == "qcow2":
        refuse_found(target, check_elsewhere(target.image, target.facts, target.table))


def refuse_damaged(target: Target, *, runs: bool = False) -> None:
    """Refuse an image that QEMU marked as damaged, or that rests on one (`disk.corrupt`); one in use after `down`."""
    first = f"kvmlaunch down {target.subject.definition.name} && " if runs else ""
    top = target.top or target.facts
    opened = [target.facts] if target.format == "qcow2" else []  # what a raw one begins with is its guest's
    for facts in (each for each in (*opened, target.top) if each and each.damaged):
        report = Report(
            code="disk.corrupt",
            message=f"{facts.path.name} is marked as damaged",
            where=str(target.disk.path),
            why="QEMU found its tables wrong: what is written into it may overwrite what it holds",
            hint=f"{first}{repair_hint(target.image, target.word)}",
        )
        raise PreflightFailed(report)
    refuse_found(target, check_beneath(top.path, top, target.table))


def refuse_shared(caller: Caller, target: Target) -> None:
    """Refuse to remove what another definition has as a disk too (`disk.locked`), as clones have what is read-only."""
    real = os.path.realpath(target.image)
    for name in definition_files(caller.search):
        try:
            other = load_subject(evolve(caller, file="", overrides=()), name).definition
        except KvmlaunchError:  # what cannot be read does not start either
            continue
        for disk, wanted in other.disk.items():
            if other.file != target.subject.definition.file and os.path.realpath(wanted.path) == real:
                raise PreflightFailed(
                    Report(
                        code="disk.locked",
                        message=f"{name} has {target.disk.path.name} too, as its disk {disk}",
                        where=target.table,
                        why=f"{other.file} names it, and would not start without it",
                        hint=f"kvmlaunch show {name}   # then take [disk.{disk}] out of it, or give it another image",
                    )
                )


def refuse_base(target: Target) -> None:
    """Refuse to change an image that overlays rest on (`disk.base`), those of its own snapshots too."""
    found = tuple(check_base(target.disk.path, target.facts, target.table))
    if found:
        own = {os.path.realpath(each) for each in target.facts.since}
        others = [each for each in target.facts.overlays if os.path.realpath(each) not in own]
        names = ", ".join(PurePosixPath(each).name for each in others[:3])
        ends = f"kvmlaunch disk snapshot commit {target.word}   # ends its snapshots"
        hint = f"remove {names} first, or convert each to an image of its own" if others else ends
        rest = f"{count(len(target.facts.overlays), 'overlay')} rest{'s' * (len(target.facts.overlays) == 1)} on it"
        message = f"{target.disk.path.name}: {rest}"
        raise PreflightFailed(found[0].report._replace(message=message, where=target.table, hint=hint))


def refuse_clones(caller: Caller, target: Target, places: Sequence[PurePosixPath], doing: str) -> None:
    """Refuse to change files that other images rest on, those of clones (`disk.base`)."""
    own = {os.path.realpath(each) for each in target.facts.since}
    seen = look_at_host(caller, Wanted(paths=tuple(places), overlays=True), None)
    for place in places:
        others = [each for each in seen.paths[place].overlays if os.path.realpath(each) not in own]
        if others:
            raise PreflightFailed(
                Report(
                    code="disk.base",
                    message=f"the snapshots of {target.word} cannot {doing}: others rest on that",
                    where=str(place),
                    why=f"it is the backing file of {', '.join(PurePosixPath(each).name for each in others[:3])} too",
                    hint=f"kvmlaunch disk convert {target.word} NEW.qcow2   # one image of all",
                )
            )


def volume_of(target: Target) -> Volume | None:
    """Give the LVM volume that a disk is; None for none, and for a user to whom LVM does not answer."""
    name = parse_volume_name(target.disk.path) if target.facts.kind == "block" else None
    try:
        return find_volume(name) if name else None
    except HostFailed:
        if os.geteuid() == 0:
            raise
        return None


def keeper_of(definition: Definition, path: PurePosixPath, maker: UserFacts) -> UserFacts:
    """Give whom a new image is to belong to: QEMU's user where root makes it among root's files, else its maker."""
    if os.geteuid() != 0 or maker.uid != 0 or path.is_relative_to("/dev"):
        return maker
    written = definition.security.user
    if written is not AUTO:
        return capture_user(str(written))
    try:
        return capture_user(SYSTEM_USER)
    except HostFailed:
        return maker


def qemu_img(
    *words: str, paths: Sequence[PurePosixPath], fds: Sequence[int] = (), look: Callable[[str], None] = lambda _: None
) -> Finished:
    """Run qemu-img with the rights of whom all these paths belong to; with our own where they differ."""
    owners = {user.uid: user for user in map(owner_of, paths)}
    user = next(iter(owners.values())) if len(owners) == 1 else capture_user()
    return run_long(("qemu-img", *words), process_owner(user), fds=fds, look=look)


def failed_tool(done: Finished, path: PurePosixPath) -> HostFailed | PreflightFailed:
    """Give the failure of qemu-img, with its own words; `host.space` where it found no room."""
    lines = [line.removeprefix("qemu-img: ") for line in (done.err or done.out).strip().splitlines()]
    more = [f"… and {len(lines) - MOST_LINES} lines more"] if len(lines) > MOST_LINES else []
    ended = f"it was ended by {Signals(-done.status).name}" if done.status < 0 else ""
    text = ended or "\n".join(lines[:MOST_LINES] + more)
    known = dict.fromkeys((errno.ENOSPC, errno.EROFS, errno.EFBIG), "host.space") | {errno.EACCES: "disk.permission"}
    found = next((number for number in known if os.strerror(number) in text), None)
    if found or any(words in text for words in MARKED):
        message = f"{path.name}: {os.strerror(found).lower()}" if found else f"{path.name} is damaged"
        code = known[found] if found else "disk.corrupt"
        return PreflightFailed(Report(code=code, message=message, where=str(path), why=text))
    return HostFailed(Report(code="host.tool.failed", message="qemu-img failed", where=str(path), why=text))


def top_of(target: Target) -> PurePosixPath:
    """Give what QEMU opens of a disk: the image, or the overlay of its newest snapshot."""
    return PurePosixPath(target.facts.since[-1]) if target.facts.since else target.image


def top_format(target: Target) -> str:
    """Give the format of what QEMU opens; raises DefinitionInvalid `def.disk.format`."""
    return "qcow2" if target.facts.since else need_format(target)


def read_chain(target: Target) -> tuple[Image, ...]:
    """Give what QEMU opens of a disk and all beneath it, as qemu-img sees them; one in use may be looked at.

    Raises PreflightFailed `disk.corrupt` with qemu-img's words for what is no sound image.
    """
    path = top_of(target)
    words = ("info", "--output=json", "--backing-chain", "-U", "-f", top_format(target), str(path))
    done = qemu_img(*words, paths=(path,))
    try:
        if done.status == 0:
            return parse_info(done.out)
    except ValueError as error:
        raise unreadable(target, str(error)) from error
    raise unreadable(target, failed_tool(done, path).report.why)


def unreadable(target: Target, why: str) -> PreflightFailed:
    """Give the refusal of an image that cannot be read: by us, without what it rests on, or by anybody."""
    path, hint = target.disk.path, ""
    for finding in check_chain(path, target.top or target.facts, target.table):
        return PreflightFailed(finding.report._replace(where=str(path)))
    if target.facts.readable and target.format == "qcow2" and target.facts.header != "qcow2":
        hint = "go back to a backup: its header is gone, and with it where everything lies"
    elif target.facts.readable:
        lost = "Could not open" in why and not any(words in why for words in MARKED)
        hint = "go back to a backup: nothing mends it" if lost else repair_hint(path, target.word)
    return PreflightFailed(
        Report(
            code="disk.corrupt" if target.facts.readable else "disk.permission",
            message=f"{path.name} cannot be read as {target.format}",
            where=str(path),
            why=why,
            hint=hint,
        )
    )


def seen_of(caller: Caller, target: Target) -> Seen | None:
    """Look at the VM of a disk; None for a user without a runtime directory, who can run none."""
    try:
        return observe(caller, target.subject.definition.name)
    except PreflightFailed as error:
        if error.report.code != "host.runtime.missing":
            raise
        return None
