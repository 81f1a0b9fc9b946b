"""The words of a command line: names, files, standard input, and what is said of a VM that there is not."""

import json
import os
import signal

import pytest

from tests.sandbox import ALICE, KVMLAUNCH, TINY, Machine, Result, as_alice, finish, wait_for

ABOUT_ONE = ("pause", "resume", "reset", "console", "monitor", "logs", "status", "down", "diff")


def words_of(command: str, word: str) -> tuple[str, ...]:
    """Give a command about one VM, with the arguments that it cannot do without."""
    return (command, word, "query-status") if command == "monitor" else (command, word)


@pytest.mark.parametrize("command", [*ABOUT_ONE, "up", "restart", "preflight", "doctor", "facts"])
def test_a_vm_that_runs_or_is_to_run_does_not_come_from_standard_input(machine: Machine, command: str) -> None:
    process = machine.start(
        "sh", "-c", f"printf '%s' 'memory = \"32MiB\"' | kvmlaunch {' '.join(words_of(command, '-'))}"
    )

    result = finish(process)

    assert result.code == 2
    assert "standard input" in result.err
    assert machine.leftovers() == []


@pytest.mark.parametrize("command", ["validate", "print-cmd", "explain", "show"])
def test_a_definition_that_is_only_read_may_come_from_standard_input(machine: Machine, command: str) -> None:
    text = TINY.replace("\n", "\\n")

    result = finish(machine.start("sh", "-c", f"printf '{text}' | kvmlaunch {command} -"))

    assert result.code == 0, result.err


@pytest.mark.parametrize("command", ABOUT_ONE)
def test_a_vm_that_was_never_there_is_unknown_to_every_command_about_it(machine: Machine, command: str) -> None:
    machine.define("web")

    near, far = machine.run(*words_of(command, "wbe")), machine.run(*words_of(command, "zzzzzz"))

    assert (near.code, far.code) == (4, 4)
    assert "did you mean web?" in near.err
    assert "fix: kvmlaunch ls" in far.err
    assert near.codes == far.codes == {"vm.unknown"}


@pytest.mark.parametrize("command", ["pause", "resume", "reset", "console", "monitor", "status", "diff"])
def test_a_vm_that_is_defined_and_does_not_run_is_stopped(machine: Machine, command: str) -> None:
    machine.define("web")

    assert machine.run(*words_of(command, "web")).code == 3


def test_doctor_says_everything_and_quietly_only_what_is_wrong(machine: Machine) -> None:
    machine.define("web")

    whole, quiet = machine.run("doctor", "--no-boot"), machine.run("doctor", "--no-boot", "-q")

    verdicts = [{line.split()[0] for line in result.out.splitlines() if line[:1].strip()} for result in (whole, quiet)]
    assert {"ok", "skip"} <= verdicts[0]
    assert verdicts[1] == verdicts[0] - {"ok", "skip"}
    assert whole.code == quiet.code


def test_a_stopped_vm_and_an_unknown_one_are_different_failures(machine: Machine) -> None:
    machine.define("web")

    results = [machine.run("status", *words).code for words in (("web", "nope"), ("nope", "none"), ("web", "web"))]

    assert results == [1, 4, 3]


def test_undo_of_a_vm_that_was_never_there_is_no_success(machine: Machine) -> None:
    machine.define("web")

    assert machine.run("preflight", "wbe", "--undo").code == 4
    assert machine.run("preflight", "web", "--undo").code == 0


