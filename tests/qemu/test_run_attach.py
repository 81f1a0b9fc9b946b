"""`console`, `logs`, `monitor`, `pause`, `resume`, `reset`: talking to a VM that runs."""

import os
import pty
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from attrs import frozen

from tests.sandbox import RUN, SECONDS, TINY, Machine, Process, finish, is_alive, wait_for

ESCAPE = b"\x1d"


@frozen(kw_only=True)
class Terminal:
    """A pseudo-terminal with `console` on it."""

    fd: int
    process: Process

    def read_until(self, text: bytes) -> bytes:
        """Give what was shown up to a text that must appear."""
        seen, deadline = b"", time.monotonic() + SECONDS
        while text not in seen:
            assert time.monotonic() < deadline, f"{text!r} did not appear in {seen!r}"
            if select.select([self.fd], [], [], 0.5)[0]:
                seen += os.read(self.fd, 4096)
        return seen

    def type(self, text: bytes) -> None:
        """Type something."""
        os.write(self.fd, text)


@contextmanager
def terminal(machine: Machine, *words: str) -> Iterator[Terminal]:
    """Give a terminal in which kvmlaunch runs."""
    outer, inner = pty.openpty()
    with os.fdopen(inner, "w") as stream:
        process = machine.start("kvmlaunch", *words, stdin=stream, out=stream)
    try:
        yield Terminal(fd=outer, process=process)
    finally:
        process.kill()
        process.wait()
        os.close(outer)


def console_of(machine: Machine) -> None:
    """Start a VM that stays at its firmware."""
    machine.define("web")
    machine.ok("up", "web", "--paused")


def test_the_console_connects_and_its_escape_leaves_the_vm_running(machine: Machine) -> None:
    console_of(machine)

    with terminal(machine, "console", "web") as screen:
        screen.read_until(b"connected")
        screen.type(b"hello" + ESCAPE)
        screen.read_until(b"left; the VM runs on")
        code = screen.process.wait(SECONDS)

    assert code == 0
    assert machine.status("web")["pid"]


def test_another_escape_can_be_chosen(machine: Machine) -> None:
    console_of(machine)

    with terminal(machine, "console", "web", "--escape", "^A") as screen:
        screen.read_until(b"connected")
        screen.type(ESCAPE + b"\x01")
        screen.read_until(b"left; the VM runs on")

        assert screen.process.wait(SECONDS) == 0


def test_a_second_console_is_refused_at_once_naming_the_first(machine: Machine) -> None:
    console_of(machine)

    with terminal(machine, "console", "web") as screen:
        screen.read_until(b"connected")
        wait_for("it holds the console", lambda: machine.run("console", "web").code == 7)
        second = machine.run("console", "web")
        screen.type(ESCAPE)
        screen.process.wait(SECONDS)
    third = machine.start("kvmlaunch", "console", "web")

    assert (second.code, second.codes) == (7, {"vm.console.busy"})
    assert str(screen.process.pid) in second.err
    assert finish(third).code == 0


def test_the_console_ends_when_the_vm_does(machine: Machine) -> None:
    console_of(machine)

    with terminal(machine, "console", "web") as screen:
        screen.read_until(b"connected")
        machine.kill(machine.pid("web"))
        screen.read_until(b"the VM ended")

        assert screen.process.wait(SECONDS) == 0


def console_of_the_test(machine: Machine) -> socket.socket:
    """Give a listener that stands where the console of a running VM was."""
    console_of(machine)
    path = machine.rundir("web") / "console.sock"
    for name in (path, path.with_name("tty-own.sock")):
        name.unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(SECONDS)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_vm_that_ends_before_it_took_the_connection_has_ended(machine: Machine) -> None:
    with console_of_the_test(machine) as listener, terminal(machine, "console", "web") as screen:
        screen.read_until(b"connected")
        listener.close()
        screen.read_until(b"the VM ended")

        assert screen.process.wait(SECONDS) == 0


def test_a_console_at_which_nobody_listens_any_more_is_refused(machine: Machine) -> None:
    console_of_the_test(machine).close()
    refused = machine.run("console", "web")

    assert (refused.code, refused.codes) == (7, {"vm.state"})
    assert "removed or replaced" in refused.err


