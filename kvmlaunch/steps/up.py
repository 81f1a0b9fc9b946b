"""`up`: a definition becomes a running VM whose every promise was read back, or nothing at all.

In order: load · look whether it runs · capture facts, plan · check · claim the run directory · under the
host-wide lock heal, look again, change the host · launch · read every promise back.  Whatever fails
after the claim is undone in reverse order.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from attrs import evolve

from kvmlaunch.builder.cloud_init import plan_seed
from kvmlaunch.builder.render import render_argv
from kvmlaunch.builder.tpm import STATE
from kvmlaunch.builder.vm import build_sidecars
from kvmlaunch.errors import Busy, KvmlaunchError, QemuFailed, Report
from kvmlaunch.host.definitions import is_same_file
from kvmlaunch.host.files import remove_if_there, write_all
from kvmlaunch.host.logs import open_qemu_log
from kvmlaunch.host.rundir import (
    Claim,
    claimed,
    link_socket,
    make_log_directory,
    monitor_socket,
    note_sidecar,
    remove_claimed,
    remove_contents,
    write_record,
)
from kvmlaunch.host.tree import entered, make_owned, own_files
from kvmlaunch.model.change import Change
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.lifecycle import Answer, Verb, VmState, plan_transition
from kvmlaunch.model.run_files import EVENTS, LOG, QEMU_LOG, QMP, TPM
from kvmlaunch.model.value import frozen
from kvmlaunch.preflight.checks import CHECK_COUNT
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.heal import clean_up, end_beside, give_back_under_lock, keep_logs
from kvmlaunch.steps.host_changes import all_changes, change_host
from kvmlaunch.steps.load import Subject, load, load_subject
from kvmlaunch.steps.lost import refuse_lost
from kvmlaunch.steps.observe import LEFT, Seen, age, monitor_path, observe, who_holds
from kvmlaunch.steps.record import record_of
from kvmlaunch.steps.resolve import Resolved, refuse_errors, resolve
from kvmlaunch.units import GIB

if TYPE_CHECKING:
    from kvmlaunch.run.launch import RunningVm

LINGER = PurePosixPath("/var/lib/systemd/linger")  # of logind: a file for each user who lingers


Keep = Callable[[Resolved, "RunningVm"], Callable[[], None]]


@frozen(kw_only=True)
class Wishes:
    """How a VM is to be started; times in seconds, None for the definition's."""

    dry_run: bool = False
    ready: bool = False
    timeout: float | None = None
    paused: bool = False
    boot_from: str = ""


@frozen(kw_only=True)
class Started:
    """What `up` did.  `changes` are those made on the host, or with a dry run those that would be."""

    name: str
    pid: int | None
    already: bool = False
    seconds: float = 0.0  # that the start took, or that it has been running
    argv: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = ()


def check_running(caller: Caller, seen: Seen, subject: Subject) -> tuple[Finding, ...]:
    """Check a VM that runs already against the definition: another file is refused (`vm.other`), older text said."""
    record, definition = seen.record, subject.definition
    if record is None:
        return ()
    if not is_same_file(record.definition, str(definition.file)):
        raise Busy(
            Report(
                code="vm.other",
                message=f"{seen.name} runs from another file",
                where=str(definition.file),
                why=f"pid {seen.pid} was started from {record.definition}",
                hint=f"kvmlaunch down {seen.name}   # or give one of the files another name",
            )
        )
    if record.digest == definition.digest:
        return ()
    message, why = "changed since the start", "the running VM has the older text, or was started with --set"
    if caller.overrides:
        message = "a running VM is not changed by --set"
        plain = load(evolve(caller, overrides=(), file=""), str(definition.file))[1].definition
        if plain and plain.digest == record.digest:
            why = "it runs as its file says"
    hint = "\n".join(f"kvmlaunch {verb} {seen.name}{caller.settings}" for verb in ("diff", "restart"))
    return (warning(code="vm.changed", message=message, where=str(definition.file), why=why, hint=hint),)


