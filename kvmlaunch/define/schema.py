"""JSON Schema of a definition, for editors and linters: derived from model/definition.py.

Draft-07, which taplo and tombi both read.  It says what one key may hold; rules across keys stay with
`kvmlaunch validate`.  Every text may hold a `${name}`, whose value no schema knows.
"""

import json
from pathlib import PurePosixPath
from typing import Any, Final, get_args

from kvmlaunch.define.keys import Form, atoms, fields_of, generic, is_named, is_table, words
from kvmlaunch.define.rules import TABLE_NAME
from kvmlaunch.define.values import RENDERERS
from kvmlaunch.model.definition import (
    LOADING_KEYS,
    SHORTHANDS,
    Auto,
    Bandwidth,
    CpuList,
    Definition,
    Duration,
    Forward,
    HostNumaNode,
    MacAddress,
    Ready,
    Size,
    Uuid,
)
from kvmlaunch.model.value import NOTHING, Factory, Field

Schema = dict[str, Any]
VARIABLE: Final = r"\$\{[^{}]+\}"
SIZE: Final = r"[0-9]{1,20}(\.[0-9]{1,20})? ?([KMGT]iB|[KMGT])"
PATTERNS: Final[dict[Any, str]] = {
    Size: SIZE,
    Bandwidth: rf"{SIZE}/s",
    Duration: r"[0-9]{1,20}(\.[0-9]{1,20})? ?(ms|s|m|h)",
    CpuList: r" *[0-9]{1,5}(-[0-9]{1,5})?( *, *[0-9]{1,5}(-[0-9]{1,5})?)* *",
    HostNumaNode: r"[0-9]{1,4}",
    MacAddress: r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}",
    Uuid: r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
    Forward: r"(tcp|udp):(\[[0-9A-Fa-f:.%]+\]|[0-9.]+):[0-9]{1,5}:[0-9]{1,5}",
    Ready: r"(http://|console:|tcp:).+",
}
EXAMPLES: Final[dict[Any, str]] = {
    Size: "8GiB",
    Bandwidth: "200MiB/s",
    Duration: "90s",
    CpuList: "2-5,8",
    HostNumaNode: "0",
    MacAddress: "52:54:00:12:34:56",
    Uuid: "123e4567-e89b-42d3-a456-426614174000",
    Forward: "tcp:127.0.0.1:8080:80",
    Ready: "http://127.0.0.1:8080/",
}
TYPES: Final = {str: "string", int: "integer", bool: "boolean", float: "number"}
NOTES: Final = {"^x-": {"description": "A note of yours, or of another tool; not read."}}


def render_schema() -> str:
    """Give the JSON Schema of a definition, as text."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "kvmlaunch VM definition",
        **table_schema(Definition),
    }
    properties = schema["properties"]
    for name, dotted in SHORTHANDS.items():
        properties[name] = with_shorthand(properties.get(name), dotted)
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    shapes = {"extends": texts, "unset": texts, "vars": {"type": "object", "additionalProperties": text}}
    properties.update({name: {"description": doc, **shapes[name]} for name, doc in LOADING_KEYS.items()})
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def with_shorthand(table: Schema | None, dotted: str) -> Schema:
    """Give the schema of a key that may be its table, or the scalar that stands for one key of it."""
    path = dotted.split(".")
    kind: Form = Definition
    field: Any = None
    for segment in path:
        if is_named(kind):
            kind = get_args(kind)[1]
        else:
            field = fields_of(kind)[segment]
            kind = field.type
    scalar = {"description": f"Short for {dotted}.", **form_schema(field.type, field)}
    return scalar if table is None else {"description": table["description"], "anyOf": [scalar, table]}


def table_schema(table: type) -> Schema:
    """Give the schema of a table with fixed keys; notes that begin with x- are allowed."""
    fields = fields_of(table)
    required = [name for name, field in fields.items() if field.default is NOTHING]
    schema: Schema = {
        "type": "object",
        "properties": {name: key_schema(field) for name, field in fields.items()},
        "patternProperties": NOTES,
        "additionalProperties": False,
    }
    return schema | ({"required": required} if required else {})


def key_schema(field: Field) -> Schema:
    """Give the schema of one key: its sentence, what it may hold, its default."""
    schema = {"description": field.metadata["doc"], **form_schema(field.type, field)}
    default = default_of(field)
    return schema if default is None else schema | {"default": default}


def default_of(field: Field) -> object:
    """Give the default as it would be written, None when there is none or it is a table."""
    value = field.default
    if value is NOTHING or value is None or isinstance(value, Factory):  # type: ignore[arg-type]
        return None
    if isinstance(value, Auto):
        return value.value
    renderer = next((RENDERERS[atom] for atom in atoms(field.type) if atom in RENDERERS), None)
    if isinstance(value, tuple):
        return list(value)
    return value if renderer is None or isinstance(value, str) else renderer(value)


def form_schema(form: Form, field: Any) -> Schema:  # noqa: ANN401 - an attribute, or None inside an array
    """Give the schema of what may stand at a key."""
    if is_named(form):
        inner = get_args(form)[1]
        if is_table(inner):
            names = {f"^{TABLE_NAME.pattern}$": table_schema(inner)}
            return {"type": "object", "patternProperties": names, "additionalProperties": False}
        return {"type": "object", "additionalProperties": form_schema(inner, None)}
    if generic(form) is tuple:
        return {"type": "array", "items": form_schema(get_args(form)[0], None)}
    schemas = [atom_schema(atom, field) for atom in atoms(form)]
    if words(form):
        texts = any(schema.get("type") == "string" for schema in schemas)
        variable: list[Schema] = [] if texts else [{"type": "string", "pattern": VARIABLE}]
        schemas = [*variable, *schemas, {"enum": list(words(form))}]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def atom_schema(atom: Form, field: Any) -> Schema:  # noqa: ANN401 - an attribute, or None inside an array
    """Give the schema of one kind of value."""
    if is_table(atom):
        return table_schema(atom)
    if atom in PATTERNS:
        return {"type": "string", "pattern": f"^{PATTERNS[atom]}$|{VARIABLE}", "examples": [EXAMPLES[atom]]}
    if atom is PurePosixPath:
        return {"type": "string", "minLength": 1}
    schema: Schema = {"type": TYPES[atom]}
    if atom is int and field is not None and field.metadata.get("least") is not None:
        schema |= {"minimum": field.metadata["least"], "maximum": field.metadata["most"]}
    return schema
