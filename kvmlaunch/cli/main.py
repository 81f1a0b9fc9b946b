"""The command `kvmlaunch`: a lazy table of commands; here alone an exception becomes text and exit code."""

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kvmlaunch import __version__
from kvmlaunch.cli.commands import COMMANDS, SYNONYMS
from kvmlaunch.cli.ending import Terminated, listen
from kvmlaunch.cli.session import Session, with_options
from kvmlaunch.errors import KvmlaunchError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

INTERRUPTED, TERMINATED = 130, 143


def nearest(word: str, following: str) -> list[str]:
    """Give what somebody may have meant who typed this for a command, and that behind it."""
    if word == "help":
        return [f"{following} --help" if following in COMMANDS else "kvmlaunch --help"]
    if known := SYNONYMS.get(word.lower()) or (word.lower() if word.lower() in COMMANDS else ""):
        return [known]
    if following in COMMANDS:
        import shlex  # noqa: PLC0415 - on a slip only

        return [f"kvmlaunch {following} {shlex.quote(word)}"]
    import difflib

    return difflib.get_close_matches(word, COMMANDS, n=2)


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names of all commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Give a command, imported now."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        import importlib  # noqa: PLC0415 - one use

        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Give the command of a word; an unknown one is refused with the nearest names."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = nearest(args[0], args[1] if len(args) > 1 else "")
            ctx.fail(f"no such command: {args[0]}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete a command's name without importing any; then the options."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - completion only

        names = [
            CompletionItem(name, help=line) for name, (_, _, line) in COMMANDS.items() if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by group without importing any."""
        del ctx
        for group in dict.fromkeys(group for _, group, _ in COMMANDS.values()):
            with formatter.section(group):
                formatter.write_dl([(name, line) for name, (_, its, line) in COMMANDS.items() if its == group])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvmlaunch")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:  # noqa: ANN401 - the fields of Session
    """Virtual machines from TOML definitions: compiled, explained, started, verified.  No daemon."""
    context.obj = Session(**options)


cli = with_options(cli)


def last_session(argv: list[str]) -> Session:
    """Give the options that matter for an error, as far as they can be told without parsing."""
    return Session(json="--json" in argv)


def run(argv: list[str]) -> int:
    """Run one command and give its exit code."""
    try:
        return outcome(argv)
    except KeyboardInterrupt:
        return show_signal(argv, "interrupted", INTERRUPTED)
    except Terminated:
        return show_signal(argv, "terminated", TERMINATED)


def show_signal(argv: list[str], word: str, code: int) -> int:
    """Say that a signal ended a command; what was half-done is undone by then.  Gives the exit code."""
    if not last_session(argv).json:
        click.echo(word, err=True)
        return code
    from kvmlaunch.errors import Report  # noqa: PLC0415 - on a signal only

    show_end(argv, KvmlaunchError(Report(code=word, message=f"{word} by a signal")))
    return code


def outcome(argv: list[str]) -> int:
    """Run one command and give its exit code, whatever it fails of; a signal alone escapes."""
    try:
        result = cli.main(args=argv, prog_name="kvmlaunch", standalone_mode=False)
    except KvmlaunchError as error:
        return show_end(argv, error)
    except click.ClickException as error:
        return show_usage(argv, error)
    except click.Abort as interrupted:  # click's word for it
        raise KeyboardInterrupt from interrupted
    except SystemExit as left:  # click's own: its completion, and a reader of stdout that went away, which it covers
        return int(left.code or 0) if isinstance(sys.stdout, io.TextIOBase) else 0
    except Exception as error:  # noqa: BLE001 - a bug becomes a line here
        from kvmlaunch.cli.failures import bug_failure, host_failure, output_failure  # noqa: PLC0415 - on a failure only

        return show_end(argv, output_failure(error) or host_failure(error) or bug_failure(error))
    return result if isinstance(result, int) else 0


def show_end(argv: list[str], error: KvmlaunchError) -> int:
    """Say what stopped a command; gives its exit code."""
    from kvmlaunch.cli.show import show_failure  # noqa: PLC0415 - on an error only

    show_failure(last_session(argv), error)
    return error.exit_code


def show_usage(argv: list[str], error: click.ClickException) -> int:
    """Say that a command line cannot be understood, as click does or as a document; gives the exit code."""
    session = last_session(argv)
    if session.json:
        from kvmlaunch.cli.failures import usage_failure  # noqa: PLC0415 - on a failure only
        from kvmlaunch.cli.show import show_failure  # noqa: PLC0415

        show_failure(session, usage_failure(error))
    else:
        error.show()
    return error.exit_code


def leave(code: int) -> NoReturn:
    """End this process at once: taking some hundred modules apart first is a tenth of print-cmd, and of no use."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def open_closed() -> None:
    """Put /dev/null where a standard stream is closed, as cron and daemons may leave them.

    It takes the place of standard output for reading only: an answer that nobody gets is no success.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - while we live


def main() -> None:
    """Run the command line of this process."""
    open_closed()
    listen()
    leave(run(sys.argv[1:]))
