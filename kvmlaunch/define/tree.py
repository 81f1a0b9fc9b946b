"""A definition on its way: nested tables whose leaves remember where they were written.

Scalars and arrays are leaves.  A key path is a tuple of segments; `join_path` and `split_path` are
its dotted text and back, a pair: segments that are no bare keys are quoted as TOML quotes them, an
index of an array stands in brackets.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from kvmlaunch.model.choice import Origin

Path: TypeAlias = tuple[str | int, ...]
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+|\*")
SEGMENT = re.compile(r'\[([0-9]+)\]|"((?:[^"\\]|\\.)*)"|([^.\[\]"]+)')
UNESCAPE = r"(?s)\\(u[0-9a-fA-F]{4}|.)"
ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
UNESCAPES = {escape[1]: character for character, escape in ESCAPES.items()}
UNSAFE = '[\x00-\x1f\x7f-\x9f"\\\\\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufeff]'


class Leaf(NamedTuple):
    """A scalar or an array, and where it was written."""

    value: object
    origin: Origin


Tree: TypeAlias = dict[str, "Tree | Leaf"]


def quote(text: str) -> str:
    """Give text as a basic string of TOML; what a terminal could take amiss is escaped."""
    return '"' + re.sub(UNSAFE, lambda match: ESCAPES.get(match[0]) or f"\\u{ord(match[0]):04x}", text) + '"'


def unquote(text: str) -> str:
    """Give what stood between the quotes that `quote` put."""
    return re.sub(
        UNESCAPE, lambda match: chr(int(match[1][1:], 16)) if match[1][1:] else UNESCAPES.get(match[1], match[1]), text
    )


def join_path(path: Path) -> str:
    """Give the dotted text of a key path: `disk.root.cache`, `labels."a.b"`, `raw.args[2]`."""
    parts = []
    for segment in path:
        if isinstance(segment, int):
            parts.append(f"[{segment}]")
        else:
            parts.append("." + (segment if BARE_KEY.fullmatch(segment) else quote(segment)))
    return "".join(parts).removeprefix(".")


def split_path(text: str) -> Path:
    """Give the segments of a dotted key path; raises ValueError when it is none."""
    path: list[str | int] = []
    position = 0
    while match := SEGMENT.match(text, position):
        index, quoted, bare = match.groups()
        path.append(int(index) if index else unquote(quoted) if quoted is not None else bare.strip())
        position = match.end()
        if position < len(text) and text[position] == ".":
            position += 1
        elif text[position : position + 1] != "[":
            break
    if not path or position != len(text) or text.endswith(".") or "" in path:
        message = f"{text!r} is no key path"
        raise ValueError(message)
    return tuple(path)


def tree_of(table: Mapping[str, object], origin: Origin, path: Path = ()) -> Tree:
    """Give a parsed table as a tree whose leaves all have the origin's kind and place, and their own key."""
    return {
        key: tree_of(value, origin, (*path, key))
        if isinstance(value, dict)
        else Leaf(value, Origin(kind=origin.kind, place=origin.place, key=join_path((*path, key))))
        for key, value in table.items()
    }


def plain(tree: Tree) -> dict[str, object]:
    """Give the values without their origins."""
    return {key: node.value if isinstance(node, Leaf) else plain(node) for key, node in tree.items()}


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Leaf]]:
    """Give every leaf with its path, in the order of the text."""
    for key, node in tree.items():
        if isinstance(node, Leaf):
            yield (*path, key), node
        else:
            yield from leaves(node, (*path, key))


def node_at(tree: Tree, path: Path) -> Tree | Leaf | None:
    """Give what stands at a path; a leaf for a path into an array; None when nothing is there."""
    node: Tree | Leaf | None = tree
    for segment in path:
        if isinstance(node, Leaf):
            return node if isinstance(segment, int) else None
        node = node.get(str(segment)) if node is not None else None
    return node


def nearest_leaf(tree: Tree, path: Path) -> Leaf | None:
    """Give the leaf at a path, else the first one beneath it, else the first one of the table around it."""
    for length in range(len(path), 0, -1):
        node = node_at(tree, path[:length])
        if isinstance(node, Leaf):
            return node
        if node:
            return next((leaf for _, leaf in leaves(node)), None)
    return None


def merge(lower: Tree, upper: Tree) -> Tree:
    """Give both, the upper one winning: tables merge by key, scalars and arrays replace."""
    merged = dict(lower)
    for key, node in upper.items():
        below = merged.get(key)
        both = isinstance(node, dict) and isinstance(below, dict)
        merged[key] = merge(below, node) if both and isinstance(node, dict) and isinstance(below, dict) else node
    return merged


def without(tree: Tree, path: Path) -> Tree:
    """Give the tree with nothing at a path; the tables around it stay."""
    first, rest = str(path[0]), path[1:]
    node = tree.get(first)
    kept = {key: other for key, other in tree.items() if key != first or rest}
    if rest and isinstance(node, dict):
        kept[first] = without(node, rest)
    return kept


def mapped(tree: Tree, change: Callable[[tuple[str, ...], Leaf], object], path: tuple[str, ...] = ()) -> Tree:
    """Give the tree with every leaf's value changed, its origin kept."""
    changed: Tree = {}
    for key, node in tree.items():
        here = (*path, key)
        if isinstance(node, Leaf):
            value = change(here, node)
            changed[key] = node if value is node.value else Leaf(value, node.origin)
        else:
            changed[key] = mapped(node, change, here)
    return changed