@pytest.mark.parametrize("file", ["vmdefs/web.toml", "elsewhere/web.toml", "web.toml"])
def test_a_file_means_the_vm_of_its_name_to_every_command(machine: Machine, file: str) -> None:
    machine.define("web")
    elsewhere = machine.directory / "elsewhere"
    elsewhere.mkdir()
    path = elsewhere / "web.toml" if file.startswith("elsewhere") else machine.directory / "vmdefs" / "web.toml"
    path.write_text(TINY)

    stopped = machine.run("status", file)
    started = machine.ok("up", str(path))
    done = [
        machine.ok(*words_of(command, file)) for command in ("status", "pause", "resume", "reset", "monitor", "logs")
    ]
    differs = machine.run("diff", str(path))
    restarted = machine.ok("restart", str(path), "--force", "--timeout", "10ms")
    ended = machine.ok("down", file, "--force", "--timeout", "10ms")

    assert stopped.code == 3
    assert {line.split("  ")[0] for line in started.err.splitlines() if line[0] != " "} == {"web"}
    assert done[0].out.startswith("web\n")
    assert done[1].err.startswith("web  ok    paused")
    assert differs.code == 0
    assert "elsewhere/" not in restarted.err.replace("definition  elsewhere/web.toml", "")
    assert ended.err.startswith("web  ")
    assert machine.ok("preflight", str(path), "--undo").err.startswith("web  ok    already")
    assert machine.leftovers() == []


def test_a_cd_drive_that_there_is_not_is_a_mistake_with_a_fix_that_can_be_pasted(machine: Machine) -> None:
    machine.define("web", f'{TINY}[cdrom.install]\npath = "web.iso"\n')
    machine.define("bare")
    (machine.directory / "vmdefs" / "web.iso").write_bytes(bytes(1 << 20))

    other, none = (machine.run("up", name, "--boot", "cdrom.foo") for name in ("web", "bare"))

    assert (other.code, none.code) == (5, 5)
    assert "fix: kvmlaunch up web --boot cdrom.install\n" in other.err
    assert "fix: [cdrom.foo]   # in the definition of bare\n" in none.err


def test_explain_of_a_key_that_there_is_not_names_the_nearest(machine: Machine) -> None:
    machine.define("web", image=True)

    text = machine.run("explain", "web", "disk.root.cache", "disk.root.cahce")
    document = machine.run("explain", "web", "disk.root.cahce", "--json")

    assert text.code == document.code == 2
    assert "did you mean disk.root.cache?" in text.err
    assert document.out == ""


def shell(machine: Machine, line: str) -> Result:
    """Run a line of the shell."""
    return finish(machine.start("sh", "-c", line))


@pytest.mark.parametrize(
    ("words", "vm"),
    [
        (("nope",), ""),
        (("up",), ""),
        (("up", "web", "-j", "0"), ""),
        (("monitor", "web", "stop", "[]"), "web"),
        (("up", "web", "--foreground", "web2"), ""),
        (("explain", "web", "memory.nope"), "web"),
        (("status", "-"), ""),
    ],
)
def test_usage_is_one_document_where_documents_are_asked_for(machine: Machine, words: tuple[str, ...], vm: str) -> None:
    machine.define("web")

    result = machine.run(*words, "--json")

    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert (result.error["code"], result.error["vm"]) == ("usage", vm)
    assert result.error["problems"][0]["hint"].startswith("kvmlaunch")


@pytest.mark.parametrize(
    "words", ["up web", "pause web", "down wbe", "status wbe", "print-cmd wbe", "explain wbe", "show wbe", "logs wbe"]
)
def test_an_error_document_names_the_vm_that_was_named(machine: Machine, words: str) -> None:
    machine.define("web", f'{TINY}[disk.root]\npath = "missing.img"\n')

    result = machine.run(*words.split(), "--json")

    assert result.error["vm"] == words.split()[1]


def test_an_answer_for_which_there_is_no_room_is_an_error_and_no_bug(machine: Machine) -> None:
    machine.define("web")

    for words in ("ls", "print-cmd web", "status web --json"):
        result = shell(machine, f"kvmlaunch {words} 2>&1 >/dev/full")

        assert result.code == 6
        assert "standard output: No space left on device" in result.out
        assert "internal.bug" not in result.out


