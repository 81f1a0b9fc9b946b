"""`disk resize`, `convert`, `check` and `remove` with the real qemu-img: a guest's data is there before and after."""

import json
import signal
from pathlib import Path
from typing import Final

import pytest

from tests.qemu.test_disks import (
    LARGE,
    MIB,
    OVERLAY,
    QCOW2,
    RAW,
    created,
    define,
    info,
    names,
    place,
    refused,
    small,
    tools,
)
from tests.qemu.test_run_attach import terminal
from tests.sandbox import KVMLAUNCH, SECONDS, Machine, Process, cmdline, finish, wait_for

__all__ = ("small",)


def damage(path: Path, table: str) -> None:
    """Damage a qcow2 image: zero the first counts of its clusters, or the place of its first L2 table."""
    image = bytearray(path.read_bytes())
    if table == "refcounts":
        first = int.from_bytes(image[48:56], "big")
        block = int.from_bytes(image[first : first + 8], "big")
        image[block + 8 : block + 16] = bytes(8)
    else:
        level1 = int.from_bytes(image[40:48], "big")
        level2 = int.from_bytes(image[level1 : level1 + 8], "big") & 0x00FF_FFFF_FFFF_FE00
        image[level2 : level2 + 8] = (1 << 63 | 0x1234 << 32).to_bytes(8, "big")
    path.write_bytes(image)


def test_a_raw_image_of_a_stopped_vm_grows_and_stays_fully_allocated(machine: Machine) -> None:
    created(machine, RAW)

    grown = machine.ok("disk", "resize", "web:root", "+8MiB", "--json").json

    status = place(machine, "web.img").stat()
    assert (grown["before"], grown["after"], grown["pid"]) == (8 * MIB, 16 * MIB, None)
    assert (status.st_size, status.st_blocks * 512) == (16 * MIB, 16 * MIB)


def test_a_sparse_image_stays_sparse_as_it_grows(machine: Machine) -> None:
    created(machine, f'{RAW}preallocation = "off"\n')

    machine.ok("disk", "resize", "web:root", "16MiB")

    status = place(machine, "web.img").stat()
    assert status.st_size == 16 * MIB
    assert status.st_blocks * 512 < MIB


def test_a_qcow2_image_grows_to_what_its_definition_says(machine: Machine) -> None:
    created(machine, QCOW2)
    define(machine, QCOW2.replace("8MiB", "24MiB"))

    planned = machine.ok("disk", "resize", "web:root", "-n", "--json").json
    before = info(machine)["size"]
    machine.ok("disk", "resize", "web")
    again = machine.ok("disk", "resize", "web")

    assert (planned["after"], planned["dry_run"]) == (24 * MIB, True)
    assert before == 8 * MIB
    assert info(machine)["size"] == 24 * MIB
    assert place(machine, "web.qcow2").stat().st_size >= 24 * MIB  # what was added has its clusters as well
    assert "already" in again.err


def test_a_qcow2_image_that_grows_as_it_is_written_is_not_allocated_by_a_growth(machine: Machine) -> None:
    created(machine, f'{QCOW2}preallocation = "off"\n')

    machine.ok("disk", "resize", "web:root", "16MiB")

    assert place(machine, "web.qcow2").stat().st_size < MIB


def test_a_growth_beyond_the_definition_says_what_to_write(machine: Machine) -> None:
    created(machine, RAW)

    grown = machine.ok("disk", "resize", "web", "16MiB")

    assert 'size = "16MiB" in [disk.root]' in grown.err


@pytest.mark.parametrize("disks", [RAW, QCOW2])
def test_a_running_vm_is_told_of_the_growth(machine: Machine, disks: str) -> None:
    created(machine, disks)
    machine.ok("up", "web", "--paused")

    grown = machine.ok("disk", "resize", "web:root", "16MiB")
    assert "takes its place as it is written" in grown.err
    seen = machine.ok("monitor", "web", "query-block", "--json").json["return"]

    assert [block["inserted"]["image"]["virtual-size"] for block in seen if "inserted" in block] == [16 * MIB]
    assert f"pid {machine.pid('web')} was told" in grown.err


