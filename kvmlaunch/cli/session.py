"""What every command is given: the options that stand before or behind its name, and who asks."""

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.steps.caller import Caller, current_caller
from kvmlaunch.steps.names import name_of

F = TypeVar("F", bound=Callable[..., Any])
COMMANDS_TOO = 2  # -vv
STANDARD_INPUT = "-"
Color = Literal["auto", "always", "never"]


@frozen(kw_only=True)
class Session:
    """The common options."""

    directories: tuple[str, ...] = ()
    file: str = ""
    overrides: tuple[str, ...] = ()
    json: bool = False
    color: Color = "auto"
    quiet: bool = False
    verbose: int = 0

    def caller(self, *, facts: str | None = None, for_user: str | None = None, standard_input: bytes = b"") -> Caller:
        """Give who asks, with these options."""
        context = click.get_current_context(silent=True)
        return current_caller(
            directories=self.directories,
            file=self.file,
            overrides=self.overrides,
            facts=Path(facts) if facts else None,
            for_user=for_user,
            command=context.command_path if context else "kvmlaunch up",
            standard_input=standard_input,
        )


def merged(outer: Session, inner: Session) -> Session:
    """Give the options of a command added to those before its name."""
    if outer.file and inner.file:
        raise click.UsageError(f"-f names {outer.file} and {inner.file}: take one of them")
    return Session(
        directories=(*outer.directories, *inner.directories),
        file=inner.file or outer.file,
        overrides=(*outer.overrides, *inner.overrides),
        json=outer.json or inner.json,
        color=inner.color if inner.color != "auto" else outer.color,
        quiet=outer.quiet or inner.quiet,
        verbose=outer.verbose + inner.verbose,
    )


def one_file(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> str:
    """Give the file that was named; of two none may be forgotten in silence, and nothing lays one over the other."""
    if len(given) > 1:
        raise click.BadParameter("given more than once; one file defines a VM, and `extends` in it names templates")
    return given[0] if given else ""


FILE = click.option("-f", "--file", multiple=True, callback=one_file, metavar="FILE", help="Use this definition file.")
FILE_LONG = click.option("--file", multiple=True, callback=one_file, metavar="FILE", help="Use this definition file.")
OPTIONS = (
    click.option(
        "--defs",
        "directories",
        multiple=True,
        type=click.Path(exists=True, file_okay=False),
        metavar="DIR",
        help="Search definitions in DIR first; may be repeated.",
    ),
    click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of the definition; may be repeated."
    ),
    click.option("--json", is_flag=True, help="Answer with one JSON document."),
    click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        help="Colour the words ok, warn and FAIL.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors."),
    click.option("-v", "--verbose", count=True, help="Say reasons; twice: the commands run."),
)


def with_options(function: F, *, short_file: bool = True) -> F:
    """Add the common options to a click command; without `short_file` its own `-f` means something else."""
    for option in reversed((*OPTIONS[:1], FILE if short_file else FILE_LONG, *OPTIONS[1:])):
        function = option(function)
    return function


def session_command(function: Callable[..., Any], *, short_file: bool = True) -> Callable[..., Any]:
    """Give a command its Session as the first argument, made of the options before and behind its name."""

    @click.pass_context
    @functools.wraps(function)
    def run(
        context: click.Context,
        /,
        directories: tuple[str, ...],
        file: str,
        overrides: tuple[str, ...],
        json: bool,
        color: Color,
        quiet: bool,
        verbose: int,
        **arguments: Any,  # noqa: ANN401 - the command's own
    ) -> Any:  # noqa: ANN401
        inner = Session(
            directories=directories,
            file=file,
            overrides=overrides,
            json=json,
            color=color,
            quiet=quiet,
            verbose=verbose,
        )
        outer = context.obj if isinstance(context.obj, Session) else Session()
        session = merged(outer, inner)
        if session.verbose >= COMMANDS_TOO:
            show_commands()
        context.find_root().obj = session
        try:
            return function(session, **arguments)
        except KvmlaunchError as error:
            error.vm = error.vm or vm_of(arguments)
            raise

    return with_options(run, short_file=short_file)


def vm_of_disk(word: str) -> str:
    """Give the VM of VM:DISK, or of VM alone."""
    return name_of(word.rpartition(":")[0] or word)


def vm_of(arguments: Mapping[str, object]) -> str:
    """Give the VM that a command's arguments name, "" when there is none, or more than one."""
    vms, disk = arguments.get("vms") or (), arguments.get("disk")
    if isinstance(disk, str):
        return vm_of_disk(disk)
    words = [arguments.get(key) for key in ("vm", "what", "name", "new")]
    words += list(vms) if isinstance(vms, tuple) else []
    named = [name_of(word) for word in words if isinstance(word, str) and word != STANDARD_INPUT]
    return named[0] if len(named) == 1 else ""


def standard_input(word: str) -> bytes:
    """Give the definition on standard input where the word is `-`."""
    return sys.stdin.buffer.read() if word == STANDARD_INPUT else b""


def show_commands() -> None:
    """Print every tool that is run to stderr, ready to paste."""
    import logging  # noqa: PLC0415 - with -vv only

    logging.basicConfig(format="+ %(message)s", level=logging.WARNING)
    logging.getLogger("kvmlaunch.command").setLevel(logging.DEBUG)


def complete_vm(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Give the names of VMs that begin so: names of files, nothing is parsed."""
    from kvmlaunch.host.definitions import names_in  # noqa: PLC0415 - completion only

    written = (*(context.find_root().params.get("directories") or ()), *(context.params.get("directories") or ()))
    caller = evolve(current_caller(), directories=written)
    return sorted(name for name in names_in(caller.search) if name.startswith(incomplete))


def no_standard_input(
    _context: click.Context, _parameter: click.Parameter, words: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    """Give the words back; raises UsageError for `-`: a text that is read once has no file, by which a VM is known."""
    if STANDARD_INPUT in ((words,) if isinstance(words, str) else words):
        message = "- is standard input, which validate, print-cmd, explain and show read; name a VM or a file"
        raise click.UsageError(message)
    return words


# A VM that runs or is to run: its name, or its file.
vm_argument = click.argument("vm", shell_complete=complete_vm, callback=no_standard_input)
vms_argument = click.argument("vms", nargs=-1, shell_complete=complete_vm, callback=no_standard_input)
# A definition that is only read: a name, a file, or - for standard input.
definition_argument = click.argument("vm", shell_complete=complete_vm)
definitions_argument = click.argument("vms", nargs=-1, shell_complete=complete_vm)
dry_run_option = click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
facts_option = click.option("--facts", metavar="DIR", help="Build for the host that was saved there.")


def use_color(session: Session, stream_is_terminal: bool) -> bool:
    """Tell whether to colour: as asked, else on a terminal where NO_COLOR is not set."""
    if session.color != "auto":
        return session.color == "always"
    return stream_is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