def check_paused(seen: Seen) -> tuple[Finding, ...]:
    """Say that a VM which runs already stands still (`vm.paused`)."""
    from kvmlaunch.run.qmp import Target, ask  # noqa: PLC0415

    try:
        answer = ask(Target(path=monitor_path(seen), pid=seen.pid), (("query-status", {}),), seconds=2)[0]
    except KvmlaunchError:
        return ()
    if isinstance(answer, dict) and not answer.get("running"):
        word = str(answer.get("status", "paused"))
        return (
            warning(
                code="vm.paused",
                message=f"{seen.name} stands still: {word}",
                why="its vCPUs do not run",
                hint=f"kvmlaunch {'restart' if word == LEFT else 'resume'} {seen.name}",
            ),
        )
    return ()


def runs_already(seen: Seen, lacking: str, verb: str) -> Busy:
    """Give the refusal to say of a guest that runs that it was started as asked for (`vm.state`)."""
    return Busy(
        Report(
            code="vm.state",
            message=f"{seen.name} runs already, {lacking}",
            where=f"pid {seen.pid}",
            hint=f"kvmlaunch {verb} {seen.name}",
        )
    )


def check_restart(caller: Caller, word: str) -> None:
    """Refuse a restart before anything is ended: a VM that could not start again, or that runs from another file."""
    subject = load_subject(caller, word)
    seen = observe(caller, subject.definition.name)
    check_running(caller, seen, subject)
    if seen.lives:
        refuse_lost(seen)
    resolved = resolve(caller, subject, everything=True, running=seen.pid)  # what it holds is free for it
    refuse_errors(subject.definition.name, (*resolved.findings(), *seed_findings(resolved)))


def settle(caller: Caller, seen: Seen, subject: Subject, wishes: Wishes, tell: Tell) -> Started | None:
    """Deal with what is there already: running is fine, starting is busy, leftovers are cleaned up; None to go on."""
    match plan_transition(seen.state, Verb.UP):
        case Answer.ALREADY:
            if seen.state is VmState.FOREIGN:
                from kvmlaunch.steps.adopt import as_planned  # noqa: PLC0415 - this path only

                as_planned(caller, seen, subject, dry_run=wishes.dry_run)
                tell("verified", f"pid {seen.pid}, which kvmlaunch did not start, is as planned")
            findings = (*check_running(caller, seen, subject), *check_paused(seen))
            if wishes.boot_from:
                raise runs_already(seen, f"and was not booted from {wishes.boot_from} now", "restart")
            if wishes.paused and not any(finding.report.code == "vm.paused" for finding in findings):
                raise runs_already(seen, "and is not paused", "pause")
            return Started(name=seen.name, pid=seen.pid, already=True, seconds=age(seen), findings=findings)
        case Answer.BUSY:
            raise Busy(
                Report(
                    code="vm.locked",
                    message=f"{seen.name} is {seen.state.value}",
                    where=str(seen.places.run),
                    why=f"held by {who_holds(seen)}",
                    hint=f"kvmlaunch up {seen.name}   # again, once that has ended",
                )
            )
        case Answer.HEAL_THEN_ACT:
            return heal_before(caller, seen, subject, wishes, tell)
        case Answer.ACT | Answer.NOT_RUNNING:
            if seen.unreadable:
                tell("warn", f"[state.quarantined] the record is unreadable: {seen.unreadable}")
    return None


def heal_before(caller: Caller, seen: Seen, subject: Subject, wishes: Wishes, tell: Tell) -> Started | None:
    """Take over a half started VM whose guest runs, and clean up after any other; None to go on with a start."""
    if seen.state is VmState.HALF:
        from kvmlaunch.steps.adopt import take_over  # noqa: PLC0415 - this path only

        pid = take_over(caller, seen, subject, tell, dry_run=wishes.dry_run)
        if pid:
            return Started(name=seen.name, pid=pid, already=True, seconds=age(seen))
    if not wishes.dry_run:
        clean_up(caller, seen.name, seen.places, tell)
        tell("healed", f"{seen.state.value} before: cleaned up")
    return None


