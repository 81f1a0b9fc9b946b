"""A VM is started: claimed, the host changed for it, launched, and every promise read back.

Whatever fails after the claim is undone in reverse order, interruptions included.
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

from kvmlaunch.builder.boot import VARIABLES
from kvmlaunch.builder.memory import plan_prealloc
from kvmlaunch.builder.render import render_argv
from kvmlaunch.builder.tpm import STATE
from kvmlaunch.builder.vm import build_sidecars
from kvmlaunch.errors import KvmlaunchError, PreflightFailed, QemuFailed, Report
from kvmlaunch.host.files import remove_if_there, write_all
from kvmlaunch.host.logs import open_qemu_log
from kvmlaunch.host.rundir import (
    Claim,
    claimed,
    link_sockets,
    make_log_directory,
    note_sidecar,
    own_socket,
    remove_claimed,
    remove_contents,
    write_record,
)
from kvmlaunch.host.tree import entered, make_owned, own_files
from kvmlaunch.model.change import Change
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.run_files import EVENTS, LOG, QEMU_LOG, QMP, TPM
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.run.process import none_left_behind
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.hardware import note_machine
from kvmlaunch.steps.heal import end_beside, give_back_under_lock, keep_logs
from kvmlaunch.steps.host_changes import all_changes, change_host
from kvmlaunch.steps.record import record_of
from kvmlaunch.steps.resolve import Resolved, resolve
from kvmlaunch.steps.start_findings import seeded
from kvmlaunch.units import GIB

if TYPE_CHECKING:
    from kvmlaunch.run.launch import RunningVm

# Bytes of preallocated memory.  A VM that had not touched its own memory before took 32 s for 8 GiB: half of that rate.
TOUCHED_A_SECOND = 128 << 20
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


def resolve_again(caller: Caller, resolved: Resolved, wishes: Wishes, refused: str) -> Resolved:
    """Plan again from what is seen under the lock: the same pure functions decide.

    A plan that takes nothing of the host's rests on the VM's own files, and holds as long as they are as they were.
    """
    if not refused and resolved.holds():
        return resolved
    again = resolve(
        caller, resolved.subject, everything=True, refused=refused, boot_from=wishes.boot_from, paused=wishes.paused
    )
    for disk in again.plan.disks:
        facts = again.host.paths.get(disk.image or disk.path)
        if facts and facts.taking and not disk.readonly:
            report = Report(
                code="disk.locked",
                message=f"a snapshot of {facts.path.name} was begun just now",
                where=str(facts.path),
                why="it may be one of some of the disks only",
                hint=f"kvmlaunch up {again.name}   # again: it settles what was cut off",
            )
            raise PreflightFailed(report)
    return again


def make_variables(resolved: Resolved) -> None:
    """Give the VM its own UEFI variable store, copied once from the template."""
    template, user = resolved.plan.variables, resolved.host.user
    if template is None:
        return
    store = resolved.places.state / VARIABLES
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


def start_seconds(resolved: Resolved) -> float:
    """Give how long QEMU may take: as written, else 30 s and what it takes to touch all memory, where it does."""
    definition, memory = resolved.subject.definition, resolved.plan.memory
    seconds = float(definition.lifecycle.start_timeout)
    touches = plan_prealloc(definition, memory).value and "lifecycle.start_timeout" not in definition.origins
    return seconds + memory.size / TOUCHED_A_SECOND if touches else seconds


def largest_image(resolved: Resolved) -> int:
    """Give the bytes to which the largest file that is written may grow; one of qcow2 is larger than its disk."""
    written = (resolved.host.paths.get(disk.path) for disk in resolved.plan.disks if not disk.readonly)
    files = (facts for facts in written if facts and facts.kind == "file")
    return max((max(facts.size, facts.virtual_size * 9 // 8) for facts in files), default=0)


def launch(
    resolved: Resolved, claim: Claim, argv: tuple[str, ...], deadline: float
) -> tuple["RunningVm", list[object]]:
    """Start QEMU and give what its monitor answers; what is needed later is imported meanwhile."""
    from kvmlaunch.run.launch import launch_qemu, wait_for_greeting, wait_for_socket  # noqa: PLC0415 - late on purpose
    from kvmlaunch.steps.owners import process_owner  # noqa: PLC0415 - late on purpose

    logs, owner = resolved.places.logs, process_owner(resolved.host.user)
    log_fd, log_start = open_qemu_log(
        claim.fd, claim.path, f"# {datetime.now(UTC).isoformat(timespec='seconds')} {resolved.name}"
    )
    memlock = resolved.plan.memory.size + GIB if resolved.plan.memory.lock else 0
    vm = launch_qemu(
        argv,
        owner,
        lock_fd=claim.fd,
        log=logs / QEMU_LOG,
        log_fd=log_fd,
        log_start=log_start,
        memlock=memlock,
        largest=largest_image(resolved),
    )
    try:
        write_record(claim, record_of(resolved, argv, vm.pid, "intent"))
        # While QEMU initialises: what is asked of it next, what verify() needs then, and where the findings stand.
        from kvmlaunch.run.qmp import Target, greet  # noqa: PLC0415
        from kvmlaunch.run.verify import QUERIES  # noqa: PLC0415

        resolved.findings()  # for the places of what is told at the end: define/positions.py keeps what it has read
        monitor, events = (Target(path=claim.path / name, pid=vm.pid) for name in (QMP, EVENTS))
        wait_for_socket(vm, events.path, deadline)  # which is bound last
        answers = wait_for_greeting(vm, deadline, lambda seconds: greet(monitor, QUERIES, [events], seconds=seconds))
        link_sockets(claim)
    except BaseException:
        vm.end()
        vm.let_go()
        raise
    return vm, answers


def verify(resolved: Resolved, vm: "RunningVm", argv: tuple[str, ...], answers: list[object]) -> Resolved:
    """Read every promise back; gives the plan with what QEMU has to say beside it.

    Raises QemuFailed `qemu.promise` with all promises that are broken.
    """
    from kvmlaunch.preflight.promises import check_promises, check_words  # noqa: PLC0415 - imported by launch()
    from kvmlaunch.run.verify import collect_evidence  # noqa: PLC0415

    evidence = collect_evidence(vm.pid, answers, resolved.plan.memory.size, vm.words())
    broken = check_promises(resolved.plan, argv, evidence)
    if broken:
        reports = tuple(finding.report for finding in broken)
        kind = PreflightFailed if {report.code for report in reports} == {"disk.corrupt"} else QemuFailed
        raise kind(reports[0]._replace(where=reports[0].where or f"pid {vm.pid}"), reports)
    said = (*resolved.subject.findings, *check_words(argv, evidence))
    return evolve(resolved, subject=evolve(resolved.subject, findings=said))


def pin_threads(resolved: Resolved, vm: "RunningVm", *, paused: bool) -> None:
    """Pin vCPUs and I/O threads where the definition asks, and let the guest run unless it is to stay paused."""
    plan = resolved.plan
    if not plan.vcpu_pins and not plan.iothread_pins:
        return
    from kvmlaunch.run.pin import pin_and_continue  # noqa: PLC0415 - only where something is pinned

    pin_and_continue(own_socket(resolved.places.run, QMP), vm.pid, plan.vcpu_pins, plan.thread_pins, go_on=not paused)


def launch_verified(
    resolved: Resolved, claim: Claim, argv: tuple[str, ...], deadline: float, *, paused: bool, keep: Keep
) -> tuple[Resolved, "RunningVm", Callable[[], None]]:
    """Start QEMU, read every promise back, and record the VM as running; one of which that cannot be said is ended.

    It is kept before the record says that it runs: a signal to whoever supervises it is the VM's from then on.
    """
    vm, answers = launch(resolved, claim, argv, deadline)
    try:
        resolved = verify(resolved, vm, argv, answers)
        pin_threads(resolved, vm, paused=paused)
        then = keep(resolved, vm)
        write_record(claim, record_of(resolved, argv, vm.pid, "running"))
    except BaseException:
        vm.end()
        vm.let_go()
        raise
    return resolved, vm, then


def close_logs(claim: Claim) -> None:
    """Close what an interruption left open in the place of the logs: it could not be unmounted."""
    for number in filter(str.isdecimal, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if PurePosixPath(os.readlink(f"/proc/self/fd/{number}")).is_relative_to(claim.path / LOG):
                os.close(int(number))


def end_all(started: list["RunningVm"]) -> None:
    """End what runs."""
    for vm in started:
        vm.end()


@contextmanager
def given_back_on_failure(caller: Caller, resolved: Resolved, claim: Claim, tell: Tell) -> Iterator[list["RunningVm"]]:
    """Undo everything in reverse order when what is within fails, interruptions included.

    What runs by then is put into the list that is given, and ended first: until the end of this nothing stays.
    """
    started: list[RunningVm] = []
    try:
        yield started
    except BaseException:
        for undo in (
            lambda: end_all(started),
            lambda: close_logs(claim),
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
        given_back_on_failure(caller, resolved, claim, tell) as started,
    ):
        keep_logs(claim.path, resolved.places.logs, caller.uid, tell)  # of a printed command that somebody ran
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
            resolved.refuse()
        make_variables(resolved)
        if seeded(resolved):
            from kvmlaunch.steps.seed import make_seed  # noqa: PLC0415 - with cloud_init only

            make_seed(resolved)
        start_sidecars(resolved, claim)
        argv = render_argv(resolved.plan, resolved.places)
        deadline = time.monotonic() + (wishes.timeout or start_seconds(resolved))
        tell("exec", shlex.join(argv))
        with none_left_behind():
            resolved, vm, then = launch_verified(resolved, claim, argv, deadline, paused=wishes.paused, keep=keep)
            started.append(vm)
            note_machine(resolved, tell)
            seconds = time.monotonic() - begun
            tell("started", f"pid {vm.pid} in {seconds:.2f} s")
    then()
    findings = resolved.findings()
    return Started(name=resolved.name, pid=vm.pid, seconds=seconds, argv=argv, findings=findings, changes=changes)


def no_more(_resolved: Resolved, vm: "RunningVm") -> Callable[[], None]:
    """Let go of a VM once it runs."""
    return vm.let_go
