"""Layers: built-in < profile < templates, left to right < file < `--set`.

Tables merge by key, scalars and arrays replace, `unset` removes what the layers beneath have.  Every
leaf keeps its Origin through all of it.  The built-in layer is the defaults of the model's classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from shlex import quote as shell_word
from typing import Final

from kvmlaunch.define.keys import atoms, fields_of, form_at, is_named, is_table, members, words
from kvmlaunch.define.mistake import Mistake, Placed, nearest, shown, wrong_type
from kvmlaunch.define.paths import absolute
from kvmlaunch.define.shorthand import check_clash, expand
from kvmlaunch.define.syntax import parse_toml
from kvmlaunch.define.tree import Leaf, Path, Tree, join_path, leaves, merge, node_at, split_path, tree_of, without
from kvmlaunch.model.choice import Origin
from kvmlaunch.model.value import Factory, frozen

MOST_LEVELS: Final = 5
ANY_NAME: Final = "*"
STEERING: Final = ("extends", "unset")
NO_HOME: Final = PurePosixPath("/nonexistent")


@frozen(kw_only=True)
class Source:
    """One text that takes part; `path` is absolute, for standard input the working directory and "stdin"."""

    path: PurePosixPath
    text: str | bytes


@frozen(kw_only=True)
class Layers:
    """The sources by path, and the mistakes found while they are merged."""

    sources: Mapping[str, Source]
    home: PurePosixPath
    found: list[Placed] = Factory(list)

    @property
    def broken(self) -> bool:
        """Tell that a whole text is missing, so that what it would have said is unknown."""
        return any(
            placed.position or placed.key == "extends" or placed.mistake.code == "def.extends" for placed in self.found
        )


def wanted_files(source: Source, home: PurePosixPath | None = None) -> tuple[PurePosixPath, ...]:
    """Give the absolute paths that a text extends; a broken text wants none.

    `home` is what `~` stands for.
    """
    value = parse_toml(source.text).table.get("extends", ())
    wanted: list[PurePosixPath] = []
    for text in value if isinstance(value, list) else ():
        try:
            wanted.append(template_path(text, source.path, home or NO_HOME))
        except Mistake:
            continue
    return tuple(wanted)


def template_path(text: object, file: PurePosixPath, home: PurePosixPath) -> PurePosixPath:
    """Give the absolute path of one entry of `extends`; raises Mistake for what names no file."""
    if type(text) is not str:
        raise wrong_type(text, "the path of a template, as text,")
    if "${" in text:
        hint = "write the path out: templates are found before variables are known"
        raise Mistake(code="def.extends", message=f"{shown(text)} has a variable", hint=hint)
    return PurePosixPath(absolute(text, file.parent, home))


def merge_sources(layers: Layers, first: Source) -> Tree:
    """Give the VM's file merged over its templates, their templates beneath them."""
    return merge_file(layers, first, chain=())


def merge_file(layers: Layers, source: Source, chain: tuple[str, ...]) -> Tree:
    """Give one file merged over its templates; `chain` is the files that led here, the VM's first."""
    place = str(source.path)
    parsed = parse_toml(source.text)
    origin = Origin(kind="file", place=place)
    if parsed.fault:
        fault = parsed.fault
        mistake = Mistake(code=fault.code, message=fault.message, why=fault.why, hint=fault.hint)
        layers.found.append(Placed(mistake=mistake, origin=origin, position=(fault.line, fault.column)))
        return {}
    written = tree_of(parsed.table, origin)
    layers.found.extend(
        Placed(mistake=mistake, origin=Origin(kind="file", place=place, key=key), key=key)
        for key, mistake in check_clash(written)
    )
    lower: Tree = {}
    for template in templates(layers, source, written, (*chain, place)):
        lower = merge(lower, merge_file(layers, template, (*chain, place)))
    return merge_layer(layers, lower, written)


