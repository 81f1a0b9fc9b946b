"""`disk create`, `disk info` and `up --create` with the real qemu-img: what is made, what a kill leaves."""

import os
import signal
from pathlib import Path
from typing import Any, Final

import pytest

from kvmlaunch.model.image import qcow2_room
from tests.crashes import Point, describe, killed_at, points, traced
from tests.qemu.test_run_attach import terminal
from tests.sandbox import (
    ALICE,
    KVMLAUNCH,
    SECONDS,
    TINY,
    Machine,
    Process,
    as_alice,
    cmdline,
    finish,
    wait_for,
)

MIB: Final = 1 << 20
RAW: Final = '[disk.root]\npath = "web.img"\nsize = "8MiB"\n'
QCOW2: Final = '[disk.root]\npath = "web.qcow2"\nsize = "8MiB"\n'
OVERLAY: Final = (
    '[disk.base]\npath = "base.qcow2"\nsize = "8MiB"\n[disk.root]\npath = "web.qcow2"\nbacking = "base.qcow2"\n'
)
LARGE: Final = '[disk.root]\npath = "web.img"\nsize = "1GiB"\npreallocation = "full"\n'
SPARSE: Final = ("--set", "disk.root.preallocation=off")


def place(machine: Machine, name: str = "") -> Path:
    """Give a file beside the definitions, or their directory."""
    return machine.directory / "vmdefs" / name


def names(machine: Machine) -> set[str]:
    """Give what lies beside the definitions."""
    return {path.name for path in place(machine).iterdir() if path.suffix != ".toml"}


def define(machine: Machine, disks: str, name: str = "web") -> None:
    """Write a definition with these disks."""
    machine.define(name, f"{TINY}{disks}")


def created(machine: Machine, disks: str) -> Any:  # noqa: ANN401 - any document
    """Write a definition and make its disks; give their rows."""
    define(machine, disks)
    return machine.ok("disk", "create", "web", "--json").json["disks"]


def info(machine: Machine, word: str = "web") -> Any:  # noqa: ANN401 - any document
    """Give the first disk's row of `disk info`."""
    return machine.ok("disk", "info", word, "--json").json["disks"][0]


def tools(machine: Machine) -> list[int]:
    """Give the pids of every qemu-img in here."""
    return [pid for pid in machine.processes() if cmdline(pid).startswith(b"qemu-img\0")]


def creating(machine: Machine) -> Process:
    """Start to make a large image, and wait until qemu-img is at it."""
    define(machine, LARGE)
    process = machine.start(KVMLAUNCH, "disk", "create", "web")
    wait_for("qemu-img runs", lambda: tools(machine))
    return process


def refused(machine: Machine, *words: str) -> tuple[int, str]:
    """Give exit code and stable code of a command that is refused."""
    result = machine.run(*words, "--json")
    return result.code, result.error["code"] if result.code else "not refused"


