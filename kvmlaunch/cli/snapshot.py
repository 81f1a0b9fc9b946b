"""`disk snapshot`: taken, listed, committed, reverted to."""

from typing import TYPE_CHECKING

import click

from kvmlaunch.cli.ending import Terminated
from kvmlaunch.cli.many import teller
from kvmlaunch.cli.progress import bar, spinner
from kvmlaunch.cli.session import Session, complete_vm, dry_run_option, session_command, vm_of_disk
from kvmlaunch.cli.show import say, short_path, show_document, show_table
from kvmlaunch.errors import Report, TimedOut
from kvmlaunch.units import count

if TYPE_CHECKING:
    from kvmlaunch.steps.disk_snapshot import Taken
    from kvmlaunch.steps.disks import Target

disks_argument = click.argument("disk", metavar="VM[:DISK]", shell_complete=complete_vm)
disk_argument = click.argument("disk", metavar="VM:DISK", shell_complete=complete_vm)
name_argument = click.argument("name", metavar="NAME")


def settle_first(session: Session, word: str, *, dry_run: bool = False) -> None:
    """Settle what a command that was killed has left of a snapshot, and say what is none."""
    if not dry_run:
        from kvmlaunch.steps.disk_settle import settle  # noqa: PLC0415 - completion wants the options only

        settle(session.caller(), word, teller(session, vm_of_disk(word)))


@click.group()
def snapshot() -> None:
    """Keep images as they are while the VM writes on beside them."""


def vm_name(target: "Target") -> str:
    """Give the name of a disk's VM."""
    return target.subject.definition.name


@snapshot.command()
@disks_argument
@name_argument
@click.option("--no-freeze", is_flag=True, help="Ask no agent to hold the guest's file systems still meanwhile.")
@dry_run_option
@session_command
def create(session: Session, disk: str, name: str, no_freeze: bool, dry_run: bool) -> None:
    """Keep the disks of a VM as they are now, under NAME; a VM that runs goes on, in overlays."""
    from kvmlaunch.steps.disk_snapshot import take  # noqa: PLC0415 - completion wants the options only

    settle_first(session, disk, dry_run=dry_run)
    with spinner(session, f"{disk}: keeping"):
        taken = take(session.caller(), disk, name, freeze=not no_freeze, dry_run=dry_run)
    if session.json:
        vm, names = vm_of_disk(disk), [target.name for target in taken.targets]
        flags = {"live": taken.live, "frozen": taken.rest.count, "stuck": taken.rest.stuck, "already": taken.already}
        document = {"vm": vm, "name": name, "disks": names, **flags, "zeroes": list(taken.zeroes)}
        show_document("disk-snapshot", {**document, "dry_run": dry_run})
    else:
        show_taken(session, disk, taken, dry_run=dry_run)
    if taken.rest.stuck:
        raise still_held(taken.rest.stuck)


def still_held(why: str) -> TimedOut:
    """Give the failure of an agent that did not let its guest's file systems go: the snapshot stands all the same."""
    hint = "in the guest's console: fsfreeze --unfreeze /, and for each other one"
    message = "the snapshot is kept, and the guest's file systems may still be held"
    return TimedOut(Report(code="agent.timeout", message=message, why=why, hint=hint))


def show_taken(session: Session, disk: str, taken: "Taken", *, dry_run: bool) -> None:
    """Print what a snapshot has kept, and how the guest was meanwhile."""
    name = taken.name
    for target in taken.targets:
        word = "already" if taken.already else "would keep" if dry_run else "kept"
        note = " was taken before, and nothing was written since" if taken.already else ""
        say(session, vm_name(target), "ok", word, f"{target.name}: {name}{note}")
    if not taken.targets:
        say(session, disk, "skip", "kept", "there is no disk that can be written")
    if taken.zeroes:
        those = ", ".join(taken.zeroes)
        say(session, vm_name(taken.targets[0]), "warn", "", f"{those}: detect_zeroes is off until the VM starts again")
    if taken.live and taken.targets and not taken.already and not dry_run:
        vm = vm_name(taken.targets[0])
        if taken.rest.count is None:
            say(session, vm, "warn", "", f"as after a power cut: {taken.rest.unasked}, so nothing was written out")
        elif not taken.rest.count:
            say(session, vm, "warn", "", "as after a power cut: the agent in the guest holds no file system still")
        else:
            say(session, vm, "ok", "at rest", f"{count(taken.rest.count, 'file system')} of the guest, by its agent")


