"""Paths as written become absolute: relative to the file that contains them, `~` expanded."""

import re
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Final

from kvmlaunch.define.keys import atoms, form_at, words
from kvmlaunch.define.mistake import Misplaced, Mistake, shown
from kvmlaunch.define.tree import Leaf, Tree, mapped, quote
from kvmlaunch.model.volume import NAME

FORBIDDEN: Final = "/dev/fdset"
VOLUME: Final = "lvm:"


def is_path(path: tuple[str, ...], value: object) -> bool:
    """Tell a value that names a file, from the key where it stands; `auto` names none."""
    form = form_at(path)
    return form is not None and PurePosixPath in atoms(form) and type(value) is str and value not in words(form)


def make_absolute(
    tree: Tree, directory: PurePosixPath, working_directory: PurePosixPath, home: PurePosixPath
) -> tuple[Tree, list[Misplaced]]:
    """Give the tree with every path absolute: beside its file, for `--set` beneath the working directory.

    `directory` is for what no file wrote.  A path that is refused is a mistake, and one of its own in the tree.
    """
    found: list[Misplaced] = []

    def change(path: tuple[str, ...], leaf: Leaf) -> object:
        if not is_path(path, leaf.value):
            return leaf.value
        bases = {"file": PurePosixPath(leaf.origin.place).parent, "set": working_directory}
        try:
            if path[0] == "disk" and path[-1] == "path" and str(leaf.value).startswith(VOLUME):
                return volume_device(str(leaf.value))
            return absolute(str(leaf.value), bases.get(leaf.origin.kind, directory), home)
        except Mistake as mistake:
            found.append(Misplaced(path=path, mistake=mistake))
            return f"/refused/{'-'.join(path)}"

    return mapped(tree, change), found


def volume_device(text: str) -> str:
    """Give the device of `lvm:GROUP/VOLUME`; raises Mistake for what LVM would not take as names."""
    group, _, volume = text.removeprefix(VOLUME).partition("/")
    if not (re.fullmatch(NAME, group) and re.fullmatch(NAME, volume)):
        message = f"{shown(text)} names no volume"
        raise Mistake(code="def.path", message=message, right=quote("lvm:vg0/web01"), why="lvm(8), valid names")
    return f"/dev/{group}/{volume}"


def absolute(text: str, base: PurePosixPath, home: PurePosixPath) -> str:
    """Give the absolute, normal form of a path; raises Mistake for one that QEMU must not be given."""
    if not text:
        raise Mistake(code="def.path", message="the path is empty")
    if "\0" in text:
        message = f"the path {shown(text)} contains NUL"
        raise Mistake(code="def.path", message=message)
    if text.startswith("~") and text.split("/", 1)[0] != "~":
        message = f"{shown(text)} names another user's home"
        raise Mistake(
            code="def.path", message=message, hint="write the directory out, or ./ before a name that begins with ~"
        )
    expanded = f"{home}{text[1:]}" if text.startswith("~") else text
    whole = "/" + normpath(f"{base}/{expanded}" if not expanded.startswith("/") else expanded).lstrip("/")
    if any("\ud800" <= character <= "\udfff" for character in whole):
        message = f"the path {shown(whole.encode(errors='backslashreplace').decode())} is not UTF-8"
        raise Mistake(
            code="def.path", message=message, hint="rename it, or reach it through a symbolic link with a name in UTF-8"
        )
    if whole == FORBIDDEN or whole.startswith(f"{FORBIDDEN}/"):
        message = f"{shown(whole)} is a name that QEMU keeps for file descriptors"
        raise Mistake(code="def.path", message=message)
    return whole
