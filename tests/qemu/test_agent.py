"""The agent's channel without a guest: nobody answers, or somebody who hangs, lies, or is another process."""

import json
import os
import signal
import socket
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from threading import Event, Thread
from typing import Final

import pytest

from kvmlaunch.cli.snapshot import snapshot
from kvmlaunch.errors import Busy, HostFailed, KvmlaunchError, NotRunning, TimedOut
from kvmlaunch.facts.agent import LONGEST_ANSWER, Interface, Query
from kvmlaunch.model.lifecycle import VmState
from kvmlaunch.model.plan import Places
from kvmlaunch.run.agent import ask_agent
from kvmlaunch.run.qmp import Target
from kvmlaunch.steps import agent, disk_settle, disk_snapshot
from kvmlaunch.steps.agent import Rest, addresses, ask_shutdown, follow, frozen_guest
from kvmlaunch.steps.disk_snapshot import Taken
from kvmlaunch.steps.observe import Seen
from tests.sandbox import RUN, SECONDS, TINY, Machine, wait_for

AGENT: Final = "[guest_agent]\nenabled = true\n"
# A channel that counts as opened by the guest from the start, as a serial port's does: nobody will ever answer on it.
MUTE: Final = f"""
[raw]
args = [
    "-chardev", "socket,id=qga,path={RUN}/web/qga.sock,server=on,wait=off",
    "-device", "isa-serial,chardev=qga",
]
"""
SOON: Final = 0.3  # seconds, for what never comes
PING: Final[Query] = ("guest-ping", {})
HELLO: Final[Query] = ("guest-info", {})
PONG: Final = b'{"return": {}}\n'
GREETING: Final = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'

Behaviour = Callable[[socket.socket], object]


def start(machine: Machine, more: str = "") -> None:
    """Start a VM that stays at its firmware."""
    machine.define("web", f"{TINY}{more}")
    machine.ok("up", "web", "--paused")


def test_a_guest_that_has_not_opened_its_channel_has_no_agent(machine: Machine) -> None:
    start(machine, AGENT)

    told = machine.run("exec", "web", "--", "true")
    document = machine.run("exec", "web", "--json", "--", "true")

    assert (told.code, told.codes) == (3, {"agent.missing"})
    assert "no agent listens in web" in told.err
    assert (document.code, document.out) == (3, "")
    assert (document.error["code"], document.error["vm"]) == ("agent.missing", "web")


def test_a_vm_without_the_table_has_no_channel(machine: Machine) -> None:
    start(machine)

    result = machine.run("exec", "web", "--", "true")

    assert (result.code, result.codes) == (3, {"agent.missing"})
    assert "guest_agent" in result.err
    assert "enabled = true" in result.err


def test_a_command_for_a_vm_that_does_not_run_or_exist_or_no_command_is_refused(machine: Machine) -> None:
    machine.define("web", f"{TINY}{AGENT}")

    stopped = machine.run("exec", "web", "--", "true")
    unknown = machine.run("exec", "nobody", "--", "true")
    nothing = machine.run("exec", "web", "--")

    assert (stopped.code, stopped.codes) == (3, {"vm.stopped"})
    assert (unknown.code, unknown.codes) == (4, {"vm.unknown"})
    assert nothing.code == 2
    assert "COMMAND" in nothing.err


def test_an_agent_that_does_not_answer_is_told_by_exec_and_passed_over_by_status(machine: Machine) -> None:
    start(machine, MUTE)

    told = machine.run("exec", "web", "--", "true")
    seen = machine.run("status", "web", "--json")

    assert (told.code, told.codes) == (8, {"agent.timeout"})
    assert seen.code == 0
    assert seen.json["vms"][0]["addresses"] == []


def test_another_process_that_holds_the_channel_is_told_nothing(machine: Machine) -> None:
    start(machine, MUTE)
    path = machine.rundir("web") / "qga.sock"
    path.unlink()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        result = machine.run("exec", "web", "--", "true")
        connection, _ = listener.accept()
        with connection:
            heard = connection.recv(1)

    assert (result.code, result.codes) == (7, {"qmp.identity"})
    assert str(os.getpid()) in result.err
    assert heard == b""


