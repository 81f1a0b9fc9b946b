"""Disks and the files that QEMU reads: there, readable, nobody else's, and what they claim to be."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath
from posixpath import normpath

from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import Holder, HostFacts, PathFacts
from kvmlaunch.model.image import RAW_SUFFIXES, SMALLEST_QCOW2, moved_path, overlay_directories, qcow2_room
from kvmlaunch.model.plan import Plan, PlannedDisk
from kvmlaunch.model.volume import parse_volume_name
from kvmlaunch.units import count

ADDRESS = r"(?:nbd|rbd|iscsi|https?|ftps?|ssh|nfs|gluster|json)(?:\+\w+)?:"  # as QEMU takes them
KINDS = {"directory": "a directory", "fifo": "a FIFO", "character": "a character device", "socket": "a socket"}


def quoted(path: PurePosixPath) -> str:
    """Give a path as a shell takes it."""
    return shlex.quote(str(path))


def user_of(host: HostFacts) -> str:
    """Give whom QEMU runs as, for a message."""
    return host.user.name or str(host.user.uid)


def holder_text(holder: Holder) -> str:
    """Give a holder in words."""
    vm = f", VM {holder.vm}" if holder.vm else ""
    return f"pid {holder.pid} ({holder.command}{vm})" if holder.pid > 0 else "a process that cannot be seen from here"


def facts_of(host: HostFacts, path: PurePosixPath) -> PathFacts:
    """Give what is known of a path; not looked at counts as missing."""
    return host.paths.get(path) or PathFacts(path=path, kind="missing")


def create_hint(disk: PlannedDisk, vm: str, host: HostFacts) -> str:
    """Give what makes an image or a volume that is missing; for a CD-ROM, or a device that is no volume, nothing."""
    name = disk.table.removeprefix("disk.")
    if any(re.match(ADDRESS, part) for part in disk.path.parts):
        return "a path is a file's; a disk of the network is made a block device first: qemu-nbd --connect, rbd map"
    if name == disk.table:
        return f"the path of an image that there is, in [{disk.table}]"
    preparing = host.privileged and host.caller_uid != 0
    then = f"as {user_of(host)}, then this command again" if preparing else f"or: kvmlaunch up {vm} --create"
    made = f"kvmlaunch disk create {vm}:{name}   # {then}" if disk.made else ""
    volume = parse_volume_name(disk.path)
    if volume is not None:
        active = f"lvchange --activate y {volume.text}   # where the volume is there and not active"
        return f"{active}\n{made}" if made else active
    if disk.made or str(disk.path).startswith("/dev/"):
        return made
    new = f'size = "20GiB"   # beside path in [{disk.table}], a table and no disk = …; then: kvmlaunch up {vm} --create'
    return f"correct the path, which is relative to the definition; or for a new, empty disk:\n{new}"


def moved_away(path: PurePosixPath, facts: PathFacts, table: str) -> Finding:
    """Give the refusal of a disk that was converted and removed (`disk.missing`): a new one would be empty."""
    return error(
        code="disk.missing",
        message=f"{path} was converted, and removed",
        key=f"{table}.path",
        why=f"what it held is in {facts.moved}",
        hint=f"path = {json.dumps(facts.moved)}   # in [{table}], with the format that it has; or, for an empty disk:\n"
        f"rm {quoted(moved_path(path))}",
    )


def led_to_nothing(path: PurePosixPath, facts: PathFacts, key: str) -> Finding:
    """Give the refusal of a disk whose path is a link to nothing (`disk.type`): nothing is made where it leads."""
    return error(
        code="disk.type",
        message=f"{path} is a link to a file that does not exist",
        key=key,
        why=f"it leads to {facts.real}",
        hint=f"rm {quoted(path)}   # or put back what it leads to",
    )


def check_kind(disk: PlannedDisk, facts: PathFacts, host: HostFacts, vm: str) -> Iterator[Finding]:
    """Check that the path is a file or block device that the VM's user reaches."""
    key, path = f"{disk.table}.path", disk.path
    if facts.dangling:
        yield led_to_nothing(path, facts, key)
    elif facts.kind == "missing" and facts.moved:
        yield moved_away(path, facts, disk.table)
    elif facts.kind == "missing":
        hint = create_hint(disk, vm, host)
        yield error(code="disk.missing", message=f"{path} does not exist", key=key, why=facts.refusal, hint=hint)
    elif facts.kind == "denied":
        yield error(
            code="disk.permission",
            message=f"{path} is out of reach of {user_of(host)}",
            key=key,
            why=facts.refusal or "a directory above it may not be searched",
            hint=f"namei -l {quoted(path)}   # shows which directory; then: setfacl -m u:{user_of(host)}:x THAT",
        )
    elif facts.kind in KINDS:
        yield error(
            code="disk.type",
            message=f"{path} is {KINDS[facts.kind]}",
            key=key,
            why="a disk is a regular file or a block device",
            hint="",
        )
    else:
        yield from check_permission(disk, facts, host)


