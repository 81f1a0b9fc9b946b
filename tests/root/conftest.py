"""Machines for this tier, and the page pool, which is the kernel's: one test at a time, and put back as it was."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from attrs import define

from tests.sandbox import HER_NAME, Machine, cache, machine, made_machine, require_root, wait_for

__all__ = ("cache", "machine")

POOL: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


@define(kw_only=True)
class Pool:
    """The host's pool of 2 MiB pages, by what it differs from the beginning of the test."""

    before: int
    written: bool = False

    def total(self) -> int:
        """Give the pages of the pool."""
        return int((POOL / "nr_hugepages").read_text())

    def gained(self) -> int:
        """Give the pages that came since the beginning."""
        return self.total() - self.before

    def settled(self) -> int:
        """Give the pages that stayed: others on this host may take some for a moment, what we forget stays for good."""
        with suppress(AssertionError):
            wait_for("the pool is as before", lambda: self.gained() == 0, 15)
        return self.gained()

    def idle(self) -> int:
        """Give the pages that nobody has or was promised."""
        return int((POOL / "free_hugepages").read_text()) - int((POOL / "resv_hugepages").read_text())

    def surplus(self) -> int:
        """Give the pages beyond the total."""
        return int((POOL / "surplus_hugepages").read_text())

    def set(self, pages: int) -> None:
        """Write the total, as an administrator does."""
        (POOL / "nr_hugepages").write_text(str(pages))
        self.written = True


@pytest.fixture
def pool(machine: Machine) -> Iterator[Pool]:
    """Give the pool, which is nobody else's meanwhile; all VMs of the test are ended before it is put back."""
    lock = os.open(POOL, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found = Pool(before=int((POOL / "nr_hugepages").read_text()))
    try:
        yield found
    finally:
        give_back(machine)
        if found.written:
            found.set(found.before)
        os.close(lock)


def give_back(machine: Machine) -> None:
    """End all that runs in a machine, and have kvmlaunch take back, by delta, what the test left on the host."""
    for pid in machine.processes():
        machine.kill(pid)
    for journal in machine.journals():
        name = journal.removesuffix(".json").partition("-")[2]
        machine.run("down", name)
        machine.run("preflight", name, "--undo")
        machine.run("preflight", name, "--undo", "--user", HER_NAME)
    machine.close()


@pytest.fixture
def shared_machine(tmp_path: Path, cache: Path) -> Iterator[Machine]:
    """Give a machine that alice can use too."""
    require_root()
    with made_machine(tmp_path, cache, users=True) as made:
        yield made
