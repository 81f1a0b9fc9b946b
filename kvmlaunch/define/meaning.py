"""What a key of a definition means, for people: what it may hold, its default, its sentence."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final, get_args

from kvmlaunch.define.keys import Form, atoms, fields_of, generic, is_named, is_table, words
from kvmlaunch.define.schema import default_of
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
    Uuid,
)
from kvmlaunch.model.value import NOTHING, Field, frozen

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
    Uuid: "UUID",
    Forward: "forward",
    Ready: "http URL, `console:REGEX`, `tcp:ADDRESS:PORT`",
}
LOADING_KINDS: Final = {"extends": "array of text", "unset": "array of text", "vars": "table of text"}


@frozen(kw_only=True)
class Meaning:
    """One key: its path, what it may hold, its default ("" for none, "required"), and its sentence."""

    path: str
    holds: str
    default: str
    sentence: str


def meanings(path: str) -> tuple[Meaning, ...]:
    """Give what a key path means, and for a table its keys after it; () where there is no such key.

    A named table's own name may be left out: `disk.cache` is `disk.NAME.cache`.
    """
    if path in LOADING_KEYS:
        return (Meaning(path=path, holds=LOADING_KINDS[path], default="", sentence=LOADING_KEYS[path]),)
    if path in SHORTHANDS and path not in fields_of(Definition):
        path = SHORTHANDS[path]
    return walk(Definition, (), path.split("."))


def walk(table: Any, place: tuple[str, ...], segments: list[str]) -> tuple[Meaning, ...]:  # noqa: ANN401 - a class of the model
    """Go down from a table at `place` along the segments of a key path, and give what is at their end."""
    field = fields_of(table).get(segments[0])
    if field is None:
        return ()
    place, rest, inner = (*place, field.name), segments[1:], table_of(field)
    if names_tables(field):
        place = (*place, "NAME")
        found = walk(inner, place, rest) if rest else ()
        return found or (() if is_slip(rest, inner) else beneath(place, field, inner, rest[1:]))
    return beneath(place, field, inner, rest)


def is_slip(segments: list[str], table: Any) -> bool:  # noqa: ANN401 - a class of the model
    """Is one word rather a key that was misspelled than a name of somebody's."""
    import difflib

    return len(segments) == 1 and bool(difflib.get_close_matches(segments[0], fields_of(table), cutoff=0.8))


def beneath(
    place: tuple[str, ...],
    field: Field,
    table: Any,  # noqa: ANN401 - a class of the model, None for a plain value
    rest: list[str],
) -> tuple[Meaning, ...]:
    """Give what stands at a key, or beneath it where more segments are left; a name of a plain table is that table."""
    if rest and table is not None:
        return walk(table, place, rest)
    if rest and not is_named(field.type):
        return ()
    keys = {} if table is None else fields_of(table)
    return (
        meaning_of(".".join(place), field),
        *(meaning_of(".".join((*place, name)), each) for name, each in keys.items()),
    )


def table_of(field: Field) -> Any:  # noqa: ANN401 - a class of the model
    """Give the class of the table that a key holds, or can hold, or holds by names; None for a plain value."""
    inner = get_args(field.type)[1] if is_named(field.type) else field.type
    return next((member for member in (inner, *atoms(inner)) if is_table(member)), None)


def names_tables(field: Field) -> bool:
    """Tell a key whose tables have names: `[disk.NAME]`."""
    return is_named(field.type) and is_table(get_args(field.type)[1])


def meaning_of(path: str, field: Field) -> Meaning:
    """Give what one key means."""
    holds = "table" if names_tables(field) else kind_text(field.type, field)
    holds, default = holds.replace("`", ""), default_text(field).replace("`", "")
    return Meaning(path=path, holds=holds, default=default, sentence=field.metadata["doc"])


def kind_text(form: Form, field: Any) -> str:  # noqa: ANN401 - an attribute, or None inside an array
    """Give what may be written at a key, in Markdown: words as QEMU's or ours, then kinds of values."""
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


def default_text(field: Field) -> str:
    """Give the default as it would be written, in Markdown; "required" where there is none."""
    if field.default is NOTHING:
        return "required"
    value = default_of(field)
    if value in (None, "", []):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if isinstance(value, int) or str(value) == "auto" or isinstance(value, str) else text