def test_a_channel_at_which_nobody_listens_any_more_is_an_error_that_names_it(machine: Machine) -> None:
    start(machine, MUTE)
    path = machine.rundir("web") / "qga.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))

    result = machine.run("exec", "web", "--", "true")

    assert result.code in {1, 3}
    assert "internal.bug" not in result.codes
    assert "qga.sock" in result.err
    assert "monitor" not in result.err


def test_a_paused_guest_is_let_run_before_anybody_waits_for_its_agent(machine: Machine) -> None:
    start(machine, MUTE)

    ended = machine.ok("down", "web", "--force", "--timeout", "2s")

    before, resumed, _ = ended.err.partition("resumed")
    assert resumed
    assert "was asked" not in before
    assert machine.leftovers() == []


def test_a_snapshot_of_a_guest_that_stands_still_waits_for_no_agent(machine: Machine) -> None:
    machine.define("web", f"{TINY}{MUTE}", image=True)
    machine.ok("up", "web", "--paused")

    made = machine.ok("disk", "snapshot", "create", "web", "s1")

    assert "agent.timeout" not in made.err
    assert "its vCPUs do not run" in made.err


def test_a_snapshot_whose_guest_may_be_held_still_has_failed_though_it_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = Taken(name="s1", targets=(), live=True, rest=Rest(count=3, stuck="the guest's agent does not answer"))
    monkeypatch.setattr(disk_snapshot, "take", lambda *_, **__: kept)
    monkeypatch.setattr(disk_settle, "settle", lambda *_: None)

    with pytest.raises(TimedOut) as failed:
        snapshot.main(["create", "web", "s1"], standalone_mode=False)

    assert failed.value.report.code == "agent.timeout"
    assert "the snapshot is kept" in failed.value.report.message
    assert "fsfreeze --unfreeze" in failed.value.report.hint


def test_an_agent_that_does_not_answer_is_not_said_to_have_been_asked(machine: Machine) -> None:
    machine.define("web", f"{TINY}{MUTE}")
    machine.ok("up", "web")

    ended = machine.ok("down", "web", "--force", "--timeout", "2s")

    assert "the agent in the guest was asked" not in ended.err
    assert "power button" in ended.err
    assert machine.leftovers() == []


@contextmanager
def listening(path: Path, behave: Behaviour) -> Iterator[Target]:
    """Give a channel whose clients meet a behaviour, one after the other, in a thread of the test's."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    behave(connection)

    thread = Thread(target=serve)
    thread.start()
    try:
        yield Target(path=PurePosixPath(path), pid=os.getpid())
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS)
        listener.close()
        assert not thread.is_alive()


def hang(connection: socket.socket) -> None:
    """Read until the client goes away, and say nothing."""
    while connection.recv(1 << 16):
        pass


def read_query(connection: socket.socket) -> dict[str, object]:
    """Give a client's next query; raises BrokenPipeError when it has gone."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise BrokenPipeError
        line += byte
    query: dict[str, object] = json.loads(line.lstrip(b"\xff"))
    return query


def sync(connection: socket.socket, more: int = 0) -> None:
    """Answer a client's synchronisation, with its token and something more."""
    arguments = read_query(connection)["arguments"]
    assert isinstance(arguments, dict)
    connection.sendall(b'\xff{"return": %d}\n' % (arguments["id"] + more))


def answering(*answers: bytes, heard: list[object] | None = None) -> Behaviour:
    """Give an agent that answers each client's queries so, in order, notes them, and then says nothing more."""

    def behave(connection: socket.socket) -> None:
        sync(connection)
        for answer in answers:
            query = read_query(connection)
            if heard is not None:
                heard.append(query["execute"])
            connection.sendall(answer)
        hang(connection)

    return behave


def saying(*chunks: bytes) -> Behaviour:
    """Give an agent that answers the synchronisation, and then says something without being asked."""

    def behave(connection: socket.socket) -> None:
        sync(connection)
        for chunk in chunks:
            connection.sendall(chunk)
        hang(connection)

    return behave


