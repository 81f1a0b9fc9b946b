"""`${name}` in strings: the file's own `[vars]`, `${vm.name}`, `${vm.dir}`, `${env:NAME}`.

`$${` is a literal `${`; a `$` without a brace is itself, as regular expressions need it.  There are
no expressions: a variable of `[vars]` may use the other three kinds, not its neighbours.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from kvmlaunch.define.mistake import Misplaced, Mistake, nearest, shown, wrong_type
from kvmlaunch.define.tree import Leaf, Tree, mapped, quote

REFERENCE: Final = r"(\$?)\$\{([^{}\n]*)(\}?)"
NAME: Final = r"[A-Za-z_][A-Za-z0-9_-]*"
VM_NAME, VM_DIR, ENVIRONMENT = "vm.name", "vm.dir", "env:"


def put_variables(tree: Tree, own: Mapping[str, str], environment: Mapping[str, str]) -> tuple[Tree, list[Misplaced]]:
    """Give the tree without `[vars]`, their text put into every string; `own` is `vm.name` and `vm.dir`."""
    known, found = read_variables(tree.get("vars"), own, environment)

    def change(path: tuple[str, ...], leaf: Leaf) -> object:
        wrong = {mistake.message: mistake for mistake in mistakes_in(leaf.value, known, environment)}
        found.extend(Misplaced(path=path, mistake=mistake, rests=True) for mistake in wrong.values())
        return leaf.value if wrong else substitute_value(leaf.value, known, environment)

    return mapped({key: node for key, node in tree.items() if key != "vars"}, change), found


def read_variables(
    table: Tree | Leaf | None, own: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[dict[str, str], list[Misplaced]]:
    """Give all variables by name; a wrong one of `[vars]` is a mistake, and empty."""
    if isinstance(table, Leaf):
        return dict(own), [Misplaced(path=("vars",), mistake=wrong_type(table.value, "a table"))]
    known, found = dict(own), []
    for name, node in (table or {}).items():
        try:
            known[name] = variable_value(variable_text(name, node), table or {}, own, environment)
        except Mistake as mistake:
            known[name] = ""
            found.append(Misplaced(path=("vars", name), mistake=mistake))
    return known, found


def variable_value(text: str, table: Tree, own: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """Give the text of one variable; raises Mistake for a reference to a neighbour."""
    for _, name, closing in re.findall(REFERENCE, text):
        if closing and name in table:
            message = f"a variable cannot use another one of [vars], here ${{{name}}}"
            raise Mistake(code="def.var", message=message, hint="write its text out")
    return substitute(text, own, environment)


def variable_text(name: str, node: Tree | Leaf) -> str:
    """Give the text of one variable as written; raises Mistake when it is no text, or the name is none."""
    value = node.value if isinstance(node, Leaf) else {}
    if type(value) is not str:
        number = isinstance(value, bool | int | float)
        raise wrong_type(value, "text", right=quote(shown(value)) if number else "")
    if not re.fullmatch(NAME, name):
        hint = "a name has letters, digits, _ and -, and starts with a letter"
        raise Mistake(code="def.var", message=f"{shown(name)} is no name for a variable", hint=hint)
    return value


def substitute(text: str, known: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """Give the text with every variable replaced; raises Mistake for one that is unknown."""
    return re.sub(REFERENCE, lambda match: replacement(match, known, environment), text)


def replacement(match: "re.Match[str]", known: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """Give what stands for one reference; raises Mistake where there is nothing."""
    escaped, name, closing = match.groups()
    if escaped:
        return match[0][1:]
    if not closing:
        hint = "close it with }, or write $${ for a literal ${"
        raise Mistake(code="def.var", message="`${` is not closed", hint=hint)
    return value_of(name, known, environment)


def mistakes_in(value: object, known: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Mistake]:
    """Give what is wrong with the references in the strings of a scalar or an array, all of it."""
    if isinstance(value, list):
        for item in value:
            yield from mistakes_in(item, known, environment)
    elif isinstance(value, str) and "${" in value:
        for match in re.finditer(REFERENCE, value):
            try:
                replacement(match, known, environment)
            except Mistake as mistake:
                yield mistake


def value_of(name: str, known: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """Give the text of one variable; raises Mistake when there is none."""
    if name in known:
        return known[name]
    if name.startswith(ENVIRONMENT):
        wanted = name.removeprefix(ENVIRONMENT)
        if wanted in environment:
            return environment[wanted]
        message = f"the environment has no variable {wanted}"
        raise Mistake(code="def.var", message=message, hint=f"set it: export {wanted}=…")
    close = nearest(name, tuple(known))
    hint = f"did you mean ${{{close}}}?" if close else f"known: {', '.join(known)}, env:NAME; $${{ is a literal ${{"
    message = f"there is no variable ${{{name}}}"
    raise Mistake(code="def.var", message=message, hint=hint)


def substitute_value(value: object, known: Mapping[str, str], environment: Mapping[str, str]) -> object:
    """Give a scalar or an array with the variables of its strings replaced."""
    if isinstance(value, str):
        return substitute(value, known, environment) if "${" in value else value
    if isinstance(value, list):
        return [substitute_value(item, known, environment) for item in value]
    return value
