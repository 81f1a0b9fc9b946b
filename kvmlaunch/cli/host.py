"""`preflight`, `facts`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmlaunch.cli.many import Document, each_vm, teller
from kvmlaunch.cli.session import Session, dry_run_option, session_command, vms_argument
from kvmlaunch.cli.show import (
    finding_document,
    say,
    short_path,
    show_document,
    show_error,
    show_table,
    show_warnings,
)
from kvmlaunch.model.change import render_change
from kvmlaunch.model.finding import errors_of
from kvmlaunch.model.host import HostFacts
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.names import name_of
from kvmlaunch.units import MIB, count, render_cpus, render_size

if TYPE_CHECKING:
    from kvmlaunch.steps.prepare import Checked

DIFFERENT = 10


def show_checked(session: Session, checked: "Checked", done: str) -> tuple[int, Document]:
    """Print what preflight found; gives the exit code and the JSON form."""
    from kvmlaunch.steps.resolve import refusal_of  # noqa: PLC0415 - imported by the check already

    errors = errors_of(checked.findings)
    if not session.json:
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
    code = refusal_of(finding.report for finding in errors).exit_code if errors else 0
    return code, {
        "name": checked.name,
        "ok": not errors,
        "prepared": checked.prepared,
        "findings": [finding_document(finding) for finding in checked.findings],
        "changes": [render_change(change) for change in checked.changes],
        **({} if checked.fits is None else {"fits": checked.fits}),
    }


def preflight_one(
    session: Session, caller: Caller, word: str, *, apply: bool, undo: bool, dry_run: bool
) -> tuple[int, Document]:
    """Check, prepare or undo for one VM."""
    from kvmlaunch.steps import prepare  # noqa: PLC0415

    name = name_of(word)
    tell = teller(session, name)
    if undo:
        undone, found = prepare.undo(caller, word, tell, dry_run=dry_run)
        if not session.json:
            show_warnings(session, name, found, fixes=True)
        if not undone and not session.json:
            say(session, name, "ok", "already", "nothing is prepared")
        conflict = any(finding.report.code == "host.change.conflict" for finding in found)
        document = {"name": name, "undone": undone, "findings": [finding_document(finding) for finding in found]}
        return DIFFERENT if conflict else 0, {**document, "dry_run": dry_run}
    if apply and not dry_run:
        return show_checked(session, prepare.prepare(caller, word, tell), "done")
    return show_checked(session, prepare.check(caller, word, preparing=apply), "would")


@click.command()
@vms_argument
@click.option("--apply", is_flag=True, help="Make the changes; they stay until --undo or a reboot.")
@click.option("--undo", is_flag=True, help="Take back what --apply made.")
@click.option("--all", "together", is_flag=True, help="Check too whether all of them can run at once.")
@click.option("--user", "for_user", metavar="USER", help="Prepare for this user's VMs, who then needs no root.")
@dry_run_option
@session_command
def preflight(
    session: Session,
    vms: tuple[str, ...],
    apply: bool,
    undo: bool,
    together: bool,
    for_user: str | None,
    dry_run: bool,
) -> int:
    """Check the host for VMs (all that are defined when none is named), and say what `up` would change."""
    if apply + undo + together > 1:
        raise click.UsageError("--apply, --undo and --all exclude each other")
    if for_user == "":
        raise click.UsageError("--user names nobody: is a variable of a script unset?")
    caller = session.caller(for_user=for_user)
    if not vms:
        from kvmlaunch.host.definitions import definition_files, refuse_closed  # noqa: PLC0415 - beside its use

        refuse_closed(caller.search)
        vms = tuple(definition_files(caller.search))
    if together:
        from kvmlaunch.steps.fleet import check_together  # noqa: PLC0415 - beside its use

        words = tuple(dict.fromkeys(vms))
        checked = check_together(caller, words)
        return each_vm(session, "preflight", words, lambda word: show_checked(session, checked.of(word), "would"))
    return each_vm(
        session,
        "preflight",
        vms,
        lambda word: preflight_one(session, caller, word, apply=apply, undo=undo, dry_run=dry_run),
    )


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
    if save == "":
        raise click.UsageError("--save takes the directory to write to")
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
