"""The demo's guest, built once, and machines to boot it in."""

import base64
import shutil
import subprocess  # noqa: TID253 - the guest is built by a script
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.sandbox import ROOT, Machine, cache, machine

__all__ = ("cache", "machine")

BUILT: Final = ROOT / ".cache" / "boot-guest"
GUEST: Final = """
vcpus = 1
accel = "tcg"
[memory]
size = "{memory}"
hugepages = "off"
[boot]
kernel = "{built}/web01.vmlinuz"
initrd = "{initrd}"
append = "console=ttyS0 quiet{append}"
[lifecycle]
ready = "console:guest: ready"
start_timeout = "120s"
stop_timeout = "60s"
{lifecycle}
{more}
"""
DISK: Final = """
[disk.root]
path = "web.img"
"""
AGENT: Final = """
[guest_agent]
enabled = true
"""
NO_NETWORK: Final = """
[network.lan]
type = "none"
"""

Define = Callable[..., None]


def build_guest(extra: str) -> Path:
    """Build the guest and something beside it, where that is not there; gives their directory."""
    words = [str(ROOT / "tests" / "guest" / "build.sh"), str(BUILT), extra]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)  # noqa: S603 - our script
    assert result.returncode == 0, result.stderr
    return BUILT


@pytest.fixture(scope="session")
def built() -> Path:
    """Give the directory with the guest's kernel, initramfs and disk."""
    return build_guest("agent")


def with_agent(machine: Machine, built: Path) -> Path:
    """Give an initramfs that has the agent too: the kernel unpacks one archive after the other."""
    path = machine.directory / "agent.initrd"
    path.write_bytes(b"".join((built / name).read_bytes() for name in ("web01.initrd", "agent.cpio.gz")))
    return path


def write_guest(
    machine: Machine,
    built: Path,
    *,
    append: str = "",
    script: str = "",
    more: str = NO_NETWORK,
    disk: str = DISK,
    lifecycle: str = "",
    agent: bool = False,
) -> None:
    """Write a guest's definition: words of its kernel command line, a script that it runs, more tables.

    With `agent` it has the channel, and the agent's programs, which the script is to start.
    """
    run = f" kvmlaunch.run={base64.b64encode(script.encode()).decode()}" if script else ""
    text = GUEST.format(
        built=built,
        memory="160MiB" if agent else "128MiB",
        initrd=with_agent(machine, built) if agent else built / "web01.initrd",
        append=f"{append and ' '}{append}{run}",
        lifecycle=lifecycle,
        more=f"{more}{AGENT if agent else ''}{disk}",
    )
    machine.define("web", text)
    if disk:
        shutil.copyfile(built / "web01.img", machine.directory / "vmdefs" / "web.img")


@pytest.fixture
def define(machine: Machine, built: Path) -> Define:
    """Give what writes the definition of a guest in the test's machine."""
    return partial(write_guest, machine, built)
