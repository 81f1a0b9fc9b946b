"""Frozen values become JSON documents."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from attrs import fields, has

from kvmlaunch.model.host import HostFacts


def plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Give a value as JSON has it: attrs classes as objects, sets sorted, paths and keys as text."""
    kind = type(value)
    if has(kind):
        return {each.name: plain(getattr(value, each.name)) for each in fields(kind)}
    match value:
        case Mapping():
            return {str(key): plain(part) for key, part in value.items()}
        case frozenset() | set():
            return sorted(plain(part) for part in value)
        case tuple() | list():
            return [plain(part) for part in value]
        case PurePath():
            return str(value)
        case _:
            return value


def facts_document(facts: HostFacts) -> dict[str, Any]:
    """Give the JSON form of the host's facts; sizes in bytes."""
    document: dict[str, Any] = plain(facts)
    return document
