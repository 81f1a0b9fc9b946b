"""A directory of the host, mounted by a real guest over virtiofs."""

import os

from tests.boot.conftest import NO_NETWORK, Define
from tests.sandbox import Machine, cmdline, wait_for

SHARE = '\n[share.data]\npath = "shared"\n'
SCRIPT = """
mkdir -p /mnt
mount -t virtiofs data /mnt
cat /mnt/file
echo back >/mnt/guest
umount /mnt
"""


def daemons(machine: Machine) -> list[int]:
    """Give the pids of the daemons of shares, which have left the machine's namespaces for their own."""
    source = f"source={machine.directory}".encode()
    return [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and source in cmdline(int(pid))]


def test_the_guest_reads_and_writes_the_hosts_directory_and_the_daemon_ends_with_it(
    machine: Machine, define: Define
) -> None:
    define(script=SCRIPT, more=f"{NO_NETWORK}{SHARE}")
    shared = machine.directory / "vmdefs/shared"
    shared.mkdir()
    (shared / "file").write_text("words of the host\n")

    machine.ok("up", "web", "--wait", "ready")
    during = daemons(machine)
    machine.ok("down", "web")
    wait_for("the daemon has ended", lambda: not daemons(machine))

    assert "words of the host" in machine.ok("logs", "web").out
    assert (shared / "guest").read_text() == "back\n"
    assert during
    assert machine.leftovers() == []
