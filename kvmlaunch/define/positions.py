"""Key path → line and column, looked up only when a mistake or a reason is shown.

toml-rs is young and has no wheel for some machines: where it is missing or fails there is no
position, and nothing else is lost.  It ends the process with SIGSEGV on 2000 nested arrays, so it reads
only what the first parser took.  What it reports is read with care: a one-character span is an
int, a value over several lines has a pair for its line, a `[table]` header has no position.
"""

import re
from functools import lru_cache
from typing import Any, Literal

from kvmlaunch.define.syntax import parse_toml
from kvmlaunch.define.tree import Path, join_path, split_path


def locate(text: str, key: str, *, at: Literal["key", "value"] = "value") -> tuple[int, int] | None:
    """Give line and column, from 1, of the value (or the name) at a dotted key path as it is written.

    A table has the position of its first key, an empty one that of its header; None when the text
    has no such key or cannot be read.
    """
    try:
        path = split_path(key)
    except ValueError:
        return None
    node: Any = nodes_of(text)
    for segment in path:
        node = child_of(node, segment)
    return (position_of(node, at) if node else None) or header_of(text, path)


@lru_cache(maxsize=16)
def nodes_of(text: str) -> Any:  # noqa: ANN401 - the nested dicts of toml-rs
    """Give the nodes of a text, None when toml-rs is not there or cannot read it."""
    try:
        import toml_rs

        return None if parse_toml(text).fault else toml_rs.load_with_metadata(text).meta["nodes"]
    except (ImportError, ValueError):
        return None


def is_value(node: Any) -> bool:  # noqa: ANN401 - a node of toml-rs
    """Tell a node of a value from a table of nodes, which may well have a key named `value_line`."""
    return isinstance(node, dict) and isinstance(node.get("value_line"), int | tuple)


def child_of(node: Any, segment: str | int) -> Any:  # noqa: ANN401 - a node of toml-rs
    """Give the node one segment further down, None when there is none."""
    inner = node["value"] if is_value(node) else node
    if isinstance(inner, list) and isinstance(segment, int):
        return inner[segment] if segment < len(inner) else None
    return inner.get(segment) if isinstance(inner, dict) else None


def position_of(node: Any, at: Literal["key", "value"]) -> tuple[int, int] | None:  # noqa: ANN401 - a node of toml-rs
    """Give where a node begins; a table begins with its first key."""
    if not is_value(node):
        children = (position_of(child, "key") for child in node.values()) if isinstance(node, dict) else ()
        return min((found for found in children if found), default=None)
    side = at if f"{at}_line" in node else "value"
    line, column = node[f"{side}_line"], node[f"{side}_col"]
    return (line if isinstance(line, int) else line[0], column if isinstance(column, int) else column[0])


def header_of(text: str, path: Path) -> tuple[int, int] | None:
    """Give the line of the `[table]` header of a path, for a table without keys."""
    header = re.compile(rf"^([ \t]*\[[ \t]*){re.escape(join_path(path))}[ \t]*\]", re.MULTILINE)
    match = header.search(text)
    return (text.count("\n", 0, match.start()) + 1, len(match[1]) + 1) if match else None
