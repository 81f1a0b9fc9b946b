"""`tune plan`, `apply`, `verify`, `off`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kvmlaunch.cli.many import teller
from kvmlaunch.cli.session import Session, session_command, vms_argument
from kvmlaunch.cli.show import finding_document, say, show_document, show_error, show_table, show_warnings, talk
from kvmlaunch.model.finding import Finding, errors_of
from kvmlaunch.model.tuning import FileEntry, KeptFile, Setting, SettingEntry
from kvmlaunch.units import count

if TYPE_CHECKING:
    from kvmlaunch.steps.tune import Planned
    from kvmlaunch.steps.tune_verify import Difference

HOST = "host"
DIFFERENT, FAILED = 10, 6
every_option = click.option("--all", "every", is_flag=True, help="For every definition, not those with autostart only.")
boot_option = click.option(
    "--boot", is_flag=True, help="Also a drop-in for the boot loader; the command that it needs is shown, and not run."
)


@click.group()
def tune() -> None:
    """The host's knobs for its VMs: planned, made, kept over reboots, taken back."""


def setting_cells(session: Session, setting: Setting) -> tuple[str, str, str]:
    """Give a setting as a row: what it is and should be, and why."""
    wanted = setting.wanted
    change = f"{setting.knob.value} → {wanted.value}" if setting.differs else f"{wanted.value}, as it is"
    by_hand = f"{wanted.origin.place} {wanted.origin.key}" if wanted.origin.kind == "file" else ""
    why = " · ".join(part for part in (by_hand, wanted.reason, setting.cost and f"cost: {setting.cost}") if part)
    source = f"   [{'; '.join(part for part in (setting.knob.path, wanted.source) if part)}]" if session.verbose else ""
    return setting.key, change, f"{why}{source}"


def setting_document(setting: Setting) -> dict[str, Any]:
    """Give the JSON form of a setting."""
    wanted = setting.wanted
    return {
        "key": setting.key,
        "path": setting.knob.path,
        "current": setting.knob.value,
        "wanted": wanted.value,
        "differs": setting.differs,
        "reason": wanted.reason,
        "source": wanted.source,
        "origin": f"{wanted.origin.place} {wanted.origin.key}".strip(),
        "cost": setting.cost,
        "keeper": setting.keeper,
    }


def file_document(kept: KeptFile, *, written: bool) -> dict[str, Any]:
    """Give the JSON form of a file that keeps settings; `written` tells whether it stands so already."""
    return {
        "path": kept.path,
        "written": written,
        "kind": kept.kind,
        "text": kept.text,
        "command": kept.command,
        "inactive": kept.inactive,
    }


def plan_document(planned: "Planned", findings: Sequence[Finding]) -> dict[str, Any]:
    """Give the JSON form of a plan."""
    return {
        "vms": [vm.name for vm in planned.vms],
        "changes": planned.changes,
        "mount": planned.unmounted,
        "settings": [setting_document(setting) for setting in planned.plan.settings],
        "files": [file_document(kept, written=kept.path in planned.written) for kept in planned.plan.files],
        "returning": [entry.path for entry in planned.returned],
        "ksm": {name: knob.value for name, knob in planned.tuning.ksm.items()},
        "findings": [finding_document(finding) for finding in findings],
    }


def show_findings(session: Session, findings: Sequence[Finding]) -> None:
    """Print what cannot be had, errors first."""
    for finding in errors_of(tuple(findings)):
        show_error(session, finding.report, HOST)
    show_warnings(session, HOST, findings, fixes=True)


def show_plan(session: Session, planned: "Planned") -> None:
    """Print a plan: what changes, what stays with -v, what would keep it."""
    plan = planned.plan
    shown = plan.settings if session.verbose else plan.changes
    show_table([setting_cells(session, setting) for setting in shown])
    if planned.unmounted:
        click.echo(f"hugetlbfs  {planned.unmounted}  mounted, as host.toml says")
    for entry in planned.returned:
        if isinstance(entry, SettingEntry):
            fewer = next((each.wanted.value for each in plan.settings if each.key == entry.key), None)
            why = "no longer wished: as it was before" if fewer is None else "fewer are wished"
            click.echo(f"{entry.key}  {entry.after} → {fewer or entry.before}  {why}")
        else:
            when = "with --persist: " if isinstance(entry, FileEntry) else ""
            click.echo(f"{when}{entry.path}   no longer wished: as it was before")
    for kept in plan.files:
        note = f"   (not read at boot here: {kept.inactive})" if kept.inactive else ""
        stands = "   (as it is)" if kept.path in planned.written else ""
        click.echo(f"with {kept.option}: {kept.path}{stands}{note}")
        if session.verbose:
            click.echo("".join(f"    {line}\n" for line in kept.text.splitlines()), nl=False)
    same = len(plan.settings) - len(plan.changes)
    names = count(len(planned.vms), "VM")
    talk(f"{count(planned.changes, 'change')}, {same} as they should be, for {names}")
    if not planned.vms:
        talk(whom(planned))


def whom(planned: "Planned") -> str:
    """Give for which VMs a plan was made."""
    if planned.vms:
        return f"for {', '.join(vm.name for vm in planned.vms)}"
    return "no definition has lifecycle.autostart: name VMs, or use --all"


def show_planned(session: Session, planned: "Planned") -> int:
    """Print a plan and what cannot be had; gives the exit code."""
    findings = planned.plan.findings
    if session.json:
        show_document("tune-plan", plan_document(planned, findings))
    else:
        show_plan(session, planned)
        show_findings(session, findings)
    return FAILED if errors_of(findings) else 0