@pytest.mark.parametrize("running", [False, True])
def test_a_disk_is_never_made_smaller(machine: Machine, running: bool) -> None:  # noqa: FBT001
    created(machine, RAW)
    if running:
        machine.ok("up", "web", "--paused")

    assert refused(machine, "disk", "resize", "web:root", "4MiB") == (6, "disk.shrink")
    assert place(machine, "web.img").stat().st_size == 8 * MIB


def test_a_growth_without_room_is_refused(machine: Machine, small: Path) -> None:
    created(machine, RAW.replace("web.img", "../small/web.img").replace("8MiB", "4MiB"))

    assert refused(machine, "disk", "resize", "web:root", "16MiB") == (6, "host.space")
    assert (small / "web.img").stat().st_size == 4 * MIB


def test_a_running_vms_disk_grows_without_room_as_what_is_added_takes_its_place_later(
    machine: Machine, small: Path
) -> None:
    created(machine, RAW.replace("web.img", "../small/web.img").replace("8MiB", "4MiB"))
    machine.ok("up", "web", "--paused")

    grown = machine.ok("disk", "resize", "web:root", "16MiB")

    assert (small / "web.img").stat().st_size == 16 * MIB
    assert "as it is written" in grown.err
    assert "[host.space]" in grown.err


def test_what_is_no_size_is_no_size(machine: Machine) -> None:
    created(machine, RAW)

    sizes = ("16", "16MB", "", "+", "-16MiB", "8388608TiB")
    codes = {size: machine.run("disk", "resize", "web:root", size).code for size in sizes}

    assert codes == dict.fromkeys(sizes, 2)
    assert place(machine, "web.img").stat().st_size == 8 * MIB


def converting(machine: Machine) -> Process:
    """Start to convert a disk that takes a while, and wait until qemu-img is at it."""
    created(machine, LARGE.replace("1GiB", "512MiB"))
    process = machine.start(KVMLAUNCH, "disk", "convert", "web:root", "vmdefs/new.qcow2")
    wait_for("qemu-img converts", lambda: any(b"\0convert\0" in cmdline(pid) for pid in tools(machine)))
    return process


def write_guest(path: Path) -> None:
    """Write into an image what a guest could."""
    with path.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"guest" * 10_000)


def filled(machine: Machine, disks: str) -> Path:
    """Make a disk that holds something; give the raw image of the same content."""
    created(machine, RAW)
    raw = place(machine, "web.img")
    write_guest(raw)
    if "qcow2" in disks:
        machine.ok("disk", "convert", "web:root", "vmdefs/web.qcow2")
        define(machine, disks)
    return raw


@pytest.mark.parametrize(("disks", "goal"), [(RAW, "new.qcow2"), (QCOW2, "new.img"), (QCOW2, "new.qcow2")])
def test_a_disk_becomes_an_image_of_another_format_and_a_second_time_changes_nothing(
    machine: Machine, disks: str, goal: str
) -> None:
    raw = filled(machine, disks)

    done = machine.ok("disk", "convert", "web:root", f"vmdefs/{goal}", "--json").json
    before = place(machine, goal).stat()
    again = machine.ok("disk", "convert", "web:root", f"vmdefs/{goal}", "--json").json
    equal = machine.execute("qemu-img", "compare", "-f", "raw", raw, place(machine, goal))

    assert (done["already"], again["already"], done["removed"]) == (False, True, False)
    assert (done["to"], done["size"]) == (str(place(machine, goal)), 8 * MIB)
    assert equal.code == 0, equal.out
    assert (before.st_mode & 0o7777, before.st_mtime_ns) == (0o600, place(machine, goal).stat().st_mtime_ns)
    assert not {name for name in names(machine) if name.endswith(".making")}