def resolve_again(caller: Caller, resolved: Resolved, wishes: Wishes, refused: str) -> Resolved:
    """Plan again from what is seen under the lock: the same pure functions decide."""
    return resolve(
        caller, resolved.subject, everything=True, refused=refused, boot_from=wishes.boot_from, paused=wishes.paused
    )


def make_variables(resolved: Resolved) -> None:
    """Give the VM its own UEFI variable store, copied once from the template."""
    template, user = resolved.plan.variables, resolved.host.user
    if template is None:
        return
    store = resolved.places.state / "uefi-variables.fd"
    make_owned(resolved.places.state, user.uid, user.gid, 0o700)
    own_files(resolved.places.state, user.uid, user.gid)
    if os.path.exists(store):
        return
    with entered(resolved.places.state, user.uid) as fd:
        temporary = f".{store.name}.new"
        remove_if_there(fd, temporary)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            write_all(file, Path(template).read_bytes())
            os.fchown(file, user.uid, user.gid)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(temporary, store.name, src_dir_fd=fd, dst_dir_fd=fd)


def start_sidecars(resolved: Resolved, claim: Claim) -> None:
    """Start what a VM has beside QEMU: the emulator of its TPM, the daemons of its shares; they end with QEMU."""
    places, user = resolved.places, resolved.host.user
    commands = build_sidecars(resolved.subject.definition, resolved.host, places)
    if not commands:
        return
    from kvmlaunch.run.sidecar import INTENT, launch_sidecar, render_note  # noqa: PLC0415 - where there is one
    from kvmlaunch.steps.owners import process_owner  # noqa: PLC0415

    if TPM in commands:
        make_owned(places.state, user.uid, user.gid, 0o700)
        make_owned(places.state / STATE, user.uid, user.gid, 0o700)
        own_files(places.state / STATE, user.uid, user.gid)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    log_fd, _ = open_qemu_log(claim.fd, claim.path, f"# {when} beside {resolved.name}: {', '.join(commands)}")
    try:
        for socket, argv in commands.items():
            owner, log = process_owner(user), places.logs / QEMU_LOG
            note_sidecar(claim, socket, INTENT)
            pid = launch_sidecar(argv, owner, places.run / socket, log, log_fd)
            note_sidecar(claim, socket, render_note(pid))
    finally:
        os.close(log_fd)


def seeded(resolved: Resolved) -> bool:
    """Has a VM a seed for cloud-init."""
    return plan_seed(resolved.subject.definition).value


def seed_findings(resolved: Resolved) -> tuple[Finding, ...]:
    """Give what is wrong with a VM's seed for cloud-init, where it has one."""
    if not seeded(resolved):
        return ()
    from kvmlaunch.steps.seed import check_seed  # noqa: PLC0415 - with cloud_init only

    return check_seed(resolved)


def linger_findings(resolved: Resolved) -> tuple[Finding, ...]:
    """Warn where logind would remove the user's runtime directory at his last logout (`host.user.linger`)."""
    user = resolved.host.user
    if resolved.host.caller_uid == 0 or not resolved.host.systemd or os.path.exists(LINGER / user.name):
        return ()
    return (
        warning(
            code="host.user.linger",
            message=f"{user.name} does not linger",
            why=f"/run/user/{user.uid} goes away with the last login",
            hint=f"loginctl enable-linger {user.name}",
        ),
    )


