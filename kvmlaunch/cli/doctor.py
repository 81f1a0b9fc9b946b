"""`doctor`."""

from typing import TYPE_CHECKING, Any

import click

from kvmlaunch.cli.hints import as_typed
from kvmlaunch.cli.progress import spinner
from kvmlaunch.cli.session import Session, session_command, vms_argument
from kvmlaunch.cli.show import paint, show_document

if TYPE_CHECKING:
    from kvmlaunch.model.diagnosis import Diagnosis

FAILED = 6


def diagnosis_document(diagnosis: "Diagnosis") -> dict[str, Any]:
    """Give the JSON form of one subject."""
    return {
        "subject": diagnosis.subject,
        "verdict": diagnosis.verdict,
        "found": diagnosis.found,
        "why": diagnosis.why,
        "fix": diagnosis.fix,
        "source": diagnosis.source,
        "numbers": dict(diagnosis.numbers),
    }


def show_diagnosis(session: Session, diagnosis: "Diagnosis", width: int) -> None:
    """Print one subject, its name `width` wide: how it is, why that matters, and what mends it."""
    word = paint(session, diagnosis.verdict, err=False)
    click.echo(f"{word}{' ' * (5 - len(diagnosis.verdict))} {diagnosis.subject:<{width}}  {diagnosis.found}")
    for line in diagnosis.why.splitlines():
        click.echo(f"      {line}")
    if diagnosis.fix:
        click.echo(f"      fix: {as_typed(diagnosis.fix)}")
    if session.verbose and diagnosis.source:
        click.echo(f"      [{diagnosis.source}]")


@click.command()
@vms_argument
@click.option("--no-boot", is_flag=True, help="Boot no guest to see whether KVM works.")
@session_command
def doctor(session: Session, vms: tuple[str, ...], no_boot: bool) -> int:
    """Examine this host for VMs: what is wrong first, each with numbers, reason, and the command that mends it."""
    from kvmlaunch.steps.doctor import examine  # noqa: PLC0415 - completion wants the options only

    with spinner(session, "looking at the host"):
        found = examine(session.caller(), vms, boot=not no_boot)
    if session.json:
        show_document("doctor", {"diagnoses": [diagnosis_document(each) for each in found]})
    else:
        shown = [each for each in found if not session.quiet or each.verdict not in {"ok", "skip"}]
        for each in shown:
            show_diagnosis(session, each, max(len(one.subject) for one in shown))
    return FAILED if any(each.verdict == "FAIL" for each in found) else 0
