"""Tables become the classes of model/definition.py; every mistake is told, with its key path.

cattrs coerces by default (`"4"` becomes 4), stops building a class whose own fields fail, and tells
neither choices nor nearest names: the hooks here are strict and tell both.  A definition with
mistakes is built again without them, so that the rules across keys see all that is right.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final, TypeVar, get_args

import attrs
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn, override

from kvmlaunch.define.keys import Form, atoms, fields_of, generic, is_named, is_table, members, words
from kvmlaunch.define.mistake import Misplaced, Mistake, choose, nearest, shown, wrong_type
from kvmlaunch.define.tree import Path, join_path, quote
from kvmlaunch.define.values import PARSERS, WANTED
from kvmlaunch.model.definition import AUTO, LOADING_KEYS, RESERVED_KEYS, SHORTHANDS, Auto, Definition

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]
# Keys of tables that are reserved beside RESERVED_KEYS, by the table's class name.
RESERVED_IN_TABLES: Final = {"Disk": ("size",)}
WANTED_CONTAINERS: Final[dict[type, str]] = {dict: "a table", list: "an array"}
MOST_ROUNDS: Final = 100


def structure(table: dict[str, object], form: type[T]) -> tuple[T | None, list[Misplaced]]:
    """Give what a table defines, built of all that is right, and every mistake; None when nothing can be built.

    `form` is Definition, or the class of another file with keys like its.
    """
    found: list[Misplaced] = []
    for _ in range(MOST_ROUNDS):
        try:
            return converter().structure(table, form), found
        except ClassValidationError as error:
            new = walk(error, (), form)
            for misplaced in new:
                table = pruned(table, misplaced.path)
            found += [misplaced for misplaced in new if not (misplaced.rests and holds_one(misplaced.path, found))]
    return None, found


def holds_one(path: Path, found: list[Misplaced]) -> bool:
    """Tell a table whose key is missing only because it was wrong, and taken out in an earlier round."""
    return any(misplaced.path[: len(path)] == path for misplaced in found)


def pruned(table: dict[str, object], path: Path) -> dict[str, object]:
    """Give the table without what stands at a path; an array with a mistake goes whole."""
    first, rest = str(path[0]), path[1:]
    inner = table.get(first)
    if rest and isinstance(inner, dict):
        return table | {first: pruned(inner, rest)}
    return {key: value for key, value in table.items() if key != first}


def walk(error: BaseException, path: Path, root: type) -> list[Misplaced]:
    """Give the mistakes of an error of cattrs with their key paths; `root` is the class of the whole file."""
    match error:
        case ClassValidationError():
            notes, others = error.group_exceptions()
            found = [misplaced for inner, note in notes for misplaced in walk_key(inner, path, note.name, root)]
            return found + [misplaced for inner in others for misplaced in walk(inner, path, root)]
        case IterableValidationError():
            items, others = error.group_exceptions()
            found = [misplaced for inner, item in items for misplaced in walk(inner, (*path, item.index), root)]
            return found + [misplaced for inner in others for misplaced in walk(inner, path, root)]
        case ForbiddenExtraKeysError():
            return [unknown_key(error.cl, name, path, root) for name in sorted(error.extra_fields)]
        case Mistake():
            return [Misplaced(path=path, mistake=error)]
    raise error


def walk_key(error: BaseException, path: Path, name: str, root: type) -> list[Misplaced]:
    """Give the mistakes beneath one key; cattrs tells a missing one by a KeyError."""
    if isinstance(error, KeyError):
        mistake = Mistake(code="def.value.type", message=f"`{name}` is missing", hint=f'{name} = "…"')
        return [Misplaced(path=path, mistake=mistake, on_key=True, rests=True)]
    return walk(error, (*path, name), root)


def unknown_key(table: type, name: str, path: Path, root: type = Definition) -> Misplaced:
    """Give the mistake of a key that does not exist, with the nearest that does."""
    reserved = RESERVED_KEYS if table is Definition else RESERVED_IN_TABLES.get(table.__name__, ())
    known = tuple(fields_of(table)) + ((*LOADING_KEYS, *SHORTHANDS) if table is Definition else ())
    hint = why = close = ""
    if name in reserved:
        message = f"`{join_path((name,))}` is not there yet; its name is kept for a later version"
    else:
        message = f"`{join_path((name,))}` is no key" + (f" of [{join_path(path)}]" if path else "")
        close = nearest(name, known)
        if name == "name" and not path:
            why = "the VM's name is the name of its file"
        elif close or elsewhere(name, root):
            hint = elsewhere(name, root) or f"did you mean `{close}`?"
        else:
            hint = f"keys here: {', '.join(fields_of(table))}; notes of your own start with x-"
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


@cache
def converter() -> Converter:
    """Give the one converter, its hooks registered."""
    made = Converter(forbid_extra_keys=True, detailed_validation=True)
    for form, parse in PARSERS.items():
        made.register_structure_hook(form, partial(call_parser, parse))
    made.register_structure_hook_factory(is_table_or_root, lambda form: table_hook(form, made))
    made.register_structure_hook_factory(is_union, lambda form: union_hook(form, made))
    made.register_structure_hook_factory(is_named, lambda form: container_hook(dict, form, made))
    made.register_structure_hook_factory(is_array, lambda form: container_hook(list, form, made))
    return made


def call_parser(parse: Callable[[object], object], value: object, _: object) -> object:
    """Fit a parser of one argument to the hooks of cattrs."""
    return parse(value)


def is_table_or_root(form: Form) -> bool:
    """Tell the classes that are built from tables."""
    return form is Definition or is_table(form)


def is_union(form: Form) -> bool:
    """Tell a choice: `auto`, words, and what else may stand there."""
    return bool(words(form)) or len(members(form)) > 1 or members(form)[0] is not form


def is_array(form: Form) -> bool:
    """Tell an array of any length."""
    return generic(form) is tuple


def table_hook(table: type, made: Converter) -> Hook:
    """Give the hook of a class: each key read by its own hook, all made when the first such table is met."""

    @cache
    def build() -> Hook:
        overrides = {
            field.name: override(omit=True)
            if field.name in {"origins", "digest"} and table is Definition
            else override(struct_hook=in_range(made.get_structure_hook(field.type), field))
            for field in attrs.fields(table)
        }
        options: dict[str, Any] = {"_cattrs_use_linecache": False, **overrides}
        return make_dict_structure_fn(table, made, **options)

    def hook(value: Any, form: Any) -> Any:  # noqa: ANN401 - as cattrs has it
        if type(value) is not dict:
            raise wrong_type(value, "a table")
        return build()(value, form)

    return hook


def in_range(hook: Hook, field: "attrs.Attribute[Any]") -> Hook:
    """Give the hook that also holds a number between the key's least and most."""
    least, most = field.metadata.get("least"), field.metadata.get("most")
    if least is None or most is None:
        return hook

    def ranged(value: Any, form: Any) -> Any:  # noqa: ANN401 - as cattrs has it
        number = hook(value, form)
        if type(number) is int and not least <= number <= most:
            message = f"{shown(number)} is out of range"
            raise Mistake(code="def.value.range", message=message, why=f"least {least}, most {most}")
        return number

    return ranged


