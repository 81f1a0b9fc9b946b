"""`completion`, `version`."""

import click

from kvmlaunch import __version__
from kvmlaunch.cli.session import Session, session_command
from kvmlaunch.cli.show import show_document


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@session_command
def completion(session: Session, shell: str) -> None:
    """Print the completion script of a shell: eval "$(kvmlaunch completion bash)"."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - one use

    from kvmlaunch.cli.main import cli  # noqa: PLC0415 - the group itself

    del session
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "kvmlaunch", "_KVMLAUNCH_COMPLETE").source())


@click.command()
@session_command
def version(session: Session) -> None:
    """Print the version."""
    if session.json:
        show_document("version", {"version": __version__})
    else:
        click.echo(f"kvmlaunch {__version__}")