def templates(layers: Layers, source: Source, written: Tree, chain: tuple[str, ...]) -> list[Source]:
    """Give the files that one file extends, left to right; what cannot be had is a mistake."""
    origin = Origin(kind="file", place=str(source.path), key="extends")
    node = written.get("extends")
    value = node.value if isinstance(node, Leaf) else node
    found: list[Source] = []
    if value is not None and not isinstance(value, list):
        right = f"[{shown(value)}]" if isinstance(value, str) else ""
        mistake = wrong_type(value if isinstance(node, Leaf) else {"": ""}, "an array", right=right)
        layers.found.append(Placed(mistake=mistake, origin=origin, key="extends"))
        return found
    for index, text in enumerate(value or ()):
        try:
            found.append(template_source(layers, template_path(text, source.path, layers.home), chain))
        except Mistake as mistake:
            key = join_path(("extends", index))
            at = Origin(kind="file", place=origin.place, key=key)
            layers.found.append(Placed(mistake=mistake, origin=at, key="extends"))
    return found


def template_source(layers: Layers, path: PurePosixPath, chain: tuple[str, ...]) -> Source:
    """Give the source of a template; raises Mistake for a circle, a sixth level, a file that is not there."""
    names = [PurePosixPath(place).name for place in (*chain, str(path))]
    if str(path) in chain:
        raise Mistake(code="def.extends", message="templates extend each other in a circle", why=" → ".join(names))
    if len(chain) > MOST_LEVELS:
        message = f"templates extend each other over more than {MOST_LEVELS} levels"
        raise Mistake(code="def.extends", message=message, why=" → ".join(names))
    source = layers.sources.get(str(path))
    if source is None:
        raise Mistake(
            code="def.extends", message=f"the template {path} cannot be read", hint=f"ls -l {shell_word(str(path))}"
        )
    return source


def merge_layer(layers: Layers, lower: Tree, written: Tree) -> Tree:
    """Give a layer over what is beneath it: first `unset`, then its own keys."""
    node = written.get("unset")
    if isinstance(node, Leaf):
        lower = remove(layers, lower, node)
    elif node is not None:
        origin = Origin(kind="file", place=place_of(node), key="unset")
        layers.found.append(Placed(mistake=wrong_type({"": ""}, "an array"), origin=origin, key="unset"))
    own = {key: inner for key, inner in written.items() if key not in STEERING}
    return merge(lower, expand(own))


def place_of(tree: Tree) -> str:
    """Give the file of a table's first leaf."""
    return next((leaf.origin.place for _, leaf in leaves(tree)), "")


def remove(layers: Layers, lower: Tree, node: Leaf) -> Tree:
    """Give the lower layers without what `unset` names; a name of nothing is a mistake, where all layers are there."""
    whole = not layers.broken
    if not isinstance(node.value, list):
        right = f"[{shown(node.value)}]" if isinstance(node.value, str) else ""
        mistake = wrong_type(node.value, "an array of key paths", right=right)
        layers.found.append(Placed(mistake=mistake, origin=node.origin, key="unset"))
        return lower
    for index, text in enumerate(node.value):
        try:
            path = key_path(text)
            if node_at(lower, path) is not None:
                lower = without(lower, path)
            elif whole and not is_unwritten(path, lower):
                raise nothing_to_unset(path, lower)
        except Mistake as mistake:
            key = join_path(("unset", index))
            at = Origin(kind=node.origin.kind, place=node.origin.place, key=key)
            layers.found.append(Placed(mistake=mistake, origin=at, key="unset"))
    return lower


def is_unwritten(path: Path, lower: Tree) -> bool:
    """Is a path a key of a table that there is, which nobody wrote: it is unset already."""
    above = form_at(path[:-1]) if node_at(lower, path[:-1]) is not None else None
    return above is not None and any(is_table(each) and path[-1] in fields_of(each) for each in members(above))