def test_an_answer_that_nobody_gets_is_no_success_and_a_start_without_one_is(machine: Machine) -> None:
    machine.define("web")

    lost = shell(machine, "kvmlaunch print-cmd web 2>&1 >&-")
    started = shell(machine, "kvmlaunch up web --paused >&-")
    silent = shell(machine, "kvmlaunch down web --force --timeout 10ms >&- 2>&- <&-")

    assert (lost.code, started.code, silent.code) == (1, 0, 0)
    assert lost.out.splitlines()[-2] == "error: standard output: it is closed  [host.failed]"


@pytest.mark.parametrize("command", ["up", "down"])
def test_all_and_names_together_are_usage_and_end_nothing(machine: Machine, command: str) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    assert machine.run(command, "--all", "web").code == 2
    assert machine.status("web")["run_state"] == "prelaunch"


def test_all_of_nothing_is_said(machine: Machine) -> None:
    machine.define("web")

    started, ended = machine.ok("up", "--all"), machine.ok("down", "--all")

    assert started.err == "nothing to do: no definition has lifecycle.autostart\n"
    assert ended.err == "nothing to do: nothing runs\n"
    assert machine.ok("down", "--all", "--json").json["vms"] == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_who_stops_waiting_is_told_what_goes_on(machine: Machine, number: signal.Signals, code: int) -> None:
    machine.define("web", f'{TINY}[lifecycle]\nready = "console:never"\n')
    starting = machine.start("kvmlaunch", "up", "web", "--wait", "ready")
    wait_for("the VM runs", lambda: machine.run("status", "web").code == 0)
    starting.send_signal(number)
    started = finish(starting)

    ending = machine.start("kvmlaunch", "down", "web")
    assert ending.stderr
    pressed = ending.stderr.readline()
    ending.send_signal(number)
    ended = finish(ending)

    assert (started.code, ended.code) == (code, code)
    assert "web  warn  runs on" in started.err
    assert "kvmlaunch down web" in started.err
    assert "powerdown" in pressed
    assert "the guest was asked to power down" in ended.err
    assert "kvmlaunch down web" in ended.err
    assert machine.status("web")["pid"]


def test_set_does_not_change_a_running_vm_and_an_edit_of_its_file_is_another_thing(machine: Machine) -> None:
    path = machine.define("web")
    machine.ok("up", "web", "--paused")

    by_option = machine.ok("up", "web", "--set", "vcpus=2")
    path.write_text(TINY.replace("vcpus = 1", "vcpus = 2"))
    by_hand = machine.ok("up", "web")

    assert "a running VM is not changed by --set  [vm.changed]" in by_option.err
    assert "it runs as its file says" in by_option.err
    assert "fix: kvmlaunch diff web --set vcpus=2\n       kvmlaunch restart web --set vcpus=2\n" in by_option.err
    assert "changed since the start  [vm.changed]" in by_hand.err
    assert "fix: kvmlaunch diff web\n       kvmlaunch restart web\n" in by_hand.err
    assert machine.run("diff", "web", "--set", "vcpus=2").code == 10


