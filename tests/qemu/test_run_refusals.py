"""QEMUs that die, hang or talk nonsense, and broken promises: `up` says why, in QEMU's words, and leaves nothing."""

from pathlib import Path

import pytest

from tests.fakes.qemu import WORDS
from tests.sandbox import KVMLAUNCH, TINY, Machine, Result, finish

UNAVAILABLE = '{"path": "/machine/unattached/device[0]", "property": "unavailable-features"}'


def up_with(machine: Machine, behaviour: str, *more: str) -> Result:
    """Start a VM with a QEMU that fails in one way."""
    machine.define("web")
    return machine.run("up", "web", "--set", f"qemu.binary={machine.fake(behaviour)}", *more)


def test_a_qemu_that_refuses_is_quoted_word_for_word(machine: Machine) -> None:
    result = up_with(machine, "refuses")

    assert result.code == 9
    assert result.codes >= {"qemu.exit"}
    assert WORDS in result.err
    assert machine.leftovers() == []


def test_a_cpu_feature_that_cannot_be_given_ends_the_start_and_the_fix_that_is_named_works(machine: Machine) -> None:
    machine.define(
        "web", TINY.replace("[memory]", '[cpu]\nmodel = "Nehalem"\nfeatures = {perfctr_core = "on"}\n[memory]')
    )
    result = machine.run("up", "web")
    machine.ok("up", "web", "--set", "cpu.features.perfctr-core=off", "--set", "cpu.features.perfctr_core=off")

    assert (result.code, result.codes & {"host.cpu.features"}) == (9, {"host.cpu.features"})
    assert 'features = { perfctr-core = "off" }' in result.err
    assert machine.ok("monitor", "web", "qom-get", UNAVAILABLE, "--json").json["return"] == []


def test_what_qemu_prints_at_a_start_that_goes_well_is_shown(machine: Machine) -> None:
    machine.define(
        "web", TINY.replace("vcpus = 1", "cpu = { vcpus = 4, topology = { sockets = 1, cores = 2, threads = 2 } }")
    )
    result = machine.ok("up", "web")

    assert "qemu.said" in result.codes
    assert "hyperthreading" in result.err
    assert any("QEMU says" in note and "hyperthreading" in note for note in machine.status("web")["notes"])


def test_the_words_of_a_qemu_that_refused_are_kept_in_its_log(machine: Machine) -> None:
    up_with(machine, "refuses")

    kept = machine.ok("logs", "web", "--source", "qemu")

    assert WORDS in kept.out


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("bus", "qemu.signal.bus"),
        ("sys", "qemu.signal.sys"),
        ("abrt", "qemu.signal.abrt"),
        ("kill", "qemu.signal.kill"),
    ],
)
def test_a_qemu_that_dies_of_a_signal_without_a_word_is_explained(machine: Machine, behaviour: str, code: str) -> None:
    result = up_with(machine, behaviour)

    assert result.code == 9
    assert result.codes >= {code}
    assert machine.leftovers() == []


@pytest.mark.parametrize("behaviour", ["hangs", "silent"])
def test_a_qemu_that_does_not_answer_is_ended_when_its_time_is_up(machine: Machine, behaviour: str) -> None:
    result = up_with(machine, behaviour, "--timeout", "500ms")

    assert result.code == 8
    assert result.codes >= {"vm.start.timeout"}
    assert machine.leftovers() == []


@pytest.mark.parametrize("behaviour", ["garbage", "long"])
def test_a_qemu_that_talks_nonsense_is_given_up(machine: Machine, behaviour: str) -> None:
    result = up_with(machine, behaviour, "--timeout", "3s")

    assert result.code in {8, 9}
    assert "internal.bug" not in result.codes
    assert machine.leftovers() == []


def test_a_qemu_that_dies_after_its_greeting_is_quoted(machine: Machine) -> None:
    result = up_with(machine, "greets-and-refuses")

    assert result.code == 9
    assert WORDS in result.err
    assert machine.leftovers() == []


def test_an_option_that_the_real_qemu_does_not_know_ends_with_its_words(machine: Machine) -> None:
    machine.define("web", f'{TINY}[raw]\nargs = ["-device", "no-such-device"]\n')

    result = machine.run("up", "web", "--paused")

    assert result.code == 9
    assert "'no-such-device' is not a valid device model name" in result.err
    assert machine.leftovers() == []


