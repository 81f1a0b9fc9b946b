"""What the model says of a key path: walked from the classes of model/definition.py, never repeated.

`*` in a path stands for any name of a named table.
"""

from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from kvmlaunch.model.definition import AUTO, Auto, Definition
from kvmlaunch.model.value import Field, fields, is_value

# A form is what may stand as an annotation: a class, a NewType, a union, a Literal, a generic alias.
Form = Any
UNWRITTEN: Final = tuple(each.name for each in fields(Definition) if "doc" not in each.metadata)


def generic(form: Form) -> Any:  # noqa: ANN401 - typing knows no type for it
    """Give what a generic alias is an alias of: Mapping, tuple, Literal, Union; None for anything else."""
    return get_origin(form)


@cache
def fields_of(table: type) -> Mapping[str, Field]:
    """Give the keys of a table by name; without the fields that no file writes."""
    return {each.name: each for each in fields(table) if table is not Definition or each.name not in UNWRITTEN}


def key_paths(table: type = Definition, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Give every key path that a definition may have, with NAME for any name of a named table."""
    for name, field in fields_of(table).items():
        path = (*above, name)
        yield ".".join(path)
        for member in members(field.type):
            inner, named = (get_args(member)[1], ("NAME",)) if is_named(member) else (member, ())
            if is_table(inner):
                yield from key_paths(inner, (*path, *named))


def is_table(form: Form) -> bool:
    """Tell a class of the model that is written as a table with fixed keys."""
    return isinstance(form, type) and is_value(form) and all("doc" in f.metadata for f in fields_of(form).values())


def is_named(form: Form) -> bool:
    """Tell a table whose keys are names: `[disk.NAME]`, `labels`."""
    return generic(form) is Mapping


def members(form: Form) -> tuple[Form, ...]:
    """Give what a union is made of, without None, which no file can write; any other form is its only member."""
    parts = get_args(form) if generic(form) in {Union, UnionType} else (form,)
    return tuple(part for part in parts if part is not type(None))


def words(form: Form) -> tuple[str, ...]:
    """Give the words that a form allows: `auto`, and the choices of its Literals."""
    found: list[str] = []
    for member in members(form):
        if member is Auto:
            found.append(AUTO.value)
        elif generic(member) is Literal:
            found.extend(get_args(member))
    return tuple(found)


def atoms(form: Form) -> tuple[Form, ...]:
    """Give the members that are neither `auto` nor a Literal."""
    return tuple(member for member in members(form) if member is not Auto and generic(member) is not Literal)


@lru_cache(maxsize=4096)
def form_at(path: tuple[str, ...]) -> Form | None:
    """Give what may be written at a key path; None where there is no such key."""
    form: Form = Definition
    for segment in path:
        form = step(form, segment)
        if form is None:
            return None
    return form


def step(form: Form, segment: str) -> Form | None:
    """Give the form one segment further down."""
    for member in members(form):
        if is_named(member):
            return get_args(member)[1]
        if member is Definition or is_table(member):
            field = fields_of(member).get(segment)
            return None if field is None else field.type
    return None
