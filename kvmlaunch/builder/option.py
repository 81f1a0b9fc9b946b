"""One QEMU option: the escaping, and the short words with which the parts build options.

Laws of the form (each measured with QEMU 7.2.22 and 10.0.2): in `pairs` a comma inside a value is
doubled; a `value` stands as it is; JSON is used only where key=value cannot say it.
"""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.plan import Field, FieldValue, Option, Place, Places, Promise
from kvmlaunch.model.value import frozen

T = TypeVar("T")
BUILT_IN = Origin(kind="default")


@frozen(kw_only=True)
class Part:
    """What one part of a machine contributes to the plan."""

    options: tuple[Option, ...] = ()
    promises: tuple[Promise, ...] = ()
    findings: tuple[Finding, ...] = ()


def fixed(value: FieldValue, reason: str, source: str) -> Choice[FieldValue]:
    """Give a choice that depends on nothing: always this value."""
    return Choice(value=value, reason=reason, source=source, origin=BUILT_IN)


def by_hand(definition: Definition, key: str, value: T) -> Choice[T]:
    """Give a value that was written by hand: it passes through with its origin, and needs no reason."""
    return Choice(value=value, reason="", source="", origin=definition.origin(key))


def field(name: str, key: str, choice: Choice[FieldValue]) -> Field:
    """Give one field of an option; `key` is its label in `explain`."""
    return Field(name=name, key=key, choice=choice)


def bare(flag: str, table: str, reason: str, source: str) -> Option:
    """Give an option without a value, such as `-nodefaults`."""
    choice = fixed(value=True, reason=reason, source=source)
    return Option(flag=flag, form="bare", table=table, fields=(field("", f"{table}.{flag.lstrip('-')}", choice),))


def value(flag: str, table: str, key: str, choice: Choice[FieldValue]) -> Option:
    """Give an option whose value stands as it is, such as `-mem-path`."""
    return Option(flag=flag, form="value", table=table, fields=(field("", key, choice),))


def pairs(flag: str, table: str, *fields: Field) -> Option:
    """Give an option of comma-separated fields, such as `-drive`."""
    return Option(flag=flag, form="pairs", table=table, fields=fields)


def wiring(name: str, table: str, word: FieldValue, reason: str = "an id computed from the name") -> Field:
    """Give a field that only ties one option to another."""
    return field(name, f"{table}.{name}", fixed(word, reason, "kvmlaunch: names, not numbers"))


def render_scalar(word: FieldValue, places: Places) -> str:
    """Give a value as QEMU's key=value syntax writes it, unescaped."""
    match word:
        case bool():
            return "on" if word else "off"
        case int() | str() | PurePosixPath():
            return str(word)
        case Place():
            return f"{word.prefix}{places.resolve(word)}"
        case tuple():
            message = f"a list has no key=value form: {word}"
            raise AssertionError(message)


def render_pair(part: Field, places: Places) -> str:
    """Give `name=value` with its commas doubled."""
    text = render_scalar(part.choice.value, places).replace(",", ",,")
    return f"{part.name}={text}" if part.name else text


def render_json(fields: Sequence[Field], places: Places) -> str:
    """Give the JSON object of a device: the driver first, strictly typed, a list of iothreads as QEMU wants it."""
    document: dict[str, object] = {}
    for part in fields:
        word = part.choice.value
        match word:
            case tuple():
                document[part.name] = [{"iothread": thread} for thread in word]
            case bool() | int():
                document[part.name] = word
            case _:
                document[part.name or "driver"] = render_scalar(word, places)
    return json.dumps(document, separators=(",", ":"))


def render_option(option: Option, places: Places) -> tuple[str, ...]:
    """Give the arguments of one option: the flag, and its value if it has one."""
    match option.form:
        case "bare":
            return (option.flag,)
        case "value":
            return (option.flag, render_scalar(option.fields[0].choice.value, places))
        case "pairs":
            return (option.flag, ",".join(render_pair(part, places) for part in option.fields))
        case "json":
            return (option.flag, render_json(option.fields, places))