def test_a_raw_image_that_was_converted_to_has_every_block(machine: Machine) -> None:
    filled(machine, QCOW2)

    machine.ok("disk", "convert", "web:root", "vmdefs/new.raw")

    assert place(machine, "new.raw").stat().st_blocks * 512 == 8 * MIB


def test_an_overlay_becomes_one_image_with_all_that_lay_beneath_it(machine: Machine) -> None:
    raw = filled(machine, QCOW2)
    created(machine, OVERLAY.replace("web.qcow2", "over.qcow2").replace("base.qcow2", "web.qcow2"))

    machine.ok("disk", "convert", "web:root", "vmdefs/whole.img")

    assert place(machine, "whole.img").read_bytes() == raw.read_bytes()


def test_the_original_is_removed_only_where_that_is_asked(machine: Machine) -> None:
    raw = filled(machine, RAW)

    machine.ok("disk", "convert", "web:root", "vmdefs/new.qcow2")
    kept = raw.exists()
    done = machine.ok("disk", "convert", "web:root", "vmdefs/new.qcow2", "--remove-source", "--json").json

    assert kept
    assert (done["already"], done["removed"]) == (True, True)

    again = machine.run("disk", "convert", "web:root", "vmdefs/new.qcow2", "--remove-source")

    assert (again.code, again.codes) == (6, {"disk.missing"})
    assert "was converted, and removed" in again.err
    assert machine.run("up", "web", "--create").codes == {"disk.missing"}
    assert names(machine) == {"new.qcow2", ".web.img.moved"}


def test_what_an_image_holds_beside_the_disk_is_not_removed_with_it(machine: Machine) -> None:
    filled(machine, QCOW2)
    image = place(machine, "web.qcow2")
    machine.execute("qemu-img", "snapshot", "-c", "precious", image)
    machine.execute("qemu-img", "bitmap", "--add", image, "changed")

    refused = machine.run("disk", "convert", "web:root", "vmdefs/new.qcow2", "--remove-source")
    kept = machine.ok("disk", "convert", "web:root", "vmdefs/new.qcow2", "--json").json

    assert (refused.code, refused.codes) == (6, {"disk.snapshot"})
    assert kept["left_behind"] == ["snapshot precious", "bitmap changed"]
    assert image.exists()


def test_a_conversion_of_a_disk_with_snapshots_is_asked_room_for_all_of_it(machine: Machine, small: Path) -> None:
    created(machine, RAW.replace("8MiB", "16MiB"))
    machine.execute("qemu-io", "-f", "raw", "-c", "write -P 7 0 12M", place(machine, "web.img"))
    machine.ok("disk", "snapshot", "create", "web", "s1")

    assert refused(machine, "disk", "convert", "web:root", "small/new.qcow2") == (6, "host.space")
    assert list(small.iterdir()) == []