BROKEN = {
    "a-second-name": (["-name", "guest=other"], 5, "def.raw.option"),
    "another-uuid": (["-uuid", "00000000-0000-4000-8000-000000000001"], 5, "def.raw.option"),
    "more-vcpus": (["-smp", "2"], 5, "def.raw.option"),
    "a-volatile-cache": (["-global", "virtio-blk-device.write-cache=on"], 9, "qemu.promise"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_words_by_hand_that_break_a_promise_fail_the_start(machine: Machine, name: str) -> None:
    words, code, report = BROKEN[name]
    raw = f"[raw]\nargs = {words}\n".replace("'", '"')
    machine.define("web", f'{TINY}{raw}[disk.root]\npath = "web.img"\ncache = "writethrough"\n')
    (machine.directory / "vmdefs" / "web.img").write_bytes(bytes(1 << 20))

    result = machine.run("up", "web", "--paused")

    assert (result.code, result.codes) == (code, {report}), result.err
    assert machine.leftovers() == []


def test_a_promise_that_is_broken_is_shown_with_what_was_planned_and_what_is(machine: Machine) -> None:
    machine.define("web", f'{TINY}[raw]\nargs = ["-global", "virtio-blk-device.write-cache=on"]\n'
                          '[disk.root]\npath = "web.img"\ncache = "writethrough"\n')  # fmt: skip
    (machine.directory / "vmdefs" / "web.img").write_bytes(bytes(1 << 20))

    result = machine.run("up", "web", "--paused")

    assert result.code == 9, result.err
    assert result.codes >= {"qemu.promise"}
    assert "planned" in result.err


def test_no_qemu_at_all_is_refused_before_anything_changes(machine: Machine) -> None:
    machine.define("web")

    result = machine.run("up", "web", "--set", "qemu.binary=/nonexistent/qemu")

    assert result.code == 6
    assert result.codes == {"qemu.missing"}
    assert not machine.rundir("web").parent.exists()


def test_a_program_that_is_no_qemu_is_refused(machine: Machine) -> None:
    machine.define("web")

    result = machine.run("up", "web", "--set", "qemu.binary=/bin/true")

    assert result.code == 6
    assert result.codes == {"qemu.version"}


def test_a_disk_in_use_by_another_vm_is_refused_with_its_holder(machine: Machine) -> None:
    machine.define("first", image=True)
    machine.define("second", f'{TINY}[disk.root]\npath = "first.img"\n')
    machine.ok("up", "first", "--paused")

    result = machine.run("up", "second", "--paused")

    assert result.code == 6
    assert result.codes >= {"disk.locked"}
    assert str(machine.pid("first")) in result.err
    assert "VM first" in result.err
    assert not machine.rundir("second").exists()


@pytest.mark.parametrize("spelling", ["hard link", "symbolic link", "dots"])
def test_a_disk_in_use_is_known_by_every_name(machine: Machine, spelling: str) -> None:
    machine.define("first", image=True)
    image, other = machine.directory / "vmdefs" / "first.img", machine.directory / "vmdefs" / "other.img"
    match spelling:
        case "hard link":
            other.hardlink_to(image)
        case "symbolic link":
            other.symlink_to(image)
        case _:
            other = machine.directory / "vmdefs" / ".." / "vmdefs" / "first.img"
    machine.define("second", f'{TINY}[disk.root]\npath = "{other}"\n')
    machine.ok("up", "first", "--paused")

    result = machine.run("up", "second", "--paused")

    assert result.code == 6
    assert result.codes >= {"disk.locked"}


def test_a_disk_that_is_written_may_not_be_read_by_another_vm(machine: Machine) -> None:
    machine.define("first", image=True)
    machine.define("second", f'{TINY}[disk.root]\npath = "first.img"\nreadonly = true\n')
    machine.ok("up", "first", "--paused")

    result = machine.run("up", "second", "--paused")

    assert result.code == 6
    assert result.codes >= {"disk.locked"}


def test_a_disk_that_is_only_read_is_shared(machine: Machine) -> None:
    for name in ("first", "second"):
        machine.define(name, f'{TINY}[disk.root]\npath = "shared.img"\nreadonly = true\n')
    (machine.directory / "vmdefs" / "shared.img").write_bytes(bytes(1 << 20))

    machine.ok("up", "first", "second", "--paused")

    assert len(machine.qemus()) == 2


@pytest.mark.parametrize("top", ["/run/kvmlaunch", "/var/lib/kvmlaunch", "/var/log/kvmlaunch"])
@pytest.mark.parametrize("kind", ["nr_inodes=1", "ro"], ids=["full", "read-only"])
def test_a_directory_that_takes_nothing_stops_the_start_before_qemu(machine: Machine, top: str, kind: str) -> None:
    machine.define("web")
    machine.execute("mount", "-t", "tmpfs", "-o", kind, "tmpfs", top)

    for words in (("preflight", "web"), ("up", "web", "--paused")):
        result = machine.run(*words)

        assert result.code == 6, result.err
        assert result.codes >= {"host.space"}, words
        assert f"{top}/" in result.err, words
    assert machine.leftovers() == []


def test_a_log_that_cannot_be_kept_is_said_and_keeps_no_vm_from_ending(machine: Machine) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    machine.execute("mount", "-t", "tmpfs", "-o", "nr_inodes=1", "tmpfs", "/var/log/kvmlaunch")

    ended = machine.end("web")

    assert "qemu.log is not kept" in ended.err
    assert machine.leftovers() == []


def test_an_image_on_a_file_system_that_is_mounted_read_only_is_told_apart_from_one_without_rights(
    machine: Machine,
) -> None:
    place = machine.directory / "vmdefs/fixed"
    place.mkdir(parents=True)
    machine.execute("mount", "-t", "tmpfs", "tmpfs", place)
    machine.define("web", f'{TINY}[disk.root]\npath = "fixed/web.img"\n')
    machine.execute("sh", "-euc", f"truncate -s 1M {place}/web.img; mount -o remount,ro {place}")

    refused, read = (
        machine.run("up", "web", "--paused"),
        machine.run("preflight", "web", "--set", "disk.root.readonly=true"),
    )

    assert (refused.code, refused.codes & {"disk.permission"}) == (6, {"disk.permission"})
    assert "mounted read-only" in refused.err
    assert "setfacl" not in refused.err
    assert read.code == 0, read.err


@pytest.mark.parametrize("top", ["/run/kvmlaunch", "/var/lib/kvmlaunch", "/var/log/kvmlaunch"])
def test_a_tree_that_others_may_write_is_refused(machine: Machine, top: str) -> None:
    machine.define("web")
    machine.outside(top).chmod(0o777)

    for words in (("up", "web", "--paused"), ("up", "web", "-n"), ("preflight", "web")):
        result = machine.run(*words)

        assert result.code == 6, words
        assert result.codes >= {"host.dir.unsafe"}, words
    assert machine.qemus() == []


@pytest.mark.parametrize("name", ["record.json", "qmp.sock", "log/events.log", "console.sock", "log"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_planted_in_a_run_directory_is_never_followed(machine: Machine, name: str, kind: str) -> None:
    machine.define("web")
    target = machine.directory / "target"
    target.write_text("untouched")
    place = machine.outside(f"/run/kvmlaunch/vm/web/{name}")
    machine.execute("install", "-d", "-m", "0711", "/run/kvmlaunch/vm")
    machine.execute("install", "-d", "-m", "0700", "/run/kvmlaunch/vm/web")
    if "/" in name:
        machine.execute("install", "-d", "-m", "0700", "/run/kvmlaunch/vm/web/log")
    machine.execute("ln", "-s", target, f"/run/kvmlaunch/vm/web/{name}") if kind == "link" else machine.execute(
        "mkfifo", f"/run/kvmlaunch/vm/web/{name}"
    )

    result = machine.run("up", "web", "--paused")

    assert result.code in {0, 6}, result.err
    assert (place.is_symlink() or place.is_fifo()) is (result.code == 6)
    assert target.read_text() == "untouched"
    machine.run("down", "web", "--force", "--timeout", "10ms")
    assert target.read_text() == "untouched"
    assert machine.qemus() == []


def test_a_log_that_is_a_planted_link_is_not_followed(machine: Machine) -> None:
    machine.define("web")
    target = machine.directory / "target"
    target.write_text("untouched")
    machine.execute("install", "-d", "-m", "0711", "/var/log/kvmlaunch/web")
    machine.execute("ln", "-s", target, "/var/log/kvmlaunch/web/qemu.log")

    machine.ok("up", "web", "--paused")
    ended = machine.end("web")

    assert "qemu.log is not kept" in ended.err
    assert target.read_text() == "untouched"
    assert machine.leftovers() == []


@pytest.mark.parametrize("name", ["console.log", "events.log", "qemu.log"])
def test_a_log_of_two_names_is_neither_emptied_nor_kept(machine: Machine, name: str) -> None:
    machine.define("web")
    machine.ok("up", "web", "--paused")
    precious, log = "/run/kvmlaunch/vm/web/log/precious", f"/run/kvmlaunch/vm/web/log/{name}"
    machine.execute("sh", "-euc", f"head -c 6M /dev/zero >{precious}; ln -f {precious} {log}")

    machine.ok("status", "web")
    size = machine.outside(precious).stat().st_size

    assert size == 6 << 20
    assert not machine.outside(f"/var/log/kvmlaunch/web/{name}").exists()


@pytest.fixture
def container(machine: Machine) -> Machine:
    """Give a machine in which root cannot change the host: /proc/sys is read-only, as in a container."""
    machine.define("web", image=True)
    machine.ok("print-cmd", "web")
    for words in (("--bind", "/proc/sys", "/proc/sys"), ("-o", "remount,bind,ro", "/proc/sys")):
        result = machine.execute("mount", *words)
        assert result.code == 0, result.err
    return machine


def test_root_in_a_container_starts_what_needs_nothing_of_the_host(container: Machine) -> None:
    started = container.ok("up", "web", "--paused")
    state = container.status("web")["state"]
    container.end("web")

    assert "[host.fixed]" in started.err
    assert state == "paused"
    assert container.leftovers() == []


def test_root_without_the_right_to_mount_starts_what_needs_nothing_of_the_host(machine: Machine) -> None:
    machine.define("web", image=True)
    bounded = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", KVMLAUNCH)

    started = machine.execute(*bounded, "up", "web", "--paused")

    assert started.code == 0, started.err
    assert "CAP_SYS_ADMIN" in started.err
    assert machine.status("web")["state"] == "paused"


def test_root_in_a_container_is_told_that_huge_pages_cannot_be_had(container: Machine) -> None:
    asked = container.run("up", "web", "--paused", "--set", "memory.hugepages=2MiB")
    wished = container.run("up", "web", "--paused", "--set", "memory.hugepages=auto")

    assert (asked.code, asked.codes) == (6, {"host.fixed"})
    assert wished.code == 0, wished.err
    assert "host.hugepages.none" in wished.err


@pytest.mark.parametrize(("rights", "code"), [("-sys_resource", 0), ("-sys_resource,-ipc_lock", 9)])
def test_root_locks_memory_where_it_may_and_is_told_where_not(machine: Machine, rights: str, code: int) -> None:
    machine.define("web")
    bounded = f"setpriv --bounding-set={rights} --inh-caps={rights}"
    command = f"ulimit -l 64; exec {bounded} {KVMLAUNCH} up web --paused --set memory.lock=true"

    done = machine.execute("sh", "-c", command)

    assert done.code == code, done.err
    assert not code or "lock" in done.err


def test_limits_of_the_shell_are_not_the_guests(machine: Machine) -> None:
    machine.define("web", f'{TINY}[disk.root]\npath = "web.img"\n')
    with (machine.directory / "vmdefs" / "web.img").open("wb") as image:
        image.truncate(4 << 20)
    powerless = "setpriv --bounding-set -sys_resource --inh-caps -sys_resource kvmlaunch up web"

    hard = finish(machine.start("bash", "-c", f"ulimit -f 1024; {powerless}"))
    soft = finish(machine.start("bash", "-c", "ulimit -S -f 1024 -t 60; kvmlaunch up web --paused"))
    limits = Path(f"/proc/{machine.pid('web')}/limits").read_text().splitlines()
    machine.end("web")

    assert (hard.code, hard.codes & {"host.limit"}) == (6, {"host.limit"})
    assert soft.code == 0, soft.err
    assert [line.split()[3] for line in limits if line.startswith(("Max cpu time", "Max file size"))] == [
        "unlimited"
    ] * 2
    assert machine.leftovers() == []
