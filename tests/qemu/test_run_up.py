"""`up` and `down` of real VMs, held before their first instruction: verified, repeatable, and just what is printed."""

import json
import os
from pathlib import Path

import pytest

from tests.sandbox import RUN, TINY, Machine, cmdline, finish, is_alive, status_field, wait_for


def test_up_starts_what_status_shows_and_down_leaves_nothing(machine: Machine) -> None:
    machine.define("web", image=True)

    started = machine.ok("up", "web", "--paused")
    seen = machine.status("web")
    ended = machine.end("web")

    assert "started" in started.err
    assert (seen["state"], seen["run_state"]) == ("paused", "prelaunch")
    assert "stopped" in ended.err
    assert machine.leftovers() == []


def test_a_machine_that_a_newer_qemu_would_change_is_told_once(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    machine.end("web")
    kept = machine.outside("/var/lib/kvmlaunch/vm/web/machine")
    now, wild = kept.read_text(), "pc-q35-2.0\x1b[31m\n"
    said = []
    for last in ("pc-q35-2.12\n", now, wild):
        kept.write_text(last)
        said.append(machine.ok("up", "web", "--paused").err)
        machine.end("web")

    assert ["vm.machine.changed" in each for each in said] == [True, False, False]
    assert "pc-q35-2.12" in said[0]
    assert kept.read_text() == now


def test_a_second_up_says_already_and_starts_nothing(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    pid = machine.pid("web")

    again = machine.ok("up", "web", "--paused")

    assert "already" in again.err
    assert str(pid) in again.err
    assert machine.qemus() == [pid]


def test_down_of_a_stopped_vm_is_already_so_however_often(machine: Machine) -> None:
    machine.define("web")

    results = [machine.ok("down", "web"), machine.ok("down", "web")]

    assert all("already" in result.err for result in results)


def test_the_printed_command_is_the_cmdline_of_the_process_before_beside_and_after(machine: Machine) -> None:
    machine.define("web", image=True)

    before = machine.ok("print-cmd", "web", "-0").out
    machine.ok("up", "web")
    ran = cmdline(machine.pid("web")).decode()
    beside = machine.ok("print-cmd", "web", "-0").out
    machine.end("web")
    after = machine.ok("print-cmd", "web", "-0").out

    assert before == ran
    assert beside == ran
    assert after == ran


@pytest.mark.parametrize("words", [("--paused",), ("--boot", "cdrom.install"), ("--boot", "cdrom.install", "--paused")])
def test_words_of_up_are_printed_too(machine: Machine, words: tuple[str, ...]) -> None:
    place = machine.define("web", f'{TINY}[cdrom.install]\npath = "install.iso"\n', image=True)
    place.with_name("install.iso").write_bytes(bytes(1 << 20))

    printed = machine.ok("print-cmd", "web", "-0", *words).out
    machine.ok("up", "web", *words)
    differing = machine.run("diff", "web")

    assert cmdline(machine.pid("web")).decode() == printed
    assert (differing.code == 0) is (words == ("--paused",)), differing.out


def test_nothing_is_left_running_after_up_but_qemu(machine: Machine) -> None:
    machine.define("web")

    machine.ok("up", "web", "--paused")

    assert machine.processes() == [machine.pid("web")]


def test_qemu_runs_apart_from_the_command_that_started_it(machine: Machine) -> None:
    machine.define("web")

    machine.ok("up", "web", "--paused")
    pid = machine.pid("web")
    open_files = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert "/dev/null" in open_files
    assert f"{RUN}/web" in open_files
    assert {word.partition(b"=")[0] for word in environment if word} == {b"PATH", b"LC_ALL", b"HOME"}
    assert (status_field(pid, "Seccomp"), status_field(pid, "NoNewPrivs")) == ("2", "1")


def test_of_two_ups_at_once_one_wins_and_the_other_is_busy_or_finds_it_running(machine: Machine) -> None:
    machine.define("web")
    machine.ok("print-cmd", "web")

    both = [machine.start("kvmlaunch", "up", "web", "--paused") for _ in range(2)]
    results = [finish(process) for process in both]

    assert len(machine.qemus()) == 1
    assert 0 in {result.code for result in results}
    for result in results:
        assert result.code == 0 or (result.code == 7 and result.codes & {"vm.locked"}), result.err
    assert sum("started" in result.err for result in results) == 1


def test_who_loses_the_race_is_told_who_holds_the_vm(machine: Machine) -> None:
    machine.define("web")
    first = machine.start("kvmlaunch", "up", "web", "--set", f"qemu.binary={machine.fake('hangs')}")
    wait_for("QEMU was spawned", machine.qemus)

    second = machine.run("up", "web")
    ended = machine.run("down", "web")
    first.terminate()

    assert second.code == 7
    assert "vm.locked" in second.codes
    assert "pid" in second.err
    assert ended.code == 7
    assert finish(first).code == 143
    assert machine.leftovers() == []


def test_many_ups_of_one_vm_at_once_start_one_qemu(machine: Machine) -> None:
    machine.define("web")
    machine.ok("print-cmd", "web")

    results = [finish(each) for each in [machine.start("kvmlaunch", "up", "web", "--paused") for _ in range(6)]]

    assert len(machine.qemus()) == 1
    assert {result.code for result in results} <= {0, 7}
    machine.end("web")
    assert machine.leftovers() == []


def test_status_asked_again_and_again_never_makes_an_up_fail(machine: Machine) -> None:
    machine.define("web")
    asking = machine.start("sh", "-c", "while :; do kvmlaunch status web; kvmlaunch ls; done >/dev/null 2>&1")

    for _ in range(3):
        machine.ok("up", "web", "--paused")
        machine.end("web")

    os.killpg(asking.pid, 9)
    asking.communicate()


def test_several_vms_come_up_and_go_down_at_once(machine: Machine) -> None:
    names = [f"vm{number}" for number in range(4)]
    for name in names:
        machine.define(name)

    machine.ok("up", *names, "--paused", "-j", "4")
    listed = machine.ok("ls", "--json").json
    machine.ok("down", "--all", "--force", "--timeout", "10ms", "-j", "4")

    assert [vm["name"] for vm in listed["vms"] if vm["pid"]] == names
    assert machine.leftovers() == []


def test_one_failure_does_not_stop_the_others_and_gives_the_exit_code(machine: Machine) -> None:
    machine.define("good")
    machine.define("bad", f'{TINY}[disk.root]\npath = "missing.img"\n')

    result = machine.run("up", "bad", "good", "--paused", "-j", "2")

    assert result.code == 6
    assert result.codes >= {"disk.missing"}
    assert machine.status("good")["pid"]


def test_failures_that_differ_give_exit_code_one(machine: Machine) -> None:
    machine.define("bad", f'{TINY}[disk.root]\npath = "missing.img"\n')

    result = machine.run("up", "bad", "nobody", "--paused")

    assert result.code == 1
    assert result.codes == {"disk.missing", "vm.unknown"}


def test_up_all_starts_what_wants_to_be_started_with_the_host(machine: Machine) -> None:
    machine.define("auto", f"{TINY}[lifecycle]\nautostart = true\n")
    machine.define("manual")

    machine.ok("up", "--all", "--paused")

    assert machine.status("auto")["pid"]
    assert machine.status("manual")["pid"] is None


def test_a_file_is_the_same_one_by_whatever_path_it_is_named(machine: Machine) -> None:
    machine.define("web")
    (machine.directory / "link").symlink_to("vmdefs")
    machine.ok("up", "web", "--paused")

    for path in ("link/web.toml", "vmdefs/../vmdefs/web.toml"):
        assert "already" in machine.ok("up", path).err


def test_a_vm_that_runs_from_another_file_is_not_touched(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    other = machine.directory / "elsewhere"
    other.mkdir()
    (other / "web.toml").write_text(TINY)

    result = machine.run("up", other / "web.toml")

    assert result.code == 7
    assert "vm.other" in result.codes
    assert f"{other}/web.toml" in result.err or "elsewhere/web.toml" in result.err
    assert "vmdefs/web.toml" in result.err


def test_a_definition_changed_since_the_start_is_said_and_diff_shows_how(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")
    same = machine.run("diff", "web", "--running")
    machine.define("web", TINY.replace("vcpus = 1", "vcpus = 2"))

    again = machine.ok("up", "web")
    changed = machine.run("diff", "web", "--running")

    assert same.code == 0
    assert "vm.changed" in again.codes
    assert changed.code == 10
    assert "-smp" in changed.out


def test_a_dry_run_shows_the_command_and_changes_nothing(machine: Machine) -> None:
    machine.define("web", image=True)

    shown = machine.ok("up", "web", "-n")
    printed = machine.ok("print-cmd", "web")

    assert shown.out == printed.out
    assert machine.leftovers() == []
    assert not machine.rundir("web").exists()


def test_a_dry_run_of_down_ends_nothing(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    machine.ok("down", "web", "-n")

    assert machine.qemus() == [machine.pid("web")]


def test_restart_gives_a_new_process(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    before = machine.pid("web")

    machine.ok("restart", "web", "--force", "--timeout", "10ms")

    assert machine.qemus() == [machine.pid("web")]
    assert machine.pid("web") != before
    assert not is_alive(before)


def test_a_restart_says_that_the_last_start_had_other_settings(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused", "--set", "memory.size=96MiB")

    other = machine.ok("restart", "web", "--force", "--timeout", "10ms")
    same = machine.ok("restart", "web", "--force", "--timeout", "10ms")

    assert "changed" in other.err
    assert "changed" not in same.err


def test_down_waits_as_long_as_its_own_settings_say(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")

    ended = machine.run("down", "web", "--set", "lifecycle.stop_timeout=1s")

    assert ended.code == 8
    assert "for 1 s" in ended.err


def test_a_broken_definition_does_not_end_a_vm_that_is_to_be_restarted(machine: Machine) -> None:
    path = machine.define("web")
    machine.ok("up", "web", "--paused")
    path.write_text("vcpus = 'many'\n")

    result = machine.run("restart", "web", "--force", "--timeout", "10ms")

    assert result.code == 5
    assert machine.qemus() == [machine.pid("web")]


def test_a_port_that_is_taken_is_refused_with_its_holder(machine: Machine) -> None:
    machine.define("web", TINY.replace('type = "none"', 'type = "user"\nforwards = ["tcp:127.0.0.1:8080:80"]'))
    listener = machine.start("socat", "TCP-LISTEN:8080,bind=127.0.0.1", "STDOUT")
    wait_for("somebody listens", lambda: ":1F90 " in Path(f"/proc/{machine.holder.pid}/net/tcp").read_text())

    result = machine.run("up", "web", "--paused")

    assert result.code == 6
    assert "host.port.used" in result.codes
    assert str(listener.pid) in result.err
    assert machine.leftovers() == []
    listener.kill()
    listener.communicate()


def test_its_own_port_does_not_stand_in_the_way_of_a_running_vm(machine: Machine) -> None:
    machine.define("web", TINY.replace('type = "none"', 'type = "user"\nforwards = ["tcp:127.0.0.1:8080:80"]'))
    machine.ok("up", "web")

    checked = machine.ok("preflight", "web")
    printed = machine.ok("print-cmd", "web", "-0")

    assert "host.port.used" not in checked.codes
    assert printed.out == cmdline(machine.pid("web")).decode()


def test_a_port_of_somebody_else_stands_in_the_way_of_a_restart_before_anything_ends(machine: Machine) -> None:
    machine.define("web", TINY.replace('type = "none"', 'type = "user"\nforwards = ["tcp:127.0.0.1:8080:80"]'))
    machine.ok("up", "web")
    pid = machine.pid("web")
    listener = machine.start("socat", "TCP-LISTEN:8081,bind=127.0.0.1", "STDOUT")
    wait_for("somebody listens", lambda: ":1F91 " in Path(f"/proc/{machine.holder.pid}/net/tcp").read_text())
    more = '"tcp:127.0.0.1:8080:80", "tcp:127.0.0.1:8081:81"'
    machine.define("web", TINY.replace('type = "none"', f'type = "user"\nforwards = [{more}]'))

    refused = [machine.run("preflight", "web"), machine.run("restart", "web", "--force", "--timeout", "10ms")]
    large = machine.run("restart", "web", "--set", "memory.size=9000GiB", "--force", "--timeout", "10ms")

    assert [(each.code, "host.port.used" in each.codes) for each in refused] == [(6, True)] * 2
    assert (large.code, "host.memory.short" in large.codes) == (6, True)
    assert machine.qemus() == [pid]
    listener.kill()
    listener.communicate()


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_root_does_not_run_a_definition_that_others_may_write(machine: Machine, mode: int) -> None:
    machine.define("web").chmod(mode)

    result = machine.run("up", "web", "--paused")

    assert result.code == 5
    assert result.codes == {"def.untrusted"}
    assert "mode 0666" in result.err or "mode 0664" in result.err


def test_root_does_not_run_a_definition_of_somebody_else(machine: Machine) -> None:
    os.chown(machine.define("web"), 12345, 12345)

    results = [machine.run("up", "web"), machine.run("print-cmd", machine.directory / "vmdefs" / "web.toml")]

    assert {result.code for result in results} == {5}
    assert all(result.codes == {"def.untrusted"} for result in results)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_what_is_made_has_the_same_modes_under_every_umask(machine: Machine, umask: int) -> None:
    machine.define("web", f'{TINY}[display]\ntype = "vnc"\n', image=True)

    result = machine.execute("kvmlaunch", "up", "web", "--paused", umask=umask)

    assert result.code == 0, result.err
    modes = {
        str(path.relative_to(machine.outside("/"))): path.lstat().st_mode & 0o7777
        for top in ("/run/kvmlaunch/vm", "/var/lib/kvmlaunch/journal")
        for path in (machine.outside(top), *machine.outside(top).rglob("*"))
    }
    assert modes.pop("run/kvmlaunch/vm") == 0o711
    assert modes["run/kvmlaunch/vm/web"] == 0o700
    assert modes["run/kvmlaunch/vm/web/log"] == 0o700
    assert modes["var/lib/kvmlaunch/journal"] == 0o700
    files = {path: mode for path, mode in modes.items() if not machine.outside(f"/{path}").is_dir()}
    assert {path: oct(mode) for path, mode in files.items() if mode & 0o077} == {}
    machine.execute("kvmlaunch", "down", "web", "--force", "--timeout", "10ms", umask=umask)
    kept = machine.outside("/var/log/kvmlaunch/web")
    assert (kept.stat().st_mode & 0o7777, (kept / "qemu.log").stat().st_mode & 0o7777) == (0o700, 0o600)


def test_every_json_document_names_its_schema(machine: Machine) -> None:
    machine.define("web", image=True)
    commands = (
        "up web --paused", "up web", "status web", "ls", "pause web", "resume web", "reset web",
        "monitor web query-status", "logs web", "preflight web", "print-cmd web", "down web --force --timeout 10ms",
    )  # fmt: skip

    schemas = {words: machine.ok("--json", *words.split()).json["schema"] for words in commands}

    assert schemas == {words: f"kvmlaunch/{words.split()[0]}/1" for words in commands}


def test_errors_are_one_json_document_on_stderr(machine: Machine) -> None:
    result = machine.run("up", "nobody", "--json")

    assert result.code == 4
    assert result.json["vms"][0]["error"]["code"] == "vm.unknown"
    assert json.loads(result.err)["error"]["code"] == "vm.unknown"
    assert [problem["code"] for problem in result.error["problems"]] == ["vm.unknown"]


def test_commands_that_need_a_running_vm_end_with_three(machine: Machine) -> None:
    machine.define("web")

    results = [
        machine.run(*words)
        for words in (("status", "web"), ("pause", "web"), ("resume", "web"), ("reset", "web"), ("monitor", "web", "x"))
    ]  # fmt: skip

    assert [result.code for result in results] == [3] * 5
    assert all(result.codes <= {"vm.stopped"} for result in results)


@pytest.mark.parametrize("name", ["..", ".", "../web", "/", "../../.."])
def test_a_name_that_leads_elsewhere_is_no_vm(machine: Machine, name: str) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    before = machine.outside("/run/kvmlaunch").stat().st_mode

    results = [machine.run(*words) for words in (("down", name), ("pause", name), ("logs", name), ("status", name))]

    assert all(result.code == 5 for result in results), results
    assert machine.outside("/run/kvmlaunch").stat().st_mode == before
    assert machine.status("web")["pid"]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_several_vms_are_answered_by_one_document_the_failed_ones_in_it(machine: Machine, jobs: str) -> None:
    machine.define("web")
    machine.define("db")

    started = machine.run("up", "web", "nobody", "db", "--paused", "--json", "-j", jobs)
    ended = machine.run("down", "web", "db", "--force", "--timeout", "10ms", "--json", "-j", jobs)

    web, nobody, database = started.json["vms"]
    assert started.code == 4
    assert (web["name"], nobody["name"], database["name"]) == ("web", "nobody", "db")
    assert web["pid"] != database["pid"]
    assert nobody["error"]["code"] == started.error["code"] == "vm.unknown"
    assert [each["forced"] for each in ended.json["vms"]] == ["SIGTERM", "SIGTERM"]


def test_up_paused_is_refused_where_the_guest_runs(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")

    running = machine.run("up", "web", "--paused")
    machine.ok("pause", "web")
    paused = machine.run("up", "web", "--paused")

    assert (running.code, running.codes) == (7, {"vm.state"})
    assert "fix: kvmlaunch pause web" in running.err
    assert paused.code == 0, paused.err


def test_an_image_that_ends_within_a_block_is_opened_through_the_page_cache(machine: Machine) -> None:
    path = machine.define("web", image=True).with_name("web.img")
    with path.open("ab") as file:
        file.write(bytes(512))

    explained, started = machine.ok("explain", "web"), machine.run("up", "web", "--paused")
    by_hand = machine.run("print-cmd", "web", "--set", "disk.root.cache=none")

    assert "1049088 bytes end within a block" in explained.out
    assert started.code == 0, started.err
    assert by_hand.codes == {"disk.direct"}


def test_two_drives_with_one_file_are_each_as_planned(machine: Machine) -> None:
    base = '[disk.base]\npath = "base.qcow2"\nreadonly = true\ncache = "writeback"\n'
    place = machine.define("web", f'{TINY}{base}[disk.over]\npath = "over.qcow2"\n').parent
    for words in (("base.qcow2", "8M"), ("-b", "base.qcow2", "-F", "qcow2", "over.qcow2")):
        made = machine.execute("sh", "-euc", f"cd {place}; qemu-img create -q -f qcow2 {' '.join(words)}")
        assert made.code == 0, made.err

    started = machine.run("up", "web", "--paused")

    assert started.code == 0, started.err
