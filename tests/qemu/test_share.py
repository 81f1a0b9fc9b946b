"""Shares: the daemon beside QEMU, memory that it maps, and 9p where it cannot be had."""

import os
import signal

import pytest

from tests.sandbox import TINY, Machine, cmdline, wait_for

SHARE = f'{TINY}[share.data]\npath = "shared"\n'


def daemons(machine: Machine) -> list[int]:
    """Give the pids of the daemons of shares, which have left the machine's namespaces for their own."""
    source = f"source={machine.directory}".encode()
    return [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and source in cmdline(int(pid))]


@pytest.fixture
def sharing(machine: Machine) -> Machine:
    """Give a machine with a directory to share."""
    machine.define("web", SHARE)
    (machine.directory / "vmdefs/shared").mkdir()
    return machine


def test_the_memory_is_shared_with_a_daemon_that_ends_with_qemu(sharing: Machine) -> None:
    sharing.ok("up", "web", "--paused")
    argv, during = sharing.ok("print-cmd", "web").out, daemons(sharing)
    sharing.end("web")
    wait_for("the daemon has ended", lambda: not daemons(sharing))

    assert "memory-backend-memfd,id=mem0" in argv
    assert "share=on" in argv
    assert during
    assert sharing.leftovers() == []


def test_a_start_that_fails_leaves_no_daemon(sharing: Machine) -> None:
    sharing.define("web", f'{SHARE}[raw]\nargs = ["-device", "no-such-device"]\n')

    failed = sharing.run("up", "web")

    assert failed.code == 9, failed.err
    assert daemons(sharing) == []
    assert sharing.leftovers() == []


def test_a_launcher_that_is_killed_leaves_a_daemon_that_the_next_command_ends(sharing: Machine) -> None:
    sharing.ok("up", "web", "--paused")
    os.kill(sharing.pid("web"), signal.SIGKILL)

    sharing.ok("down", "web")

    wait_for("the daemon has ended", lambda: not daemons(sharing))
    assert sharing.leftovers() == []


def test_nine_is_taken_where_it_is_asked_for_and_for_what_is_only_read(sharing: Machine) -> None:
    asked = sharing.ok("print-cmd", "web", "--set", "share.data.type=9p")
    reading = sharing.ok("print-cmd", "web", "--set", "share.data.readonly=true")

    assert "virtio-9p-pci" in asked.out
    assert "share.nine" not in asked.codes
    assert "readonly=on" in reading.out
    assert "share.nine" in reading.codes