@pytest.fixture
def small(machine: Machine) -> Path:
    """Give a file system of 8 MiB."""
    path = machine.directory / "small"
    path.mkdir()
    machine.execute("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path)
    return machine.outside(path)


def test_a_raw_image_is_fully_allocated_and_its_owners_alone(machine: Machine) -> None:
    row = created(machine, RAW)[0]

    status = place(machine, "web.img").stat()
    assert (row["size"], row["already"], row["format"]) == (8 * MIB, False, "raw")
    assert (status.st_size, status.st_blocks * 512) == (8 * MIB, 8 * MIB)
    assert status.st_mode & 0o7777 == 0o600
    assert names(machine) == {"web.img"}


def test_a_qcow2_image_has_its_metadata_and_no_data(machine: Machine) -> None:
    created(machine, QCOW2)

    status = place(machine, "web.qcow2").stat()
    assert status.st_size > 8 * MIB
    assert status.st_blocks * 512 < MIB
    assert status.st_mode & 0o7777 == 0o600
    assert info(machine)["size"] == 8 * MIB


def test_an_overlay_is_made_over_a_base_that_the_same_command_makes(machine: Machine) -> None:
    created(machine, OVERLAY)

    shown = info(machine, "web:root")
    assert shown["size"] == 8 * MIB
    assert [(Path(image["path"]).name, image["format"]) for image in shown["chain"]] == [
        *(("web.qcow2", "qcow2"), ("base.qcow2", "qcow2"))
    ]


def test_a_terminal_is_shown_how_far_it_is_and_then_what_was_made(machine: Machine) -> None:
    define(machine, LARGE.replace("1GiB", "64MiB"))

    with terminal(machine, "disk", "create", "web") as screen:
        screen.read_until(b"made")
        code = screen.process.wait(SECONDS)

    assert code == 0
    assert place(machine, "web.img").stat().st_size == 64 * MIB


def test_what_is_there_stays_as_it_is(machine: Machine) -> None:
    created(machine, RAW)
    place(machine, "web.img").write_bytes(b"guest".ljust(8 * MIB, b"\0"))

    again = machine.ok("disk", "create", "web", "--json").json["disks"][0]

    assert again["already"]
    assert place(machine, "web.img").read_bytes().startswith(b"guest")


@pytest.mark.parametrize("disks", [RAW, QCOW2, OVERLAY])
def test_a_dry_run_makes_nothing(machine: Machine, disks: str) -> None:
    define(machine, f'{disks}[disk.more]\npath = "below/more.img"\nsize = "8MiB"\n')

    shown = machine.ok("disk", "create", "web", "-n")

    assert "would make" in shown.err
    assert names(machine) == set()


def test_a_directory_that_is_missing_is_made(machine: Machine) -> None:
    created(machine, RAW.replace("web.img", "a/b/web.img"))

    assert place(machine, "a/b/web.img").stat().st_size == 8 * MIB


def test_a_disk_without_a_size_is_refused_before_any_is_made(machine: Machine) -> None:
    define(machine, f'{RAW}[disk.data]\npath = "data.img"\n')

    assert refused(machine, "disk", "create", "web") == (5, "def.disk.size")
    assert names(machine) == set()


def test_a_disk_that_is_unknown_is_refused_with_those_that_there_are(machine: Machine) -> None:
    define(machine, RAW)

    result = machine.run("disk", "create", "web:rot")

    assert (result.code, result.codes) == (4, {"disk.unknown"})
    assert "root" in result.err
    assert names(machine) == set()


def test_of_several_disks_one_has_to_be_named(machine: Machine) -> None:
    created(machine, OVERLAY)

    assert refused(machine, "disk", "resize", "web", "16MiB") == (4, "disk.unknown")
    assert "fix: kvmlaunch disk resize web:base 16MiB" in machine.run("disk", "resize", "web", "16MiB").err


def test_a_base_that_is_not_there_is_refused(machine: Machine) -> None:
    define(machine, OVERLAY.partition("[disk.root]")[1] + OVERLAY.partition("[disk.root]")[2])

    assert refused(machine, "disk", "create", "web") == (6, "disk.backing")
    assert names(machine) == set()


@pytest.mark.parametrize("kind", ["mkdir", "mkfifo"])
def test_what_is_no_image_does_not_count_as_a_disk_that_is_there(machine: Machine, kind: str) -> None:
    define(machine, RAW)
    machine.execute(kind, place(machine, "web.img"))

    assert refused(machine, "disk", "create", "web") == (6, "disk.type")
    assert machine.run("disk", "info", "web").code == 6


def test_what_has_no_room_is_refused_before_anything_is_written(machine: Machine, small: Path) -> None:
    define(machine, RAW.replace("web.img", "../small/web.img").replace("8MiB", "16MiB"))

    result = machine.run("disk", "create", "web")

    assert result.code == 6
    assert "host.space" in result.codes
    assert 'preallocation = "off"' in result.err
    assert list(small.iterdir()) == []
    machine.ok("disk", "create", "web", *SPARSE)


def test_one_disk_without_room_keeps_the_others_from_being_made(machine: Machine, small: Path) -> None:
    define(machine, f'{RAW}[disk.data]\npath = "../small/data.img"\nsize = "16MiB"\n')

    assert refused(machine, "disk", "create", "web") == (6, "host.space")
    assert names(machine) == set()
    assert list(small.iterdir()) == []


def test_metadata_that_has_no_room_leaves_nothing(machine: Machine, small: Path) -> None:
    define(machine, QCOW2.replace("web.qcow2", "../small/web.qcow2").replace("8MiB", "1TiB"))

    result = machine.run("disk", "create", "web")

    assert result.code in {1, 6}
    assert "No space left" in result.err or "host.space" in result.codes
    assert list(small.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_command_that_is_ended_in_the_middle_leaves_no_image(
    machine: Machine, number: signal.Signals, code: int
) -> None:
    process = creating(machine)

    process.send_signal(number)
    ended = finish(process)
    left = names(machine)
    for pid in tools(machine):
        machine.kill(pid)
    machine.ok("disk", "create", "web", *SPARSE)

    assert ended.code == code
    assert left == (set() if number != signal.SIGKILL else {".web.img.making"})
    assert names(machine) == {"web.img"}


def test_an_image_that_is_not_whole_is_shown_with_who_makes_it(machine: Machine) -> None:
    process = creating(machine)

    made = machine.run("disk", "info", "web", "--json").json["disks"][0]["unfinished"]
    process.kill()
    finish(process)
    for pid in tools(machine):
        machine.kill(pid)
    left = machine.run("disk", "info", "web")

    assert (Path(made["path"]).name, made["pid"]) == (".web.img.making", process.pid)
    assert "left by a command that was killed" in left.out


def test_a_command_that_is_ended_as_it_starts_qemu_img_ends_it_too(machine: Machine) -> None:
    define(machine, LARGE)
    options = ("-o", "/dev/null", "-e", "trace=vfork", "-e", "inject=vfork:signal=SIGTERM:when=1")

    ended = traced(machine, "disk", "create", "web", options=options)
    running = tools(machine)
    for pid in running:
        machine.kill(pid)

    assert ended.code == 143
    assert running == []
    assert names(machine) == set()


def test_qemu_img_killed_in_the_middle_is_said_and_leaves_nothing(machine: Machine) -> None:
    process = creating(machine)

    machine.kill(tools(machine)[0])
    ended = finish(process)
    left = names(machine)
    machine.ok("disk", "create", "web", *SPARSE)

    assert (ended.code, ended.codes) == (1, {"host.tool.failed"})
    assert "9" in ended.err or "SIGKILL" in ended.err, "what ended it is not said"
    assert left == set()


def test_an_image_that_somebody_still_makes_is_not_made_twice(machine: Machine) -> None:
    process = creating(machine)
    tool = tools(machine)[0]
    machine.kill(tool, signal.SIGSTOP)
    machine.kill(process.pid)

    second = machine.run("disk", "create", "web")
    machine.kill(tool)
    third = machine.run("disk", "create", "web", *SPARSE)

    assert (second.code, second.codes) == (6, {"disk.locked"})
    assert third.code == 0
    assert names(machine) == {"web.img"}


def test_killed_at_any_point_an_image_is_whole_or_not_there_and_the_next_command_makes_it(machine: Machine) -> None:
    define(machine, RAW)
    words = ("disk", "create", "web")
    found = points(machine, *words, after=r"openat\(.*\.making", others=1)
    turns = [point for point in found if point.name in {"flock", "ftruncate", "vfork", "unlink"}]

    for point in (*turns, Point("link", 1, "the image gets its name")):
        place(machine, "web.img").unlink()
        killed_at(machine, point, *words)
        wait_for("qemu-img has ended", lambda: not tools(machine))
        half = place(machine, "web.img").exists() and place(machine, "web.img").stat().st_blocks * 512 != 8 * MIB
        again = machine.run(*words)

        assert not half, describe(point, words)
        assert again.code == 0, describe(point, words)
        assert names(machine) == {"web.img"}, describe(point, words)


def test_up_makes_what_is_missing_where_that_is_asked(machine: Machine) -> None:
    define(machine, RAW)

    without = refused(machine, "up", "web", "--paused")
    machine.ok("up", "web", "--paused", "--create")
    again = machine.ok("up", "web", "--paused", "--create")

    assert without == (6, "disk.missing")
    assert "already" in again.err
    assert names(machine) == {"web.img"}
    assert machine.status("web")["pid"]


def test_up_makes_no_disks_for_a_vm_that_could_not_be_started(machine: Machine) -> None:
    define(machine, f'{RAW}[cloud_init]\nuser_data = "nothing.yaml"\n')

    answer = refused(machine, "up", "web", "--paused", "--create")

    assert answer == (6, "seed.file")
    assert names(machine) == set()


@pytest.mark.parametrize(
    ("disks", "expected"),
    [
        ('[disk.a]\npath = "a.img"\nsize = "1KiB"\n', (5, "def.value.range")),
        (
            '[disk.b]\npath = "b.img"\nsize = "8MiB"\n[disk.a]\npath = "a.qcow2"\nsize = "4MiB"\nbacking = "b.img"\n',
            (6, "disk.shrink"),
        ),
    ],
    ids=["no whole blocks", "less than its base"],
)
def test_a_size_that_no_guest_could_use_is_refused_before_any_is_made(
    machine: Machine, disks: str, expected: tuple[int, str]
) -> None:
    define(machine, disks)

    assert refused(machine, "disk", "create", "web") == expected
    assert names(machine) == set()


def test_a_dry_run_of_up_that_makes_disks_is_fine_and_makes_none(machine: Machine) -> None:
    define(machine, RAW)

    result = machine.run("up", "web", "--create", "-n")

    assert names(machine) == set()
    assert "would make" in result.err
    assert result.code == 0, result.err


def test_info_tells_sizes_and_who_uses_it(machine: Machine) -> None:
    created(machine, RAW)
    machine.ok("up", "web", "--paused")

    shown, text = info(machine), machine.ok("disk", "info", "web").out

    assert (shown["size"], shown["allocated"], shown["wanted_size"]) == (8 * MIB, 8 * MIB, 8 * MIB)
    assert (shown["kind"], shown["format"], shown["volume"], shown["thin_pool"]) == ("file", "raw", None, "")
    assert shown["used_by"] == [machine.pid("web")]
    assert "fully allocated" in text
    assert f"in use by pid {machine.pid('web')}" in text


def test_info_of_what_is_not_there_tells_what_it_would_be(machine: Machine) -> None:
    define(machine, RAW)

    shown, text = info(machine), machine.ok("disk", "info", "web").out

    assert (shown["kind"], shown["chain"]) == ("missing", [])
    assert "8MiB when it is made" in text


def test_an_ordinary_user_makes_images_in_a_directory_of_her_own(shared: Machine) -> None:
    home = shared.outside("/srv/alice")
    (home / "vmdefs/web.toml").write_text(f"{TINY}{RAW}")
    shared.execute("install", "-d", "-m", "0700", "-o", str(ALICE), f"/run/user/{ALICE}")

    made = as_alice(shared, "disk", "create", "web")
    grown = as_alice(shared, "disk", "resize", "web:root", "16MiB")

    status = (home / "vmdefs/web.img").stat()
    assert (made.code, grown.code) == (0, 0), made.err + grown.err
    assert (status.st_uid, status.st_mode & 0o7777, status.st_size) == (ALICE, 0o600, 16 * MIB)


def test_an_image_that_a_user_may_not_read_is_not_called_corrupt(shared: Machine) -> None:
    home = shared.outside("/srv/alice")
    (home / "vmdefs/web.toml").write_text(f"{TINY}{QCOW2.replace('web.qcow2', '/srv/web.qcow2')}")
    shared.execute("sh", "-c", "qemu-img create -qf qcow2 /srv/web.qcow2 8M; chmod 0600 /srv/web.qcow2")

    result = as_alice(shared, "disk", "info", "web")

    assert (result.code, result.codes) == (6, {"disk.permission"})


def test_an_image_that_a_user_may_not_reach_does_not_count_as_made(shared: Machine) -> None:
    home = shared.outside("/srv/alice")
    shared.execute("install", "-d", "-m", "0700", "/srv/root")
    (home / "vmdefs/web.toml").write_text(f"{TINY}{RAW.replace('web.img', '/srv/root/web.img')}")

    result = as_alice(shared, "disk", "create", "web")

    assert result.code != 0, result.err
    assert "internal.bug" not in result.codes


def test_what_root_makes_in_a_users_directory_is_the_users(shared: Machine) -> None:
    define(shared, RAW.replace("web.img", "/srv/alice/new/web.img"))

    shared.ok("disk", "create", "web")

    home = shared.outside("/srv/alice")
    assert (home / "new").stat().st_uid == ALICE
    assert (home / "new/web.img").stat().st_uid == ALICE
    assert (home / "new/web.img").stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("link", ["ln -s", "ln"])
def test_a_user_cannot_have_roots_files_written_by_a_name_in_her_directory(shared: Machine, link: str) -> None:
    define(shared, RAW.replace("web.img", "/srv/alice/web.img"))
    shared.execute("sh", "-c", f"echo precious > /srv/precious && {link} /srv/precious /srv/alice/.web.img.making")

    shared.ok("disk", "create", "web")

    assert shared.outside("/srv/precious").read_text() == "precious\n"
    assert os.stat(shared.outside("/srv/precious")).st_uid == 0
    assert shared.outside("/srv/alice/web.img").stat().st_size == 8 * MIB


def test_a_file_that_a_user_put_where_an_image_is_made_does_not_become_the_image(shared: Machine) -> None:
    define(shared, RAW.replace("web.img", "/srv/common/web.img"))
    shared.execute("install", "-d", "-m", "1777", "/srv/common")
    trap = shared.outside("/srv/common/.web.img.making")
    trap.touch(0o666)
    os.chown(trap, ALICE, ALICE)
    planted = trap.stat().st_ino

    shared.run("disk", "create", "web")

    image = shared.outside("/srv/common/web.img")
    assert not image.exists() or (image.stat().st_uid, image.stat().st_ino == planted) == (0, False)


def test_of_two_commands_at_once_one_makes_the_image_and_the_other_touches_nothing(machine: Machine) -> None:
    define(machine, LARGE.replace("1GiB", "64MiB"))

    both = [machine.start(KVMLAUNCH, "disk", "create", "web") for _ in range(2)]
    codes = sorted(finish(process).code for process in both)

    assert codes in ([0, 0], [0, 6])
    assert names(machine) == {"web.img"}
    assert place(machine, "web.img").stat().st_blocks * 512 >= 64 * MIB


@pytest.mark.parametrize("link", ["/srv/alice/web.img", "/srv/alice/images"])
@pytest.mark.parametrize("words", [("remove", "--yes"), ("convert", "new.qcow2"), ("resize", "64MiB")])
def test_root_is_not_led_by_a_users_link_to_what_is_not_hers(
    shared: Machine, link: str, words: tuple[str, ...]
) -> None:
    path = link if link.endswith(".img") else f"{link}/web.img"
    define(shared, RAW.replace("web.img", path))
    goal = "/srv/precious/web.img" if link.endswith(".img") else "/srv/precious"
    make = f"mkdir /srv/precious; truncate -s 8M /srv/precious/web.img; ln -s {goal} {link}; chown -h {ALICE} {link}"
    shared.execute("sh", "-c", make)
    before = shared.outside("/srv/precious/web.img").stat()

    verb, *more = words
    result = shared.run("disk", verb, "web:root", *more)

    after = shared.outside("/srv/precious/web.img").stat()
    assert (result.code, result.codes) == (6, {"host.dir.unsafe"})
    assert (before.st_size, before.st_uid, before.st_ino) == (after.st_size, after.st_uid, after.st_ino)


def test_root_writes_no_image_of_his_own_into_a_users_directory(shared: Machine) -> None:
    define(shared, RAW)
    shared.ok("disk", "create", "web")

    result = shared.run("disk", "convert", "web:root", "/srv/alice/copy.img")

    assert (result.code, result.codes) == (6, {"disk.permission"})
    assert not shared.outside("/srv/alice/copy.img").exists()


@pytest.mark.parametrize("size", [10_000_384, 64 << 20, 1 << 30, 3 << 40])
@pytest.mark.parametrize(("cluster", "subclusters"), [(65_536, False), (131_072, True), (2 << 20, False)])
def test_the_most_that_a_qcow2_image_takes_is_what_qemu_measures(
    machine: Machine, size: int, cluster: int, *, subclusters: bool
) -> None:
    options = f"cluster_size={cluster},extended_l2={'on' if subclusters else 'off'}"
    measured = machine.execute(
        "qemu-img", "measure", "--output=json", "-O", "qcow2", "-o", options, "--size", str(size)
    ).json

    assert qcow2_room(size, cluster, subclusters=subclusters) == measured["fully-allocated"]
