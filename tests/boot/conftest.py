"""The demo's guest, built once, and machines to boot it in."""

import base64
import shutil
import subprocess  # noqa: TID253 - the guest is built by a script
from collections.abc import Callable
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
size = "128MiB"
hugepages = "off"
[boot]
kernel = "{built}/web01.vmlinuz"
initrd = "{built}/web01.initrd"
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
NO_NETWORK: Final = """
[network.lan]
type = "none"
"""

Define = Callable[..., None]


@pytest.fixture(scope="session")
def built() -> Path:
    """Give the directory with the guest's kernel, initramfs and disk."""
    words = [str(ROOT / "tests" / "guest" / "build.sh"), str(BUILT), "agent"]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)  # noqa: S603 - our script
    assert result.returncode == 0, result.stderr
    return BUILT


@pytest.fixture
def define(machine: Machine, built: Path) -> Define:
    """Give what writes a guest's definition: words of its kernel command line, a script that it runs, more tables."""

    def write(
        append: str = "", script: str = "", more: str = NO_NETWORK, disk: str = DISK, lifecycle: str = ""
    ) -> None:
        run = f" kvmlaunch.run={base64.b64encode(script.encode()).decode()}" if script else ""
        text = GUEST.format(
            built=built, append=f"{append and ' '}{append}{run}", lifecycle=lifecycle, more=f"{more}{disk}"
        )
        machine.define("web", text)
        if disk:
            shutil.copyfile(built / "web01.img", machine.directory / "vmdefs" / "web.img")

    return write
