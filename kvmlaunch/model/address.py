"""Addresses that something listens on, and when two of them cannot both be bound."""

from typing import Final

EVERY_ADDRESS: Final = frozenset({"", "*", "0", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


def collide(one: str, other: str) -> bool:
    """Would the second of two binds to one port fail: the same address, or one of them is every address."""
    return one == other or not EVERY_ADDRESS.isdisjoint((one, other))
