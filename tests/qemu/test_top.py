"""`top`: what running VMs use, once, as a document, piped, and as VMs come and go."""

import os
import signal
from typing import Any, Final

import pytest

from tests.qemu.test_run_attach import terminal
from tests.sandbox import KVMLAUNCH, TINY, Machine, Process, finish, wait_for

SOON: Final = ("--interval", "100ms")
HEAD: Final = "VM"


def start(machine: Machine, *names: str) -> None:
    """Start VMs that stay at their firmware."""
    for name in names:
        machine.define(name, TINY)
        machine.ok("up", name, "--paused")


def looked(machine: Machine, *words: str) -> Any:  # noqa: ANN401 - any document
    """Give the document of one look."""
    return machine.ok("top", *words, *SOON, "--json").json


def read_table(process: Process) -> list[str]:
    """Give the first words of the next table that a command prints."""
    assert process.stdout
    words = []
    while line := process.stdout.readline().strip():
        words.append(line.split()[0])
    return words


def test_a_table_has_a_row_for_each_vm_that_runs(machine: Machine) -> None:
    start(machine, "a", "b", "c")
    machine.define("d")

    lines = machine.ok("top", "--once", *SOON).out.splitlines()

    assert lines[0].split()[:3] == [HEAD, "CPU%", "MEMORY"]
    assert sorted(line.split()[0] for line in lines[1:]) == ["a", "b", "c"]


def test_a_document_has_what_each_vm_uses_in_bytes(machine: Machine) -> None:
    start(machine, "a", "b", "c")

    document = looked(machine)

    assert document["schema"] == "kvmlaunch/top/1"
    assert sorted(vm["name"] for vm in document["vms"]) == ["a", "b", "c"]
    for vm in document["vms"]:
        assert vm["resident"] > 1 << 20
        assert (vm["hugetlb"], vm["reads"], vm["writes"], vm["latency"]) == (0, 0, 0, None)
        assert (vm["received"], vm["sent"]) == (None, None)
        assert vm["cpu"] >= 0


def test_only_the_vms_that_are_named_are_looked_at(machine: Machine) -> None:
    start(machine, "a", "b")

    assert [vm["name"] for vm in looked(machine, "b")["vms"]] == ["b"]


def test_a_vm_that_is_unknown_is_refused_and_one_that_is_down_has_no_row(machine: Machine) -> None:
    start(machine, "a")
    machine.define("down")

    unknown = machine.run("top", "nobody", "--once", *SOON)
    down = machine.run("top", "down", "a", "--json", *SOON)

    assert (unknown.code, unknown.codes) == (4, {"vm.unknown"})
    assert [vm["name"] for vm in down.json["vms"]] == ["a"]
    assert down.code == 3


def test_where_no_vm_runs_there_is_a_head_and_no_row(machine: Machine) -> None:
    machine.define("down")

    assert machine.ok("top", "--once", *SOON).out.split()[0] == HEAD
    assert looked(machine)["vms"] == []


def test_piped_it_prints_a_table_again_and_again_until_it_is_interrupted(machine: Machine) -> None:
    start(machine, "a")
    process = machine.start(KVMLAUNCH, "top", *SOON)

    tables = [read_table(process) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    ended = finish(process)

    assert tables == [[HEAD, "a"]] * 3
    assert ended.code == 130
    assert "Traceback" not in ended.err


def test_a_vm_that_ends_or_comes_between_two_looks_is_left_out_of_that_one(machine: Machine) -> None:
    start(machine, "a", "b")
    process = machine.start(KVMLAUNCH, "top", *SOON)
    first = read_table(process)

    machine.kill(machine.pid("b"))
    wait_for("b is left out", lambda: read_table(process) == [HEAD, "a"])
    machine.ok("up", "b", "--paused")
    wait_for("b is there again", lambda: sorted(read_table(process)) == [HEAD, "a", "b"])
    process.send_signal(signal.SIGINT)
    ended = finish(process)

    assert sorted(first) == [HEAD, "a", "b"]
    assert ended.code == 130


def test_a_vm_that_does_not_answer_is_shown_with_what_proc_tells(machine: Machine) -> None:
    start(machine, "a")
    os.kill(machine.pid("a"), signal.SIGSTOP)

    document = looked(machine)
    os.kill(machine.pid("a"), signal.SIGCONT)

    assert [(vm["name"], vm["resident"] > 1 << 20) for vm in document["vms"]] == [("a", True)]


def test_a_reader_that_stops_reading_ends_it_quietly(machine: Machine) -> None:
    start(machine, "a")

    result = machine.execute("sh", "-c", "kvmlaunch top --interval 50ms | head -n 1")

    assert result.out.split()[0] == HEAD
    assert "Traceback" not in result.err
    assert "internal.bug" not in result.codes


def test_a_terminal_is_drawn_on_and_left_as_it_was(machine: Machine) -> None:
    start(machine, "a")

    with terminal(machine, "top", *SOON) as screen:
        screen.read_until(b"CPU%")
        screen.process.send_signal(signal.SIGINT)
        screen.read_until(b"\x1b[?1049l")
        code = screen.process.wait(60)

    assert code == 130


def test_a_terminal_that_goes_away_ends_it_without_a_word(machine: Machine) -> None:
    start(machine, "a")

    with terminal(machine, "top", *SOON) as screen:
        screen.read_until(b"CPU%")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, screen.fd)
        os.close(nothing)
        code = screen.process.wait(60)

    assert code == 0


@pytest.mark.parametrize("interval", ["0s", "0", "-1s", "soon"])
def test_an_interval_that_is_none_is_a_mistake_or_fine_and_no_bug(machine: Machine, interval: str) -> None:
    start(machine, "a")

    result = machine.run("top", "--once", "--interval", interval)

    assert result.code in {0, 2}, result.err
    assert "internal.bug" not in result.codes


def test_a_table_of_a_vm_that_does_not_run_ends(machine: Machine) -> None:
    machine.define("web")

    shown = machine.run("top", "web", "--interval", "50ms")

    assert (shown.code, "it does not run" in shown.err) == (3, True)
