"""Tables become the classes of model/definition.py; every mistake is told, with its key path.

Nothing is converted: `"4"` is no number and `1` no truth value.  A key with a mistake counts as not
written, so that what is right around it is built, and the rules across keys see it.  What cannot
be built for want of a key is left out, and the mistake of that key is the only one told.
"""

import shlex
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, TypeVar, get_args

from kvmlaunch.define.keys import Form, atoms, fields_of, generic, is_named, is_table, members, words
from kvmlaunch.define.meant import meant_key, meant_table
from kvmlaunch.define.mistake import Misplaced, Mistake, choose, nearest, shown, wrong_type
from kvmlaunch.define.tree import Path, join_path, quote
from kvmlaunch.define.values import PARSERS, WANTED
from kvmlaunch.model.definition import AUTO, LOADING_KEYS, SHORTHANDS, Auto, Definition
from kvmlaunch.model.value import NOTHING, Field, frozen

T = TypeVar("T")
SHORT: Final = 3  # letters
UNBUILT: Final = object()  # stands for what a mistake kept from being built


@frozen(kw_only=True)
class Reading:
    """A file as it is read: the class of the whole, and the mistakes found so far."""

    root: type
    found: list[Misplaced]


# Gives what is built of a value, or UNBUILT; a Mistake in the value itself is raised, those beneath it are collected.
Reader = Callable[[object, Path, Reading], Any]


def structure(table: dict[str, object], form: type[T], **unwritten: object) -> tuple[T | None, list[Misplaced]]:
    """Give what a table defines, built of all that is right, and every mistake; None when nothing can be built.

    `form` is Definition, or the class of another file with keys like its; `unwritten`, the fields that no file has.
    """
    reading = Reading(root=form, found=[])
    built = read_table(form, table, (), reading, unwritten)
    return (None if built is UNBUILT else built), reading.found


@cache
def reader(form: Form) -> Reader:
    """Give what reads a value of a form; made once, as every definition has the same forms."""
    if form in PARSERS:
        parse = PARSERS[form]
        return lambda value, _path, _reading: parse(value)
    if is_table(form):
        return lambda value, path, reading: read_table(form, value, path, reading, {})
    if is_named(form):
        return named_reader(get_args(form)[1])
    if generic(form) is tuple:
        return array_reader(reader(get_args(form)[0]))
    return choice_reader(form)


def read_table(form: type, value: object, path: Path, reading: Reading, unwritten: dict[str, object]) -> Any:  # noqa: ANN401 - of the class that is given
    """Give a class built of a table with fixed keys."""
    if type(value) is not dict:
        raise wrong_type(value, "a table", hint=meant_table(path, value))
    fields, readers = fields_of(form), key_readers(form)
    written = {
        name: read_beneath(read, value[name], (*path, name), reading) for name, read in readers.items() if name in value
    }
    given = {name: built for name, built in written.items() if built is not UNBUILT}
    needed = [name for name, field in fields.items() if field.default is NOTHING and name not in given]
    for name in needed:
        if name not in value:
            mistake = Mistake(code="def.value.type", message=f"`{name}` is missing", hint=f'{name} = "…"')
            reading.found.append(Misplaced(path=path, mistake=mistake, on_key=True, rests=True))
    for name in sorted(value.keys() - fields.keys()):
        reading.found.append(unknown_key(form, name, path, reading.root))
    return UNBUILT if needed else form(**given, **unwritten)


def read_beneath(read: Reader, value: object, path: Path, reading: Reading) -> Any:  # noqa: ANN401 - whatever the form is
    """Give what is built of a value that has a key of its own, whose mistake is collected there."""
    try:
        return read(value, path, reading)
    except Mistake as mistake:
        reading.found.append(Misplaced(path=path, mistake=mistake))
        return UNBUILT


@cache
def key_readers(form: type) -> dict[str, Reader]:
    """Give what reads each key of a class."""
    return {name: key_reader(field) for name, field in fields_of(form).items()}


def key_reader(field: Field) -> Reader:
    """Give what reads a key: its form, and a number held between the key's least and most."""
    form: Form = field.type
    read = reader(form)
    least, most = field.metadata.get("least"), field.metadata.get("most")
    if least is None or most is None:
        return read

    def ranged(value: object, path: Path, reading: Reading) -> Any:  # noqa: ANN401 - whatever the form is
        number = read(value, path, reading)
        if type(number) is int and not least <= number <= most:
            message = f"{shown(number)} is out of range"
            raise Mistake(code="def.value.range", message=message, why=f"least {least}, most {most}")
        return number

    return ranged


