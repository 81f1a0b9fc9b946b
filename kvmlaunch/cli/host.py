"""`preflight`, `facts`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmlaunch.cli.session import Session, session_command, vms_argument
from kvmlaunch.cli.show import (
    finding_document,
    say,
    short_path,
    show_document,
    show_error,
    show_failure,
    show_table,
    show_warnings,
)
from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.model.change import render_change
from kvmlaunch.model.finding import errors_of
from kvmlaunch.model.host import HostFacts
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.many import common_code
from kvmlaunch.units import MIB, count, render_cpus, render_size

if TYPE_CHECKING:
    from kvmlaunch.steps.prepare import Checked

PREFLIGHT_FAILED, NEEDS_PRIVILEGE = 6, 77


def show_checked(session: Session, checked: "Checked", done: str) -> int:
    """Print what preflight found; gives the exit code."""
    errors = errors_of(checked.findings)
    if session.json:
        show_document(
            "preflight",
            {
                "name": checked.name,
                "ok": not errors,
                "prepared": checked.prepared,
                "findings": [finding_document(finding) for finding in checked.findings],
                "changes": [render_change(change) for change in checked.changes],
            },
        )
    else:
        for finding in errors:
            show_error(session, finding.report, checked.name)
        show_warnings(session, checked.name, checked.findings)
        for change in checked.changes:
            say(session, checked.name, "ok", done, render_change(change))
        words = (
            f"{count(len(errors), 'problem')}"
            if errors
            else "already prepared"
            if checked.prepared and not checked.changes
            else "nothing stands in the way"
        )
        say(session, checked.name, "FAIL" if errors else "ok", "preflight", words)
    if not errors:
        return 0
    return NEEDS_PRIVILEGE if all(finding.report.code == "host.privilege" for finding in errors) else PREFLIGHT_FAILED


def preflight_one(session: Session, caller: Caller, name: str, *, apply: bool, undo: bool) -> int:
    """Check, prepare or undo for one VM."""
    from kvmlaunch.cli.run import teller  # noqa: PLC0415 - beside its use
    from kvmlaunch.steps import prepare  # noqa: PLC0415

    tell = teller(session, name)
    if undo:
        undone = prepare.undo(caller, name, tell)
        if session.json:
            show_document("preflight", {"name": name, "undone": undone})
        elif not undone:
            say(session, name, "ok", "already", "nothing is prepared")
        return 0
    if apply:
        return show_checked(session, prepare.prepare(caller, name, tell), "done")
    return show_checked(session, prepare.check(caller, name), "would")


@click.command()
@vms_argument
@click.option("--apply", is_flag=True, help="Make the changes; they stay until --undo or a reboot.")
@click.option("--undo", is_flag=True, help="Take back what --apply made.")
@click.option("--user", "for_user", metavar="USER", help="Prepare for this user's VMs, who then needs no root.")
@session_command
def preflight(session: Session, vms: tuple[str, ...], apply: bool, undo: bool, for_user: str | None) -> int:
    """Check the host for VMs (all that are defined when none is named), and say what `up` would change."""
    if apply and undo:
        raise click.UsageError("--apply and --undo exclude each other")
    caller = session.caller(for_user=for_user)
    if not vms:
        from kvmlaunch.host.definitions import definition_files  # noqa: PLC0415 - beside its use

        vms = tuple(definition_files(caller.search))
    codes: dict[str, int] = {}
    for name in vms:
        try:
            codes[name] = preflight_one(session, caller, name, apply=apply, undo=undo)
        except KvmlaunchError as error:
            show_failure(session, error, name if len(vms) > 1 else "")
            codes[name] = error.exit_code
    return common_code(codes)


def facts_rows(facts: HostFacts) -> list[tuple[str, str]]:
    """Give the host in rows for people."""
    pools = [f"{render_size(pool.page_size)}: {pool.total} in all, {pool.available} available" for pool in facts.pools]
    modules, verdict = (
        ", ".join(facts.kvm.modules) or "none",
        "runs guests" if facts.kvm.runs_guests else "runs no guests",
    )
    total, available = (render_size(size // MIB * MIB) for size in (facts.memory.total, facts.memory.available))
    return [
        ("kernel", facts.kernel),
        ("CPUs", f"{render_cpus(facts.cpus.online)}  {facts.cpus.model}"),
        (
            "memory",
            f"{total}, {available} available",
        ),
        ("NUMA", count(len(facts.nodes), "node")),
        ("hugepages", "; ".join(pools) or "none"),
        ("THP", facts.thp or "none"),
        ("KVM", f"/dev/kvm {facts.kvm.device}, modules {modules}, {verdict}"),
        ("io_uring", facts.aio.io_uring_refusal or "usable"),
        ("native aio", f"{facts.aio.used} of {facts.aio.most} contexts"),
        ("systemd", "runs" if facts.systemd else "does not run"),
        ("user", f"{facts.user.name} ({facts.user.uid})"),
    ]


@click.command()
@vms_argument
@click.option("--save", metavar="DIR", help="Write a capture: for a report, for --facts DIR, for the tests.")
@session_command
def facts(session: Session, vms: tuple[str, ...], save: str | None) -> None:
    """Show what is known of this host, and of the files of VMS."""
    from kvmlaunch.steps.host_facts import read_facts, save_facts  # noqa: PLC0415 - beside its use

    caller = session.caller()
    if save:
        directory, asked = save_facts(caller, vms, Path(save))
        if session.json:
            show_document("facts", {"saved": str(directory), "qemu": asked})
        else:
            say(
                session,
                "host",
                "ok",
                "saved",
                short_path(str(directory))
                + (" with QEMU's answers" if asked else "; a VM's name adds its files and QEMU's answers"),
            )
        return
    found = read_facts(caller, vms)
    if session.json:
        from kvmlaunch.cli.document import facts_document  # noqa: PLC0415 - beside its use

        show_document("facts", facts_document(found))
    else:
        show_table(facts_rows(found))