def container_hook(kind: type, form: Form, made: Converter) -> Hook:
    """Give the hook of named tables or of an array: cattrs' own, after a look at the type."""
    inner: Any = get_args(form)
    alias: Any = dict[str, inner[-1]] if kind is dict else list[inner[0]]
    build = made.get_structure_hook(alias)
    wanted = WANTED_CONTAINERS[kind]

    def hook(value: Any, _: Any) -> Any:  # noqa: ANN401 - as cattrs has it
        if type(value) is not kind:
            raise wrong_type(value, wanted, right=f"[{quote(value)}]" if kind is list and type(value) is str else "")
        built = build(value, alias)
        return tuple(built) if kind is list else built

    return hook


def union_hook(form: Form, made: Converter) -> Hook:
    """Give the hook of a choice: a word first, then the one kind that the value's type fits."""
    allowed = words(form)
    others = atoms(form)
    hooks = {member: made.get_structure_hook(member) for member in others}
    auto = Auto in members(form)

    def hook(value: Any, _: Any) -> Any:  # noqa: ANN401 - as cattrs has it
        if type(value) is str and value in allowed:
            return AUTO if auto and value == AUTO.value else value
        for member in others:
            if type(value) is written_as(member):
                return hooks[member](value, member)
        raise no_member(value, allowed, others)

    return hook


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
