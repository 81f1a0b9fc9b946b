"""`disk`: the disks of definitions made, looked at, grown, converted, checked, removed."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kvmlaunch.cli.ending import Terminated
from kvmlaunch.cli.progress import bar
from kvmlaunch.cli.session import Session, dry_run_option, session_command
from kvmlaunch.cli.show import error_document, say, short_path, show_document, show_failure, show_table, talk
from kvmlaunch.cli.snapshot import disk_argument, disks_argument, settle_first, snapshot, vm_name
from kvmlaunch.steps.many import common_code
from kvmlaunch.steps.names import name_of
from kvmlaunch.units import KIB, count, parse_size, render_rounded, render_size

if TYPE_CHECKING:
    from kvmlaunch.steps.disk_check import Examined, Info, Unexamined, Unfinished
    from kvmlaunch.steps.disk_create import Created
    from kvmlaunch.steps.disks import Target

DIFFERENT, UNSOUND = 10, 6
SHORTHAND = "disk"  # by which a definition may say the path of its one disk


class SizeType(click.ParamType[tuple[int, bool]]):
    """A size on the command line, `60GiB`, or `+10GiB` for so much more."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, bool]:
        """Give bytes, and whether they are to be added."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_size(str(value).removeprefix("+")), str(value).startswith("+")
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group()
def disk() -> None:
    """The disks of VMs: made as their definitions say, looked at, grown, converted, checked, removed."""


disk.add_command(snapshot)


def target_document(target: "Target") -> dict[str, Any]:
    """Give the JSON form of a disk."""
    return {
        "vm": vm_name(target),
        "disk": target.name,
        "path": str(target.disk.path),
        "format": target.format,
        "kind": target.facts.kind,
    }


@disk.command()
@disks_argument
@dry_run_option
@session_command
def create(session: Session, disk: str, dry_run: bool) -> None:
    """Make the disks of a VM that are not there, as large as their `size` says; what is there stays."""
    from kvmlaunch.steps.disk_create import create as make  # noqa: PLC0415 - completion wants the options only

    with bar(session, f"{disk}: making") as progress:
        made = make(session.caller(), disk, dry_run=dry_run, progress=progress)
    show_created(session, disk, made, dry_run=dry_run)
    if session.json:
        rows = [
            {**target_document(each.target), "size": each.size, "already": each.already, "how": each.how}
            for each in made
        ]
        show_document("disk-create", {"disks": rows, "dry_run": dry_run})


def show_created(session: Session, word: str, made: "Sequence[Created]", *, dry_run: bool = False) -> None:
    """Print which disks were made, and how."""
    for each in made if not session.json else ():
        path = short_path(str(each.target.disk.path))
        text = f"{each.target.name}: {path}, {each.target.format}, {render_rounded(each.size)}"
        if each.already:
            say(session, vm_name(each.target), "ok", "already", text)
            if each.size < int(each.target.disk.size or 0):
                talk(f"  its definition says more: kvmlaunch disk resize {each.target.word}")
        else:
            say(session, vm_name(each.target), "ok", "would make" if dry_run else "made", f"{text}, {each.how}")
    if not made and not session.json:
        say(session, name_of(word), "skip", "", "this VM has no disks")


@disk.command()
@disks_argument
@session_command
def info(session: Session, disk: str) -> int:
    """Show what the disks of a VM are: format, sizes, what they lie on, the chain beneath them."""
    from kvmlaunch.steps.disk_check import look_at as look  # noqa: PLC0415 - completion wants the options only

    found = look(session.caller(), disk)
    if session.json:
        show_document("disk-info", {"disks": [info_document(each) for each in found]})
    else:
        show_table([row for each in found for row in info_rows(each)])
        if not found:
            say(session, name_of(disk), "skip", "", "this VM has no disks")
    errors = [(each.target, each.error) for each in found if each.error]
    for target, error in errors:
        show_failure(session, error, target.word)
    return common_code(error.exit_code for _, error in errors)


def info_document(each: "Info") -> dict[str, Any]:
    """Give the JSON form of a disk's information; sizes in bytes."""
    facts = each.target.facts
    return {
        **target_document(each.target),
        "size": each.chain[0].size if each.chain else facts.size,
        "allocated": each.chain[0].allocated if each.chain else facts.allocated,
        "wanted_size": each.target.disk.size,
        "filesystem": facts.filesystem,
        "device": facts.device,
        "volume": each.volume and {"group": each.volume.name.group, "name": each.volume.name.volume},
        "thin_pool": each.volume.pool if each.volume else "",
        "chain": [
            {"path": image.path, "format": image.format, "size": image.size, "allocated": image.allocated}
            for image in each.chain
        ],
        "used_by": [holder.pid or None for holder in facts.lock_holders],
        "unfinished": unfinished_document(each.unfinished),
        "error": each.error and error_document(each.error),
    }