def given(host: HostFacts, facts: PathFacts, path: PurePosixPath, rights: str) -> str:
    """Give the command that gives QEMU's user rights to a file, as the caller pastes it: its owner needs no root."""
    if facts.owner == user_of(host):
        return f"chmod u+{rights} {quoted(path)}"
    return host.by_root(f"setfacl -m u:{user_of(host)}:{rights} {quoted(path)}")


def check_permission(disk: PlannedDisk, facts: PathFacts, host: HostFacts) -> Iterator[Finding]:
    """Check that the VM's user may read the image, and write it unless it is read-only (`disk.permission`)."""
    lacking = [word for word, has in (("read", facts.readable), ("write", facts.writable or disk.readonly)) if not has]
    if lacking == ["write"] and facts.mounted_readonly:
        yield error(
            code="disk.permission",
            message=f"{disk.path} lies on a file system that is mounted read-only",
            key=f"{disk.table}.path",
            why="nobody can write to it",
            hint=f"findmnt -T {quoted(disk.path)}   # shows it; or readonly = true in [{disk.table}]",
        )
    elif lacking:
        rights = "r" if disk.readonly else "rw"
        give = given(host, facts, disk.path, rights)
        why = f"it belongs to {facts.owner}, mode {facts.mode & 0o7777:04o}"
        if facts.kind == "block":  # it may be the host's own, which an ordinary user cannot be told
            look = f"lsblk -o NAME,TYPE,FSTYPE,MOUNTPOINTS {quoted(disk.path)}"
            give = f"{look}   # where nothing of the host's is on it:\n{give}"
        if host.user.uid == 0:  # whom no mode keeps out
            why = facts.refusal or why
            give = f"lsattr {quoted(disk.path)}   # is it immutable; else the rules of a container forbid it"
        yield error(
            code="disk.permission",
            message=f"{user_of(host)} may not {' or '.join(lacking)} {disk.path}",
            key=f"{disk.table}.path",
            why=why,
            hint=give,
        )


def check_format(disk: PlannedDisk, facts: PathFacts, vm: str) -> Iterator[Finding]:
    """Check that the image is what the definition says (`disk.header`); content never decides a format."""
    if not facts.readable or not disk.format:
        return
    if disk.format == "raw":
        yield from check_container(disk.path, facts, disk.table, written=disk.format_written)
    elif disk.format == facts.header == "qcow2":
        yield from check_header(disk, facts, vm)
        yield from check_room(disk, facts, vm)
    elif disk.format != facts.header:
        yield error(
            code="disk.header",
            message=f"{disk.path} is no {disk.format} image",
            key=f"{disk.table}.{'format' if disk.format_written else 'path'}",
            why=f"its header is {facts.header or 'of no known format'}",
            hint=f"qemu-img info {quoted(disk.path)}   # says what it is; a damaged image must not be opened raw",
        )


def check_room(disk: PlannedDisk, facts: PathFacts, vm: str) -> Iterator[Finding]:
    """Warn of a block device that a qcow2 image may outgrow (`disk.room`): its tables take more than the disk."""
    if facts.kind != "block" or not facts.cluster_size or disk.readonly or facts.external_data:
        return
    needed = qcow2_room(facts.virtual_size, facts.cluster_size, subclusters=facts.extended_l2)
    if facts.size < needed:
        yield warning(
            code="disk.room",
            message=f"{disk.path} is smaller than its qcow2 image may become",
            key=f"{disk.table}.path",
            why=f"it has {facts.size >> 20} MiB, a disk of {facts.virtual_size >> 20} MiB takes up to "
            f"{-(-needed >> 20)} MiB: a guest that fills it meets an error",
            hint=f"kvmlaunch disk convert {vm}:{disk.table.removeprefix('disk.')} lvm:GROUP/VOLUME   # raw needs less",
        )


