"""The parts of docs/reference.md that the code itself says: keys, commands, codes.  `pytest --regenerate` writes them.

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; everything else of the page is written by hand.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, get_args

import attrs
import click

from kvmlaunch.cli.commands import COMMANDS
from kvmlaunch.cli.main import LazyGroup, cli
from kvmlaunch.cli.session import OPTIONS
from kvmlaunch.define.keys import Form, atoms, fields_of, generic, is_named, is_table, words
from kvmlaunch.define.schema import default_of
from kvmlaunch.model.codes import CODES
from kvmlaunch.model.definition import (
    LOADING_KEYS,
    SHORTHANDS,
    Bandwidth,
    CpuList,
    Definition,
    Duration,
    Forward,
    HostNumaNode,
    MacAddress,
    ReadAhead,
    Ready,
    Size,
)
from kvmlaunch.model.wishes import HostWishes

ROOT: Final = Path(__file__).resolve().parent.parent
REFERENCE: Final = ROOT / "docs" / "reference.md"
KINDS: Final[Mapping[Any, str]] = {
    int: "number",
    bool: "true, false",
    str: "text",
    PurePosixPath: "path",
    Size: "size",
    ReadAhead: "size",
    Bandwidth: "size a second",
    Duration: "duration",
    CpuList: "CPU list",
    HostNumaNode: "node number, as text",
    MacAddress: "MAC address",
    Forward: "forward",
    Ready: "http URL, `console:REGEX`, `tcp:ADDRESS:PORT`",
}


def cell(text: str) -> str:
    """Give a text as it may stand in a cell of a table."""
    return text.replace("|", "\\|").replace("*.", "\\*.")


def kind_text(form: Form, field: Any) -> str:  # noqa: ANN401 - an attribute, or None inside an array
    """Give what may be written at a key: words as QEMU's or ours, then kinds of values."""
    if is_named(form):
        return "table of text" if get_args(form)[1] is str else f"table of {kind_text(get_args(form)[1], None)}"
    if generic(form) is tuple:
        return f"array of {kind_text(get_args(form)[0], None)}"
    kinds = [f"`{word}`" for word in words(form)]
    for atom in atoms(form):
        kind = "table" if is_table(atom) else KINDS[atom]
        if atom is int and field is not None and field.metadata.get("least") is not None:
            kind += f" from {field.metadata['least']:,} to {field.metadata['most']:,}"
        kinds.append(kind)
    return ", ".join(kinds)


def default_text(field: "attrs.Attribute[Any]") -> str:
    """Give the default as it would be written, "required" where there is none."""
    if field.default is attrs.NOTHING:
        return "required"
    value = default_of(field)
    if value in (None, "", []):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if isinstance(value, int) or str(value) == "auto" or isinstance(value, str) else text


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
    lines += [
        row(f"`{name}`", "array of text" if name != "vars" else "table of text", "", doc)
        for name, doc in LOADING_KEYS.items()
    ]
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
