"""`guest-script`: what cloud-init would set in a guest, for one without it."""

import click

from kvmlaunch.cli.session import Session, definition_argument, session_command, standard_input
from kvmlaunch.cli.show import show_document


@click.command(name="guest-script")
@definition_argument
@session_command
def guest_script(session: Session, vm: str) -> None:
    """Print a shell script that tunes a Linux guest from within: its scheduler, trim, agent; with --check and --undo.

    The switches of cloud_init say what is in it.
    """
    from kvmlaunch.builder.cloud_init import plan_tweaks  # noqa: PLC0415 - completion wants the options only
    from kvmlaunch.guest.script import render_script  # noqa: PLC0415
    from kvmlaunch.steps.load import load_subject  # noqa: PLC0415

    definition = load_subject(session.caller(standard_input=standard_input(vm)), vm).definition
    if definition.os == "windows":
        raise click.UsageError(f"{definition.name} has os = windows, and the script is for Linux guests")
    script = render_script(definition.name, plan_tweaks(definition))
    if session.json:
        show_document("guest-script", {"name": definition.name, "text": script})
    else:
        click.echo(script, nl=False)