def failure(target: Target, queries: Sequence[Query] = (PING,), seconds: float = SECONDS) -> KvmlaunchError:
    """Give the error of an agent that is asked."""
    with pytest.raises(KvmlaunchError) as caught:
        ask_agent(target, queries, seconds=seconds)
    return caught.value


def test_an_agent_is_asked_one_query_after_the_other(tmp_path: Path) -> None:
    heard: list[object] = []

    with listening(tmp_path / "qga.sock", answering(PONG, b'{"return": {"version": "7.2"}}\n', heard=heard)) as target:
        answers = ask_agent(target, (PING, HELLO), seconds=SECONDS)

    assert answers == [{}, {"version": "7.2"}]
    assert heard == ["guest-ping", "guest-info"]


def test_an_agent_that_hangs_is_told_to_hang(tmp_path: Path) -> None:
    with listening(tmp_path / "qga.sock", hang) as target:
        silent = failure(target, seconds=SOON)
    with listening(tmp_path / "began.sock", saying(b'{"return": ')) as target:
        began = failure(target, seconds=SOON)

    assert isinstance(silent, TimedOut)
    assert silent.report.code == "agent.timeout"
    assert "it said nothing" in silent.report.why
    assert isinstance(began, TimedOut)
    assert "it began to answer" in began.report.why


def test_an_agent_that_never_reads_is_told_to_hang_however_much_it_is_told(tmp_path: Path) -> None:
    over = Event()

    with listening(tmp_path / "qga.sock", lambda _: over.wait(SECONDS)) as target:
        error = failure(target, (("guest-exec", {"input-data": "x" * (8 << 20)}),), seconds=SOON)
        over.set()

    assert isinstance(error, TimedOut)
    assert error.report.code == "agent.timeout"


def test_an_agent_that_tells_another_token_is_not_the_one_that_was_asked(tmp_path: Path) -> None:
    def lie(connection: socket.socket) -> None:
        sync(connection, 1)
        connection.sendall(PONG)
        hang(connection)

    with listening(tmp_path / "qga.sock", lie) as target:
        error = failure(target, seconds=SOON)

    assert isinstance(error, TimedOut)
    assert error.report.code == "agent.timeout"


def test_an_agent_that_drips_bytes_for_ever_meets_the_deadline(tmp_path: Path) -> None:
    over = Event()

    def drip(connection: socket.socket) -> None:
        sync(connection)
        while not over.wait(0.01):
            connection.sendall(b"x")

    with listening(tmp_path / "qga.sock", drip) as target:
        error = failure(target, seconds=SOON)
        over.set()

    assert isinstance(error, TimedOut)
    assert error.report.code == "agent.timeout"


@pytest.mark.parametrize("noise", [b"SSH-2.0-OpenSSH\r\n", b"\n", b"\xff\xfe\x00\n", b"{}\n", b"[" * 100_000 + b"\n"])
def test_an_agent_that_says_what_is_no_answer_is_an_error(tmp_path: Path, noise: bytes) -> None:
    with listening(tmp_path / "qga.sock", saying(noise)) as target:
        error = failure(target)

    assert isinstance(error, HostFailed)
    assert error.report.code == "agent.error"
    assert "guest-ping" in error.report.why


def test_an_agent_that_refuses_is_an_error_in_its_words(tmp_path: Path) -> None:
    with listening(tmp_path / "qga.sock", answering(b'{"error": {"desc": "The command is disabled"}}\n')) as target:
        error = failure(target)

    assert isinstance(error, HostFailed)
    assert error.report.code == "agent.error"
    assert "The command is disabled" in error.report.message


def test_an_answer_that_never_ends_is_given_up_before_it_fills_the_memory(tmp_path: Path) -> None:
    with listening(tmp_path / "qga.sock", saying(*[b"x" * (1 << 20)] * 100)) as target:
        tracemalloc.start()
        error = failure(target)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert isinstance(error, HostFailed)
    assert error.report.code == "agent.error"
    assert peak < 3 * LONGEST_ANSWER


