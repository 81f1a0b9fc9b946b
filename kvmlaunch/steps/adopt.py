"""A VM whose launcher died before every promise was read back: taken over where it runs as planned.

Its guest may have been running since: it is never ended on the way.  A QEMU whose guest never ran is ended.
"""

import os
from signal import SIGKILL

from kvmlaunch.builder.render import render_argv
from kvmlaunch.errors import Busy, KvmlaunchError, NotRunning, Report, Unreachable
from kvmlaunch.host.rundir import Claim, link_sockets, write_record
from kvmlaunch.host.tree import entered
from kvmlaunch.preflight.promises import check_promises
from kvmlaunch.run.pin import pin_and_continue
from kvmlaunch.run.process import carries_uuid, held, read_cmdline
from kvmlaunch.run.qmp import Target, ask
from kvmlaunch.run.verify import QUERIES, collect_evidence
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.load import Subject
from kvmlaunch.steps.observe import Seen, monitor_path
from kvmlaunch.steps.record import record_of
from kvmlaunch.steps.resolve import Resolved, resolve

SECONDS = 5.0


def guest_has_run(seen: Seen) -> bool:
    """Has the guest of a QEMU begun to run: not before there is a monitor, nor while QEMU holds it back.

    Raises Busy `vm.state` where that cannot be asked: a second QEMU took the socket's name, and the guest may run.
    """
    path = monitor_path(seen)
    try:
        answer = ask(Target(path=path, pid=seen.pid), (("query-status", {}),), seconds=SECONDS)[0]
    except (NotRunning, Unreachable) as error:
        if os.path.lexists(path):
            raise otherwise(seen, f"its monitor cannot be asked: {error.report.why}", "--force") from error
        return False
    return not (isinstance(answer, dict) and answer.get("status") == "prelaunch")


def as_planned(
    caller: Caller, seen: Seen, subject: Subject, *, dry_run: bool = False
) -> tuple[Resolved, tuple[str, ...]]:
    """Make a QEMU that this command did not start one of its definition: gives the plan and argv.

    Every promise is read back, and then threads are pinned as the definition has it, but for a `dry_run`: nobody else
    does that.

    Raises Busy `vm.state` for one that is not as its definition says, or that cannot be asked.
    """
    resolved = resolve(caller, subject, everything=True, running=seen.pid)
    argv = render_argv(resolved.plan, resolved.places)
    pid, target = seen.pid or 0, Target(path=monitor_path(seen), pid=seen.pid)
    try:
        answers = ask(target, QUERIES, seconds=SECONDS)
        evidence = collect_evidence(pid, answers, resolved.plan.memory.size, "")
    except KvmlaunchError as error:
        raise otherwise(seen, f"{error.report.message}: {error.report.why}") from error
    broken = check_promises(resolved.plan, argv, evidence, later=True)
    if broken:
        raise otherwise(seen, "\n".join(f"{each.report.message}: {each.report.why}" for each in broken))
    if (resolved.plan.vcpu_pins or resolved.plan.iothread_pins) and not dry_run:
        pin_and_continue(target.path, pid, resolved.plan.vcpu_pins, resolved.plan.thread_pins, go_on=False)
    return resolved, argv


def otherwise(seen: Seen, why: str, how: str = "") -> Busy:
    """Give the refusal of a QEMU of this VM that cannot be held to its definition."""
    return Busy(
        Report(
            code="vm.state",
            message=f"{seen.name} is {seen.state.value}, and cannot be held to its definition",
            where=f"pid {seen.pid}",
            why=why,
            hint=f"kvmlaunch down {seen.name} {how}".rstrip(),
        )
    )


def take_over(caller: Caller, seen: Seen, subject: Subject, tell: Tell, *, dry_run: bool = False) -> int | None:
    """Verify a half started VM and make it a started one; gives its pid.

    Gives None when its guest never ran: then it was ended.  Raises Busy, TimedOut when QEMU does not answer.
    A `dry_run` only says what would be done.
    """
    if seen.pid is None or not guest_has_run(seen):
        if dry_run:
            tell("would heal", f"pid {seen.pid} was left half started, its guest never ran: it would be ended")
        else:
            end_unborn(seen, tell)
        return None
    resolved, argv = as_planned(caller, seen, subject, dry_run=dry_run)
    if dry_run:
        tell("would take over", f"pid {seen.pid}, whose start was not finished: verified")
        return seen.pid
    run, uid = seen.places.run, resolved.host.user.uid
    with entered(run, uid) as fd:
        claim = Claim(path=run, fd=fd, uid=uid)
        link_sockets(claim)
        write_record(claim, record_of(resolved, argv, seen.pid, "running"))
    tell("taken over", f"pid {seen.pid}, whose start was not finished: verified")
    return seen.pid


def end_unborn(seen: Seen, tell: Tell) -> None:
    """End a QEMU whose guest never ran: nobody was promised anything of it, and there is nothing to lose."""
    if seen.pid is None:
        return
    with held(seen.pid) as process:
        if process and carries_uuid(read_cmdline(seen.pid), seen.uuid):
            process.send(SIGKILL)
            process.wait(10)
            tell("healed", f"pid {seen.pid} was left half started, its guest never ran, and it was ended")