def key_path(text: object) -> Path:
    """Give the segments of a key path as written; raises Mistake when it is none."""
    if type(text) is not str:
        raise wrong_type(text, "a key path, as text,")
    try:
        return split_path(text)
    except ValueError as error:
        raise Mistake(code="def.extends", message=str(error), hint='write it dotted, such as "disk.scratch"') from error


def nothing_to_unset(path: Path, lower: Tree) -> Mistake:
    """Give the mistake of an `unset` that removes nothing, with what there would be."""
    known = {join_path(inner[:length]): None for inner, _ in leaves(lower) for length in range(1, len(inner) + 1)}
    close = nearest(join_path(path), tuple(known))
    message = f"unset names {join_path(path)}, which no template has"
    return Mistake(
        code="def.extends", message=message, hint=f"did you mean {shown(close)}?" if close else "remove it from unset"
    )


def merge_overrides(layers: Layers, lower: Tree, overrides: Sequence[str]) -> Tree:
    """Give the `--set` strings over everything, left to right."""
    for override in overrides:
        try:
            lower = merge_layer(layers, lower, parse_override(override))
        except Mistake as mistake:
            key = override.partition("=")[0]
            layers.found.append(Placed(mistake=mistake, origin=Origin(kind="set", key=key), key=key))
    return lower


def parse_override(override: str) -> Tree:
    """Give the one leaf (or table) of KEY=VALUE; VALUE is TOML where it parses as that, else text."""
    key, equals, text = override.partition("=")
    if not equals:
        hint = "write --set KEY=VALUE, such as --set memory.size=8GiB"
        raise Mistake(code="def.toml.syntax", message=f"--set {shown(override)} has no =", hint=hint)
    try:
        path = tuple(segment for segment in split_path(key.strip()) if isinstance(segment, str))
    except ValueError as error:
        raise Mistake(code="def.key.unknown", message=f"{shown(key)} is no key path") from error
    if len(path) != len(split_path(key.strip())):
        raise Mistake(code="def.key.unknown", message=f"{shown(key)} names one item; arrays are set whole")
    if path[0] == "extends":
        raise Mistake(code="def.extends", message="--set cannot extend", hint="write extends into the file")
    value = override_value(path, text.strip())
    tree: Tree | Leaf = tree_of(value, Origin(kind="set"), path) if isinstance(value, dict) else set_leaf(path, value)
    for segment in reversed(path):
        tree = {segment: tree}
    return tree if isinstance(tree, dict) else {}


def set_leaf(path: tuple[str, ...], value: object) -> Leaf:
    """Give a leaf that `--set` wrote."""
    return Leaf(value, Origin(kind="set", key=join_path(path)))


def override_value(path: tuple[str, ...], text: str) -> object:
    """Give the value of a `--set`: a number is text where its key takes no number (`memory.numa=0`)."""
    parsed = parse_toml(f"value = {text}\n") if "\n" not in text else None
    if parsed is None or parsed.fault or parsed.table.keys() != {"value"}:
        return text
    value = parsed.table["value"]
    if isinstance(value, str | list | dict):
        return value
    if path[0] == "vars":
        return text
    form = form_at(path)
    texts = form is not None and not is_named(form) and not {type(value)} & set(atoms(form))
    return text if texts and (atoms(form) or text in words(form)) else value


def profile_layer(name: str, text: str) -> Tree:
    """Give the tree of a built-in profile; a profile that is no TOML is empty, and a test of ours fails."""
    parsed = parse_toml(text)
    return expand(tree_of(parsed.table, Origin(kind="profile", place=name)))


def merge_profile(profile: Tree, tree: Tree) -> Tree:
    """Give the tree over a profile; in a profile `[disk."*"]` holds the defaults of every disk that there is."""
    lower: Tree = {}
    for table, node in profile.items():
        any_name = node.get(ANY_NAME) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(any_name, dict):
            named = tree.get(table)
            names = tuple(named) if isinstance(named, dict) else ()
            lower[table] = {**dict.fromkeys(names, any_name), **without(node, (ANY_NAME,))}
        else:
            lower[table] = node
    return merge(lower, tree)