def check_container(path: PurePosixPath, facts: PathFacts, table: str, *, written: bool) -> Iterator[Finding]:
    """Refuse to open another format's container raw by its name alone (`disk.header`); warn where raw is written."""
    header, key = facts.header, f"{table}.format"
    why = "as raw the guest would see the container, and could write another one into it"
    if header not in {"", "raw"} and written:
        yield warning(
            code="disk.header",
            message=f"{path} has a {header} header and is opened raw",
            key=key,
            why=why,
            hint=f'format = "{header}"',
        )
    elif header not in {"", "raw"}:
        yield error(
            code="disk.header",
            message=f"{path} has a {header} header, and its name says raw",
            key=key,
            why=why,
            hint=f'[{table}]\npath = {json.dumps(str(path), ensure_ascii=False)}\nformat = "{header}"'
            '   # or, to open it raw all the same, "raw"',
        )


def cut_off(path: PurePosixPath, size: int, least: int, key: str) -> Finding:
    """Give the refusal of a qcow2 file that ends before its first table does (`disk.corrupt`); sizes in bytes."""
    return error(
        code="disk.corrupt",
        message=f"{path} is cut off",
        key=key,
        why=f"it has {count(size, 'byte')}, its header and first table alone have {least}",
        hint="go back to a backup: what it held is gone",
    )


def check_header(disk: PlannedDisk, facts: PathFacts, vm: str) -> Iterator[Finding]:
    """Refuse a qcow2 image that QEMU does not open (`disk.corrupt`): cut off, or marked as damaged."""
    least = max(SMALLEST_QCOW2, facts.least)
    if facts.kind == "file" and facts.size < least:
        yield cut_off(disk.path, facts.size, least, f"{disk.table}.path")
    elif facts.damaged and not disk.readonly:
        word = f"{vm}:{disk.table.removeprefix('disk.')}"
        yield error(
            code="disk.corrupt",
            message=f"{disk.path} is marked as damaged",
            key=f"{disk.table}.path",
            why="QEMU found its tables wrong, and writes to it no more",
            hint=repair_hint(disk.path, word),
        )


def copy_of(path: PurePosixPath) -> str:
    """Give the command that keeps an image as it is now, and as it was where that was done before.

    The copy is raw by its name: that of an overlay must not be taken for another overlay of the same image.
    """
    copy = quoted(path.with_name(f"{path.name}.before.img"))
    return f"{{ test -e {copy} || cp {quoted(path)} {copy}; }}"


def repair_hint(path: PurePosixPath, word: str) -> str:
    """Give how a damaged image is repaired, on a copy's safe side; `word` is VM:DISK."""
    return f"{copy_of(path)} && kvmlaunch disk check {word} --repair   # or go back to a backup"


def repair_beneath_hint(path: PurePosixPath) -> str:
    """Give how an image is repaired that others rest on, on a copy's safe side."""
    return f"{copy_of(path)} && qemu-img check -f qcow2 -r all {quoted(path)}   # or go back to a backup"


def lies_elsewhere(path: PurePosixPath, facts: PathFacts) -> str:
    """Give a file that its header makes QEMU open, neither beside the image nor in a directory there; "" for none."""
    named = PurePosixPath(normpath(facts.backing))
    protocol = ":" in facts.backing.partition("/")[0]  # ./nbd:x names a file
    beneath = ".." not in named.parts and path.parent in overlay_directories(path.parent / named)
    if facts.backing and (protocol or not beneath):
        return facts.backing
    chain = [PurePosixPath(each) for each in (facts.real, *facts.chain)]
    return next((str(b) for a, b in pairwise(chain) if a.parent not in overlay_directories(b)), "")


def check_backing(disk: PlannedDisk, facts: PathFacts) -> Iterator[Finding]:
    """Refuse a backing chain outside the image's directory, and data in another file (`disk.backing`)."""
    if disk.format != "qcow2":
        return
    if facts.backing and disk.path.suffix in RAW_SUFFIXES:
        yield error(
            code="disk.backing",
            message=f"{disk.path.name} is an overlay, and its name says raw",
            key=f"{disk.table}.path",
            why="what rests on an image is not sought among files that are raw by their name",
            hint=f"mv {quoted(disk.path)} {quoted(disk.path.with_suffix('.qcow2'))}   # and so in the definition",
        )
    if not lies_elsewhere(disk.path, facts):
        yield from check_chain(disk.path, facts, disk.table)
    if not disk.readonly:
        yield from check_beneath(disk.path, facts, disk.table)
    yield from check_elsewhere(disk.path, facts, disk.table)


