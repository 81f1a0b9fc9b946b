"""`up --foreground`: QEMU's parent, for service managers."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.sandbox import SECONDS, TINY, Machine, Process, finish, is_alive, wait_for

STUBBORN = f'{TINY}[lifecycle]\nstop_timeout = "1s"\n'  # the firmware does not look at the power button


@contextmanager
def service(machine: Machine, *more: str) -> Iterator[tuple[Process, socket.socket]]:
    """Start the VM as a service manager does; gives the process and the socket on which it reports."""
    path = machine.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(SECONDS)
        process = machine.start("kvmlaunch", "up", "web", "--foreground", *more, env={"NOTIFY_SOCKET": str(path)})
        yield process, manager


def test_a_service_manager_is_told_when_the_vm_is_verified_and_its_pid(machine: Machine) -> None:
    machine.define("web")

    with service(machine, "--paused") as (process, manager):
        message = manager.recv(4096).decode().splitlines()
        pid = machine.pid("web")

        assert "READY=1" in message
        assert any(line.startswith("STATUS=") and line.endswith(f"pid {pid}") for line in message)
        assert process.poll() is None


def test_sigterm_presses_the_power_button_and_then_ends_a_guest_that_ignores_it(machine: Machine) -> None:
    machine.define("web", STUBBORN)

    with service(machine) as (process, manager):
        manager.recv(4096)
        pressed = machine.pid("web")
        process.terminate()
        stopping = manager.recv(4096)
        result = finish(process)

    assert stopping == b"STOPPING=1"
    assert result.code == 0, result.err
    assert "powerdown" in result.err
    assert not is_alive(pressed)
    assert machine.leftovers() == []


def test_a_service_manager_that_does_not_listen_costs_no_vm(machine: Machine) -> None:
    machine.define("web", STUBBORN)
    process = machine.start("kvmlaunch", "up", "web", "--foreground", env={"NOTIFY_SOCKET": "/nonexistent/notify"})
    wait_for("it stays", lambda: machine.status("web")["state"] == "running")

    process.terminate()
    result = finish(process)

    assert (result.code, "internal.bug" in result.codes) == (0, False), result.err
    assert machine.leftovers() == []


def test_a_signal_as_the_start_ends_is_the_vms(machine: Machine) -> None:
    machine.define("web", STUBBORN)

    process = machine.start("kvmlaunch", "up", "web", "--foreground")
    written = machine.rundir("web") / "record.json"
    wait_for("it is written down", lambda: written.exists() and '"running"' in written.read_text())
    process.terminate()
    result = finish(process)

    assert result.code == 0, result.err
    assert machine.leftovers() == []


def test_the_end_and_the_guests_readiness_are_not_waited_for_together(machine: Machine) -> None:
    machine.define("web")

    assert machine.run("up", "web", "--foreground", "--wait", "ready").code == 2


def test_down_ends_a_vm_in_the_foreground_and_both_commands_succeed(machine: Machine) -> None:
    machine.define("web")

    with service(machine) as (process, manager):
        manager.recv(4096)
        ended = machine.run("down", "web", "--force", "--timeout", "10ms")
        result = finish(process)

    assert ended.code == 0, ended.err
    assert result.code == 0, result.err
    assert machine.leftovers() == []


def test_a_qemu_that_is_killed_ends_the_foreground_with_the_reason(machine: Machine) -> None:
    machine.define("web")

    with service(machine) as (process, manager):
        manager.recv(4096)
        machine.kill(machine.pid("web"))
        result = finish(process)

    assert result.code == 9
    assert result.codes >= {"qemu.signal.kill"}
    assert machine.leftovers() == []


def test_a_qemu_that_is_killed_while_its_guest_powers_down_is_no_clean_end(machine: Machine) -> None:
    machine.define("web")

    with service(machine) as (process, manager):
        manager.recv(4096)
        process.terminate()
        manager.recv(4096)
        machine.kill(machine.pid("web"))
        result = finish(process)

    assert result.code == 9
    assert result.codes >= {"qemu.signal.kill"}
    assert machine.leftovers() == []


def test_a_foreground_that_is_killed_leaves_the_vm_running(machine: Machine) -> None:
    machine.define("web")

    with service(machine) as (process, manager):
        manager.recv(4096)
        pid = machine.pid("web")
        process.kill()
        finish(process)

    assert machine.status("web")["pid"] == pid
    machine.end("web")
    assert machine.leftovers() == []


def test_a_start_that_fails_never_reports_ready(machine: Machine) -> None:
    machine.define("web")

    with service(machine, "--set", f"qemu.binary={machine.fake('refuses')}") as (process, manager):
        result = finish(process)
        manager.settimeout(0)
        try:
            said = manager.recv(4096)
        except BlockingIOError:
            said = b""

    assert result.code == 9
    assert b"READY" not in said


def test_two_vms_cannot_share_the_foreground(machine: Machine) -> None:
    machine.define("web")

    result = machine.run("up", "web", "web2", "--foreground")

    assert result.code == 2


def test_a_foreground_cannot_adopt_a_vm_that_runs_already(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    result = machine.run("up", "web", "--foreground")

    assert result.code == 7
    assert result.codes >= {"vm.state"}
    wait_for("it runs on", machine.qemus)
    machine.kill(machine.pid("web"), signal.SIGTERM)
