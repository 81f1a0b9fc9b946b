"""Commands and QEMUs that are killed: the next command sees it right and puts it right."""

import os
import signal
import sys

import pytest

from tests.crashes import Point, describe, killed_at, points, sample
from tests.monitor import monitor_at
from tests.qemu.test_run_identity import paste
from tests.sandbox import Machine, finish, is_alive, wait_for

ENDED = "ended"
FIRST = r"mkdirat\(.*kvmlaunch|flock"


def test_a_killed_qemu_is_seen_as_ended_without_shutting_down(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    machine.kill(machine.pid("web"))
    result = machine.run("status", "web", "--json")

    assert result.code == 3
    assert result.json["vms"][0]["state"] == ENDED
    assert "without shutting down" in result.json["vms"][0]["last_end"]


def test_up_after_a_killed_qemu_heals_and_starts(machine: Machine) -> None:
    machine.define("web", image=True)
    machine.ok("up", "web", "--paused")
    first = machine.pid("web")
    machine.kill(first)

    result = machine.ok("up", "web", "--paused")

    assert "healed" in result.err
    assert machine.qemus() == [machine.pid("web")]
    assert machine.pid("web") != first


def test_down_after_a_killed_qemu_cleans_up(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"))

    machine.ok("down", "web")

    assert machine.leftovers() == []


def test_an_up_of_another_vm_gives_back_what_a_killed_qemu_left_on_the_host(machine: Machine) -> None:
    machine.define("web")
    machine.define("other")
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"))

    machine.ok("up", "other", "--paused")

    assert machine.journals() == ["0-other.json"]
    assert not any("/vm/web/" in path for path in machine.mounts())
    assert "killed" in machine.status("web")["last_end"]
    machine.end("other")
    machine.ok("down", "web")
    assert machine.leftovers() == []


def test_quit_on_the_monitor_is_told_apart_from_a_kill(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    pid = machine.pid("web")

    machine.ok("monitor", "web", "quit")
    wait_for("QEMU has ended", lambda: not is_alive(pid))

    assert "monitor" in machine.status("web")["last_end"]


def test_a_qemu_ended_by_a_signal_is_told_apart_from_a_kill(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    pid = machine.pid("web")

    machine.kill(pid, signal.SIGTERM)
    wait_for("QEMU has ended", lambda: not is_alive(pid))

    assert "signal" in machine.status("web")["last_end"]


def check_healed_by(machine: Machine, verb: str) -> None:
    """Hold what a killed command left against what the next one makes of it."""
    assert machine.run("status", "web").code in {0, 3}
    assert len(machine.qemus()) <= 1
    if verb == "up":
        machine.ok("up", "web")  # a guest that was paused may have been let run, to hear the power button
        assert machine.qemus() == [machine.pid("web")]
    machine.end("web")
    assert machine.leftovers() == []


LINKED = Point("linkat", 1, "after the greeting, before anything was read back")


def test_a_guest_that_runs_without_its_launcher_is_taken_over_by_up(machine: Machine) -> None:
    machine.define("web")
    killed_at(machine, LINKED, "up", "web")
    (pid,) = machine.qemus()
    before = machine.status("web")

    result = machine.ok("up", "web")

    assert before["state"] == "half started"
    assert any("takes it over" in note for note in before["notes"])
    assert "taken over" in result.err
    assert machine.pid("web") == pid
    assert machine.status("web")["state"] == "running"


def test_a_guest_that_runs_without_its_launcher_and_not_as_defined_is_left_alone(machine: Machine) -> None:
    machine.define("web")
    killed_at(machine, LINKED, "up", "web", "--set", "vcpus=2")
    (pid,) = machine.qemus()

    result = machine.run("up", "web")

    assert result.code == 7
    assert result.codes >= {"vm.state"}
    assert is_alive(pid)


def test_down_asks_a_guest_that_runs_without_its_launcher_and_kills_it_only_with_force(machine: Machine) -> None:
    machine.define("web")
    killed_at(machine, LINKED, "up", "web")
    (pid,) = machine.qemus()

    asked = machine.run("down", "web", "--timeout", "300ms")
    alive = is_alive(pid)
    machine.end("web")

    assert asked.code == 8
    assert alive
    assert machine.leftovers() == []


@pytest.mark.parametrize("linked", [True, False])
def test_a_second_qemu_that_took_the_sockets_name_costs_a_half_started_guest_nothing(
    machine: Machine, *, linked: bool
) -> None:
    machine.define("web", image=True)
    places = points(machine, "up", "web", after=r"\blinkat\(", others=1)
    written = next(point for point in places if point.name.startswith("rename") and "record.json" in point.text)
    machine.end("web")
    killed_at(machine, written if linked else LINKED, "up", "web")
    (pid,) = machine.qemus()
    paste(machine, "web").communicate(timeout=60)

    verbs = [machine.run(*words) for words in (("up", "web"), ("down", "web", "--timeout", "300ms"))]

    alive = is_alive(pid)
    if not linked:  # the second name was not there yet: nobody can ask this QEMU any more
        assert [each.code for each in verbs] == [7, 7]
        assert all("--force" in each.err for each in verbs)
    else:
        assert [each.code for each in verbs] == [0, 8]
        assert machine.status("web")["state"] == "running"
    assert alive
    machine.end("web")
    assert machine.leftovers() == []


def test_a_dry_run_over_a_half_started_vm_changes_nothing(machine: Machine) -> None:
    for paused in ((), ("--paused",)):
        machine.define("web", image=True)
        killed_at(machine, LINKED, "up", "web", *paused)
        (pid,) = machine.qemus()
        before = record_of(machine)

        said = machine.ok("up", "web", "-n", *paused)

        assert f"pid {pid}" in said.err
        assert "would" in said.err
        assert (machine.qemus(), record_of(machine)) == ([pid], before)
        machine.end("web")


def record_of(machine: Machine) -> str:
    """Give the text of a VM's record."""
    return (machine.rundir("web") / "record.json").read_text()


def has_run(machine: Machine) -> bool:
    """Has the guest of the one QEMU there is been let run."""
    for name in ("qmp-own.sock", "qmp.sock"):
        if (machine.rundir("web") / name).exists():
            with monitor_at(machine.rundir("web") / name) as qmp:
                return bool(qmp.ask("query-status")["status"] == "running")
    return False


def test_an_up_killed_at_any_call_never_costs_a_guest_that_runs(machine: Machine) -> None:
    machine.define("web", image=True)
    machine.ok("print-cmd", "web")
    words = ("up", "web")
    places = points(machine, *words, after=r"\blinkat\(", others=8)
    machine.end("web")

    for point in sample(places, 4):
        killed_at(machine, point, *words)
        before = machine.qemus()
        ran = bool(before) and has_run(machine)
        machine.ok("up", "web")
        if ran:
            assert machine.qemus() == before, describe(point, words)
        machine.end("web")
        assert machine.leftovers() == [], describe(point, words)


def test_a_guest_that_never_ran_is_ended_without_being_asked(machine: Machine) -> None:
    machine.define("web")
    killed_at(machine, LINKED, "up", "web", "--paused")

    result = machine.ok("down", "web")

    assert "SIGKILL" in result.err
    assert machine.leftovers() == []


def test_up_killed_at_any_call_is_healed_by_the_next_command(machine: Machine) -> None:
    machine.define("web", image=True)
    machine.ok("print-cmd", "web")
    words = ("up", "web", "--paused")
    places = points(machine, *words, after=FIRST, others=14)
    machine.end("web")

    chosen, missed = sample(places, 4), 0
    for index, point in enumerate(chosen):
        result = killed_at(machine, point, *words)
        try:
            if result.code == 0:  # not every run comes to the same number of such calls
                missed += 1
            else:
                assert result.code in {-signal.SIGKILL, 128 + signal.SIGKILL}, result
            check_healed_by(machine, "up" if index % 2 else "down")
        except AssertionError as error:
            error.add_note(describe(point, words))
            raise
    assert missed < len(chosen) // 4


def test_down_killed_at_any_call_is_healed_by_the_next_command(machine: Machine) -> None:
    machine.define("web", image=True)
    machine.ok("up", "web", "--paused")
    words = ("down", "web", "--force", "--timeout", "10ms")
    places = points(machine, *words, after="pidfd_open|connect", others=6)

    for index, point in enumerate(sample(places, 4)):
        machine.ok("up", "web", "--paused")
        killed_at(machine, point, *words)
        try:
            check_healed_by(machine, "up" if index % 2 else "down")
        except AssertionError as error:
            error.add_note(describe(point, words))
            raise


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)], ids=str
)
def test_an_interrupted_up_is_rolled_back(machine: Machine, number: signal.Signals, code: int) -> None:
    machine.define("web")
    process = machine.start("kvmlaunch", "up", "web", "--set", f"qemu.binary={machine.fake('hangs')}")
    wait_for("QEMU was spawned", machine.qemus)

    process.send_signal(number)
    result = finish(process)

    assert result.code == code, result.err
    assert machine.leftovers() == []


def test_a_killed_launcher_that_nobody_reaps_is_dead_all_the_same(machine: Machine) -> None:
    machine.define("web")
    process = machine.start("kvmlaunch", "up", "web", "--set", f"qemu.binary={machine.fake('hangs')}")
    wait_for("QEMU was spawned", machine.qemus)

    process.kill()
    wait_for("it is a zombie", lambda: not is_alive(process.pid))
    state = machine.status("web")["state"]
    machine.ok("down", "web", "--force", "--timeout", "0")
    finish(process)

    assert state == "not answering"  # and not starting: such a QEMU never opens its monitor
    assert machine.leftovers() == []


INTERRUPTED_AT = """
import os, signal, sys
from kvmlaunch.cli.ending import listen
from kvmlaunch.cli.main import run

name, at, *words = sys.argv[1:]
left = int(at)


def within(frame, event, _):
    global left
    if event == "return":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
    return within


listen()
sys.settrace(lambda frame, event, _: within if frame.f_code.co_name == name else None)
code = run(words)
sys.settrace(None)
os._exit(code)
"""


@pytest.mark.parametrize("place", ["none_left_behind", "given_back_on_failure", "note_machine", "launch_verified"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_interruption_between_two_steps_leaves_no_vm_that_nobody_knows(
    machine: Machine, place: str, at: int
) -> None:
    machine.define("web")

    result = machine.execute(sys.executable, "-c", INTERRUPTED_AT, place, str(at), "up", "web")

    if result.code == 130 and "runs on" not in result.err:
        assert machine.qemus() == []
    else:
        assert result.code in {0, 130}, result.err
        assert machine.status("web")["state"] == "running"
    machine.ok("down", "web", "--force", "--timeout", "0")
    assert machine.qemus() == []
    assert machine.leftovers() == []


def test_more_signals_do_not_disturb_what_is_being_undone(machine: Machine) -> None:
    machine.define("web")
    process = machine.start("kvmlaunch", "up", "web", "--set", f"qemu.binary={machine.fake('hangs')}")
    wait_for("QEMU was spawned", machine.qemus)

    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
    result = finish(process)

    assert result.code in {130, 143}, result.err
    assert machine.leftovers() == []


def test_an_up_interrupted_while_others_start_ends_them_too(machine: Machine) -> None:
    for name in ("one", "two", "three"):
        machine.define(name)
    binary = f"qemu.binary={machine.fake('hangs')}"
    process = machine.start("kvmlaunch", "up", "one", "two", "three", "-j", "3", "--set", binary)
    wait_for("QEMUs were spawned", lambda: len(machine.qemus()) == 3)

    process.terminate()
    result = finish(process)

    assert result.code == 143
    assert machine.leftovers() == []


def test_an_interruption_from_the_terminal_reaches_all_at_once_and_leaves_one_line(machine: Machine) -> None:
    for name in ("one", "two", "three"):
        machine.define(name)
    binary = f"qemu.binary={machine.fake('hangs')}"
    process = machine.start("kvmlaunch", "up", "one", "two", "three", "-j", "3", "--set", binary)
    wait_for("QEMUs were spawned", lambda: len(machine.qemus()) == 3)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.killpg(process.pid, number)
    result = finish(process)

    assert result.code in {130, 143}
    assert result.err.splitlines()[-1] in {"interrupted", "terminated"}
    assert not {"Traceback", "ignored"} & set(result.err.replace(":", " ").split())
    assert machine.leftovers() == []


def test_an_up_whose_launcher_hangs_is_starting_and_no_second_one_begins(machine: Machine) -> None:
    machine.define("web")
    process = machine.start("kvmlaunch", "up", "web", "--set", f"qemu.binary={machine.fake('hangs')}")
    wait_for("QEMU was spawned", machine.qemus)
    process.send_signal(signal.SIGSTOP)

    status = machine.run("status", "web", "--json")
    second, forced = machine.run("up", "web"), machine.run("down", "web", "--force")

    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert f"pid {process.pid}, kvmlaunch, which starts it, and is stopped" in forced.err
    assert status.json["vms"][0]["state"] == "starting"
    assert second.code == 7
    assert machine.leftovers() == []