def test_bytes_of_the_guest_reach_the_terminal_and_what_is_typed_the_guest(machine: Machine) -> None:
    with console_of_the_test(machine) as listener, terminal(machine, "console", "web") as screen:
        guest, _ = listener.accept()
        with guest:
            guest.settimeout(SECONDS)
            guest.sendall(b"login: \x1b[1m")
            shown = screen.read_until(b"\x1b[1m")
            screen.type(b"root\r\x03")
            typed = b""
            while len(typed) < 6:
                typed += guest.recv(64)
            screen.type(ESCAPE)
            screen.process.wait(SECONDS)

    assert b"login: \x1b[1m" in shown
    assert typed == b"root\r\x03"


def test_a_console_that_nobody_has_is_no_console(machine: Machine) -> None:
    machine.define("web", f"{TINY}[console]\nserial = false\n")
    machine.ok("up", "web", "--paused")

    result = machine.run("console", "web")

    assert (result.code, result.codes) == (7, {"vm.state"})
    assert "console.serial = false" in result.err


def test_a_console_whose_socket_was_removed_is_not_said_to_be_none(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    (machine.rundir("web") / "console.sock").unlink()
    reached = machine.run("console", "web")
    (machine.rundir("web") / "tty-own.sock").unlink()

    result = machine.run("console", "web")

    assert reached.code == 0, reached.err
    assert (result.code, result.codes) == (7, {"vm.state"})
    assert "its socket was removed or replaced" in result.err
    assert "console.serial" not in result.err


@pytest.mark.parametrize("command", ["console", "logs"])
def test_a_vm_that_does_not_run_or_exist_is_said(machine: Machine, command: str) -> None:
    machine.define("web")

    stopped = machine.run(command, "web")
    unknown = machine.run(command, "nobody")

    assert stopped.code == (3 if command == "console" else 0)
    assert unknown.code == 4


def test_pause_and_resume_are_what_qemu_says(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")

    states = []
    for words in (("pause",), ("pause",), ("resume",), ("resume",)):
        machine.ok(*words, "web")
        states.append(machine.status("web")["run_state"])

    assert states == ["paused", "paused", "running", "running"]


def test_reset_restarts_the_guest_in_the_same_process(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")
    pid = machine.pid("web")

    machine.ok("reset", "web")

    assert machine.qemus() == [pid]
    assert machine.status("web")["run_state"] == "running"


def test_the_monitor_answers_and_passes_on_what_qemu_refuses(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    answer = machine.ok("monitor", "web", "query-name", "--json")
    refused = machine.run("monitor", "web", "no-such-command")
    arguments = machine.run("monitor", "web", "query-name", "not json")

    assert answer.json["return"] == {"name": "web"}
    assert refused.code == 1
    assert "no-such-command" in refused.err
    assert arguments.code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("migrate", '{"uri": "exec:cat >/dev/null"}'),
        ("migrate", '{"channels": [{"channel-type": "main", "addr": {"transport": "exec", "args": ["/bin/true"]}}]}'),
        ("human-monitor-command", '{"command-line": "migrate exec:true"}'),
    ],
)
def test_a_command_that_would_run_a_program_is_not_sent(machine: Machine, words: tuple[str, str]) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    refused = machine.run("monitor", "web", *words)

    assert refused.code == 5
    assert is_alive(machine.pid("web"))


def test_logs_hold_what_was_printed_before_and_after_the_end(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    (machine.rundir("web") / "log" / "console.log").write_text("first boot \x1b[2J\x07done\n")

    live = machine.ok("logs", "web")
    raw = machine.ok("logs", "web", "--raw")
    machine.end("web")
    kept = machine.ok("logs", "web")

    assert "first boot" in live.out
    assert "\x1b" not in live.out
    assert "\x07" not in live.out
    assert "\x1b[2J" in raw.out
    assert "first boot" in kept.out


def test_followed_logs_go_on_until_the_vm_ends(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    log = machine.rundir("web") / "log" / "console.log"
    log.write_text("one\n")
    following = machine.start("kvmlaunch", "logs", "web", "-f")
    assert following.stdout
    first = following.stdout.readline()
    with log.open("a") as file:
        file.write("two\n")
    second = following.stdout.readline()

    machine.kill(machine.pid("web"))

    assert (first, second) == ("one\n", "two\n")
    assert finish(following).code == 0


def test_a_full_console_log_is_rotated_by_whatever_command_meets_it(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    live = machine.rundir("web") / "log" / "console.log"
    kept = machine.outside("/var/log/kvmlaunch/web")
    for _ in range(4):
        with live.open("ab") as file:
            file.write(b"x" * (5 << 20))
        machine.ok("status", "web")

    assert live.stat().st_size == 0
    assert sum(path.stat().st_size for path in kept.glob("console.log*")) <= 8 << 20
    assert b"[kvmlaunch: 1048832 bytes before this are not kept]\nxxx" in (kept / "console.log").read_bytes()


def test_what_a_guest_printed_into_a_full_place_is_said_to_be_lost(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    live = machine.rundir("web") / "log" / "console.log"
    with live.open("ab") as file, suppress(OSError):
        while True:
            file.write(b"x" * (1 << 20))
            file.flush()

    machine.ok("status", "web")

    kept = machine.outside("/var/log/kvmlaunch/web/console.log").read_bytes()
    assert kept.endswith(b"xxx\n[kvmlaunch: the place of the log was full: what was printed next is lost]\n")


def test_logs_of_a_terminal_that_goes_away_end_quietly(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    (machine.rundir("web") / "log" / "console.log").write_text("line\n" * 100_000)

    result = machine.execute("sh", "-c", "kvmlaunch logs web | head -n 1")

    assert result.out == "line\n"
    assert "internal.bug" not in result.codes


def test_the_console_of_a_closed_terminal_leaves_the_vm_alone(machine: Machine) -> None:
    console_of(machine)

    with terminal(machine, "console", "web") as screen:
        screen.read_until(b"connected")
        screen.process.send_signal(signal.SIGHUP)
        screen.process.wait(SECONDS)

    assert is_alive(machine.pid("web"))
    assert machine.status("web")["pid"]
    assert f"{RUN}/web" in str(machine.rundir("web"))


def test_who_follows_a_console_reads_its_last_words_after_down(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    follower = machine.start("kvmlaunch", "logs", "-f", "web")
    log = machine.rundir("web") / "log/console.log"
    log.write_text("first\n")
    wait_for("it follows", lambda: any("console.log" in link for link in links_of(follower.pid)))

    follower.send_signal(signal.SIGSTOP)
    with log.open("a") as file:
        file.write("last words\n")
    machine.end("web")
    follower.send_signal(signal.SIGCONT)

    assert "last words" in finish(follower).out


def links_of(pid: int) -> list[str]:
    """Give what the descriptors of a process lead to, those that are gone meanwhile left out."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(each.readlink()))
    return found


# Sleeps by ACPI S3 (SLP_TYP 1 and SLP_EN in PM1a_CNT, at 0x604 on q35) unless a byte of the CMOS says that it did; then
# it runs in a circle.
SLEEPER = bytes.fromhex(
    "b0 7e e6 70 e4 71 3c 5a 74 0f b0 7e e6 70 b0 5a e6 71 ba 04 06 b8 00 24 ef eb fe"
).ljust(510, b"\0") + b"\x55\xaa"  # fmt: skip


@pytest.fixture
def sleeper(machine: Machine) -> Machine:
    """Give a VM whose guest has put itself to sleep."""
    image = machine.directory / "sleeper.img"
    image.write_bytes(SLEEPER.ljust(1 << 20, b"\0"))
    machine.define("web", TINY.replace("[network", f'[disk.root]\npath = "{image}"\nformat = "raw"\n[network'))
    machine.ok("up", "web")
    wait_for("it sleeps", lambda: machine.status("web")["run_state"] == "suspended")
    return machine


def test_a_guest_that_sleeps_is_told_so_and_woken_by_resume(sleeper: Machine) -> None:
    notes = sleeper.status("web")["notes"]
    paused = sleeper.run("pause", "web")
    sleeper.ok("resume", "web")

    assert "it sleeps (ACPI S3): kvmlaunch resume wakes it" in notes
    assert (paused.code, paused.codes) == (7, {"vm.state"})
    assert sleeper.status("web")["run_state"] == "running"


def test_a_reset_lets_a_guest_that_slept_run(sleeper: Machine) -> None:
    sleeper.ok("reset", "web")

    assert sleeper.status("web")["run_state"] == "running"


def test_a_guest_that_sleeps_is_woken_to_hear_the_power_button(sleeper: Machine) -> None:
    down = sleeper.run("down", "web", "--timeout", "1s")

    assert (down.code, down.codes) == (8, {"vm.stop.timeout"})
    assert "it slept (ACPI S3)" in down.err
    assert sleeper.status("web")["run_state"] == "running"
