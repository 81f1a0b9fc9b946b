"""A machine for each test of this tier."""

from tests.sandbox import cache, machine

__all__ = ("cache", "machine")
