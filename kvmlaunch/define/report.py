"""A mistake becomes a finding: its place with line and column, and the line to write instead."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from shlex import quote
from typing import Literal, NamedTuple

from kvmlaunch.define.mistake import Placed
from kvmlaunch.define.positions import locate
from kvmlaunch.define.syntax import parse_toml
from kvmlaunch.define.tree import join_path, split_path
from kvmlaunch.model.finding import Finding, error

LINE = r'^(?P<or>or: )?(?P<name>[\w.]+) = ("?)([^"#\n]+?)\3(?P<why> +#.*)?$'
Texts = Mapping[str, str | bytes]


class Position(NamedTuple):
    """Where a mistake shows: the file, line and column (0 where they are not known), the key as written."""

    place: str
    line: int
    column: int
    key: str


def findings_of(found: list[Placed], texts: Texts, first: PurePosixPath) -> tuple[Finding, ...]:
    """Give the findings in the order of the texts, the VM's own file first; each once."""
    placed = {
        (each.origin.kind, each.origin.place, each.origin.key, each.key, each.mistake.message): each for each in found
    }
    ordered = sorted(
        ((position_of(mistake, texts), mistake) for mistake in placed.values()),
        key=lambda pair: (pair[0].place != str(first), pair[0].place, pair[0].line, pair[0].column),
    )
    return tuple(finding_of(mistake, position) for position, mistake in ordered)


def position_of(placed: Placed, texts: Texts) -> Position:
    """Give the position of a mistake; the key's own when the value is not there."""
    origin = placed.origin
    if origin.kind == "set":
        return Position("--set", 0, 0, origin.key)
    if origin.kind == "profile":
        return Position(f"profile {origin.place}", 0, 0, origin.key)
    at: Literal["key", "value"] = "key" if placed.on_key else "value"
    text = parse_toml(texts[origin.place]).text if origin.place in texts else ""
    line, column = placed.position or (locate(text, origin.key, at=at) if origin.key else None) or (0, 0)
    return Position(origin.place, line, column, origin.key)


def finding_of(placed: Placed, position: Position) -> Finding:
    """Give the finding of a mistake at its position."""
    line = f":{position.line}:{position.column}" if position.line else ""
    mistake = placed.mistake
    return error(
        code=mistake.code,
        message=mistake.message,
        key=placed.key,
        where=f"{position.place}{line} {position.key}".rstrip(),
        why=mistake.why,
        hint="\n".join(part for part in (line_to_write(placed), advice(placed)) if part) or where_told(placed),
    )


def where_told(placed: Placed) -> str:
    """Give the command that tells what a key holds; "" for a place that is none."""
    from kvmlaunch.define.meaning import meanings  # noqa: PLC0415 - on a mistake only

    try:
        path = split_path(placed.origin.key)
    except ValueError:  # no key, or none that could be one
        return ""
    key = join_path(tuple(part for part in path if isinstance(part, str)))
    return f"kvmlaunch explain {quote(key)}   # tells what it holds" if meanings(key) else ""


def advice(placed: Placed) -> str:
    """Give what else is said of a mistake; of a `--set` whose key there is not, how it was probably meant."""
    mistake, origin = placed.mistake, placed.origin
    above = split_path(origin.key)[:-1] if origin.kind == "set" and mistake.meant else ()
    tables = tuple(part for part in above if isinstance(part, str))
    if origin.kind == "set" and mistake.meant:
        return f"--set {join_path((*tables, mistake.meant))}=…"
    return as_set(mistake.hint, origin.key) if origin.kind == "set" else mistake.hint


def as_set(hint: str, key: str) -> str:
    """Give a hint whose lines are lines of a definition for the command line, where `key` was set.

    What `--set` says would overrule such a line; a name without dots is that of a key beside this one.
    """
    from kvmlaunch.define.meaning import meanings  # noqa: PLC0415 - on a mistake only

    def addressed(line: re.Match[str]) -> str:
        beside = ".".join((*key.split(".")[:-1], line["name"]))
        path = line["name"] if "." in line["name"] else beside
        return f"{line['or'] or ''}--set {quote(f'{path}={line[4]}')}{line['why'] or ''}" if meanings(path) else line[0]

    return re.sub(LINE, addressed, hint, flags=re.MULTILINE)


def line_to_write(placed: Placed) -> str:
    """Give the right value with its key, as it is pasted into the file or onto the command line."""
    right, origin = placed.mistake.right, placed.origin
    if not right:
        return ""
    if origin.kind == "set":
        *above, end = split_path(origin.key)
        if isinstance(end, int):  # arrays are set whole, and the other items are not ours to repeat
            return f"{right}   # as this item of {join_path(tuple(above))}"
        return f"--set {quote(f'{origin.key}={right.strip(chr(34))}')}"
    last = split_path(origin.key)[-1] if origin.key else ""
    return f"{join_path((last,))} = {right}" if last and isinstance(last, str) else right
