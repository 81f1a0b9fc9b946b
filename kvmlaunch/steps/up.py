"""`up`: a definition becomes a running VM whose every promise was read back, or nothing at all.

In order: load · look whether it runs · capture facts, plan · check · claim the run directory · under the host-wide
lock heal, look again where that may differ, change the host · launch · read every promise back.  Whatever fails after
the claim is undone in reverse order.
"""

import os
from pathlib import PurePosixPath

from kvmlaunch.builder.cloud_init import plan_seed
from kvmlaunch.builder.render import render_argv
from kvmlaunch.errors import Busy, NotRunning, PreflightFailed, Report
from kvmlaunch.host.definitions import is_same_file
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.lifecycle import Answer, Verb, VmState, plan_transition
from kvmlaunch.model.value import evolve
from kvmlaunch.preflight.checks import CHECK_COUNT
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.hardware import machine_findings
from kvmlaunch.steps.heal import clean_up
from kvmlaunch.steps.host_changes import all_changes
from kvmlaunch.steps.load import Subject, load, load_subject
from kvmlaunch.steps.observe import LEFT, Seen, age, monitor_path, observe, who_holds
from kvmlaunch.steps.resolve import resolve
from kvmlaunch.steps.start import Keep, Started, Wishes, no_more, start
from kvmlaunch.steps.start_findings import lacks_seed, linger_findings, own_findings
from kvmlaunch.storage.snapshot import taking_path


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
                hint=f"kvmlaunch down {seen.name}   # ends that one; or give one of the files another name",
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


def check_told(caller: Caller, seen: Seen, subject: Subject) -> tuple[Finding, ...]:
    """Say that a VM which runs already was told something else by its seed for cloud-init than files say now."""
    if not plan_seed(subject.definition).value:
        return ()
    if not lacks_seed(resolve(caller, subject, everything=False, running=seen.pid)):
        return ()
    message, why = "the seed of cloud-init changed since the start", "it is written anew when the VM starts"
    hint = f"kvmlaunch restart {seen.name}   # a guest reads it at its first boot only, unless it is told otherwise"
    where = str(subject.definition.file)
    return (warning(code="vm.changed", message=message, where=where, why=why, hint=hint),)


def check_paused(seen: Seen) -> tuple[Finding, ...]:
    """Say that a VM which runs already stands still (`vm.paused`); raises TimedOut, Busy where it cannot be asked."""
    from kvmlaunch.run.qmp import Target, ask  # noqa: PLC0415

    try:
        answer = ask(Target(path=monitor_path(seen), pid=seen.pid), (("query-status", {}),), seconds=2)[0]
    except NotRunning:  # it ended at this very moment
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


def check_restart(caller: Caller, word: str) -> bool:
    """Refuse a restart before anything is ended: a VM that could not start again, or that runs from another file.

    Gives whether it was started with what its definition, and `--set`, say now.
    """
    subject = load_subject(caller, word)
    seen = observe(caller, subject.definition.name)
    same = not check_running(caller, seen, subject)
    if seen.lives:
        from kvmlaunch.steps.lost import refuse_lost  # noqa: PLC0415 - a restart only

        refuse_lost(seen)
    resolved = resolve(caller, subject, everything=True, running=seen.pid)  # what it holds is free for it
    resolved.refuse(own_findings(resolved))
    return same


def settle(caller: Caller, seen: Seen, subject: Subject, wishes: Wishes, tell: Tell) -> Started | None:
    """Deal with what is there already: running is fine, starting is busy, leftovers are cleaned up; None to go on."""
    match plan_transition(seen.state, Verb.UP):
        case Answer.ALREADY:
            if seen.state is VmState.FOREIGN:
                from kvmlaunch.steps.adopt import as_planned  # noqa: PLC0415 - this path only

                as_planned(caller, seen, subject, dry_run=wishes.dry_run)
                tell("verified", f"pid {seen.pid}, which kvmlaunch did not start, is as planned")
            changed = check_running(caller, seen, subject) or check_told(caller, seen, subject)
            findings = (*changed, *check_paused(seen))
            from kvmlaunch.steps.look import sidecar_notes  # noqa: PLC0415 - this path only
            from kvmlaunch.steps.lost import lost_notes  # noqa: PLC0415

            for note in (*lost_notes(seen), *sidecar_notes(seen)):
                tell("warn", note)
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


def settle_snapshots(caller: Caller, word: str, subject: Subject, tell: Tell) -> None:
    """Settle first what a command that was killed has left of a snapshot; beside a running VM one may be at work."""
    disks = (disk for disk in subject.definition.disk.values() if not disk.readonly)
    if not any(os.path.isfile(taking_path(PurePosixPath(os.path.realpath(disk.path)))) for disk in disks):
        return
    from kvmlaunch.steps.disk_settle import settle as settle_disks  # noqa: PLC0415 - after a killed command

    try:
        settle_disks(caller, word, tell)
    except PreflightFailed as error:
        if error.report.code != "disk.locked" or not observe(caller, subject.definition.name).lives:
            raise


def up(caller: Caller, word: str, wishes: Wishes, tell: Tell, keep: Keep = no_more) -> Started:
    """Start a VM; running already is fine.  Raises KvmlaunchError, after which nothing is left of the try.

    `keep` is asked as the last thing that undoes the start when it fails, and gives what is done once the VM stays.
    """
    subject = load_subject(caller, word)
    name = subject.definition.name
    tell("definition", str(subject.definition.file))
    if not wishes.dry_run:
        settle_snapshots(caller, word, subject, tell)
    seen = observe(caller, name)
    if not wishes.dry_run or seen.lives:
        settled = settle(caller, seen, subject, wishes, tell)
        if settled:
            return settled
    running = seen.pid if wishes.dry_run else None  # what a half started one holds would be free by then
    resolved = resolve(
        caller, subject, everything=True, running=running, boot_from=wishes.boot_from, paused=wishes.paused
    )
    resolved.refuse(own_findings(resolved))
    for finding in (*machine_findings(resolved), *linger_findings(resolved)):
        tell("warn", f"{finding.report.message}: {finding.report.why}  [{finding.report.code}]")
    tell("preflight", f"{CHECK_COUNT} checks")
    if wishes.dry_run:
        argv = render_argv(resolved.plan, resolved.places)
        return Started(name=name, pid=None, argv=argv, findings=resolved.findings(), changes=all_changes(resolved))
    return start(caller, resolved, wishes, tell, keep)
