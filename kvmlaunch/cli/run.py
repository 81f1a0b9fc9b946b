"""`up`, `down`, `restart`, `pause`, `resume`, `reset`."""

import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from kvmlaunch.cli.ending import Terminated
from kvmlaunch.cli.many import Document, each_vm, named, noting, teller
from kvmlaunch.cli.session import Session, dry_run_option, session_command, vm_argument, vms_argument
from kvmlaunch.cli.show import duration_text, say, show_document, show_warnings
from kvmlaunch.errors import Busy, KvmlaunchError, Report
from kvmlaunch.model.change import render_change
from kvmlaunch.model.lifecycle import Verb
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.names import name_of
from kvmlaunch.units import parse_duration

if TYPE_CHECKING:
    from kvmlaunch.run.launch import RunningVm
    from kvmlaunch.steps.down import Ended
    from kvmlaunch.steps.resolve import Resolved
    from kvmlaunch.steps.start import Keep, Started, Wishes


class DurationType(click.ParamType[float]):
    """A duration on the command line: `90s`, `2m`; `zero` takes 0 as well."""

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        """Take durations above 0, and 0 where not to wait at all means something."""
        self.zero = zero

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give seconds."""
        if self.zero and re.fullmatch("0(?:ms|s|m|h)?", str(value)):
            return 0.0
        try:
            return value if isinstance(value, float) else parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


timeout_option = click.option(
    "--timeout", type=DurationType(), metavar="TIME", help="How long to wait at most, such as 90s or 2m."
)
patience_option = click.option(
    "--timeout",
    type=DurationType(zero=True),
    metavar="TIME",
    help="How long to wait for the guest, such as 90s or 2m; 0 for not at all.",
)
wait_option = click.option(
    "--wait",
    "until",
    type=click.Choice(["started", "ready"]),
    default="started",
    help="Until QEMU is verified, or until the guest says it is ready.",
)
force_option = click.option(
    "--force", is_flag=True, help="After the timeout end QEMU: TERM, then KILL; with --timeout 0 at once, unasked."
)
jobs_option = click.option(
    "-j", "--jobs", type=click.IntRange(1, 64), default=1, metavar="N", help="So many VMs at once."
)


def show_started(session: Session, started: "Started", wishes: "Wishes") -> None:
    """Print what `up` did."""
    show_warnings(session, started.name, started.findings, fixes=started.already)
    if started.already:
        say(session, started.name, "ok", "already", f"running (pid {started.pid}, {duration_text(started.seconds)})")
    elif wishes.dry_run:
        for change in started.changes:
            say(session, started.name, "ok", "would", render_change(change))
        say(session, started.name, "ok", "would", "start QEMU:")
        click.echo(shlex.join(started.argv))
    else:
        say(
            session,
            started.name,
            "ok",
            "started",
            f"pid {started.pid} in {started.seconds:.2f} s · kvmlaunch console {started.name}",
        )


def started_document(started: "Started", *, dry_run: bool) -> Document:
    """Give the JSON form of what `up` did."""
    return {
        "name": started.name,
        "pid": started.pid,
        "already": started.already,
        "seconds": round(started.seconds, 3),
        "argv": list(started.argv),
        "changes": [render_change(change) for change in started.changes],
        "warnings": [finding.report.code for finding in started.findings],
        "dry_run": dry_run,
    }


def foreground_action(session: Session, caller: Caller, tell: Tell) -> "Keep":
    """Give what stays with a started VM until it ends."""
    from kvmlaunch.steps.foreground import supervise  # noqa: PLC0415 - `--foreground` only

    def keep(resolved: "Resolved", vm: "RunningVm") -> Callable[[], None]:
        return supervise(caller, resolved, vm, tell, lambda: show_warnings(session, resolved.name, resolved.findings()))

    return keep


def say_running(session: Session, caller: Caller, name: str) -> None:
    """Say that a VM runs all the same where a signal came once its start was done."""
    from kvmlaunch.model.lifecycle import VmState  # noqa: PLC0415 - on a signal only
    from kvmlaunch.steps.observe import observe  # noqa: PLC0415

    with suppress(KvmlaunchError, OSError):  # the signal is what is told
        seen = observe(caller, name)
        if seen.state is VmState.RUNNING:
            say(session, name, "warn", "runs on", f"pid {seen.pid} · kvmlaunch down {name}")


def wait_ready(session: Session, caller: Caller, word: str, started: "Started", timeout: float | None) -> None:
    """Wait until the guest says that it is ready, a spinner on a terminal meanwhile."""
    from kvmlaunch.cli.progress import spinner  # noqa: PLC0415 - where one waits
    from kvmlaunch.steps.load import load_subject  # noqa: PLC0415
    from kvmlaunch.steps.ready import wait_until_ready  # noqa: PLC0415

    if any(finding.report.code == "vm.paused" for finding in started.findings):
        name, message = started.name, f"{started.name} stands still, and is not ready so"
        raise Busy(
            Report(code="vm.state", message=message, where=f"pid {started.pid}", hint=f"kvmlaunch resume {name}")
        )
    lifecycle = load_subject(caller, word).definition.lifecycle
    seconds = timeout or float(lifecycle.start_timeout)
    try:
        with spinner(session, f"{started.name}: waiting until the guest is ready"):
            wait_until_ready(lifecycle.ready, started.name, started.pid or 0, caller.places(started.name).run, seconds)
    except (KeyboardInterrupt, Terminated):
        say(session, started.name, "warn", "runs on", f"nobody waits for it now · kvmlaunch down {started.name}")
        raise
    if not session.json:
        what = lifecycle.ready.text if lifecycle.ready else "QEMU runs; no lifecycle.ready is written"
        say(session, started.name, "ok", "ready", what)


def create_disks(session: Session, word: str, *, dry_run: bool) -> bool:
    """Make the disks of a VM that are not there, and say which; tells whether there were any."""
    from kvmlaunch.cli.disk import show_created  # noqa: PLC0415 - `--create` only
    from kvmlaunch.cli.progress import bar  # noqa: PLC0415
    from kvmlaunch.steps.disk_create import create  # noqa: PLC0415
    from kvmlaunch.steps.prepare import refuse_all_but_disks  # noqa: PLC0415

    with bar(session, f"{name_of(word)}: making disks") as progress:
        refuse_all_but_disks(session.caller(), word)
        made = create(session.caller(), word, dry_run=dry_run, progress=progress)
    fresh = [each for each in made if not each.already]
    if fresh:
        show_created(session, word, fresh, dry_run=dry_run)
    return bool(fresh)


def start_one(
    session: Session, word: str, wishes: "Wishes", *, foreground: bool, create: bool = False
) -> tuple[int, Document]:
    """Start one VM and say what was done."""
    from kvmlaunch.cli.progress import spinner  # noqa: PLC0415 - where one waits
    from kvmlaunch.steps.start import Started, no_more  # noqa: PLC0415 - the heaviest step
    from kvmlaunch.steps.up import up  # noqa: PLC0415

    caller, name = session.caller(), name_of(word)
    if create and create_disks(session, word, dry_run=wishes.dry_run) and wishes.dry_run:
        say(session, name, "ok", "would", f"start it then; kvmlaunch up {name} -n says how, once they are there")
        return 0, started_document(Started(name=name, pid=None), dry_run=True)
    tell = teller(session, name)
    keep = foreground_action(session, caller, tell) if foreground else no_more
    try:
        with spinner(session, f"{name}: starting", off=foreground):
            started = up(
                caller,
                word,
                wishes,
                lambda step, text: tell(step, text) if step != "started" or foreground else None,
                keep,
            )
        if foreground and started.already:
            why = f"pid {started.pid} has another parent, and cannot be watched from here"
            hint = f"kvmlaunch down {name} && kvmlaunch up {name} --foreground"
            raise Busy(Report(code="vm.state", message=f"{name} runs already", why=why, hint=hint))
        if not session.json and (wishes.dry_run or not foreground):
            show_started(session, started, wishes)
    except (KeyboardInterrupt, Terminated):
        if not wishes.dry_run:
            say_running(session, caller, name)
        raise
    if wishes.ready and not wishes.dry_run:
        wait_ready(session, caller, word, started, wishes.timeout)
    return 0, started_document(started, dry_run=wishes.dry_run)


@click.command()
@vms_argument
@dry_run_option
@wait_option
@timeout_option
@click.option("--foreground", is_flag=True, help="Stay QEMU's parent until it ends: for systemd and containers.")
@click.option("--paused", is_flag=True, help="Hold it before its first instruction.")
@click.option("--create", is_flag=True, help="Make disks first that are not there and have a size.")
@click.option("--boot", "boot_from", default="", metavar="cdrom.NAME", help="Boot from this CD drive, this time.")
@click.option("--all", "every", is_flag=True, help="Every definition with lifecycle.autostart.")
@jobs_option
@session_command
def up(
    session: Session,
    vms: tuple[str, ...],
    dry_run: bool,
    until: str,
    timeout: float | None,
    foreground: bool,
    paused: bool,
    create: bool,
    boot_from: str,
    every: bool,
    jobs: int,
) -> int:
    """Start VMs: check, prepare the host, launch, and read back from the live QEMU what was promised."""
    from kvmlaunch.steps.all_vms import autostart_names  # noqa: PLC0415 - beside its use
    from kvmlaunch.steps.start import Wishes  # noqa: PLC0415

    nothing = "no definition has lifecycle.autostart"
    names = named(vms, lambda: autostart_names(session.caller()), every=every, nothing=nothing)
    if foreground and len(names) > 1:
        raise click.UsageError("--foreground takes one VM")
    if paused and until == "ready":
        raise click.UsageError("--paused holds the guest, and --wait ready waits for it: take one of them")
    if foreground and until == "ready":
        raise click.UsageError("--foreground waits for the end, and --wait ready for the guest: take one of them")
    wishes = Wishes(dry_run=dry_run, ready=until == "ready", timeout=timeout, paused=paused, boot_from=boot_from)
    return each_vm(
        session,
        "up",
        names,
        lambda word: start_one(session, word, wishes, foreground=foreground, create=create),
        jobs=jobs,
    )


def stop_one(
    session: Session, word: str, timeout: float | None, *, force: bool, dry_run: bool, again: str = "down"
) -> tuple[int, Document]:
    """End one VM and say what was done; `again` is the command that asked, which is named where it is cut off."""
    from kvmlaunch.cli.progress import spinner  # noqa: PLC0415 - where one waits
    from kvmlaunch.steps.down import down as end  # noqa: PLC0415

    name = name_of(word)
    said: set[str] = set()
    try:
        with spinner(session, f"{name}: waiting for the guest to power down"):
            ended = end(
                session.caller(),
                word,
                noting(teller(session, name), said),
                timeout=timeout,
                force=force,
                dry_run=dry_run,
            )
    except (KeyboardInterrupt, Terminated):
        if "powerdown" in said:
            text = f"the guest was asked to power down, and may still do so · kvmlaunch {again} {name}"
            say(session, name, "warn", "asked", text)
        raise
    if not session.json:
        show_ended(session, ended, session.caller().preflight(name, "--undo"), dry_run=dry_run)
    return 0, {
        "name": name,
        "already": ended.already,
        "seconds": round(ended.seconds, 3),
        "forced": ended.forced,
        "still_prepared": ended.still_prepared,
        "prepared_pages": ended.pages,
        "dry_run": dry_run,
    }


def show_ended(session: Session, ended: "Ended", undo: str, *, dry_run: bool) -> None:
    """Print what `down` did; `undo` is the command that takes back what was prepared."""
    name, by = ended.name, f", ended by {ended.forced}" if ended.forced else ""
    if ended.already:
        say(session, name, "ok", "already", "stopped")
    elif dry_run:
        say(session, name, "ok", "would", "power it down and give back what it holds")
    else:
        say(session, name, "ok", "stopped", f"in {ended.seconds:.2f} s{by}")
    if ended.still_prepared:
        say(session, name, "ok", "prepared", f"{ended.pages or 'what root prepared'} stays until  {undo}")


@click.command()
@vms_argument
@dry_run_option
@force_option
@patience_option
@click.option("--all", "every", is_flag=True, help="Every running VM.")
@jobs_option
@session_command
def down(
    session: Session, vms: tuple[str, ...], dry_run: bool, force: bool, timeout: float | None, every: bool, jobs: int
) -> int:
    """Power VMs down: ask the guest, wait, and give back every page, mount and tap."""
    from kvmlaunch.steps.look import met_names  # noqa: PLC0415 - beside its use

    names = named(vms, lambda: met_names(session.caller()), every=every, nothing="nothing runs")
    return each_vm(
        session, "down", names, lambda word: stop_one(session, word, timeout, force=force, dry_run=dry_run), jobs=jobs
    )


@click.command()
@vms_argument
@dry_run_option
@force_option
@patience_option
@wait_option
@jobs_option
@session_command
def restart(
    session: Session, vms: tuple[str, ...], dry_run: bool, force: bool, timeout: float | None, until: str, jobs: int
) -> int:
    """Power VMs down and start them again from their definitions, which are checked first."""
    from kvmlaunch.steps.start import Wishes  # noqa: PLC0415 - beside its use
    from kvmlaunch.steps.up import check_restart  # noqa: PLC0415

    if timeout == 0 and not force:
        message = "--timeout 0 needs --force here: a guest that is not waited for cannot be started again"
        raise click.UsageError(message)

    def restart_one(word: str) -> tuple[int, Document]:
        if not check_restart(session.caller(), word) and not session.json:
            say(session, name_of(word), "ok", "changed", "the last start had another text of the definition, or --set")
        ended = stop_one(session, word, timeout, force=force, dry_run=dry_run, again="restart")[1]
        if dry_run:
            if not session.json:
                say(session, name_of(word), "ok", "would", "start it again, as print-cmd says")
            return 0, {"name": name_of(word), "down": ended, "dry_run": True}
        code, document = start_one(session, word, Wishes(ready=until == "ready"), foreground=False)
        return code, {**document, "down": ended}

    return each_vm(session, "restart", named(vms), restart_one, jobs=jobs)


def control_vm(session: Session, word: str, verb: Verb, done: str, already: str, *, dry_run: bool) -> None:
    """Pause, resume or reset a VM and say so."""
    from kvmlaunch.steps.control import control  # noqa: PLC0415 - beside its use

    changed = control(session.caller(), word, verb, dry_run=dry_run)
    if session.json:
        show_document(verb.value, {"name": name_of(word), "changed": changed, "dry_run": dry_run})
    elif changed and dry_run:
        say(session, name_of(word), "ok", "would", verb.value)
    else:
        say(session, name_of(word), "ok", done if changed else "already", "" if changed else already)


@click.command()
@vm_argument
@dry_run_option
@session_command
def pause(session: Session, vm: str, dry_run: bool) -> None:
    """Stop a VM's vCPUs; it keeps its memory."""
    control_vm(session, vm, Verb.PAUSE, "paused", "paused", dry_run=dry_run)


@click.command()
@vm_argument
@dry_run_option
@session_command
def resume(session: Session, vm: str, dry_run: bool) -> None:
    """Let a paused VM run on; also after an I/O error, once its cause is gone.  One that sleeps is woken."""
    control_vm(session, vm, Verb.RESUME, "resumed", "running", dry_run=dry_run)


@click.command()
@vm_argument
@dry_run_option
@session_command
def reset(session: Session, vm: str, dry_run: bool) -> None:
    """Press a VM's reset button: the guest is not asked.  A VM that is paused stays so."""
    control_vm(session, vm, Verb.RESET, "reset", "", dry_run=dry_run)
