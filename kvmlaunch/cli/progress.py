"""A spinner on a terminal for everything longer than a second; nothing when piped."""

import contextlib
import sys
from collections.abc import Iterator

from kvmlaunch.cli.session import Session, use_color


@contextlib.contextmanager
def spinner(session: Session, text: str, *, off: bool = False) -> Iterator[None]:
    """Show a spinner on stderr while something lasts; only on a terminal, never with --quiet or --json."""
    if off or session.quiet or session.json or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    console = Console(stderr=True, no_color=not use_color(session, stream_is_terminal=True))
    with console.status(text):
        yield
