"""A machine for each test of this tier, and one that an ordinary user shares."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox import Machine, cache, machine, made_machine, require_root

__all__ = ("cache", "machine")


@pytest.fixture
def shared(tmp_path: Path, cache: Path) -> Iterator[Machine]:
    """Give a machine that alice can use too."""
    require_root()
    with made_machine(tmp_path, cache, users=True) as made:
        yield made
