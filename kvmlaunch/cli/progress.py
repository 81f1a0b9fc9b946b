"""A spinner or a bar on a terminal for everything longer than a second; nothing when piped."""

import contextlib
import sys
from collections.abc import Callable, Iterator

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


@contextlib.contextmanager
def bar(session: Session, text: str) -> Iterator[Callable[[float], None]]:
    """Give what is told how far something is, from 0 to 1, and shows it on stderr; only on a terminal."""
    if session.quiet or session.json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, no_color=not use_color(session, stream_is_terminal=True))
    plain = TextColumn("{task.description}", markup=False)  # VM:DISK: may read as an emoji's name
    columns = (plain, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(text, total=1.0)
        yield lambda far: shown.update(task, completed=min(1.0, far))