def check_elsewhere(path: PurePosixPath, facts: PathFacts, table: str) -> Iterator[Finding]:
    """Refuse a qcow2 image that makes QEMU open files that do not lie with it (`disk.backing`)."""
    elsewhere, why = lies_elsewhere(path, facts), "who can write the image can make QEMU open any file"
    if elsewhere:
        yield error(
            code="disk.backing",
            message=f"the backing file of {path.name} lies elsewhere: {elsewhere}",
            key=f"{table}.path",
            why=why,
            hint=f"qemu-img rebase -u -b NAME -F FORMAT {quoted(path)}   # with a name in {path.parent}",
        )
    if facts.external_data:
        yield error(
            code="disk.backing",
            message=f"{path.name} keeps its data in another file",
            key=f"{table}.path",
            why=why,
            hint=f"qemu-img convert -O qcow2 {quoted(path)} NEW.qcow2",
        )


def check_chain(path: PurePosixPath, facts: PathFacts, table: str) -> Iterator[Finding]:
    """Refuse an image of whose backing chain something cannot be opened (`disk.backing`)."""
    if facts.broken:
        yield error(
            code="disk.backing",
            message=f"what {path.name} rests on cannot be opened",
            key=f"{table}.path",
            why=facts.broken,
            hint=mend_chain(path, facts),
        )


def mend_chain(path: PurePosixPath, facts: PathFacts) -> str:
    """Give how the chain beneath an image is whole again: it is the last overlay that names what cannot be opened."""
    *overlays, lost = (str(path), *facts.chain)
    rebase = f"qemu-img rebase -u -b NAME -F FORMAT {quoted(PurePosixPath(overlays[-1]))}"
    if lost in overlays:
        return f"{rebase}   # where NAME is what it rested on before"
    return f"put {PurePosixPath(lost).name} back as it was; or, where it was moved: {rebase}"


def check_beneath(path: PurePosixPath, facts: PathFacts, table: str) -> Iterator[Finding]:
    """Refuse to lay what is written over an image that QEMU marked as damaged (`disk.corrupt`)."""
    if facts.spoilt:
        beneath = PurePosixPath(facts.spoilt)
        yield error(
            code="disk.corrupt",
            message=f"{beneath.name}, on which {path.name} rests, is marked as damaged",
            key=f"{table}.path",
            why="QEMU found its tables wrong: what is merged into it one day would overwrite what it holds",
            hint=repair_beneath_hint(beneath),
        )


def holder_hint(disk: PlannedDisk, others: list[Holder]) -> str:
    """Give how to get at an image: end the VM of ours that has it, or look who else does."""
    vm = next((holder.vm for holder in others if holder.vm), "")
    if vm:
        return f"kvmlaunch down {vm}   # or give this VM an image of its own"
    return f"fuser -v {quoted(disk.path)}   # shows who has it; or give this VM an image of its own"


def check_holders(disk: PlannedDisk, facts: PathFacts, host: HostFacts) -> Iterator[Finding]:
    """Refuse an image that somebody else has locked (`disk.locked`)."""
    others = [
        holder
        for holder in facts.lock_holders
        if not (host.held.running and holder.pid == host.held.pid) and (holder.writes or not disk.readonly)
    ]
    if others:
        yield error(
            code="disk.locked",
            message=f"{disk.path} is in use",
            key=f"{disk.table}.path",
            why="locked by " + ", ".join(dict.fromkeys(map(holder_text, others))),
            hint=holder_hint(disk, others),
        )


def check_base(path: PurePosixPath, facts: PathFacts, table: str) -> Iterator[Finding]:
    """Refuse to write to an image that overlays rest on (`disk.base`): what they show would change beneath them."""
    if facts.overlays:
        names = [PurePosixPath(each).name for each in facts.overlays]
        yield error(
            code="disk.base",
            message=f"{count(len(names), 'overlay')} of {path.name} would be damaged by writing to it",
            key=f"{table}.path",
            why=f"it is the backing file of {', '.join(names[:3])}{', …' if names[3:] else ''}",
            hint=f"readonly = true   # in [{table}]; or work on an overlay",
        )


def check_taking(path: PurePosixPath, facts: PathFacts, table: str, vm: str) -> Iterator[Finding]:
    """Warn of an image of which a snapshot may have been cut off (`disk.snapshot`)."""
    if facts.taking:
        yield warning(
            code="disk.snapshot",
            message=f"a snapshot of {path.name} was cut off, or is being taken",
            key=f"{table}.path",
            why=f"{path.name}.taking is there: its overlay may be none that QEMU writes to",
            hint=f"kvmlaunch up {vm}   # settles it",
        )


