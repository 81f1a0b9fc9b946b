"""`exec`: a command run in a guest by its agent."""

import sys

import click

from kvmlaunch.cli.run import timeout_option
from kvmlaunch.cli.session import Session, session_command, vm_argument
from kvmlaunch.cli.show import say, show_document
from kvmlaunch.facts.console import plain_text
from kvmlaunch.steps.names import name_of

SECONDS = 60.0


class ExecCommand(click.Command):
    """A command that is given another command line: without -- its options would be taken for ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and say what lacks where an option is none of ours."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            message = f"no such option: {error.option_name}; write -- before COMMAND, so that its options are its own"
            raise click.UsageError(message, ctx) from error


@click.command(name="exec", cls=ExecCommand)
@click.option("-i", "--stdin", "with_input", is_flag=True, help="Give the command our standard input.")
@timeout_option
@vm_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@session_command
def exec_(session: Session, vm: str, command: tuple[str, ...], with_input: bool, timeout: float | None) -> int:
    """Run COMMAND in a guest, by its agent, and end as it ends: kvmlaunch exec web01 -- uname -r.

    What it prints is shown once it has ended; without --timeout it has 60 s.
    """
    from kvmlaunch.steps.agent import execute  # noqa: PLC0415 - completion wants the options only

    given = sys.stdin.buffer.read() if with_input else None
    done = execute(session.caller(), vm, command, given=given, seconds=timeout or SECONDS)
    if session.json:
        texts = {"stdout": done.out.decode(errors="replace"), "stderr": done.err.decode(errors="replace")}
        show_document("exec", {"name": name_of(vm), "code": done.code, **texts, "truncated": done.truncated})
        return done.code
    for stream, content in ((sys.stdout, done.out), (sys.stderr, done.err)):
        stream.flush()
        shown = plain_text(content.decode(errors="replace")).encode()  # a guest's bytes are no terminal's commands
        stream.buffer.write(shown if stream.isatty() else content)
        stream.flush()
    if done.truncated:
        say(session, name_of(vm), "warn", "exec", "the agent left out what is beyond its own limit")
    return done.code