def test_what_qemu_refuses_is_said_in_words_with_a_command_that_lists_what_it_takes(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    unknown = machine.run("monitor", "web", "foo")
    wrong = machine.run("monitor", "web", "device_del", '{"id": "nope"}')
    no_json = machine.run("monitor", "web", "stop", "{id: nope}")

    assert unknown.codes == {"qmp.error"}
    assert "it was sent foo\n" in unknown.err
    assert "fix: kvmlaunch monitor web query-commands" in unknown.err
    assert 'it was sent device_del {"id": "nope"}' in wrong.err
    assert no_json.code == 2
    assert """'{"command-line": "info block"}'""" in no_json.err


def test_a_definition_that_is_empty_is_warned_of_where_it_comes_from_a_pipe(machine: Machine) -> None:
    result = finish(machine.start("sh", "-c", "printf '' | kvmlaunch validate -"))

    assert result.code == 0
    assert "stdin  warn" in result.err


def test_a_missing_device_is_missing_and_nothing_else(machine: Machine) -> None:
    machine.define("web", f'{TINY}[disk.root]\npath = "/dev/vg0/web-root"\n')

    for words in (("preflight", "web"), ("up", "web")):
        assert machine.run(*words).codes - {"host.user.root"} == {"disk.missing"}


def test_hints_repeat_the_command_that_was_asked(machine: Machine) -> None:
    machine.define("web")
    machine.define("first", image=True)
    machine.define("second", f'{TINY}[disk.root]\npath = "first.img"\n[disk.data]\npath = "new/data.img"\n')
    machine.ok("up", "first", "--paused")

    other = machine.run("explain", "-f", "vmdefs/web.toml", "wbe")
    second = machine.run("preflight", "second")
    written = machine.ok("init", "new", "--dir", "elsewhere")
    facts = machine.run("print-cmd", "web", "--facts", "/nope")
    user = machine.run("up", "web", "--set", "security.user=nobody-here")

    assert "fix: kvmlaunch explain -f vmdefs/web.toml web\n" in other.err
    assert "fix: kvmlaunch down first   # " in second.err
    assert (
        'size = "20GiB"   # beside path in [disk.data], a table and no disk = …; then: kvmlaunch up second --create\n'
        in second.err
    )
    assert "kvmlaunch validate elsewhere/new.toml" in written.err
    assert "Errno" not in facts.err
    assert "fix: kvmlaunch facts VM --save /nope   # on the host that is meant" in facts.err
    assert "fix: useradd --system --no-create-home nobody-here" in user.err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    before = machine.status("web")

    said = {words: machine.ok(*words, "-n").err for words in (("resume", "web"), ("reset", "web"), ("restart", "web"))}
    pausing = machine.ok("pause", "web", "-n").err
    written = machine.ok("init", "new", "-n").err
    again = machine.run("init", "web", "-n")
    machine.execute("sh", "-c", "mkdir closed; mount --bind closed closed; mount -o remount,bind,ro closed")
    refused = machine.run("init", "new", "-n", "--dir", "closed")
    after = machine.status("web")

    assert all("would" in text for text in said.values()), said
    assert "already" in pausing
    assert "would write" in written
    assert not (machine.directory / "vmdefs/new.toml").exists()
    assert again.codes == {"vm.exists"}
    assert refused.codes == {"host.failed"}
    assert (after["pid"], after["run_state"]) == (before["pid"], before["run_state"])


def test_a_dry_run_of_undo_names_what_was_prepared_and_leaves_it(machine: Machine) -> None:
    machine.define("web")
    machine.ok("preflight", "web", "--apply")

    planned = machine.ok("preflight", "web", "--undo", "-n")
    undone = machine.ok("preflight", "web", "--undo")

    assert planned.err.count("would undo") == undone.err.count("undone") >= 1
    assert machine.leftovers() == []


def test_what_cannot_be_read_beside_it_does_not_keep_a_vm_from_starting(machine: Machine) -> None:
    place = machine.define("web", f"{TINY}[lifecycle]\nautostart = true\n").parent
    (place / "open.toml").write_text(TINY)
    (place / "open.toml").chmod(0o666)
    (place / ".#web.toml").symlink_to("root@host.1:1")
    (place / "gone.toml").symlink_to("nothing")
    (place / "directory.toml").mkdir()

    started = machine.run("up", "--all", "--paused")
    listed = {row["name"] for row in machine.ok("ls", "--json").json["vms"]}

    assert (started.code, started.codes) == (5, {"def.untrusted", "host.kvm.dead", "host.user.root"} & started.codes)
    assert machine.status("web")["state"] == "paused"
    assert listed == {"web", "open"}


def test_a_restart_that_could_not_start_again_ends_nothing(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")
    pid = machine.pid("web")
    machine.define("web", f'{TINY}[disk.data]\npath = "data.img"\nsize = "8MiB"\n')

    dry, refused = machine.run("restart", "web", "-n"), machine.run("restart", "web", "--force", "--timeout", "10ms")

    assert [(each.code, "disk.missing" in each.codes) for each in (dry, refused)] == [(6, True)] * 2
    assert machine.pid("web") == pid
    assert machine.status("web")["state"] == "running"


def test_a_working_directory_that_was_removed_is_said(machine: Machine) -> None:
    said = machine.execute("sh", "-c", f"mkdir gone; cd gone; rmdir ../gone; exec {KVMLAUNCH} ls")

    assert (said.code, said.codes) == (1, {"host.failed"})
    assert "working directory" in said.err


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_standard_output_that_is_full_is_said_and_is_no_bug(machine: Machine, buffered: str) -> None:
    machine.define("web")

    said = machine.execute("sh", "-c", f"PYTHONUNBUFFERED={buffered} {KVMLAUNCH} print-cmd web >/dev/full")

    assert (said.code, said.codes & {"host.space", "internal.bug"}) == (6, {"host.space"})


def test_a_first_definition_is_whole_or_not_there(machine: Machine) -> None:
    machine.execute(
        "sh", "-euc", "mkdir small; mount -t tmpfs -o size=4k small small; head -c 4k /dev/zero >small/full"
    )

    said = machine.run("init", "web", "--dir", "small")
    left = machine.execute("ls", "small").out

    assert (said.code, said.codes) == (6, {"host.space"})
    assert left.split() == ["full"]


def test_a_vm_that_runs_from_elsewhere_is_named_with_its_file(machine: Machine) -> None:
    place = machine.directory / "far away"
    place.mkdir()
    (place / "web.toml").write_text(TINY)
    machine.ok("up", place / "web.toml", "--paused")

    unknown = machine.run("diff", "web")

    assert unknown.code == 4
    assert "far away/web.toml' " in unknown.err


@pytest.mark.parametrize("name", ["a,process=evil", "Web", "a" * 41, "", "a\nb"])
def test_what_can_be_no_name_of_a_vm_is_said_to_be_none(machine: Machine, name: str) -> None:
    machine.define("web")

    refused = machine.run("up", name)

    assert (refused.code, refused.codes) == (5, {"def.name"})
    assert machine.qemus() == []


def test_a_key_of_a_disk_is_explained_by_the_disks_own_name_too(machine: Machine) -> None:
    said = machine.ok("explain", "disk.root.cache").out

    assert said.startswith("disk.NAME.cache\n")
    assert machine.run("explain", "nosuch.key").codes == {"vm.unknown"}


def test_a_restart_waits_for_the_guest_as_a_start_does(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")

    done = machine.ok("restart", "web", "--force", "--timeout", "0", "--wait", "ready")

    assert " ready " in done.err


def test_a_guest_need_not_be_waited_for(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")

    asked = machine.run("down", "web", "--timeout", "0")
    forced = machine.ok("down", "web", "--force", "--timeout", "0", "--json").json["vms"][0]

    assert (asked.code, asked.codes & {"vm.stop.timeout"}) == (8, {"vm.stop.timeout"})
    assert "was not waited for" in asked.err
    assert forced["forced"] == "SIGTERM"
    assert machine.run("up", "web", "--timeout", "0").code == 2
    assert machine.run("restart", "web", "--timeout", "0s").code == 2


def test_a_paused_vm_that_does_not_power_down_is_paused_again(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web")
    machine.ok("pause", "web")

    down = machine.run("down", "web", "--timeout", "200ms")

    assert down.code == 8
    assert "it is paused again" in down.err
    assert machine.status("web")["run_state"] == "paused"


def test_a_paused_guest_does_not_run_for_a_moment_when_it_is_ended_at_once(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    down = machine.ok("down", "web", "--force", "--timeout", "0")

    assert "SIGTERM" in down.err
    assert "resumed" not in down.err


def test_without_home_the_user_database_says_where_it_is(machine: Machine) -> None:
    machine.define("web", f'{TINY}[disk.data]\npath = "~/data.img"\nsize = "8MiB"\n')

    for words in (("env", "-u", "HOME"), ("env", "HOME=relative")):
        said = machine.execute(*words, KVMLAUNCH, "disk", "create", "-n", "web")
        assert "/root/data.img" in said.err + said.out, words


def test_a_user_that_there_is_not_is_a_refusal_at_the_option(machine: Machine) -> None:
    machine.define("web")

    refused = machine.run("preflight", "web", "--apply", "--user", "nosuch")

    assert (refused.code, refused.codes) == (6, {"host.user.unknown"})
    assert "security.user" not in refused.err


def test_a_vm_that_runs_is_not_said_to_have_booted_from_a_cd(machine: Machine) -> None:
    machine.define("web", f'{TINY}[cdrom.install]\npath = "web.iso"\n')
    (machine.directory / "vmdefs/web.iso").write_bytes(bytes(1 << 20))
    machine.ok("up", "web")

    refused = machine.run("up", "web", "--boot", "cdrom.install")

    assert (refused.code, refused.codes & {"vm.state"}) == (7, {"vm.state"})


def test_a_command_is_given_again_whole_for_the_file_that_a_vm_runs_from(machine: Machine) -> None:
    place = machine.define("web", image=True)
    elsewhere = machine.directory / "elsewhere/web.toml"
    elsewhere.parent.mkdir()
    place.rename(elsewhere)
    (machine.directory / "vmdefs/web.img").rename(elsewhere.with_name("web.img"))
    machine.ok("up", elsewhere, "--paused")

    said = machine.run("disk", "resize", "web:root", "16MiB").err
    elsewhere.rename(elsewhere.with_name("gone.toml"))
    gone = machine.run("restart", "web").err

    assert f"kvmlaunch disk resize {elsewhere}:root 16MiB" in said
    assert "fix: kvmlaunch down web" in gone
    assert f"{elsewhere}, which is gone" in gone


def test_facts_that_cannot_be_written_are_an_error_in_the_systems_words(machine: Machine) -> None:
    machine.execute("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/mnt")

    tries = [machine.run("facts", "--save", place) for place in ("/mnt/facts", "/proc/facts", "/etc/passwd", "")]

    assert all(each.code in {1, 2, 6} for each in tries)
    assert not any("internal.bug" in each.codes for each in tries)


def test_slips_are_answered_with_the_command_that_was_meant(machine: Machine) -> None:
    machine.define("web")

    new = machine.run("init", "new.toml")
    file = machine.run("print-cmd", "web.toml")
    time = machine.run("down", "web", "--timeout", "3")
    decision = machine.run("explain", "web", "memory.numa")

    assert "fix: kvmlaunch init new\n" in new.err
    assert "fix: kvmlaunch print-cmd web\n" in file.err
    assert 'such as "3s"' in time.err
    assert "no option comes of it; kvmlaunch explain memory.numa tells what it means" in decision.err


@pytest.mark.parametrize(
    "words",
    [
        ("show", "-f", "vmdefs/web.toml", "-f", "vmdefs/other.toml", "web"),
        ("-f", "vmdefs/other.toml", "show", "-f", "vmdefs/web.toml", "web"),
    ],
)
def test_of_two_files_none_is_forgotten(machine: Machine, words: tuple[str, ...]) -> None:
    machine.define("web")
    machine.define("other")

    assert machine.run(*words).code == 2
    assert machine.run("-f", "vmdefs/web.toml", "show", "web").code == 0


def test_a_name_that_is_no_utf8_leaves_every_document_readable(machine: Machine) -> None:
    machine.define("web")
    os.close(os.open(os.fsencode(machine.directory / "vmdefs") + b"/\xff.toml", os.O_CREAT | os.O_WRONLY))

    found = machine.execute("sh", "-c", "kvmlaunch ls --json | iconv -f UTF-8 -t UTF-8")

    assert found.code == 0, found.err
    assert {each["name"] for each in json.loads(found.out)["vms"]} == {"web", "\\xff"}


def test_a_definition_that_is_a_link_to_nothing_is_said_to_be(machine: Machine) -> None:
    machine.directory.joinpath("vmdefs").mkdir(exist_ok=True)
    (machine.directory / "vmdefs/web.toml").symlink_to("nowhere.toml")

    assert machine.run("validate", "web").codes == {"def.path"}


def test_a_variable_is_set_to_a_number_as_to_any_text(machine: Machine) -> None:
    machine.define("web", 'description = "port ${port}"\n' + TINY + '[vars]\nport = "80"\n')

    assert 'description = "port 8080"' in machine.ok("show", "web", "--resolved", "--set", "vars.port=8080").out


def test_json_that_is_nested_too_deeply_is_no_argument(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")

    assert machine.run("monitor", "web", "query-name", '{"a":' * 20000 + "1" + "}" * 20000).code == 2


def test_a_file_beside_standard_input_is_not_forgotten(machine: Machine) -> None:
    machine.define("web")

    assert machine.run("print-cmd", "-", "-f", "vmdefs/web.toml").codes == {"vm.unknown"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("up w", {"web"}),
        ("up --defs elsewhere x", {"xvm"}),
        ("--defs elsewhere up x", {"xvm"}),
        ("clone new --from w", {"web"}),
        ("zork h", set()),
    ],
)
def test_completion_knows_vms_wherever_they_are_sought(machine: Machine, words: str, expected: set[str]) -> None:
    machine.define("web")
    machine.execute("sh", "-euc", "mkdir elsewhere; cp vmdefs/web.toml elsewhere/xvm.toml")

    said = machine.execute(
        "env",
        "_KVMLAUNCH_COMPLETE=bash_complete",
        f"COMP_WORDS=kvmlaunch {words}",
        f"COMP_CWORD={len(words.split())}",
        "kvmlaunch",
    )

    assert {line.partition(",")[2] for line in said.out.split()} == expected
    assert said.err == ""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_reader_that_goes_away_keeps_no_vm_from_its_start(machine: Machine, jobs: str) -> None:
    for name in ("a", "b"):
        machine.define(name)

    said = machine.execute("bash", "-c", f"kvmlaunch up a b --json --paused -j{jobs} | true; echo ${{PIPESTATUS[0]}}")
    dry = machine.execute("bash", "-c", f"kvmlaunch up a b -n -j{jobs} | true; echo ${{PIPESTATUS[0]}}")

    assert (said.out, dry.out) == ("0\n", "0\n"), said.err + dry.err
    assert "Traceback" not in said.err + dry.err
    assert "Broken pipe" not in said.err + dry.err
    assert [machine.status(name)["state"] for name in ("a", "b")] == ["paused", "paused"]


def test_a_line_for_disks_that_are_not_made_yet_is_not_said_to_be_the_last_word(machine: Machine) -> None:
    machine.define("web", f'{TINY}[disk.root]\npath = "web.img"\nsize = "8MiB"\n')

    before = machine.ok("print-cmd", "web")
    machine.ok("disk", "create", "web")
    after = machine.ok("print-cmd", "web")

    assert "web.img is not there yet  [disk.missing]" in before.err
    assert "[disk.missing]" not in after.err


def test_definitions_that_a_user_may_not_read_are_not_taken_for_none(shared: Machine) -> None:
    place = f"install -d -o {ALICE} /srv/alice/vmdefs; install -d -m 0700 -o {ALICE} /run/user/{ALICE}"
    shared.execute("sh", "-euc", f"{place}; echo 'vcpus = 1' > /srv/alice/vmdefs/web.toml; chmod 0 /srv/alice/vmdefs")

    refused = [as_alice(shared, *words) for words in (("validate",), ("up", "web"), ("up", "--all"), ("preflight",))]
    listed = as_alice(shared, "ls")

    assert [(each.code, each.codes) for each in refused] == [(5, {"def.path"})] * 4
    assert (listed.code, "[def.path]" in listed.err) == (0, True)


def test_an_error_has_its_traceback_where_that_is_asked_for(machine: Machine) -> None:
    plain = machine.run("up", "nosuch")
    asked = machine.run("up", "nosuch", env={"KVMLAUNCH_DEBUG": "1"})

    assert "Traceback" not in plain.err
    assert "Traceback" in asked.err
    assert asked.err.endswith(plain.err)