def check_snapshots(path: PurePosixPath, facts: PathFacts, table: str, vm: str) -> Iterator[Finding]:
    """Refuse an image whose snapshots do not lie in a line, or whose commit was not finished (`disk.snapshot`).

    One that cannot be read is `disk.permission`.
    """
    name = table.removeprefix("disk.")
    if facts.committing:
        yield error(
            code="disk.snapshot",
            message=f"a commit of the snapshots of {path.name} was not finished",
            key=f"{table}.path",
            why=f"{path.name}.committing is there: overlays that are merged already may still lie beside it",
            hint=f"kvmlaunch disk snapshot commit {vm}:{name}   # finishes it",
        )
    elif facts.unread:
        yield error(
            code="disk.permission",
            message=f"a snapshot of {path.name} cannot be read",
            key=f"{table}.path",
            why=f"what the disk is cannot be told without {PurePosixPath(facts.unread[0]).name}",
            hint=f"ls -l {shlex.quote(facts.unread[0])}; getfacl {quoted(path)}   # give QEMU's user both",
        )
    elif facts.stray:
        names = ", ".join(PurePosixPath(each).name for each in facts.stray)
        yield error(
            code="disk.snapshot",
            message=f"overlays of {path.name} do not lie over one another in a line",
            key=f"{table}.path",
            why=f"which of them is the disk cannot be told: {names}",
            hint="move those away that are not wanted; qemu-img info --backing-chain shows what each rests on",
        )


def check_disks(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Check every disk and CD-ROM of a plan."""
    for disk in plan.disks:
        facts = facts_of(host, disk.path)
        yield from check_kind(disk, facts, host, plan.name)
        yield from check_format(disk, facts, plan.name)
        yield from check_backing(disk, facts)
        image = disk.image or disk.path
        yield from check_snapshots(image, facts_of(host, image), disk.table, plan.name)
        yield from check_holders(disk, facts, host)
        if not disk.readonly:
            yield from check_taking(image, facts_of(host, image), disk.table, plan.name)
            yield from check_base(disk.path, facts, disk.table)
            yield from check_claimed(disk.path, facts, disk.table)


def check_claimed(path: PurePosixPath, facts: PathFacts, table: str) -> Iterator[Finding]:
    """Refuse a block device that the host itself uses, or a partition of it (`disk.locked`)."""
    if facts.claimed:
        yield error(
            code="disk.locked",
            message=f"{path} is in use by this host",
            key=f"{table}.path",
            why="it, or a partition of it, is mounted, swap, or a part of LVM, md or another device; "
            "two systems that write to one file system destroy it",
            hint=f"lsblk -o NAME,TYPE,FSTYPE,MOUNTPOINTS {quoted(path)}   # shows by what",
        )


def check_same(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Refuse two disks of one VM with one inode (`def.disk.same`): other spellings and hard links are found too."""
    first: dict[str, PlannedDisk] = {}
    for disk in plan.disks:
        inode = facts_of(host, disk.path).inode
        if not inode:
            continue
        other = first.setdefault(inode, disk)
        if other is not disk and not (other.readonly and disk.readonly):
            yield error(
                code="def.disk.same",
                message=f"{disk.table} and {other.table} are one file",
                key=f"{disk.table}.path",
                why=f"{disk.path} and {other.path} have one inode, {inode}",
                hint="give each disk a file of its own",
            )


def check_files(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Check kernel and initrd: regular files that the VM's user can read (`boot.missing`)."""
    for planned in plan.files:
        facts = facts_of(host, planned.path)
        if facts.kind == "missing":
            yield error(
                code="boot.missing",
                message=f"{planned.path} does not exist",
                key=planned.key,
                why=facts.refusal,
                hint="",
            )
        elif facts.kind not in {"file", "denied"} or (facts.kind == "file" and facts.size == 0):
            yield error(
                code="boot.missing",
                message=f"{planned.path} is {'empty' if facts.kind == 'file' else f'a {facts.kind}'}",
                key=planned.key,
                why="a kernel, an initrd or a firmware is a file with content",
                hint="",
            )
        elif not facts.readable:
            yield error(
                code="boot.missing",
                message=f"{user_of(host)} may not read {planned.path}",
                key=planned.key,
                why=facts.refusal
                or f"it is of kind {facts.kind}, belongs to {facts.owner}, mode {facts.mode & 0o7777:04o}",
                hint=given(host, facts, planned.path, "r"),
            )