@snapshot.command(name="list")
@disks_argument
@session_command
def list_(session: Session, disk: str) -> None:
    """List the snapshots of the disks of a VM, the oldest first."""
    from kvmlaunch.steps.disk_snapshot import snapshot_names  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.disks import find_disks  # noqa: PLC0415

    found = find_disks(session.caller(), disk)
    if session.json:
        rows = [{"disk": target.name, "snapshots": list(snapshot_names(target))} for target in found]
        show_document("disk-snapshots", {"vm": vm_of_disk(disk), "disks": rows})
        return
    show_table(
        [
            (target.name, name, short_path(overlay))
            for target in found
            for name, overlay in zip(snapshot_names(target), target.facts.since, strict=True)
        ]
    )
    for target in found:
        for stray in target.facts.stray:
            say(session, vm_name(target), "warn", "", f"{target.name}: beside the line: {short_path(stray)}")
        if target.facts.taking:
            say(session, vm_name(target), "warn", "", f"{target.name}: one is being taken, or was cut off")
        if target.facts.committing:
            fix = f"kvmlaunch disk snapshot commit {target.word}"
            say(session, vm_name(target), "warn", "", f"{target.name}: a commit was not finished; fix: {fix}")
    if not any(target.facts.since or target.facts.stray for target in found):
        say(session, disk, "skip", "snapshots", "there are none")


@snapshot.command()
@disk_argument
@dry_run_option
@session_command
def commit(session: Session, disk: str, dry_run: bool) -> None:
    """Merge what was written since the snapshots of a disk into its image, and end them; also while the VM runs."""
    from kvmlaunch.steps.disk_commit import commit as merge  # noqa: PLC0415 - completion wants the options only

    settle_first(session, disk, dry_run=dry_run)
    told: list[float] = []
    try:
        with bar(session, f"{disk}: committing") as progress:

            def tell(far: float) -> None:
                told.append(far)
                progress(far)

            done = merge(session.caller(), disk, dry_run=dry_run, progress=tell)
    except (KeyboardInterrupt, Terminated):
        if told:
            fix = f"kvmlaunch disk snapshot commit {disk}"
            say(session, disk, "warn", "cut off", f"nothing is lost, and this finishes it: {fix}")
        raise
    if session.json:
        document = {"vm": vm_name(done.target), "disk": done.target.name, "snapshots": list(done.names)}
        show_document("disk-commit", {**document, "live": done.live, "dry_run": dry_run})
    elif done.names:
        path, word = short_path(str(done.target.disk.path)), "would commit" if dry_run else "committed"
        say(session, vm_name(done.target), "ok", word, f"{done.target.name}: {', '.join(done.names)} into {path}")
    else:
        say(session, vm_name(done.target), "ok", "already", f"{done.target.name}: it has no snapshots")


@snapshot.command()
@disk_argument
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@session_command
def revert(session: Session, disk: str, name: str, yes: bool, dry_run: bool) -> None:
    """Drop what was written to a disk since snapshot NAME; the VM must be down."""
    from kvmlaunch.cli.asking import sure  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.disk_snapshot import later_than  # noqa: PLC0415
    from kvmlaunch.steps.disk_snapshot import revert as go_back  # noqa: PLC0415

    settle_first(session, disk, dry_run=dry_run)
    later = later_than(session.caller(), disk, name)
    ending = f", and end the later {', '.join(later)}" if later else ""
    caller = session.caller()
    go_back(caller, disk, name, dry_run=True)  # what cannot be done is not asked about
    sure(f"drop all that was written to {disk} since {name}{ending}?", yes=yes or dry_run)
    target = go_back(caller, disk, name, dry_run=dry_run)
    if session.json:
        document = {"vm": vm_name(target), "disk": target.name, "name": name, "ended": list(later)}
        show_document("disk-revert", {**document, "dry_run": dry_run})
    else:
        ended = f"; {', '.join(later)} ended" if later else ""
        word = "would revert" if dry_run else "reverted"
        say(session, vm_name(target), "ok", word, f"{target.name}: as it was at {name}{ended}")
