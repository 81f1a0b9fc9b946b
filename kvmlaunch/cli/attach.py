"""`console` and `logs`."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

from kvmlaunch.cli.session import Session, session_command, vm_argument
from kvmlaunch.cli.show import say, show_document
from kvmlaunch.errors import Busy, Report
from kvmlaunch.facts.console import PlainText, parse_escape, plain_text
from kvmlaunch.steps.names import name_of, refuse_unknown


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Put a terminal into raw mode for a while; anything else is left alone."""
    if not os.isatty(fd):
        yield
        return
    import termios  # noqa: PLC0415 - on a terminal only
    import tty  # noqa: PLC0415

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)  # what was typed already is not lost
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)  # a terminal that nobody reads never drains


@contextlib.contextmanager
def console_lock(path: Path) -> Iterator[None]:
    """Hold the console's lock file, with who we are in it, so that a second console is refused at once."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                Report(
                    code="vm.console.busy",
                    message="the console is in use",
                    where=str(path),
                    why="somebody else connected at this moment",
                )
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, f"pid {os.getpid()}, kvmlaunch console".encode())
        yield
    finally:
        os.close(fd)


@click.command()
@vm_argument
@click.option("--escape", default="^]", metavar="^X", help="The control character that leaves the console.")
@session_command
def console(session: Session, vm: str, escape: str) -> None:
    """Connect the terminal to a VM's serial port; ^] leaves it, the guest runs on."""
    from kvmlaunch.run.process import held  # noqa: PLC0415 - beside its use
    from kvmlaunch.steps.attach import connect_console, converse  # noqa: PLC0415

    try:
        byte = parse_escape(escape)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    seen, connection = connect_console(session.caller(), vm)
    name = seen.name
    lock = Path(f"{seen.places.run / 'console.sock'}.lock")
    with connection, console_lock(lock), held(seen.pid or 0) as process, raw_terminal(sys.stdin.fileno()):
        say(session, name, "ok", "console", f"connected; {escape} leaves it")
        ended = process is None or converse(connection, process.fd, sys.stdin.fileno(), sys.stdout.fileno(), byte)
    click.echo("", err=True)
    say(session, name, "ok", "console", "the VM ended" if ended else "left; the VM runs on")


@click.command()
@vm_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until the VM ends.")
@click.option(
    "--source",
    type=click.Choice(["console", "qemu"]),
    default="console",
    help="What the guest printed, or what QEMU did.",
)
@click.option("--raw", is_flag=True, help="Leave escape sequences in.")
@partial(session_command, short_file=False)
def logs(session: Session, vm: str, follow: bool, source: str, raw: bool) -> None:
    """Show what a guest, or its QEMU, has printed; escape sequences of the guest are taken out."""
    from kvmlaunch.host.logs import read_log  # noqa: PLC0415 - beside its use
    from kvmlaunch.steps.attach import follow as follow_log  # noqa: PLC0415
    from kvmlaunch.steps.attach import is_alive, log_texts  # noqa: PLC0415

    if follow and session.json:
        raise click.UsageError("--json gives one document, and --follow has no end: take one of them")
    caller, name = session.caller(), name_of(vm)
    refuse_unknown(caller, vm)
    files = log_texts(caller, name, source)
    clean = (lambda text: text) if raw else plain_text
    texts = [text for path in (files[:-1] if follow else files) if (text := read_log(path)) is not None]
    if session.json:
        show_document("logs", {"name": name, "source": source, "text": "".join(map(clean, texts))})
        return
    for text in texts:
        click.echo(clean(text), nl=False, color=raw or None)
    if follow:
        pieces = PlainText()
        for text in follow_log(files[-1], lambda: is_alive(caller, name)):
            click.echo(text if raw else pieces.feed(text), nl=False, color=raw or None)
        click.echo(pieces.feed("", last=True), nl=False)
    elif not texts:
        say(session, name, "skip", "logs", "nothing was printed yet")