def named_reader(form: Form) -> Reader:
    """Give what reads a table whose keys are names of such values; an entry with a mistake is left out."""
    inner = reader(form)
    keys = fields_of(form).keys() if is_table(form) else frozenset()

    def read(value: object, path: Path, reading: Reading) -> dict[str, Any]:
        if type(value) is not dict:
            raise wrong_type(value, "a table", hint=meant_table(path, value))
        if keys and value and value.keys() <= keys and not any(type(entry) is dict for entry in value.values()):
            place = join_path(path)
            message = f"[{place}] holds tables by their names; these are the keys of one"
            raise Mistake(
                code="def.value.type", message=message, hint=f"[{place}.NAME]   # above them, with a name of its own"
            )
        entries = {name: read_beneath(inner, entry, (*path, name), reading) for name, entry in value.items()}
        return {name: entry for name, entry in entries.items() if entry is not UNBUILT}

    return read


def split_words(text: str) -> list[str]:
    """Give the words of a command line as a shell has them, those between blanks where it could not."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def array_reader(inner: Reader) -> Reader:
    """Give what reads an array of any length; one with a mistake goes whole."""

    def read(value: object, path: Path, reading: Reading) -> Any:  # noqa: ANN401 - a tuple, or UNBUILT
        if type(value) is not list:
            text = value if isinstance(value, str) else ""
            parts = split_words(text) if text.startswith("-") else [text]  # of a command line its words
            raise wrong_type(value, "an array", right=f"[{', '.join(map(quote, parts))}]" if text else "")
        items: Sequence[Any] = [read_beneath(inner, item, (*path, index), reading) for index, item in enumerate(value)]
        return UNBUILT if any(item is UNBUILT for item in items) else tuple(items)

    return read


def choice_reader(form: Form) -> Reader:
    """Give what reads a choice: a word first, then the one kind that the value's type fits."""
    allowed = words(form)
    others = atoms(form)
    readers = {written_as(member): reader(member) for member in reversed(others)}
    auto = Auto in members(form)

    def read(value: object, path: Path, reading: Reading) -> Any:  # noqa: ANN401 - whatever the form is
        if type(value) is str and value in allowed:
            return AUTO if auto and value == AUTO.value else value
        fitting = readers.get(type(value))
        if fitting is None:
            raise no_member(value, allowed, others)
        return fitting(value, path, reading)

    return read


def unknown_key(table: type, name: str, path: Path, root: type = Definition) -> Misplaced:
    """Give the mistake of a key that does not exist, with the nearest that does."""
    top = (*LOADING_KEYS, *SHORTHANDS) if table is Definition else ()
    known = tuple(dict.fromkeys((*top, *fields_of(table))))
    hint = why = ""
    message = f"`{join_path((name,))}` is no key" + (f" of [{join_path(path)}]" if path else "")
    close = nearest(name, known) if len(name) > SHORT else ""  # everything is near a short word
    meant = meant_key(path, name) if root is Definition else ""
    if name == "name" and not path:
        why = "the VM's name is the name of its file"
    elif meant:
        hint, close = meant, ""
    elif path and root is Definition and name in {*fields_of(root), *LOADING_KEYS, *SHORTHANDS}:
        hint, close = f"`{name}` stands at the top of the file, above the first [table]", ""
    elif close or elsewhere(name, root):
        hint = elsewhere(name, root) or f"did you mean `{close}`?"
    else:
        hint = f"keys here: {', '.join(known)}; notes of your own start with x-"
    mistake = Mistake(code="def.key.unknown", message=message, why=why, hint=hint, meant=close)
    return Misplaced(path=(*path, name), mistake=mistake, on_key=True)


def elsewhere(name: str, root: type) -> str:
    """Say in which table of a file a key of this name stands, "" when in none."""
    for table, field in fields_of(root).items():
        for member in members(field.type):
            kind, dotted = (get_args(member)[1], f"{table}.NAME") if is_named(member) else (member, table)
            if is_table(kind) and name in fields_of(kind):
                return f"`{name}` is a key of [{dotted}]"
    return ""


def written_as(member: Form) -> type:
    """Give the type that TOML has for a kind of value."""
    if is_table(member):
        return dict
    return member if member in {int, bool, float} else str


def no_member(value: object, allowed: tuple[str, ...], others: tuple[Form, ...]) -> Mistake:
    """Give the mistake of a value that fits no member of a choice."""
    if not others and type(value) is str:
        return choose(value, allowed)
    if not others:
        word = {True: "on", False: "off"}.get(value, "") if type(value) is bool else ""
        return wrong_type(value, f"one of {', '.join(allowed)}", right=quote(word) if word in allowed else "")
    kinds = [*(quote(word) for word in allowed), *("a table" if is_table(kind) else WANTED[kind] for kind in others)]
    wanted = f"{', '.join(kinds[:-1])} or {kinds[-1]}" if kinds[1:] else kinds[0]
    if len(others) == 1 and not is_table(others[0]) and not (type(value) is str and nearest(value, allowed)):
        try:
            PARSERS[others[0]](value)
        except Mistake as mistake:
            if mistake.code != "def.value.type" or mistake.right:
                return mistake
    if type(value) is str:
        close = nearest(value, allowed)
        message = f"{shown(value)} is none of the choices"
        return Mistake(
            code="def.value.choice", message=message, why=f"wanted: {wanted}", right=quote(close) if close else ""
        )
    return wrong_type(value, wanted)
