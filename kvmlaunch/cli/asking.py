"""Questions, asked on a terminal only, and only before data is lost."""

import sys

import click


def sure(question: str, *, yes: bool) -> None:
    """Ask before data is lost; raises UsageError without a terminal, and Abort for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        message = "this loses data, and there is no terminal to ask: --yes says that it is meant"
        raise click.UsageError(message)
    click.confirm(question, abort=True, err=True)