@tune.command()
@vms_argument
@every_option
@boot_option
@click.option("--exit-code", "exit_code", is_flag=True, help="Exit with 10 when something would change.")
@session_command
def plan(session: Session, vms: tuple[str, ...], every: bool, boot: bool, exit_code: bool) -> int:
    """Say what of the host would change for these VMs, why, and what it costs; changes nothing, needs no root."""
    from kvmlaunch.steps.tune import plan as plan_host  # noqa: PLC0415 - completion wants the options only

    planned = plan_host(session.caller(), vms, every=every, boot=boot)
    failed = show_planned(session, planned)
    if failed:
        return failed
    return DIFFERENT if exit_code and planned.changes else 0


@tune.command()
@vms_argument
@every_option
@click.option("--persist", is_flag=True, help="Also write the files that keep it over a reboot.")
@boot_option
@click.option("--drop-caches", is_flag=True, help="Give up the page cache where memory for huge pages is short.")
@click.option("-n", "--dry-run", is_flag=True, help="The same as tune plan.")
@session_command
def apply(
    session: Session,
    vms: tuple[str, ...],
    every: bool,
    persist: bool,
    boot: bool,
    drop_caches: bool,
    dry_run: bool,
) -> int:
    """Make the host as it should be, until the next boot, or with --persist beyond it; tune off takes it back."""
    from kvmlaunch.steps import tune_apply as steps  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.steps.tune import plan as plan_host  # noqa: PLC0415

    caller, told, say_step = session.caller(), [], teller(session, HOST)

    def tell(step: str, text: str) -> None:
        told.append(step)
        say_step(step, text)

    if dry_run:
        return show_planned(session, plan_host(caller, vms, every=every, boot=boot))
    if caller.uid != 0 and not session.json:  # what root is to do, before it is refused
        show_planned(session, plan_host(caller, vms, every=every, boot=boot))
    planned, failed = steps.apply(
        caller,
        vms,
        tell,
        every=every,
        persist=persist,
        boot=boot,
        drop_caches=drop_caches,
    )
    inactive = steps.inactive_findings(planned.plan.files) if persist or boot else ()
    findings = (*planned.plan.findings, *failed, *inactive)
    if session.json:
        show_document("tune-apply", plan_document(planned, findings))
    else:
        show_findings(session, findings)
        if not told and not failed:
            say(session, HOST, "ok", "already", "as it should be")
        for command in commands_left(planned) if persist or boot else ():
            say(session, HOST, "ok", "then", command)
    if failed and all(each.report.code == "host.change.conflict" for each in failed):
        return DIFFERENT
    return FAILED if failed else 0


def commands_left(planned: "Planned") -> Sequence[str]:
    """Give what is still to be run by hand, each once."""
    return tuple(dict.fromkeys(kept.command for kept in planned.plan.files if kept.by_hand and kept.command))


@tune.command()
@vms_argument
@every_option
@session_command
def verify(session: Session, vms: tuple[str, ...], every: bool) -> int:
    """Compare the host with what it should be, and the files with what was written: 10 when they differ."""
    from kvmlaunch.steps.tune_verify import verify as verify_host  # noqa: PLC0415 - completion wants the options only

    planned, differences = verify_host(session.caller(), vms, every=every)
    if session.json:
        rows = [difference_document(each) for each in differences]
        show_document("tune-verify", {**plan_document(planned, planned.plan.findings), "differences": rows})
    else:
        show_table([(each.key, f"{each.found}, should be {each.wanted}", place_text(each)) for each in differences])
        show_findings(session, planned.plan.findings)
        if not differences and planned.plan.settings:
            say(session, HOST, "ok", "verified", f"{count(len(planned.plan.settings), 'setting')} as they should be")
        elif not differences and not errors_of(planned.plan.findings):
            say(session, HOST, "skip", "verified", f"nothing is wished; {whom(planned)}")
        if session.caller().uid != 0:
            say(session, HOST, "skip", "files", f"only root knows which were written: sudo {session.caller().line}")
    return DIFFERENT if differences else FAILED if errors_of(planned.plan.findings) else 0


def place_text(difference: "Difference") -> str:
    """Give where a difference lies, and who makes it."""
    return f"{difference.place}{f': {difference.by}' if difference.by else ''}"


def difference_document(difference: "Difference") -> dict[str, str]:
    """Give the JSON form of a difference."""
    return {
        "key": difference.key,
        "place": difference.place,
        "wanted": difference.wanted,
        "found": difference.found,
        "by": difference.by,
    }


@tune.command()
@click.option("--force", is_flag=True, help="Also put back what somebody else has changed since.")
@session_command
def off(session: Session, force: bool) -> int:
    """Put everything back as it was before tune apply, files included."""
    from kvmlaunch.steps.tune_apply import off as put_back  # noqa: PLC0415 - completion wants the options only

    done = put_back(session.caller(), teller(session, HOST), force=force)
    if session.json:
        document = {"undone": done.tuned, "left": done.left, "then": list(done.commands)}
        show_document("tune-off", {**document, "findings": [finding_document(finding) for finding in done.found]})
    else:
        show_findings(session, done.found)
        if not done.tuned and not done.found:
            say(session, HOST, "ok", "already", "nothing is tuned")
        for command in done.commands:
            say(session, HOST, "ok", "then", command)
    return DIFFERENT if done.left or any(each.report.code == "host.change.conflict" for each in done.found) else 0