def image_text(target: "Target") -> str:
    """Give where the image of a disk lies, and by which name the definition has it where that leads there."""
    path, image = short_path(str(target.disk.path)), short_path(str(target.image))
    return path if path == image else f"{image} (as {path})"


def unfinished_document(image: "Unfinished | None") -> dict[str, Any] | None:
    """Give the JSON form of an image that is not whole yet."""
    return {"path": str(image.path), "allocated": image.allocated, "pid": image.pid} if image else None


def unfinished_row(image: "Unfinished") -> tuple[str, str, str]:
    """Give the row of an image that is not whole yet."""
    fate = "left by a command that was killed: the next one takes it away"
    if image.locked:
        fate = f"pid {image.pid} makes it" if image.pid else "a qemu-img that outlived its command is still at it"
    return ("", short_path(str(image.path)), f"unfinished, {render_rounded(image.allocated)} allocated; {fate}")


def info_rows(each: "Info") -> list[tuple[str, str, str]]:
    """Give a disk in rows: itself, then what lies beneath it."""
    target, facts = each.target, each.target.facts
    path = short_path(str(target.disk.path))
    unfinished = [unfinished_row(each.unfinished)] if each.unfinished else []
    if each.error:
        return [(target.name, path, f"cannot be told  [{each.error.report.code}]"), *unfinished]
    if facts.kind not in {"file", "block"}:
        wanted = f", {render_rounded(target.disk.size)} when it is made" if target.disk.size else ""
        return [(target.name, path, f"{facts.kind}{wanted}"), *unfinished]
    top = each.chain[0] if each.chain else None
    size, allocated = (top.size, top.allocated) if top else (facts.size, facts.allocated)
    parts = [(top.format if top else target.format) or "format unknown", render_rounded(size)]
    if facts.kind == "file":
        parts.append(
            "fully allocated"
            if facts.fully_allocated and target.format == "raw" and not facts.since
            else f"{render_rounded(allocated)} allocated"
        )
    if each.volume:
        parts.append(f"thin, in {each.volume.pool}" if each.volume.pool else "LVM volume")
    parts += [word for word in (facts.filesystem, facts.device and f"on {facts.device}") if word]
    if target.disk.size and target.disk.size > size:
        parts.append(f"the definition says {render_rounded(target.disk.size)}")
    pids = dict.fromkeys(holder.pid for holder in facts.lock_holders)
    parts += [f"in use by pid {pid}" if pid else "in use by a process that cannot be seen from here" for pid in pids]
    if top and (top.corrupt or top.dirty):
        parts.append("marked corrupt" if top.corrupt else "not closed cleanly")
    if facts.since:
        path = short_path(facts.since[-1])  # what QEMU opens
    rows = [(target.name, path, ", ".join(parts))]
    beneath = [
        (
            "",
            f"└ {short_path(image.path)}",
            f"{image.format}, {render_rounded(image.size)}, {render_rounded(image.allocated)} allocated",
        )
        for image in each.chain[1:]
    ]
    return rows + beneath + unfinished


