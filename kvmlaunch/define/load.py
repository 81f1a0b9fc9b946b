"""Text of a definition and its templates becomes a Definition, with every mistake at once.

The order: parse, expand shorthands, merge the layers, put in variables, lay the profile beneath, make
paths absolute, build the classes, check the rules across keys.  Nothing here reads a file or the
environment: what is needed comes in.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from kvmlaunch.define.keys import UNWRITTEN, Form, fields_of, form_at, is_table, members, step
from kvmlaunch.define.layers import (
    Layers,
    Source,
    merge_overrides,
    merge_profile,
    merge_sources,
    profile_layer,
)
from kvmlaunch.define.mistake import Misplaced, Placed
from kvmlaunch.define.paths import make_absolute
from kvmlaunch.define.resolved import render_resolved
from kvmlaunch.define.rules import check_rules, check_vm_name
from kvmlaunch.define.structure import structure, unknown_key
from kvmlaunch.define.tree import Leaf, Path, Tree, join_path, leaves, nearest_leaf, node_at, plain
from kvmlaunch.define.variables import VM_DIR, VM_NAME, put_variables
from kvmlaunch.model.choice import Origin
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.value import evolve, frozen


@frozen(kw_only=True)
class Surroundings:
    """What a definition may depend on beside its text: variables for `${env:NAME}`, `~`, where `--set` paths begin."""

    environment: Mapping[str, str]
    home: PurePosixPath
    working_directory: PurePosixPath


@frozen(kw_only=True)
class Loaded:
    """The definition, None when there is an error; all findings, each with file, line, column and key path."""

    definition: Definition | None
    findings: tuple[Finding, ...]


def load_definition(
    name: str,
    sources: Sequence[Source],
    overrides: Sequence[str],
    surroundings: Surroundings,
    profiles: Mapping[str, str],
) -> Loaded:
    """Give the definition of a VM.

    `sources` begins with the VM's own file; the files that it extends, and theirs, follow in any order.
    `overrides` are the KEY=VALUE of `--set`; `profiles` has the text of each built-in profile by name.
    """
    first = sources[0]
    layers = Layers(sources={str(source.path): source for source in sources}, home=surroundings.home)
    tree = merge_overrides(layers, merge_sources(layers, first), overrides)
    definition, tree, misplaced = build(without_notes(tree, Definition), name, first, surroundings, profiles)
    found = layers.found + [placed_at(tree, each, first) for each in misplaced if not (each.rests and layers.broken)]
    if wrong := check_vm_name(name):
        wrong.hint = f"rename the file: {wrong.hint}"
        found.append(Placed(mistake=wrong, origin=Origin(kind="file", place=str(first.path))))
    if found or definition is None:
        from kvmlaunch.define.report import findings_of  # noqa: PLC0415 - on a mistake only

        texts = {str(source.path): source.text for source in sources}
        return Loaded(definition=None, findings=findings_of(found, texts, first.path))
    digest = hashlib.sha256(render_resolved(definition).encode()).hexdigest()
    return Loaded(definition=evolve(definition, digest=digest), findings=())


def build(
    tree: Tree, name: str, first: Source, surroundings: Surroundings, profiles: Mapping[str, str]
) -> tuple[Definition | None, Tree, list[Misplaced]]:
    """Give what the merged layers define, the tree it was built of, and every mistake in it."""
    own = {VM_NAME: name, VM_DIR: str(first.path.parent)}
    tree, found = put_variables(tree, own, surroundings.environment)
    found += [unknown_key(Definition, key, ()) for key in UNWRITTEN if key in tree]
    tree = with_profile(tree, profiles)
    tree, refused = make_absolute(tree, first.path.parent, surroundings.working_directory, surroundings.home)
    wanted = {key: value for key, value in plain(tree).items() if key not in UNWRITTEN}
    definition, wrong = structure(wanted, Definition, name=name, file=first.path, origins=origins_of(tree))
    unsaid = tuple(each.path for each in found)  # a variable that is not there is no size, and is said once
    found += refused + [each for each in wrong if each.path not in unsaid]
    if definition is not None:
        found += broken_rules(definition, tuple(each.path for each in found))
    return definition, tree, found


def broken_rules(definition: Definition, wrong: tuple[Path, ...]) -> list[Misplaced]:
    """Give the broken rules across keys, without those that rest on a key that is wrong itself."""
    return [
        Misplaced(path=broken.key, mistake=broken.mistake, rests=True)
        for broken in check_rules(definition)
        if not any(path[: len(key)] == key for path in wrong for key in (broken.key, *broken.needs))
    ]


def without_notes(tree: Tree, form: Form) -> Tree:
    """Give the tree without the keys that begin with `x-`; the name of a disk may well begin so."""
    fixed = form is Definition or any(is_table(member) for member in members(form))
    return {
        key: without_notes(node, step(form, key)) if isinstance(node, dict) else node
        for key, node in tree.items()
        if not (fixed and key.startswith("x-"))
    }


def with_profile(tree: Tree, profiles: Mapping[str, str]) -> Tree:
    """Give the tree over the profile that it names; a name that is no profile is found out later."""
    node = tree.get("profile", Leaf(fields_of(Definition)["profile"].default, Origin(kind="default")))
    name = node.value if isinstance(node, Leaf) else None
    if not isinstance(name, str) or name not in profiles:
        return tree
    return merge_profile(profile_layer(name, profiles[name]), tree)


def origins_of(tree: Tree) -> dict[str, Origin]:
    """Give the origin of every leaf key; a value that may be a table (cpu.topology) has one as well."""
    found: dict[str, Origin] = {}
    for path, leaf in leaves(tree):
        found[join_path(path)] = leaf.origin
        around = members(form_at(path[:-1]))
        if len(around) > 1 and any(is_table(member) for member in around):
            parent = Origin(kind=leaf.origin.kind, place=leaf.origin.place, key=join_path(path[:-1]))
            found.setdefault(join_path(path[:-1]), parent)
    return found


def placed_at(tree: Tree, misplaced: Misplaced, first: Source) -> Placed:
    """Give a mistake the place where its key was written, under the name that it was written by."""
    path = misplaced.path
    leaf = nearest_leaf(tree, path)
    origin = leaf.origin if leaf else Origin(kind="file", place=str(first.path))
    indexes = next((path[length:] for length in range(len(path) + 1) if node_at(tree, path[:length]) is leaf), None)
    key = join_path(path) if leaf is None or indexes is None else origin.key + join_path(indexes)
    at = Origin(kind=origin.kind, place=origin.place, key=key)
    dotted = join_path(tuple(segment for segment in path if isinstance(segment, str)))
    return Placed(mistake=misplaced.mistake, origin=at, key=dotted, on_key=misplaced.on_key)
