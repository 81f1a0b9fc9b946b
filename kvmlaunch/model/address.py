"""Addresses that something listens on, and when two of them cannot both be bound."""

from collections.abc import Collection
from typing import Final

EVERY_ADDRESS: Final = frozenset({"", "*", "0", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


def collide(one: str, other: str) -> bool:
    """Would the second of two binds to one port fail: the same address, or one of them is every address."""
    return one == other or not EVERY_ADDRESS.isdisjoint((one, other))


def clashing(address: str, bound: Collection[str]) -> str | None:
    """Give one of the bound addresses with which an address collides, looked up however many there are."""
    if address in EVERY_ADDRESS:
        return next(iter(bound), None)
    return next((each for each in (address, *sorted(EVERY_ADDRESS)) if each in bound), None)
