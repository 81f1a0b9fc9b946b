"""`print-cmd`, `explain`, `diff`: a definition compiled, nothing changed."""

import os
from itertools import dropwhile
from pathlib import PurePosixPath

from kvmlaunch.builder.render import Row, diff_argv, explain_rows, render_argv
from kvmlaunch.builder.vm import build_vm
from kvmlaunch.errors import KvmlaunchError, NotRunning, Report
from kvmlaunch.model.finding import Finding, errors_of, warning
from kvmlaunch.model.plan import Plan
from kvmlaunch.model.value import evolve
from kvmlaunch.run.process import read_cmdline
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import Subject, load_subject, place_findings
from kvmlaunch.steps.names import name_of, refuse_unknown
from kvmlaunch.steps.observe import Seen, observe
from kvmlaunch.steps.resolve import Resolved, refuse_errors, resolve
from kvmlaunch.steps.start_findings import seeded
from kvmlaunch.storage.snapshot import is_overlay_name

HELD = "-S"  # until the guest is let run


def seen_of(caller: Caller, subject: Subject) -> Seen | None:
    """Look whether a VM runs on this host; a plan for a captured host has none."""
    name = subject.definition.name
    return None if caller.facts else observe(caller, name)


def compile_vm(caller: Caller, word: str, *, boot_from: str = "", paused: bool = False) -> Resolved:
    """Give a VM as planned here, for the same words of `up`.

    Raises DefinitionInvalid, and PreflightFailed for what the builder cannot do.

    What the VM holds while it runs counts as its own, so the plan beside a running VM is the one that runs.
    """
    subject = load_subject(caller, word)
    seen = seen_of(caller, subject)
    running = seen.pid if seen else None
    resolved = resolve(caller, subject, everything=False, running=running, boot_from=boot_from, paused=paused)
    refuse_errors(resolved.name, place_findings(subject, (*errors_of(resolved.plan.findings), *unsettled(resolved))))
    findings = (
        *resolved.plan.findings,
        *place_findings(subject, (*uncaptured(resolved), *unmade(resolved), *beneath_others(resolved))),
    )
    return evolve(resolved, plan=evolve(resolved.plan, findings=findings))


def beneath_others(resolved: Resolved) -> tuple[Finding, ...]:
    """Warn of disks that overlays of others rest on, which a start refuses: a pasted command would change those."""
    paths = resolved.host.paths
    bases = [
        (facts, disk)
        for disk in resolved.plan.disks
        if not disk.readonly and (facts := paths.get(disk.path)) and facts.overlays
    ]
    if not bases:
        return ()
    from kvmlaunch.preflight.disk import check_base  # noqa: PLC0415 - where there is one

    found = (finding for facts, disk in bases for finding in check_base(disk.path, facts, disk.table))
    return tuple(evolve(finding, severity="warning") for finding in found)


def uncaptured(resolved: Resolved) -> tuple[Finding, ...]:
    """Warn of disks that a saved capture does not have."""
    return tuple(
        warning(
            code="host.facts.partial",
            message=f"the capture does not have {disk.path.name}",
            key=f"{disk.table}.path",
            why="cache and aio are chosen by the image, so a start on that host may have others",
            hint=f"kvmlaunch facts {resolved.name} --save DIR   # there: with the files of this VM",
        )
        for disk in resolved.plan.disks
        if disk.path not in resolved.host.paths
    )


def unmade(resolved: Resolved) -> tuple[Finding, ...]:
    """Warn of disks that are not there: how they are opened is chosen by the images, so it may be another way then."""
    paths = resolved.host.paths
    return tuple(
        warning(
            code="disk.missing",
            message=f"{disk.path.name} is not there yet",
            key=f"{disk.table}.path",
            why="cache and aio are chosen by the image, so a start may have others once it is made",
            hint=f"kvmlaunch disk create {resolved.name}:{disk.table.removeprefix('disk.')}" if disk.made else "",
        )
        for disk in resolved.plan.disks
        if (facts := paths.get(disk.path)) and facts.kind == "missing"
    )


