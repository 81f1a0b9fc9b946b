"""A plan becomes argv, and text around argv: one line, pretty, with its reasons, JSON; and the difference of two."""

import shlex
from collections.abc import Iterator

from kvmlaunch.builder.option import render_option, render_scalar
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.plan import Field, FieldValue, Option, Place, Places, Plan
from kvmlaunch.model.value import frozen


@frozen(kw_only=True)
class Row:
    """One line of an explanation."""

    key: str
    value: str
    reason: str
    source: str
    origin: Origin
    flag: str = ""


def render_argv(plan: Plan, places: Places) -> tuple[str, ...]:
    """Give argv, the binary first: what `print-cmd` prints is what `up` executes."""
    return (str(plan.binary), *(word for option in plan.options for word in render_option(option, places)))


def render_line(plan: Plan, places: Places) -> str:
    """Give argv as one line that a POSIX shell reads back word by word."""
    return shlex.join(render_argv(plan, places))


def render_pretty(plan: Plan, places: Places) -> str:
    """Give argv with an option a line, continued by backslashes: a shell reads it as one command."""
    lines = [
        shlex.quote(str(plan.binary)),
        *(f"  {shlex.join(render_option(option, places))}" for option in plan.options),
    ]
    return " \\\n".join(lines)


def reasons(option: Option) -> Iterator[str]:
    """Give the why of each field of an option that has one to tell."""
    for part in option.fields:
        why = part.choice.reason or render_origin(part.choice.origin)
        if why and not why.startswith("an id computed"):
            yield f"{part.key}: {why}" + (f"  [{part.choice.source}]" if part.choice.source else "")


def render_comments(plan: Plan, places: Places) -> str:
    """Give argv as a bash array, every option beneath its reasons."""
    lines = ["argv=(", f"  {shlex.quote(str(plan.binary))}"]
    for option in plan.options:
        lines += [f"  # {line}" for reason in reasons(option) for line in reason.splitlines()]
        lines.append(f"  {shlex.join(render_option(option, places))}")
    return "\n".join([*lines, ")", '"${argv[@]}"'])


def render_origin(origin: Origin) -> str:
    """Give an origin in words."""
    match origin.kind:
        case "file":
            return f"{origin.place}: {origin.key}" if origin.key else origin.place
        case "set":
            return f"--set {origin.key}" if origin.place != "--boot" else "--boot"
        case "profile":
            return f"profile {origin.place}"
        case "default":
            return "built-in default"
        case "host" | "qemu":
            return origin.place


def render_value(choice: Choice[FieldValue], places: Places) -> str:
    """Give a value for people."""
    word = choice.value
    return ",".join(word) if isinstance(word, tuple) else render_scalar(word, places)


def is_told(part: Field) -> bool:
    """Has a field something to tell: ids and other wiring have not."""
    return not part.choice.reason.startswith(("an id computed", "its place on", "its port", "the device below"))


def explain_rows(plan: Plan, places: Places) -> tuple[Row, ...]:
    """Give every decision of a plan, in argv's order, then those that are no argument; one row a key."""
    fields = [(option.flag, part) for option in plan.options for part in option.fields] + [
        ("", part) for part in plan.choices
    ]
    rows: dict[tuple[str, str], Row] = {}
    seen: set[str] = set()
    for flag, part in fields:
        if not is_told(part) or (not flag and part.key in seen):
            continue
        seen.add(part.key)
        text = render_value(part.choice, places)
        row = Row(
            key=part.key,
            value=text,
            reason=part.choice.reason,
            source=part.choice.source,
            origin=part.choice.origin,
            flag=flag,
        )
        rows.setdefault((part.key, text), row)
    return tuple(rows.values())


def select_rows(rows: tuple[Row, ...], keys: tuple[str, ...]) -> tuple[Row, ...]:
    """Give the rows at or beneath one of the keys; all of them without keys."""
    return tuple(
        row for row in rows if not keys or any(row.key == key or row.key.startswith(f"{key}.") for key in keys)
    )


def plan_document(plan: Plan, places: Places) -> dict[str, object]:
    """Give the JSON document of a plan: argv, and every option with its reasons."""
    return {
        "name": plan.name,
        "argv": list(render_argv(plan, places)),
        "options": [
            {
                "flag": option.flag,
                "argv": list(render_option(option, places)),
                "table": option.table,
                "fields": [
                    {
                        "name": part.name,
                        "key": part.key,
                        "value": render_value(part.choice, places),
                        "reason": part.choice.reason,
                        "source": part.choice.source,
                        "origin": render_origin(part.choice.origin),
                    }
                    for part in option.fields
                ],
            }
            for option in plan.options
        ],
    }


def places_of(plan: Plan) -> frozenset[str]:
    """Give which directories of the VM the argv names."""
    return frozenset(
        part.choice.value.root
        for option in plan.options
        for part in option.fields
        if isinstance(part.choice.value, Place)
    )


def group_argv(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Give a recorded argv as lines, an option with its value on one."""
    lines: list[str] = []
    for word in argv[1:]:
        if word.startswith("-") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return tuple(lines)


def diff_argv(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """Give the options that differ, `-` before what was and `+` before what would be; empty when nothing does."""
    before, after = group_argv(old), group_argv(new)
    changed = old[:1] != new[:1]
    binary = (f"- {old[0]}", f"+ {new[0]}") if changed else ()
    gone = tuple(f"- {line}" for line in before if line not in after)
    come = tuple(f"+ {line}" for line in after if line not in before)
    return (*binary, *gone, *come)