@disk.command()
@disk_argument
@click.argument("size", type=SizeType(), required=False)
@dry_run_option
@session_command
def resize(session: Session, disk: str, size: tuple[int, bool] | None, dry_run: bool) -> None:
    """Grow a disk to SIZE, by +SIZE, or to what its definition says; a VM that runs is told."""
    from kvmlaunch.steps.disk_resize import resize as grow  # noqa: PLC0415 - completion wants the options only

    settle_first(session, disk, dry_run=dry_run)
    done = grow(session.caller(), disk, size[0] if size else None, more=bool(size and size[1]), dry_run=dry_run)
    name, target = vm_name(done.target), done.target
    if session.json:
        sizes = {"before": done.before, "after": done.after, "pid": done.pid, "dry_run": dry_run}
        show_document("disk-resize", {**target_document(target), **sizes})
        return
    change = f"{target.name}: {render_rounded(done.before)} → {render_rounded(done.after)}"
    if done.already:
        say(session, name, "ok", "already", f"{target.name}: {render_rounded(done.after)}")
    else:
        who = f", pid {done.pid} was told" if done.pid and not dry_run else ""
        say(session, name, "ok", "would grow" if dry_run else "grown", f"{change}{who}")
    if done.sparse and not done.already:
        say(
            session,
            name,
            "warn",
            "",
            "what was added takes its place as it is written: slower at first"
            + (", and aio may differ at the next start" if target.format == "raw" else ""),
        )
    if done.free is not None and done.after - done.before > done.free:
        text = f"{render_rounded(done.free)} are free where it lies: a guest that fills them meets an error, or stops"
        say(session, name, "warn", "", f"{text}  [host.space]")
    if done.target.disk.size is not None and done.after > done.target.disk.size and done.after % KIB == 0:
        say(
            session,
            name,
            "warn",
            "",
            f'the definition says less; write size = "{render_size(done.after)}" in [{target.table}]',
        )


@disk.command()
@disk_argument
@click.argument("goal", metavar="TARGET")
@click.option(
    "--format", "format_", type=click.Choice(["raw", "qcow2"]), help="Of the target, where its name tells none."
)
@click.option("--overwrite", is_flag=True, help="Write over what a device holds.")
@click.option("--remove-source", is_flag=True, help="Remove the original, once both were compared.")
@dry_run_option
@session_command
def convert(
    session: Session,
    disk: str,
    goal: str,
    format_: str | None,
    overwrite: bool,
    remove_source: bool,
    dry_run: bool,
) -> None:
    """Convert a disk to TARGET, an image, lvm:GROUP/VOLUME or a device, and compare both; the original stays."""
    from kvmlaunch.define.tree import quote  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.disk_convert import Conversion  # noqa: PLC0415
    from kvmlaunch.steps.disk_convert import convert as turn  # noqa: PLC0415 - completion wants the options only

    settle_first(session, disk, dry_run=dry_run)
    wanted = Conversion(
        goal=goal, format=format_ or "", overwrite=overwrite, remove_source=remove_source, dry_run=dry_run
    )
    try:
        with bar(session, f"{disk}: converting") as progress:
            done = turn(session.caller(), disk, wanted, progress=progress)
    except (KeyboardInterrupt, Terminated) as cut:
        for note in getattr(cut, "__notes__", ()):
            say(session, disk, "warn", "cut off", note)
        raise
    target, name = done.target, vm_name(done.target)
    if session.json:
        document = {"to": str(done.path), "to_format": done.format, "size": done.size}
        removed = done.removed and not dry_run
        flags = {"already": done.already, "removed": removed, "left_behind": list(done.left)}
        flags |= {"lacking": done.lacking, "unsound": done.unsound, "dry_run": dry_run}
        show_document("disk-convert", {**target_document(target), **document, **flags})
        return
    if dry_run and not done.already:
        also = ", and remove the original" if done.removed else ""
        say(session, name, "ok", "would convert", f"{target.name}: {short_path(str(done.path))}, {done.format}{also}")
        return
    word = "already" if done.already else "converted"
    say(session, name, "ok", word, f"{target.name}: {short_path(str(done.path))}, {done.format}, compared: equal")
    if done.lacking:
        less = f"{short_path(str(done.path))} has {render_rounded(done.lacking)} less than such an image may need"
        say(session, name, "warn", "", f"{less}: a guest that fills it meets an error")
    if done.unsound:
        text = f"kvmlaunch disk check {target.word}: what its wrong tables led to is not in the copy either"
        say(session, name, "warn", "damaged", text)
    if done.left:
        say(session, name, "warn", "left behind", f"{', '.join(done.left)}: in the original alone")
    removable = target.facts.kind == "file" and not target.facts.since
    keeps = "kept; --remove-source removes it" if removable else "kept"
    stays = ("would be removed" if dry_run else "removed") if done.removed else keeps
    say(session, name, "ok", "original", f"{image_text(target)} {stays}")
    definition = target.subject.definition
    if definition.origin(f"{target.table}.path").key == SHORTHAND:
        say(session, name, "ok", "then", f"in {definition.file.name}, in place of the line that begins {SHORTHAND} =:")
        talk(f"  [{target.table}]")
    else:
        say(session, name, "ok", "then", f"in [{target.table}] of {definition.file.name}:")
    for line in (f"path = {quote(str(done.path))}", f'format = "{done.format}"', *backing_lines(target)):
        talk(f"  {line}")