OTHERS: Final = {
    "other content": (b"\0" * 100 + b"theirs").ljust(8 * MIB, b"\0"),
    "shorter": bytes(4 * MIB),
    "empty": b"",
    "of another format": b"QFI\xfb\0\0\0\3" + bytes(200),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("goal", ["new.img", "new.qcow2"])
def test_a_file_that_is_in_the_way_stays_and_so_does_the_original(machine: Machine, goal: str, other: str) -> None:
    created(machine, RAW)
    place(machine, goal).write_bytes(OTHERS[other])

    result = machine.run("disk", "convert", "web:root", f"vmdefs/{goal}", "--remove-source", "--json")

    assert place(machine, goal).read_bytes() == OTHERS[other]
    assert names(machine) == {"web.img", goal}
    assert (result.code, result.err and result.error["code"]) == (6, "disk.exists")


@pytest.mark.parametrize("goal", ["vmdefs/web.img", "vmdefs/../vmdefs/web.img", "link.img"])
def test_a_disk_is_not_converted_onto_itself(machine: Machine, goal: str) -> None:
    raw = filled(machine, RAW)
    (machine.directory / "link.img").symlink_to(raw)
    before = raw.read_bytes()

    assert refused(machine, "disk", "convert", "web:root", goal, "--remove-source") == (6, "disk.exists")
    assert raw.read_bytes() == before


def test_what_is_no_volume_is_not_written_somewhere_else(machine: Machine) -> None:
    created(machine, RAW)

    above = f"lvm:../../{machine.directory}/vmdefs/x.img"
    results = {
        goal: machine.run("disk", "convert", "web:root", goal)
        for goal in (above, "lvm:", "lvm:vg0", "lvm:-vg/web", "lvm:vg0/a/b")
    }

    assert names(machine) == {"web.img"}
    assert {goal for goal, result in results.items() if result.code not in {2, 5, 6}} == set()


@pytest.mark.parametrize(
    ("goal", "code"),
    [("new.vdi", (5, "def.disk.format")), ("/dev/null", (6, "disk.type")), (".", (6, "disk.type"))],
)
def test_what_cannot_become_an_image_is_refused(machine: Machine, goal: str, code: tuple[int, str]) -> None:
    created(machine, RAW)

    assert refused(machine, "disk", "convert", "web:root", goal) == code


def test_a_disk_in_use_is_not_converted(machine: Machine) -> None:
    created(machine, RAW)
    machine.ok("up", "web", "--paused")

    assert refused(machine, "disk", "convert", "web:root", "vmdefs/new.qcow2") == (7, "vm.state")
    assert names(machine) == {"web.img"}


def test_a_conversion_without_room_is_refused_before_anything_is_written(machine: Machine, small: Path) -> None:
    created(machine, QCOW2.replace("8MiB", "16MiB"))

    assert refused(machine, "disk", "convert", "web:root", "small/new.img") == (6, "host.space")
    assert list(small.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_conversion_that_is_ended_leaves_no_file_under_the_final_name(
    machine: Machine, number: signal.Signals
) -> None:
    process = converting(machine)

    process.send_signal(number)
    finish(process)
    for pid in tools(machine):
        machine.kill(pid)
    left = names(machine)
    machine.ok("disk", "convert", "web:root", "vmdefs/new.qcow2", "--remove-source")

    assert left - {".new.qcow2.making"} == {"web.img"}
    assert number == signal.SIGKILL or ".new.qcow2.making" not in left
    assert names(machine) == {"new.qcow2", ".web.img.moved"}


def test_a_vm_whose_disk_is_converted_is_busy_and_says_with_what(machine: Machine) -> None:
    process = converting(machine)

    seen = machine.run("status", "web", "--json").json["vms"][0]
    tries = [machine.run(*words) for words in (("up", "web"), ("down", "web"), ("disk", "check", "web"))]
    process.send_signal(signal.SIGTERM)
    finish(process)

    what = f"held by pid {process.pid}: kvmlaunch disk convert web:root vmdefs/new.qcow2"
    assert (seen["state"], seen["notes"]) == ("busy", [what])
    assert [each.code for each in tries] == [7, 7, 7]
    assert all(f"pid {process.pid}: kvmlaunch disk convert" in each.err for each in tries)


def test_qemu_img_killed_while_it_converts_leaves_nothing(machine: Machine) -> None:
    process = converting(machine)

    machine.kill(tools(machine)[0])
    ended = finish(process)

    assert ended.code != 0
    assert "internal.bug" not in ended.codes
    assert names(machine) == {"web.img"}


def test_an_image_that_another_vm_runs_on_is_left_alone(machine: Machine) -> None:
    created(machine, RAW)
    define(machine, RAW, "other")
    machine.ok("up", "other", "--paused")

    tries = [
        refused(machine, "disk", *words)
        for words in (
            ("resize", "web:root", "16MiB"), ("check", "web"), ("remove", "web:root", "--yes"),
            ("convert", "web:root", "web.qcow2"),
        )
    ]  # fmt: skip

    assert tries == [(6, "disk.locked")] * 4
    assert names(machine) == {"web.img"}
    assert place(machine, "web.img").stat().st_size == 8 * MIB


def test_a_disk_grows_by_whole_blocks(machine: Machine) -> None:
    created(machine, RAW)

    assert refused(machine, "disk", "resize", "web:root", "+1KiB") == (5, "def.value.range")
    assert place(machine, "web.img").stat().st_size == 8 * MIB


def test_a_vm_that_runs_keeps_its_disk(machine: Machine) -> None:
    created(machine, RAW)
    machine.ok("up", "web", "--paused")

    tries = [refused(machine, "disk", *words) for words in (("check", "web"), ("remove", "web:root", "--yes"))]

    assert tries == [(7, "vm.state")] * 2
    assert place(machine, "web.img").exists()


def test_a_base_is_protected_while_an_overlay_rests_on_it(machine: Machine) -> None:
    created(machine, OVERLAY)
    define(machine, '[disk.base]\npath = "base.qcow2"\n', "careless")

    tries = [
        refused(machine, *words)[1]
        for words in (
            ("up", "careless"), ("disk", "resize", "web:base", "16MiB"), ("disk", "remove", "web:base", "--yes"),
            ("disk", "convert", "web:base", "new.img", "--remove-source"),
        )
    ]  # fmt: skip
    machine.ok("disk", "remove", "web:root", "--yes")
    (machine.directory / "vmdefs/careless.toml").unlink()
    machine.ok("disk", "remove", "web:base", "--yes")

    assert tries == ["disk.base"] * 4
    assert names(machine) == set()


def test_sound_images_are_said_to_be_sound(machine: Machine) -> None:
    created(machine, f'{QCOW2}[disk.data]\npath = "data.img"\nsize = "1MiB"\n')

    found = machine.ok("disk", "check", "web", "--json").json["disks"]

    assert [each["soundness"] for each in found] == ["sound", "nothing to check"]
    assert found[0]["corruptions"] == 0


@pytest.mark.parametrize("table", ["refcounts", "level 2"])
def test_a_damaged_image_is_corrupt(machine: Machine, table: str) -> None:
    created(machine, QCOW2)
    damage(place(machine, "web.qcow2"), table)

    found, said = machine.run("disk", "check", "web", "--json"), machine.run("disk", "check", "web")

    assert (found.code, found.json["disks"][0]["soundness"]) == (6, "corrupt")
    assert (said.code, said.codes) == (6, {"disk.corrupt"})
    assert "kvmlaunch disk check web:root --repair" in said.err


def test_no_empty_image_is_made_beneath_overlays_of_one_that_is_gone(machine: Machine) -> None:
    created(machine, f'{RAW}[disk.other]\npath = "other.img"\nsize = "8MiB"\n')
    machine.ok("disk", "snapshot", "create", "web:root", "s1")
    machine.execute("qemu-img", "create", "-qf", "qcow2", "-b", "other.img", "-F", "raw", place(machine, "c.qcow2"))
    for name in ("web.img", "other.img"):
        place(machine, name).rename(place(machine, f"kept-{name}"))

    tries = [refused(machine, "disk", "create", f"web:{name}") for name in ("root", "other")]
    up = machine.run("up", "web", "--create", "--paused")

    assert tries == [(6, "disk.base")] * 2
    assert up.code == 6
    assert not place(machine, "web.img").exists()
    assert not place(machine, "other.img").exists()


def test_a_damaged_backing_file_is_named_and_not_mended_from_its_overlay(machine: Machine) -> None:
    created(machine, OVERLAY)
    damage(place(machine, "base.qcow2"), "refcounts")
    before = place(machine, "base.qcow2").read_bytes()

    found = machine.run("disk", "check", "web:root", "--json")
    repaired = machine.run("disk", "check", "web:root", "--repair")

    assert (found.code, found.json["disks"][0]["soundness"]) == (6, "corrupt")
    assert found.json["disks"][0]["image"] == str(place(machine, "base.qcow2"))
    assert f"in {place(machine, 'base.qcow2')}, beneath it" in repaired.err
    assert place(machine, "base.qcow2").read_bytes() == before


def test_a_backing_file_that_is_no_image_any_more_is_named_before_the_start(machine: Machine) -> None:
    created(machine, OVERLAY)
    place(machine, "base.qcow2").write_bytes(bytes(1 << 20))

    up = machine.run("up", "web")

    assert (up.code, up.codes & {"disk.backing"}) == (6, {"disk.backing"})
    assert "base.qcow2: it has no qcow2 header any more" in up.err


def test_what_can_be_mended_is_and_is_said_to_be(machine: Machine) -> None:
    created(machine, QCOW2)
    damage(place(machine, "web.qcow2"), "refcounts")

    mended = machine.ok("disk", "check", "web", "--repair", "--json").json["disks"][0]
    after = machine.ok("disk", "check", "web", "--json").json["disks"][0]

    assert after["soundness"] == "sound"
    assert mended["soundness"] == "repaired"


def test_what_cannot_be_mended_is_not_told_to_be_mended_again(machine: Machine) -> None:
    created(machine, QCOW2)
    damage(place(machine, "web.qcow2"), "level 2")

    mended = machine.run("disk", "check", "web", "--repair")

    assert mended.code == 6
    assert "--repair" not in mended.err


@pytest.mark.parametrize("content", [b"", b"QFI\xfb" + b"\xff" * 200, b"no image"])
def test_what_is_no_image_of_its_format_is_said_by_every_command(machine: Machine, content: bytes) -> None:
    define(machine, QCOW2)
    place(machine, "web.qcow2").write_bytes(content)

    tries = [
        refused(machine, "disk", *words)
        for words in (("check", "web"), ("info", "web"), ("resize", "web:root", "1GiB"), ("create", "web"))
    ]

    assert tries == [(6, "disk.corrupt")] * 4
    assert place(machine, "web.qcow2").read_bytes() == content


def test_nothing_is_removed_without_a_terminal_or_a_word(machine: Machine) -> None:
    created(machine, RAW)

    result = machine.run("disk", "remove", "web:root")

    assert result.code == 2
    assert "--yes" in result.err
    assert names(machine) == {"web.img"}


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", {"web.img"}), (b"\n", {"web.img"}), (b"y\n", set())])
def test_a_terminal_is_asked_before_a_disk_is_removed(machine: Machine, answer: bytes, left: set[str]) -> None:
    created(machine, RAW)

    with terminal(machine, "disk", "remove", "web:root") as screen:
        screen.read_until(b"with all that it holds?")
        screen.type(answer)
        code = screen.process.wait(SECONDS)

    assert names(machine) == left
    assert (code == 0) == (not left)


def test_a_disk_is_removed_once_and_nothing_beside_it(machine: Machine) -> None:
    created(machine, f'{RAW}[disk.data]\npath = "data.img"\nsize = "1MiB"\n')

    machine.ok("disk", "remove", "web:root", "--yes")

    assert refused(machine, "disk", "remove", "web:root", "--yes") == (6, "disk.missing")
    assert names(machine) == {"data.img"}


def test_an_error_is_a_document_for_programs(machine: Machine) -> None:
    created(machine, RAW)

    result = machine.run("disk", "resize", "web:root", "4MiB", "--json")

    assert (result.code, result.error["code"]) == (6, "disk.shrink")
    assert json.loads(result.err)


@pytest.mark.parametrize(
    "words", [("resize", "web:root", "16MiB"), ("check", "web"), ("snapshot", "create", "web", "s")]
)
def test_a_container_that_is_called_raw_is_not_worked_on(machine: Machine, words: tuple[str, ...]) -> None:
    define(machine, RAW)
    machine.execute("qemu-img", "create", "-q", "-f", "qcow2", place(machine, "web.img"), "8M")

    assert refused(machine, "disk", *words) == (6, "disk.header")


def test_a_conversion_into_no_directory_makes_none(machine: Machine) -> None:
    created(machine, RAW)

    assert refused(machine, "disk", "convert", "web:root", "nowhere/web.qcow2") == (6, "disk.missing")
    assert not (machine.directory / "nowhere").exists()