def test_an_agent_that_goes_away_in_the_middle_leaves_the_answers_that_came(tmp_path: Path) -> None:
    def leave(connection: socket.socket) -> None:
        sync(connection)
        read_query(connection)
        connection.sendall(PONG)
        read_query(connection)
        connection.sendall(b'{"return": {"version"')

    with listening(tmp_path / "qga.sock", leave) as target:
        answers = ask_agent(target, (PING, HELLO), seconds=SECONDS)

    assert answers == [{}]


def test_an_agent_that_goes_away_unheard_is_an_error(tmp_path: Path) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)  # what is left unread makes the end a reset

    with listening(tmp_path / "qga.sock", reset) as target:
        error = failure(target)

    assert isinstance(error, HostFailed)
    assert error.report.code == "agent.error"
    assert "went away" in error.report.message


def test_a_second_client_waits_until_the_first_has_gone(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "qga.sock", answering(PONG)) as target,
        socket.socket(socket.AF_UNIX) as first,
        ThreadPoolExecutor() as pool,
    ):
        first.connect(str(target.path))
        second = pool.submit(ask_agent, target, (PING,), seconds=SECONDS)
        too_short = failure(target, seconds=SOON)
        waited = not second.done()
        first.close()
        answers = second.result(SECONDS)

    assert isinstance(too_short, TimedOut)
    assert waited
    assert answers == [{}]


def test_a_channel_that_another_process_holds_is_not_asked(tmp_path: Path) -> None:
    heard: list[object] = []

    with listening(tmp_path / "qga.sock", answering(PONG, heard=heard)) as target:
        error = failure(Target(path=target.path, pid=os.getppid()))

    assert isinstance(error, Busy)
    assert error.report.code == "qmp.identity"
    assert heard == []


def test_a_channel_that_nobody_holds_is_one_of_a_vm_that_does_not_run(tmp_path: Path) -> None:
    error = failure(Target(path=PurePosixPath(tmp_path / "qga.sock")))

    assert isinstance(error, NotRunning)


@pytest.mark.parametrize(
    "status",
    [
        b'{"return": {}}\n',
        b'{"return": []}\n',
        b'{"return": {"exited": "yes"}}\n',
        b'{"return": {"exited": true, "out-data": "no base64!"}}\n',
        b'{"return": {"exited": true, "exitcode": "0"}}\n',
    ],
)
def test_a_status_that_is_none_ends_the_wait_for_a_command(tmp_path: Path, status: bytes) -> None:
    with listening(tmp_path / "qga.sock", answering(status)) as target, pytest.raises(HostFailed) as caught:
        follow(target, 7, "true", float("inf"))

    assert caught.value.report.code == "agent.error"


