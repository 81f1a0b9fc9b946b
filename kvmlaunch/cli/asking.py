"""Questions, asked on a terminal only, and only before data is lost."""

import sys

import click
from click.exceptions import Exit


def sure(question: str, *, yes: bool) -> None:
    """Ask before data is lost; raises UsageError without a terminal, and Exit for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        message = "this loses data, and there is no terminal to ask: --yes says that it is meant"
        raise click.UsageError(message)
    if not click.confirm(question, err=True):
        click.echo("nothing was done", err=True)
        raise Exit(1)
