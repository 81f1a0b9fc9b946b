"""Nothing is signalled, asked or removed on a guess: records, pids and sockets are verified when they are used."""

import json
import os
import shlex
import signal
from collections.abc import Mapping

import pytest

from tests.sandbox import ALICE, RUN, TINY, Machine, Process, cmdline, is_alive, status_field, wait_for


def bystander(machine: Machine) -> Process:
    """Start a process that nobody may touch."""
    process = machine.start("sleep", "infinity")
    wait_for("it sleeps", lambda: b"sleep" in (machine.outside(f"/proc/{process.pid}/comm")).read_bytes())
    return process


def edit_record(machine: Machine, **changes: object) -> None:
    """Change fields of a VM's record, as the VM's user could."""
    place = machine.rundir("web") / "record.json"
    document: Mapping[str, object] = json.loads(place.read_text())
    place.write_text(json.dumps({**document, **changes}))


def start_time(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def test_a_reused_pid_is_not_signalled_even_with_the_same_start_time(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    other = bystander(machine)
    edit_record(machine, pid=other.pid, start_time=start_time(other.pid))
    machine.kill(machine.qemus()[0])

    seen = machine.status("web")
    machine.ok("down", "web", "--force")

    assert seen["state"] == "ended"
    assert is_alive(other.pid)
    assert machine.leftovers() == []


def test_a_record_that_names_another_process_while_qemu_lives_harms_nobody(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    pid, other = machine.pid("web"), bystander(machine)
    edit_record(machine, pid=other.pid, start_time=start_time(other.pid))

    second = machine.run("up", "web", "--paused")
    machine.run("down", "web", "--force", "--timeout", "10ms")

    assert is_alive(other.pid)
    assert len(machine.qemus()) <= 1
    assert second.code in {0, 7} or machine.qemus() != [pid]
    machine.ok("down", "web", "--force", "--timeout", "10ms")
    assert machine.leftovers() == []


def test_a_record_of_another_boot_is_of_no_process(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"))
    other = bystander(machine)
    edit_record(machine, boot_id="00000000-0000-0000-0000-000000000000", pid=other.pid)

    machine.ok("up", "web", "--paused")

    assert is_alive(other.pid)
    assert len(machine.qemus()) == 1


SPOILED = {
    "empty": "",
    "cut": '{"schema": 1, "vm": "web", "uuid": "153105ea',
    "no object": "[]",
    "another version": '{"schema": 99}',
    "not JSON": "\x00\xff\x1b[2J",
    "deep": "[" * 100_000,
}
WRONG: Mapping[str, Mapping[str, object]] = {
    "pid -1": {"pid": -1},
    "pid 0": {"pid": 0},
    "pid 1": {"pid": 1},
    "pid as text": {"pid": "12"},
    "pid beyond all": {"pid": 1 << 40},
    "pid null": {"pid": None},
    "pid a fraction": {"pid": 4.5},
    "argv a number": {"argv": 3},
    "endless timeout": {"stop_timeout": float("inf")},
    "a state of its own": {"state": "dead"},
    "a key too many": {"surprise": 1},
}


@pytest.mark.parametrize("name", [*SPOILED, *WRONG])
def test_a_record_that_is_none_is_put_aside_and_up_and_down_go_on(machine: Machine, name: str) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"))
    if name in SPOILED:
        (machine.rundir("web") / "record.json").write_text(SPOILED[name], encoding="latin-1")
    else:
        edit_record(machine, **WRONG[name])

    seen = machine.run("status", "web")
    started = machine.ok("up", "web", "--paused")
    machine.end("web")

    assert seen.code == 3
    assert "state.quarantined" in seen.out + seen.err
    assert "state.quarantined" in started.codes
    assert machine.leftovers() == []


def test_a_stale_socket_file_does_not_stand_in_the_way(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"))
    assert (machine.rundir("web") / "qmp.sock").is_socket()

    seen = machine.status("web")
    machine.ok("up", "web", "--paused")

    assert seen["state"] == "ended"
    assert machine.qemus() == [machine.pid("web")]


def test_another_process_behind_both_sockets_is_told_apart_and_asked_nothing(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    run = machine.rundir("web")
    for name in ("qmp.sock", "qmp-own.sock"):
        (run / name).unlink()
    said = machine.directory / "said"
    other = machine.start("socat", "-u", f"UNIX-LISTEN:{RUN}/web/qmp.sock,fork", f"OPEN:{said},creat,append")
    wait_for("it listens", (run / "qmp.sock").is_socket)
    os.link(run / "qmp.sock", run / "qmp-own.sock")

    result = machine.run("pause", "web")
    gentle = machine.run("down", "web", "--timeout", "100ms")
    forced = machine.run("down", "web", "--force", "--timeout", "10ms")

    assert (result.code, result.codes) == (7, {"qmp.identity"})
    assert str(other.pid) in result.err
    assert gentle.code == 7
    assert forced.code == 0, forced.err
    assert is_alive(other.pid)
    assert not said.exists() or said.read_text() == ""
    assert machine.qemus() == []


def test_a_stopped_qemu_is_seen_as_not_answering_and_down_needs_force(machine: Machine) -> None:
    machine.define("web")
    machine.define("other")
    machine.ok("up", "web", "other", "--paused")
    pid = machine.pid("web")
    machine.kill(pid, signal.SIGSTOP)

    looks = [machine.run("status", "web", "other", "--json").json["vms"] for _ in range(3)]  # its backlog is full then
    seen, again = machine.status("web"), machine.run("up", "web")
    gentle = machine.run("down", "web", "--timeout", "100ms")
    forced = machine.run("down", "web", "--force", "--timeout", "100ms")

    machine.end("other")
    assert [[vm["state"] for vm in vms] for vms in looks] == [["not answering", "paused"]] * 3
    assert seen["state"] == "not answering"
    assert (again.code, again.codes) == (8, {"qmp.timeout"})
    assert gentle.code == 8
    assert gentle.codes & {"qmp.timeout", "vm.stop.timeout"}
    assert forced.code == 0, forced.err
    assert "SIGKILL" in forced.err
    assert "its guest was not asked" in forced.err
    assert machine.leftovers() == []


def test_a_vm_without_its_monitors_sockets_runs_and_is_ended_by_force_alone(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")
    for name in ("qmp.sock", "qmp-own.sock"):
        (machine.rundir("web") / name).unlink()

    answers = [machine.run(*words, "web") for words in (("down",), ("pause",), ("up",))]
    forced = machine.run("down", "web", "--force", "--timeout", "100ms")

    assert [(each.code, each.codes) for each in answers] == [(7, {"qmp.unreachable"})] * 3
    assert all("down web --force" in each.err for each in answers)
    assert forced.code == 0, forced.err
    assert machine.leftovers() == []


def test_one_client_on_the_monitor_does_not_keep_others_from_ending_the_vm(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")
    sitting = machine.start("socat", f"UNIX-CONNECT:{RUN}/web/qmp.sock", "EXEC:sleep infinity")
    wait_for("it is connected", lambda: sitting.poll() is None and machine.run("pause", "web").code == 8)

    result = machine.run("down", "web", "--force", "--timeout", "100ms")

    assert result.code == 0, result.err
    assert machine.leftovers() == []


def paste(machine: Machine, name: str) -> Process:
    """Start the printed command as somebody would by hand."""
    printed = machine.ok("print-cmd", name).out.strip()
    return machine.start("sh", "-c", f"exec {printed}")


def test_a_printed_command_pasted_while_the_vm_runs_harms_it_not(machine: Machine) -> None:
    machine.define("web", image=True)
    machine.ok("up", "web")
    pid = machine.pid("web")

    second = paste(machine, "web")
    _, err = second.communicate(timeout=60)
    seen = machine.status("web")
    paused = machine.run("pause", "web")
    console = machine.run("console", "web")

    assert second.returncode != 0
    assert any("its sockets were replaced" in note for note in seen["notes"])
    assert console.code == 0, console.err
    assert "lock" in err
    assert seen["pid"] == pid
    assert seen["run_state"] == "running"
    assert paused.code == 0, paused.err
    assert machine.qemus() == [pid]
    machine.end("web")
    assert machine.leftovers() == []


def test_a_printed_command_pasted_after_down_fails_and_leaves_no_file(machine: Machine) -> None:
    machine.define("web", image=True)
    machine.ok("up", "web", "--paused")
    printed = machine.ok("print-cmd", "web").out.strip()
    machine.end("web")

    result = machine.execute("sh", "-c", printed)

    assert result.code != 0
    assert "No such file or directory" in result.err
    assert machine.leftovers() == []


def test_a_printed_command_pasted_before_anything_was_prepared_fails(machine: Machine) -> None:
    machine.define("web")
    printed = machine.ok("print-cmd", "web").out.strip()

    result = machine.execute("sh", "-c", printed)

    assert result.code != 0
    assert machine.leftovers() == []


def test_a_pasted_command_on_a_prepared_host_is_seen_controlled_and_ended(machine: Machine) -> None:
    machine.define("web")
    machine.ok("preflight", "web", "--apply")
    pasted = paste(machine, "web")
    wait_for("it is seen", lambda: machine.run("status", "web").code == 0)

    seen = machine.status("web")
    already, compared = machine.run("up", "web"), machine.run("diff", "web")
    otherwise = machine.run("up", "web", "--set", "vcpus=2")
    paused = machine.run("pause", "web")
    ended = machine.run("down", "web", "--force", "--timeout", "100ms")

    assert seen["state"] == "running"
    assert "QEMU was not started by kvmlaunch" in seen["notes"]
    assert seen["pid"] == pasted.pid
    assert already.code == 0, already.err
    assert "verified" in already.err
    assert compared.code == 0, compared.out
    assert otherwise.code == 7
    assert otherwise.codes >= {"vm.state"}
    assert paused.code == 0, paused.err
    assert ended.code == 0, ended.err
    wait_for("it ended", lambda: pasted.poll() is not None)
    machine.ok("preflight", "web", "--undo")
    assert machine.leftovers() == []


def test_a_pasted_command_with_pins_that_was_let_run_is_pinned_by_up(machine: Machine) -> None:
    machine.define("web", f'{TINY}[cpu]\npin = "0"\n')
    machine.ok("preflight", "web", "--apply")
    pasted = paste(machine, "web")
    wait_for("it is seen", lambda: machine.run("status", "web").code == 0)
    machine.ok("resume", "web")

    already = machine.run("up", "web")
    pins = [os.sched_getaffinity(int(task)) for task in os.listdir(f"/proc/{pasted.pid}/task")]
    machine.end("web")
    machine.ok("preflight", "web", "--undo")

    assert already.code == 0, already.err
    assert {0} in pins
    assert machine.leftovers() == []


def test_a_zombie_is_no_running_vm(machine: Machine) -> None:
    machine.define("web")
    keeper = (
        "import ctypes, subprocess, sys, time; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0);"
        f"subprocess.run({shlex.split('kvmlaunch up web --paused')!r}, check=True);"
        "print('up', flush=True); time.sleep(3600)"
    )
    process = machine.start("python3", "-c", keeper)
    assert process.stdout
    wait_for("it is up", lambda: process.stdout and process.stdout.readline() == "up\n")
    pid = machine.pid("web")
    os.kill(pid, signal.SIGKILL)
    wait_for("QEMU is a zombie", lambda: not is_alive(pid))
    assert os.path.exists(f"/proc/{pid}")

    seen = machine.status("web")
    machine.ok("up", "web", "--paused")

    assert seen["state"] == "ended"
    assert len(machine.qemus()) == 1


def test_a_vm_with_a_text_of_another_version_runs_on_untouched(machine: Machine) -> None:
    machine.define("web", TINY)
    machine.ok("up", "web", "--paused")
    (machine.rundir("web") / "record.json").write_text('{"schema": 2}')
    pid = machine.qemus()[0]

    started = machine.run("up", "web")
    seen = machine.run("status", "web")

    assert started.code in {0, 7}
    assert "internal.bug" not in seen.codes | started.codes
    assert machine.qemus() == [pid]


def test_a_record_copied_from_another_vm_ends_neither_of_them(machine: Machine) -> None:
    machine.define("web")
    machine.define("other")
    machine.ok("up", "web", "--paused")
    machine.ok("up", "other", "--paused")
    pid, other = machine.pid("web"), machine.pid("other")
    there = machine.record("other")
    edit_record(machine, pid=other, start_time=there["start_time"], uuid=there["uuid"])

    seen = machine.status("web")
    machine.run("down", "web", "--force", "--timeout", "10ms")

    assert seen["pid"] == pid
    assert is_alive(other)
    assert not is_alive(pid)
    machine.end("other")


def test_a_process_of_another_user_that_carries_the_uuid_is_no_vm(machine: Machine) -> None:
    machine.define("web")
    machine.ok("preflight", "web", "--apply")
    line = machine.ok("print-cmd", "web", "-q").out.split()
    uuid = line[line.index("-uuid") + 1]
    uid = str(ALICE)
    pretender = ("sh", "-c", "sleep 100; :", "sh", "-uuid", uuid)
    process = machine.start("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *pretender)
    wait_for(
        "it pretends", lambda: cmdline(process.pid).startswith(b"sh") and status_field(process.pid, "Uid")[0] != "0"
    )

    seen = machine.status("web")["pid"]
    machine.run("down", "web", "--force", "--timeout", "10ms")
    machine.ok("up", "web", "--paused")

    assert seen is None
    assert process.poll() is None


def test_a_vm_whose_lock_cannot_be_seen_is_known_by_its_record(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    before = machine.status("web")
    machine.execute("mount", "--bind", "/dev/null", "/proc/locks")

    seen = machine.status("web")
    again = machine.ok("up", "web", "--paused")
    machine.ok("down", "web", "--force", "--timeout", "10ms")

    assert (seen["state"], seen["pid"]) == (before["state"], before["pid"])
    assert "already" in again.err
    assert machine.leftovers() == []


def test_a_vm_whose_record_is_gone_can_still_be_ended(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    pid = machine.pid("web")
    (machine.rundir("web") / "record.json").unlink()

    seen = machine.status("web")
    machine.ok("down", "web", "--force", "--timeout", "10ms")

    assert seen["pid"] == pid
    assert not is_alive(pid)
    assert machine.leftovers() == []


def test_a_qemu_whose_socket_a_second_one_took_is_still_seen(machine: Machine) -> None:
    machine.define("web")
    machine.ok("preflight", "web", "--apply")
    line = machine.ok("print-cmd", "web", "-q").out.strip()
    first = machine.start("sh", "-c", f"exec {line}")
    wait_for("it answers", lambda: machine.status("web")["pid"] == first.pid)
    (machine.rundir("web") / "qmp.sock").unlink()

    seen = machine.status("web")
    refused = machine.run("up", "web", "--paused")
    machine.run("down", "web", "--force", "--timeout", "10ms")

    assert seen["pid"] == first.pid
    assert refused.code == 7
    wait_for("it ended", lambda: first.poll() is not None)
    machine.ok("preflight", "web", "--undo")
