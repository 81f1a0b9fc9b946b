"""The parts of docs/reference.md that the code itself says: keys, commands, codes.  `pytest --regenerate` writes them.

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; everything else of the page is written by hand.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import click

from kvmlaunch.cli.commands import COMMANDS
from kvmlaunch.cli.main import LazyGroup, cli
from kvmlaunch.cli.session import OPTIONS
from kvmlaunch.define.keys import atoms, fields_of, is_named, is_table
from kvmlaunch.define.meaning import LOADING_KINDS, default_text, kind_text
from kvmlaunch.model.codes import CODES
from kvmlaunch.model.definition import LOADING_KEYS, SHORTHANDS, Definition
from kvmlaunch.model.wishes import HostWishes

ROOT: Final = Path(__file__).resolve().parent.parent
REFERENCE: Final = ROOT / "docs" / "reference.md"


def cell(text: str) -> str:
    """Give a text as it may stand in a cell of a table."""
    return text.replace("|", "\\|").replace("*.", "\\*.")


def key_rows(table: Any) -> Iterator[str]:  # noqa: ANN401 - a class of the model
    """Give the rows of a table's keys; those that are tables of the definition stand on their own."""
    for name, field in fields_of(table).items():
        if table is Definition and (
            is_table(field.type) or (is_named(field.type) and is_table(get_args(field.type)[1]))
        ):
            continue
        inner_table: Any = field.type
        if is_table(inner_table):
            for inner, each in fields_of(inner_table).items():
                yield row(f"`{name}.{inner}`", kind_text(each.type, each), default_text(each), each.metadata["doc"])
            continue
        yield row(f"`{name}`", kind_text(field.type, field), default_text(field), field.metadata["doc"])


def row(*cells: str) -> str:
    """Give one row of a table."""
    return f"| {' | '.join(cell(text) for text in cells)} |"


def table_head(*names: str) -> list[str]:
    """Give the head of a table."""
    return [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]


def render_keys() -> str:
    """Give every key of a definition, a table of the definition each."""
    lines = ["### At the top", "", *table_head("key", "value", "default", "what it is"), *key_rows(Definition)]
    lines += [row(f"`{name}`", LOADING_KINDS[name], "", doc) for name, doc in LOADING_KEYS.items()]
    lines += ["", "Shorthands:", "", *table_head("written", "means")]
    lines += [row(f"`{name}`", f"`{path}`") for name, path in SHORTHANDS.items()]
    for name, field in fields_of(Definition).items():
        named = is_named(field.type) and is_table(get_args(field.type)[1])
        kind: Any = get_args(field.type)[1] if named else field.type
        if is_table(kind):
            title = f"[{name}.NAME]" if named else f"[{name}]"
            lines += ["", f"### {title}", "", field.metadata["doc"], ""]
            lines += [*table_head("key", "value", "default", "what it is"), *key_rows(kind)]
            for inner, each in fields_of(kind).items():
                for member in atoms(each.type):
                    if is_table(member) and not is_table(each.type):
                        lines += [
                            "",
                            f"`{inner}` as a table:",
                            "",
                            *table_head("key", "value", "default", "what it is"),
                        ]
                        lines += key_rows(member)
    return "\n".join(lines)


def command_of(name: str) -> click.Command:
    """Give a command, imported now."""
    assert isinstance(cli, LazyGroup)
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def option_text(option: click.Option) -> str:
    """Give an option as it is written."""
    value = "" if option.is_flag or option.count else f" {option.make_metavar(click.Context(cli))}"
    return f"`{', '.join(sorted(option.opts, key=len))}{value}`"


def usage_text(name: str, command: click.Command) -> str:
    """Give how a command is called."""
    arguments = [
        param.make_metavar(click.Context(command)) for param in command.params if isinstance(param, click.Argument)
    ]
    return " ".join(["kvmlaunch", name, *arguments])


def own_options(command: click.Command) -> list[click.Option]:
    """Give the options of a command without those that every command has."""
    common = {word for option in common_options() for word in option.opts if word.startswith("--")}
    options = [param for param in command.params if isinstance(param, click.Option)]
    return [option for option in options if not common & set(option.opts)]


def common_options() -> list[click.Option]:
    """Give the options that every command has."""
    return [param for param in cli.params if isinstance(param, click.Option) and "--version" not in param.opts]


def render_commands() -> str:
    """Give every command by group, and its own options."""
    assert len(common_options()) == len(OPTIONS) + 1, "-f stands beside OPTIONS"
    lines = ["Every command also takes, before or behind its name:", "", *table_head("option", "what it does")]
    lines += [row(option_text(option), option.help or "") for option in common_options()]
    group = ""
    for name, (_, its, line) in COMMANDS.items():
        if its != group:
            group = its
            lines += ["", f"### {group}"]
        command = command_of(name)
        lines += group_lines(name, command) if isinstance(command, click.Group) else command_lines(name, command, line)
    return "\n".join(lines)


def group_lines(name: str, group: click.Group) -> list[str]:
    """Give the commands of a group, and of the groups in it."""
    lines = []
    for inner, each in group.commands.items():
        path = f"{name} {inner}"
        lines += (
            group_lines(path, each) if isinstance(each, click.Group) else command_lines(path, each, each.help or "")
        )
    return lines


def command_lines(name: str, command: click.Command, line: str) -> list[str]:
    """Give one command: how it is called, what it does, its own options."""
    lines = ["", f"**`{usage_text(name, command)}`**  ", cell(line)]
    if own_options(command):
        lines += ["", *table_head("option", "what it does")]
        lines += [row(option_text(option), option.help or "") for option in own_options(command)]
    return lines


def render_host_keys() -> str:
    """Give every key of host.toml."""
    return "\n".join([*table_head("key", "value", "default", "what it is"), *key_rows(HostWishes)])


def render_codes() -> str:
    """Give every code with its exit code and sentence; warnings last."""
    lines = table_head("code", "exit", "meaning")
    ordered = sorted(CODES.items(), key=lambda item: (item[1][0] == 0, item[1][0]))
    return "\n".join([*lines, *(row(f"`{code}`", str(number or "warning"), text) for code, (number, text) in ordered)])


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "keys": render_keys,
    "host keys": render_host_keys,
    "commands": render_commands,
    "codes": render_codes,
}


def replaced(page: str) -> str:
    """Give the page with every part as the code says it now."""
    for name, render in PARTS.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        assert page.count(begin) == page.count(end) == 1, f"the page has no part {name}, or two"
        before, _, rest = page.partition(begin)
        after = rest.partition(end)[2]
        page = f"{before}{begin}\n{render()}\n{end}{after}"
    return page