@contextmanager
def guest(place: Path, behave: Behaviour) -> Iterator[Seen]:
    """Give a VM as it would be seen, with a monitor that says its channel is open and an agent of the test's."""

    def tell(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        read_query(connection)
        connection.sendall(b'{"return": {}}\r\n')
        answers: dict[object, bytes] = {
            "query-status": b'{"return": {"status": "running", "running": true}}\r\n',
            "query-chardev": b'{"return": [{"label": "qga", "frontend-open": true}]}\r\n',
        }
        connection.sendall(answers[read_query(connection)["execute"]])
        hang(connection)

    run = PurePosixPath(place)
    places = Places(run=run, hugepages=run, state=run, logs=run)
    with listening(place / "qmp.sock", tell), listening(place / "qga.sock", behave):
        yield Seen(name="web", places=places, state=VmState.RUNNING, pid=os.getpid())


def test_a_guests_addresses_are_those_that_it_tells_and_none_when_it_refuses(tmp_path: Path) -> None:
    answer = b'{"return": [{"name": "eth0", "ip-addresses": [{"ip-address": "192.0.2.1", "prefix": 24}]}]}\n'
    for name in ("told", "refused"):
        (tmp_path / name).mkdir()

    with guest(tmp_path / "told", answering(answer)) as seen:
        told = addresses(seen, SECONDS)
    with guest(tmp_path / "refused", answering(b'{"error": {"desc": "disabled"}}\n')) as seen:
        refused = addresses(seen, SECONDS)

    assert told == (Interface(name="eth0", addresses=("192.0.2.1/24",)),)
    assert refused == ()


def test_a_shutdown_that_is_refused_is_an_error(tmp_path: Path) -> None:
    with guest(tmp_path, answering(b'{"error": {"desc": "disabled"}}\n')) as seen, pytest.raises(HostFailed) as caught:
        ask_shutdown(seen)

    assert caught.value.report.code == "agent.error"


def test_a_shutdown_is_asked_for_though_nobody_answers_to_it(tmp_path: Path) -> None:
    heard: list[object] = []

    with guest(tmp_path, answering(b"", heard=heard)) as seen:
        asked = ask_shutdown(seen)

    assert asked
    assert heard == ["guest-shutdown"]


def test_file_systems_are_held_still_for_a_while_and_let_go(tmp_path: Path) -> None:
    heard: list[object] = []

    with guest(tmp_path, answering(b'{"return": 2}\n', heard=heard)) as seen, frozen_guest(seen) as count:
        meanwhile = list(heard)

    assert count.count == 2
    assert meanwhile == ["guest-fsfreeze-freeze"]
    assert heard == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


def test_file_systems_are_let_go_though_the_command_is_killed(tmp_path: Path) -> None:
    heard: list[object] = []

    with guest(tmp_path, answering(b'{"return": 2}\n', heard=heard)) as seen:
        child = os.fork()
        if child == 0:
            with frozen_guest(seen):
                os.kill(os.getpid(), signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        wait_for("they are let go", lambda: heard == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"])

    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_file_systems_are_let_go_whatever_was_done_meanwhile(tmp_path: Path) -> None:
    heard: list[object] = []

    with (
        guest(tmp_path, answering(b'{"return": 2}\n', heard=heard)) as seen,
        pytest.raises(ZeroDivisionError),
        frozen_guest(seen),
    ):
        raise ZeroDivisionError

    assert heard == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


def test_file_systems_that_are_not_to_be_held_are_let_go_and_it_is_told_why(tmp_path: Path) -> None:
    heard: list[object] = []
    refusal = b'{"error": {"desc": "failed to freeze /srv"}}\n'

    with (
        guest(tmp_path, answering(refusal, heard=heard)) as seen,
        pytest.raises(HostFailed, match="failed to freeze /srv") as caught,
        frozen_guest(seen),
    ):
        pytest.fail("it was not frozen")

    assert "held" not in caught.value.report.why + caught.value.report.hint

    assert [word for word in heard if word != "guest-fsfreeze-thaw"] == ["guest-fsfreeze-freeze"] * 2
    assert heard[-1] == "guest-fsfreeze-thaw"


def test_file_systems_are_let_go_though_letting_them_go_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []
    pid = os.getpid()

    def interrupted(target: Target, words: Sequence[Query], *, seconds: float) -> list[object]:
        if os.getpid() == pid and words and words[0][0] == "guest-fsfreeze-thaw":
            raise KeyboardInterrupt
        return ask_agent(target, words, seconds=seconds)

    monkeypatch.setattr(agent, "ask_agent", interrupted)
    with guest(tmp_path, answering(b'{"return": 2}\n', heard=heard)) as seen:
        with pytest.raises(KeyboardInterrupt), frozen_guest(seen):
            pass
        wait_for("they are let go", lambda: heard == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"])


def test_an_agent_that_hangs_in_the_middle_may_hold_them_still_which_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "FREEZE_SECONDS", SOON)
    monkeypatch.setattr(agent, "THAW_SECONDS", SOON)

    with guest(tmp_path, answering(b"")) as seen, pytest.raises(TimedOut) as caught, frozen_guest(seen):
        pytest.fail("it was not frozen")

    assert "may still be held" in caught.value.report.why
    assert "fsfreeze --unfreeze" in caught.value.report.hint


def test_an_agent_that_hangs_is_not_asked_to_hold_anything_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "SECONDS", SOON)

    with guest(tmp_path, hang) as seen, pytest.raises(TimedOut) as caught, frozen_guest(seen):
        pytest.fail("it was not frozen")

    assert (caught.value.report.code, "--no-freeze" in caught.value.report.hint) == ("agent.timeout", True)
