"""A rule across keys that is broken, and what stands in its mistake."""

from collections.abc import Iterator
from typing import NamedTuple

from kvmlaunch.define.mistake import Mistake
from kvmlaunch.define.tree import Path
from kvmlaunch.model.definition import Definition


class Broken(NamedTuple):
    """A rule that is broken: the key to show, what is wrong, and other keys it rests on.

    A key that is wrong itself counts as not written here, so what rests on it is not reported.
    """

    key: Path
    mistake: Mistake
    needs: tuple[Path, ...] = ()


Broke = Iterator[Broken]


def choice(message: str, *, why: str = "", right: str = "", hint: str = "") -> Mistake:
    """Give the mistake of values that do not go together."""
    return Mistake(code="def.value.choice", message=message, why=why, right=right, hint=hint)


def by_hand(definition: Definition, key: str) -> bool:
    """Tell a key that a file or `--set` wrote, not a profile or nobody."""
    return definition.origin(key).kind in {"file", "set"}