def launch(resolved: Resolved, claim: Claim, argv: tuple[str, ...], deadline: float) -> "RunningVm":
    """Start QEMU and wait until its monitor has negotiated; what is needed later is imported meanwhile."""
    from kvmlaunch.run.launch import launch_qemu, wait_for_greeting, wait_for_socket  # noqa: PLC0415 - late on purpose
    from kvmlaunch.steps.owners import process_owner  # noqa: PLC0415 - late on purpose

    logs, owner = resolved.places.logs, process_owner(resolved.host.user)
    log_fd, log_start = open_qemu_log(
        claim.fd, claim.path, f"# {datetime.now(UTC).isoformat(timespec='seconds')} {resolved.name}"
    )
    memlock = resolved.plan.memory.size + GIB if resolved.plan.memory.lock else 0
    vm = launch_qemu(
        argv, owner, lock_fd=claim.fd, log=logs / QEMU_LOG, log_fd=log_fd, log_start=log_start, memlock=memlock
    )
    try:
        write_record(claim, record_of(resolved, argv, vm.pid, "intent"))
        # While QEMU initialises: what is asked of it next, and what verify() needs then.
        import kvmlaunch.preflight.promises  # noqa: PLC0415
        import kvmlaunch.run.verify  # noqa: F401, PLC0415
        from kvmlaunch.run.qmp import Target, ask  # noqa: PLC0415

        wait_for_socket(vm, claim.path / QMP, deadline)
        wait_for_greeting(
            vm, deadline, lambda seconds: ask(Target(path=claim.path / QMP, pid=vm.pid), (), seconds=seconds)
        )
        link_socket(claim)
        ask(Target(path=claim.path / EVENTS, pid=vm.pid), (), seconds=5)
    except BaseException:
        vm.end()
        vm.let_go()
        raise
    return vm


def verify(resolved: Resolved, vm: "RunningVm", argv: tuple[str, ...], deadline: float) -> None:
    """Read every promise back; raises QemuFailed `qemu.promise` with all that are broken."""
    from kvmlaunch.preflight.promises import check_promises  # noqa: PLC0415 - imported while QEMU initialises
    from kvmlaunch.run.qmp import Target  # noqa: PLC0415
    from kvmlaunch.run.verify import collect_evidence  # noqa: PLC0415

    target = Target(path=monitor_socket(resolved.places.run), pid=vm.pid)
    seconds = max(1.0, deadline - time.monotonic())
    evidence = collect_evidence(vm.pid, target, resolved.plan.memory.size, vm.words(), seconds=seconds)
    broken = check_promises(resolved.plan, argv, evidence)
    if broken:
        reports = tuple(finding.report for finding in broken)
        raise QemuFailed(evolve(reports[0], where=reports[0].where or f"pid {vm.pid}"), reports)


def pin_threads(resolved: Resolved, vm: "RunningVm", *, paused: bool) -> None:
    """Pin vCPUs and I/O threads where the definition asks, and let the guest run unless it is to stay paused."""
    plan = resolved.plan
    if not plan.vcpu_pins and not plan.iothread_pins:
        return
    from kvmlaunch.run.pin import pin_and_continue  # noqa: PLC0415 - only where something is pinned

    pin_and_continue(monitor_socket(resolved.places.run), vm.pid, plan.vcpu_pins, plan.thread_pins, go_on=not paused)


def end_children(uuid: str) -> None:
    """End a QEMU of this start that an interruption left without a hold: a child of ours with the VM's UUID."""
    from signal import SIGKILL  # noqa: PLC0415 - the failing path only

    from kvmlaunch.run.process import carries_uuid, children, held, read_cmdline  # noqa: PLC0415

    for pid in children(os.getpid()):
        with held(pid) as process:
            if process and carries_uuid(read_cmdline(pid), uuid):
                process.send(SIGKILL)
                process.wait(10)