def unsettled(resolved: Resolved) -> tuple[Finding, ...]:
    """Give the disks of which it cannot be told what QEMU is to open: a pasted command would write to a wrong one."""
    paths = resolved.host.paths
    found: list[Finding] = []
    for disk in resolved.plan.disks:
        image = disk.image or disk.path
        facts = paths.get(image)
        if facts and (facts.committing or facts.taking or facts.stray or facts.unread):
            from kvmlaunch.preflight.disk import check_snapshots, check_taking  # noqa: PLC0415 - where there is one

            found += check_snapshots(image, facts, disk.table, resolved.name)
            found += () if disk.readonly else check_taking(image, facts, disk.table, resolved.name)
    return tuple(found)


def explain(caller: Caller, word: str) -> tuple[Resolved, tuple[Row, ...]]:
    """Give every decision about a VM; one with errors is explained too."""
    subject = load_subject(caller, word)
    seen = seen_of(caller, subject)
    resolved = resolve(caller, subject, everything=False, running=seen.pid if seen else None)
    return resolved, explain_rows(resolved.plan, resolved.places)


def diff_running(caller: Caller, word: str) -> tuple[str, ...]:
    """Give in what a running VM differs from what its definition would start now: options, cloud-init's seed."""
    refuse_unknown(caller, word)
    seen = observe(caller, name_of(word))
    running = seen.record.argv if seen.record else read_cmdline(seen.pid) if seen.pid else ()
    resolved = compile_vm(caller, word, paused=HELD in running)  # up --paused is another word, not another definition
    if seen.pid is None:
        raise NotRunning(
            Report(
                code="vm.stopped",
                message=f"{resolved.name} is not running",
                where=str(resolved.places.run),
                why="there is nothing to compare with",
                hint=f"kvmlaunch print-cmd {resolved.name}",
            )
        )
    plan = plan_of_start(resolved, running)
    return (*diff_argv(running, render_argv(plan, resolved.places)), *diff_seed(resolved), *lost_lines(seen))


def plan_of_start(resolved: Resolved, running: tuple[str, ...]) -> Plan:
    """Give the plan without the snapshots taken, or ended, since a start by an argv: QEMU went over to those itself."""
    from kvmlaunch.steps.lost import files_of_drives  # noqa: PLC0415 - beside a running VM only

    named = {str(path) for path, _ in files_of_drives(running)}
    paths = dict(resolved.host.paths)
    for path, facts in resolved.host.paths.items():
        ended = [each for each in sorted(named) if is_ended(PurePosixPath(each), path)]
        paths.update({PurePosixPath(each): evolve(facts, path=PurePosixPath(each)) for each in ended})
        since = () if os.path.realpath(path) in named else (*ended, *facts.since)
        later = tuple(dropwhile(lambda each: os.path.realpath(each) not in named, since))[1:]
        kept = since[: len(since) - len(later)]
        paths[path] = evolve(facts, since=kept)
        newest = paths.get(PurePosixPath(later[-1])) if later else None
        if newest:  # what is known of it holds for one beside it
            paths[PurePosixPath(kept[-1])] = evolve(newest, path=PurePosixPath(kept[-1]))
    host = evolve(resolved.host, paths=paths)
    return build_vm(resolved.subject.definition, host, resolved.caps, paused=HELD in running)


def is_ended(file: PurePosixPath, path: PurePosixPath) -> bool:
    """Is a file the overlay of a snapshot of an image, and not there any more: a commit has ended it."""
    image = PurePosixPath(os.path.realpath(path))
    return file.parent == image.parent and is_overlay_name(file.name, image.name) and not os.path.lexists(file)


def lost_lines(seen: Seen) -> tuple[str, ...]:
    """Say which images a running VM has that are not those at their paths any more: argv names them all the same."""
    from kvmlaunch.steps.lost import lost_images  # noqa: PLC0415 - beside a running VM only

    return tuple(f"+ another {image.path}, or none: the VM has a deleted one" for image in lost_images(seen))


def diff_seed(resolved: Resolved) -> tuple[str, ...]:
    """Say that cloud-init is told something else than by the seed that a running VM has: argv names its file alone."""
    if not seeded(resolved):
        return ()
    from kvmlaunch.steps.seed import is_new_seed  # noqa: PLC0415 - where there is one

    try:
        return ("+ the seed of cloud-init says something else",) if is_new_seed(resolved) else ()
    except KvmlaunchError as error:
        return (f"+ no seed of cloud-init: {error.report.message}",)
