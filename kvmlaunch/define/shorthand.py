"""The five scalar shorthands become the tables that they stand for.

A leaf keeps the key under which it was written, so that a mistake in `memory = "8GB"` is shown
there and not at a `memory.size` that the file does not have.
"""

from kvmlaunch.define.mistake import Mistake
from kvmlaunch.define.tree import Leaf, Tree, merge, node_at
from kvmlaunch.model.definition import NAMED_TABLES, SHORTHANDS


def expand(layer: Tree) -> Tree:
    """Give the layer with its shorthands as tables."""
    if SHORTHANDS.keys().isdisjoint(layer):
        return layer
    expanded: Tree = {}
    for key, node in layer.items():
        # A list of disks means several, which have names.
        several = key in NAMED_TABLES and isinstance(node, Leaf) and isinstance(node.value, list)
        if key in SHORTHANDS and isinstance(node, Leaf) and not several:
            table: Tree | Leaf = node
            for segment in reversed(SHORTHANDS[key].split(".")):
                table = {segment: table}
            expanded = merge(expanded, table) if isinstance(table, dict) else expanded
        else:
            expanded = merge(expanded, {key: node})
    return expanded


def check_clash(layer: Tree) -> list[tuple[str, Mistake]]:
    """Give the mistake of a value that one text writes twice, as shorthand and in its table."""
    found = []
    for key, meant in SHORTHANDS.items():
        table = {name: node for name, node in layer.items() if name != key}
        written = node_at(table, tuple(meant.split(".")))
        if isinstance(layer.get(key), Leaf) and isinstance(written, Leaf):
            message = f"`{key}` and `{meant}` say the same, and both are written"
            hint = f"keep one of them: `{key}` is short for `{meant}`"
            found.append((key, Mistake(code="def.shorthand", message=message, hint=hint)))
    return found