def backing_lines(target: "Target") -> tuple[str, ...]:
    """Give what is to be done with the key that names a file beneath a disk, which a converted one has not."""
    return ("# and no line `backing` any more",) if target.disk.backing is not None else ()


@disk.command()
@disks_argument
@click.option("--repair", is_flag=True, help="Mend what can be mended; make a copy of the image first.")
@dry_run_option
@session_command
def check(session: Session, disk: str, repair: bool, dry_run: bool) -> int:
    """Check the images of a VM that is down."""
    from kvmlaunch.steps.disk_check import Unexamined  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.disk_check import check as examine  # noqa: PLC0415

    found = examine(session.caller(), disk, repair=repair, dry_run=dry_run)
    repair = repair and not dry_run
    if session.json:
        show_document("disk-check", {"disks": [examined_document(each) for each in found], "dry_run": dry_run})
    codes = []
    for each in found:
        if isinstance(each, Unexamined):
            show_failure(session, each.error, each.target.word)
            codes.append(each.error.exit_code)
            continue
        codes.append(UNSOUND if each.soundness in {"corrupt", "marked"} else 0)
        if not session.json:
            status = {"corrupt": "FAIL", "marked": "FAIL", "leaks": "warn"}.get(each.soundness, "ok")
            text = f"{each.target.name}: {examined_text(each, repair=repair)}"
            say(session, vm_name(each.target), status, "check", text)
    return common_code(codes)


def examined_text(each: "Examined", *, repair: bool) -> str:
    """Give what a check came to in words, and what may help."""
    found, image = each.found, shlex.quote(str(each.path))
    fix, where = f"   fix: kvmlaunch disk check {each.target.word} --repair   # on a copy first", ""
    if each.beneath:
        where = f" in {each.path}, beneath it"
        fix = f"   fix: qemu-img check -r all {image}   # on a copy first; no VM may use it"
    elif repair:
        fix = "   it cannot be mended: go back to a backup"
    match each.soundness:
        case "corrupt":
            return f"{count(found.corruptions or found.errors, 'cluster')} corrupt{where}  [disk.corrupt]{fix}"
        case "marked":
            return f"marked as damaged{where}, and nothing wrong found  [disk.corrupt]{fix}"
        case "leaks":
            return f"sound, {count(found.leaks, 'cluster')} taken by nothing{where}{fix}"
        case "nothing to check":
            return f"{each.target.format} has nothing to check"
        case _:
            return f"{each.soundness}, {found.allocated} of {found.total} clusters allocated"


def examined_document(each: "Examined | Unexamined") -> dict[str, Any]:
    """Give the JSON form of a check."""
    from kvmlaunch.steps.disk_check import Unexamined  # noqa: PLC0415 - imported by the check already

    if isinstance(each, Unexamined):
        return {**target_document(each.target), "soundness": "unknown", "error": error_document(each.error)}
    found = each.found
    numbers = {"corruptions": found.corruptions, "leaks": found.leaks, "errors": found.errors}
    return {**target_document(each.target), "soundness": each.soundness, "image": str(each.path), **numbers}


@disk.command()
@disk_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@session_command
def remove(session: Session, disk: str, yes: bool, dry_run: bool) -> None:
    """Remove a disk with all that it holds: its file, or its LVM volume."""
    from kvmlaunch.cli.asking import sure  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.disk_check import remove as drop  # noqa: PLC0415

    settle_first(session, disk, dry_run=dry_run)
    sure(f"remove {disk} with all that it holds?", yes=yes or dry_run)
    target = drop(session.caller(), disk, dry_run=dry_run)
    if session.json:
        show_document("disk-remove", {**target_document(target), "dry_run": dry_run})
    else:
        word = "would remove" if dry_run else "removed"
        say(session, vm_name(target), "ok", word, f"{target.name}: {image_text(target)}")
