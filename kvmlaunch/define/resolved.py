"""A definition as text again, every default filled in: `show --resolved`, and what the digest is made of."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, get_args

from kvmlaunch.define.keys import Form, atoms, fields_of, is_named, is_table
from kvmlaunch.define.tree import join_path, quote
from kvmlaunch.define.values import RENDERERS
from kvmlaunch.model.choice import Origin
from kvmlaunch.model.definition import Auto, Definition
from kvmlaunch.model.value import fields

Told = Callable[[str], str]


def render_resolved(definition: Definition, origin_of: Callable[[Origin], str] | None = None) -> str:
    """Give the definition as TOML, every default filled in; reading it gives the same definition.

    `origin_of` turns an origin into the words of a comment behind each line: `render_origin`, or one
    that knows lines.
    """
    told: Told | None = (lambda key: origin_of(nearest_origin(definition, key))) if origin_of else None
    return "\n".join(table_lines(definition, (), told)).strip() + "\n"


def nearest_origin(definition: Definition, key: str) -> Origin:
    """Give where a value comes from; of a table of texts, where the first of them does."""
    beneath = next((each for each in definition.origins if each.startswith(f"{key}.")), key)
    return definition.origin(key if key in definition.origins else beneath)


def render_origin(origin: Origin) -> str:
    """Give an origin in words: `default`, `profile density`, `--set cpu.vcpus`, `/srv/web01.toml disk`."""
    match origin.kind:
        case "file":
            return f"{origin.place} {origin.key}"
        case "profile":
            return f"profile {origin.place}"
        case "set":
            return f"--set {origin.key}"
        case "default":
            return "default"
        case _:
            return origin.place


def table_lines(table: Any, path: tuple[str, ...], told: Told | None) -> list[str]:  # noqa: ANN401 - any class of the model
    """Give a table's own keys, then the tables beneath it."""
    lines: list[str] = []
    below: list[str] = []
    for name, field in fields_of(table.__class__).items():
        value = getattr(table, name)
        here = (*path, name)
        if is_named(field.type) and is_table(get_args(field.type)[1]):
            for entry_name, entry in value.items():
                below += ["", f"[{join_path((*here, entry_name))}]", *table_lines(entry, (*here, entry_name), told)]
        elif not path and is_table(type(value)):
            below += ["", f"[{join_path(here)}]", *table_lines(value, here, told)]
        elif value is not None:
            comment = f"  # {told(join_path(here))}" if told else ""
            lines.append(f"{name} = {render_value(value, field.type)}{comment}")
    return lines + below


def render_value(value: Any, form: Form) -> str:  # noqa: ANN401 - any value of the model
    """Give a value as TOML writes it, by the form of its key."""
    if isinstance(value, Auto | bool):
        return quote(value.value) if isinstance(value, Auto) else str(value).lower()
    if isinstance(value, Mapping):
        return inline(f"{join_path((name,))} = {render_value(text, str)}" for name, text in value.items())
    if is_table(type(value)):
        items = ((field.name, getattr(value, field.name), field.type) for field in fields(type(value)))
        return inline(f"{name} = {render_value(item, kind)}" for name, item, kind in items if item is not None)
    renderer = renderer_of(form)
    if isinstance(value, tuple) and renderer is None:
        return f"[{', '.join(render_value(item, form.__args__[0]) for item in value)}]"
    if isinstance(value, str):
        return quote(value.replace("${", "$${"))
    return quote(renderer(value).replace("${", "$${")) if renderer else str(value)


def inline(pairs: Iterable[str]) -> str:
    """Give an inline table."""
    text = ", ".join(pairs)
    return f"{{ {text} }}" if text else "{}"


@cache
def renderer_of(form: Form) -> Callable[[Any], str] | None:
    """Give what spells the values of a form that are neither words nor plain numbers and text."""
    return next((RENDERERS[member] for member in atoms(form) if member in RENDERERS), None)