def close_logs(claim: Claim) -> None:
    """Close what an interruption left open in the place of the logs: it could not be unmounted."""
    for number in filter(str.isdecimal, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if PurePosixPath(os.readlink(f"/proc/self/fd/{number}")).is_relative_to(claim.path / LOG):
                os.close(int(number))


@contextmanager
def given_back_on_failure(caller: Caller, resolved: Resolved, claim: Claim, tell: Tell) -> Iterator[None]:
    """Undo everything in reverse order when what is within fails, interruptions included."""
    try:
        yield
    except BaseException:
        end_children(resolved.plan.uuid)
        close_logs(claim)
        for undo in (
            lambda: keep_logs(claim.path, resolved.places.logs, caller.uid, tell),
            lambda: end_beside(resolved.places.run),
            lambda: give_back_under_lock(caller, resolved.name, tell),
            lambda: remove_claimed(claim),
        ):
            try:
                undo()
            except OSError as error:
                tell("warn", f"{error}; the next command tries again")
            except KvmlaunchError as error:
                tell("warn", f"{error.report.message}: {error.report.why}; the next command tries again")
        raise


def start(caller: Caller, resolved: Resolved, wishes: Wishes, tell: Tell, keep: Keep) -> Started:
    """Claim, change the host, launch, verify, record."""
    begun = time.monotonic()
    user = resolved.host.user
    with (
        claimed(resolved.places.run, user.uid, user.gid) as claim,
        given_back_on_failure(caller, resolved, claim, tell),
    ):
        remove_contents(claim)
        write_record(claim, record_of(resolved, (), 0, "intent"))
        make_log_directory(claim, user.gid)
        changes: tuple[Change, ...] = ()
        plan_again = partial(resolve_again, caller, resolved, wishes)
        if caller.uid == 0:
            changes = all_changes(resolved)
            resolved = change_host(resolved, plan_again, tell)
        else:
            resolved = plan_again("")  # from here on nobody else can take a snapshot, or grow an image
            refuse_errors(resolved.name, resolved.findings())
        make_variables(resolved)
        if seeded(resolved):
            from kvmlaunch.steps.seed import make_seed  # noqa: PLC0415 - with cloud_init only

            make_seed(resolved)
        start_sidecars(resolved, claim)
        argv = render_argv(resolved.plan, resolved.places)
        deadline = time.monotonic() + (wishes.timeout or float(resolved.subject.definition.lifecycle.start_timeout))
        tell("exec", shlex.join(argv))
        vm = launch(resolved, claim, argv, deadline)
        try:
            verify(resolved, vm, argv, deadline)
            pin_threads(resolved, vm, paused=wishes.paused)
            write_record(claim, record_of(resolved, argv, vm.pid, "running"))
        except BaseException:
            vm.end()
            vm.let_go()
            raise
        seconds = time.monotonic() - begun
        tell("started", f"pid {vm.pid} in {seconds:.2f} s")
        then = keep(resolved, vm)
    then()
    findings = resolved.findings()
    return Started(name=resolved.name, pid=vm.pid, seconds=seconds, argv=argv, findings=findings, changes=changes)


def no_more(_resolved: Resolved, vm: "RunningVm") -> Callable[[], None]:
    """Let go of a VM once it runs."""
    return vm.let_go


def up(caller: Caller, word: str, wishes: Wishes, tell: Tell, keep: Keep = no_more) -> Started:
    """Start a VM; running already is fine.  Raises KvmlaunchError, after which nothing is left of the try.

    `keep` is asked as the last thing that undoes the start when it fails, and gives what is done once the VM stays.
    """
    subject = load_subject(caller, word)
    name = subject.definition.name
    tell("definition", str(subject.definition.file))
    seen = observe(caller, name)
    if not wishes.dry_run or seen.lives:
        settled = settle(caller, seen, subject, wishes, tell)
        if settled:
            return settled
    running = seen.pid if wishes.dry_run else None  # what a half started one holds would be free by then
    resolved = resolve(
        caller, subject, everything=True, running=running, boot_from=wishes.boot_from, paused=wishes.paused
    )
    findings = resolved.findings()
    refuse_errors(name, (*findings, *seed_findings(resolved)))
    for finding in linger_findings(resolved):
        tell("warn", f"{finding.report.message}: {finding.report.why}  [{finding.report.code}]")
    tell("preflight", f"{CHECK_COUNT} checks")
    if wishes.dry_run:
        argv = render_argv(resolved.plan, resolved.places)
        return Started(name=name, pid=None, argv=argv, findings=findings, changes=all_changes(resolved))
    return start(caller, resolved, wishes, tell, keep)
