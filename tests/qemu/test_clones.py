"""`clone`: VMs like others, on overlays or copies; what is refused, and what a failure leaves."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.qemu.test_snapshots import DATA, ROOT, define, holds, names, place, running, snapshot, write
from tests.sandbox import TINY, Machine

SIZED: Final = '[disk.root]\npath = "web.img"\nsize = "8MiB"\npreallocation = "full"\n'


def cloned(machine: Machine, *options: str, new: str = "new", base: str = "web") -> Any:  # noqa: ANN401 - any document
    """Make a clone and give the document."""
    return machine.ok("clone", new, "--from", base, *options, "--json").json


def refused(machine: Machine, *options: str, new: str = "new", base: str = "web") -> tuple[int, str]:
    """Give exit code and stable code of a clone that is refused."""
    result = machine.run("clone", new, "--from", base, *options, "--json")
    return result.code, result.error["code"] if result.code else "not refused"


def definitions(machine: Machine) -> set[str]:
    """Give the names of the definitions."""
    return {path.stem for path in place(machine).glob("*.toml")}


def command_of(machine: Machine, name: str) -> str:
    """Give the command that starts a VM."""
    return machine.ok("print-cmd", name).out


def test_a_clone_is_an_overlay_that_shows_what_the_base_has_and_keeps_its_own_writes(machine: Machine) -> None:
    define(machine)

    document = cloned(machine)
    shown = holds(machine, "new.qcow2", 1)
    write(machine, "new.qcow2", 2)

    assert [Path(each).name for each in document["disks"][0]["chain"]] == ["new.qcow2", "web.img"]
    assert (document["file"], document["dry_run"]) == (str(place(machine, "new.toml")), False)
    assert shown
    assert holds(machine, "web.img", 1)
    assert names(machine) == {"web.img", "new.qcow2"}
    assert place(machine, "new.qcow2").stat().st_mode & 0o7777 == 0o600


def test_a_full_clone_has_copies_that_rest_on_nothing(machine: Machine) -> None:
    define(machine)

    document = cloned(machine, "--full")
    write(machine, "web.img", 2)

    assert [Path(each).name for each in document["disks"][0]["chain"]] == ["new.img"]
    assert holds(machine, "new.img", 1)
    machine.ok("up", "web", "--paused")


@pytest.mark.parametrize(("options", "made"), [((), ("qcow2", "qcow2")), (("--full",), ("img", "qcow2"))])
def test_every_disk_of_a_vm_is_cloned_and_both_vms_run_side_by_side_where_none_is_written_twice(
    machine: Machine, options: tuple[str, ...], made: tuple[str, str]
) -> None:
    define(machine, f"{ROOT}{DATA}")

    cloned(machine, *options)
    up = machine.ok("up", "new", "--paused")

    assert up.code == 0
    assert names(machine) == {"web.img", "data.qcow2", f"new-root.{made[0]}", f"new-data.{made[1]}"}


def test_a_base_is_not_written_to_as_long_as_overlays_rest_on_it(machine: Machine) -> None:
    define(machine)
    cloned(machine)

    up = machine.run("up", "web", "--paused")
    printed = machine.ok("print-cmd", "web")

    assert (up.code, up.codes & {"disk.base"}) == (6, {"disk.base"})
    assert "new.qcow2" in up.err
    assert "disk.base" in printed.codes  # a script that pastes it is told


def test_a_base_that_is_made_read_only_runs_beside_its_clones_and_is_cloned_again(machine: Machine) -> None:
    define(machine)
    cloned(machine)
    define(machine, f"{ROOT}readonly = true\n")

    cloned(machine, new="other")
    for name in ("web", "new", "other"):
        machine.ok("up", name, "--paused")

    assert names(machine) == {"web.img", "new.qcow2", "other.qcow2"}
    assert ["readonly=on" in command_of(machine, name) for name in ("web", "new", "other")] == [True, False, False]


def test_a_disk_that_both_only_read_is_shared_and_said(machine: Machine) -> None:
    define(machine, f"{ROOT}{DATA}readonly = true\n")

    made = machine.ok("clone", "new", "--from", "web")

    assert "data: read-only in both" in made.err
    assert names(machine) == {"web.img", "data.qcow2", "new.qcow2"}


def test_a_base_that_runs_is_not_cloned(machine: Machine) -> None:
    running(machine)

    answers = [refused(machine, *options) for options in ((), ("--full",))]

    assert answers == [(7, "vm.state")] * 2
    assert (definitions(machine), names(machine)) == ({"web"}, {"web.img"})


def test_a_name_that_is_taken_or_is_none_or_a_base_that_is_not_there_is_refused(machine: Machine) -> None:
    define(machine)
    machine.define("new")

    answers = [refused(machine), refused(machine, new="web"), refused(machine, base="nobody", new="other")]
    odd = [refused(machine, new=name)[0] for name in ("a/b", "..", "A b", "x" * 300, "a\nb")]

    assert answers == [(7, "vm.exists"), (7, "vm.exists"), (4, "vm.unknown")]
    assert odd == [5] * 5
    assert definitions(machine) == {"web", "new"}


def test_an_image_that_is_in_the_way_stays_and_nothing_is_written(machine: Machine) -> None:
    define(machine, f"{ROOT}{DATA}")
    place(machine, "new-data.qcow2").write_bytes(b"precious")

    answers = [refused(machine, *options) for options in ((), ("--full",))]

    assert answers == [(6, "disk.exists")] * 2
    assert place(machine, "new-data.qcow2").read_bytes() == b"precious"
    assert (definitions(machine), names(machine)) == ({"web"}, {"web.img", "data.qcow2", "new-data.qcow2"})


@pytest.mark.parametrize("options", [(), ("--full",)])
def test_a_clone_of_a_clone_rests_on_the_whole_chain_and_has_its_content(
    machine: Machine, options: tuple[str, ...]
) -> None:
    define(machine)
    cloned(machine)
    write(machine, "new.qcow2", 2, "1M")

    cloned(machine, *options, new="newer", base="new")
    up = machine.ok("up", "newer", "--paused")

    assert up.code == 0
    assert [holds(machine, "newer.qcow2", *each) for each in ((1, "0"), (2, "1M"))] == [True] * 2


def test_a_clone_differs_in_uuid_and_hardware_addresses(machine: Machine) -> None:
    define(machine)
    place(machine, "web.toml").write_text(
        f'{TINY.replace("none", "user")}mac = "52:54:00:00:00:01"\n[network.two]\ntype = "user"\n{ROOT}'
    )

    cloned(machine)
    both = [command_of(machine, name) for name in ("web", "new")]

    macs = [set(re.findall(r"mac=([0-9a-f:]+)", text)) for text in both]
    uuids = [re.findall(r"-uuid (\S+)", text) for text in both]
    assert [len(each) for each in macs] == [2, 2]
    assert macs[0].isdisjoint(macs[1])
    assert uuids[0] != uuids[1]


@pytest.mark.parametrize("options", [(), ("--full",)])
def test_how_the_base_was_made_is_not_inherited_by_an_overlay(machine: Machine, options: tuple[str, ...]) -> None:
    define(machine, SIZED)

    cloned(machine, *options)
    made = machine.ok("disk", "create", "new", "--json").json["disks"][0]

    assert made["already"]
    assert command_of(machine, "new").count("new.") >= 1
    machine.ok("validate", "new")


@pytest.mark.parametrize("where", ["below/web.img", "../beside/web.img", "{}/far/web.img"])
@pytest.mark.parametrize("options", [(), ("--full",)])
def test_disks_that_lie_elsewhere_than_the_definition_are_cloned_beside_the_originals(
    machine: Machine, where: str, options: tuple[str, ...]
) -> None:
    path = where.format(machine.directory)
    place(machine).mkdir()
    (place(machine) / path).parent.mkdir(parents=True)
    define(machine, f'[disk.root]\npath = "{path}"\n')

    cloned(machine, *options)
    up = machine.ok("up", "new", "--paused")

    image = place(machine) / path
    assert up.code == 0
    assert {each.name for each in image.parent.iterdir()} == {"web.img", "new.img" if options else "new.qcow2"}


def test_a_dry_run_prints_the_definition_and_writes_nothing(machine: Machine) -> None:
    define(machine)

    shown = machine.ok("clone", "new", "--from", "web", "-n")
    document = cloned(machine, "-n")

    assert tomllib.loads(shown.out)["extends"] == ["web.toml"]
    assert (document["dry_run"], document["disks"]) == (True, [])
    assert (definitions(machine), names(machine)) == ({"web"}, {"web.img"})


def test_a_dry_run_tells_of_what_is_in_the_way(machine: Machine) -> None:
    define(machine)
    place(machine, "new.qcow2").write_bytes(b"precious")

    assert refused(machine, "-n") == (6, "disk.exists")


def test_no_room_for_the_second_copy_leaves_neither_definition_nor_images(machine: Machine) -> None:
    place(machine).mkdir()
    machine.execute("mount", "-t", "tmpfs", "-o", "size=28m", "tmpfs", place(machine))
    inside = machine.outside(place(machine))
    (inside / "web.toml").write_text(f'{TINY}[disk.a]\npath = "a.img"\n[disk.b]\npath = "b.img"\n')
    for name in ("a.img", "b.img"):
        (inside / name).write_bytes(bytes([1]) * (8 << 20))

    result = machine.run("clone", "new", "--from", "web", "--full")

    assert result.code in {1, 6}
    assert "internal.bug" not in result.codes
    assert {path.name for path in inside.iterdir()} == {"web.toml", "a.img", "b.img"}


def test_a_directory_that_cannot_be_written_to_is_told(machine: Machine) -> None:
    define(machine)
    machine.execute("mount", "--bind", place(machine), place(machine))
    machine.execute("mount", "-o", "remount,ro,bind", place(machine))

    result = machine.run("clone", "new", "--from", "web")

    assert (result.code, result.codes) == (6, {"host.space"})
    assert (definitions(machine), names(machine)) == ({"web"}, {"web.img"})


def test_a_base_with_snapshots_is_cloned_in_full_only_and_as_it_is_now(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, "web.img.since-s1.qcow2", 2)

    overlay = refused(machine)
    cloned(machine, "--full")

    assert overlay == (6, "disk.snapshot")
    assert holds(machine, "new.img", 2)


def test_disks_that_are_only_read_are_shared(machine: Machine) -> None:
    define(machine, f"{ROOT}{DATA}readonly = true\n")

    cloned(machine)

    assert names(machine) == {"web.img", "data.qcow2", "new.qcow2"}
    assert "data.qcow2" in command_of(machine, "new")


def test_a_vm_without_disks_is_cloned(machine: Machine) -> None:
    machine.define("web")

    cloned(machine)

    assert machine.ok("up", "new", "--paused").code == 0


def test_what_two_vms_cannot_both_have_is_said(machine: Machine) -> None:
    define(machine)
    text = TINY.replace('type = "none"', 'type = "user"\nforwards = ["tcp:127.0.0.1:8080:80"]')
    place(machine, "web.toml").write_text(f"{text}{ROOT}[lifecycle]\nautostart = true\n")

    told = machine.ok("clone", "new", "--from", "web")
    whole = machine.ok("clone", "copy", "--from", "web", "--full", "-n")

    assert "network.lan.forwards, lifecycle.autostart" in told.err
    assert "web does not start as long as" in told.err
    assert "web does not start" not in whole.err


def test_a_full_clone_that_was_killed_before_its_definition_is_made_again_of_the_copy(machine: Machine) -> None:
    define(machine)
    machine.ok("clone", "new", "--from", "web", "--full")
    copy, before = place(machine, "new.img"), place(machine, "new.img").stat().st_ino
    place(machine, "new.toml").unlink()

    cloned(machine, "--full")
    again = copy.stat().st_ino
    place(machine, "new.toml").unlink()
    write(machine, "new.img", 9)
    other = refused(machine, "--full")

    assert again == before
    assert other == (6, "disk.exists")
    assert holds(machine, "new.img", 9)


@pytest.mark.parametrize("name", ["we, b.img", "we'b.img", "wé b.img", "we=b.img", "we#b.img", "nbd:b.img"])
def test_an_image_of_any_name_is_cloned(machine: Machine, name: str) -> None:
    define(machine, f'[disk.root]\npath = "{name}"\n')

    result = machine.run("clone", "new", "--from", "web")
    up = machine.run("up", "new", "--paused") if result.code == 0 else result

    assert (result.code, up.code) in {(0, 0), (6, 6)}, f"{result.err}{up.err}"
    assert result.code == 0 or (definitions(machine), names(machine)) == ({"web"}, {name})


def test_a_control_character_in_the_name_of_an_image_does_not_break_the_clones_definition(machine: Machine) -> None:
    place(machine).mkdir()
    machine.define("web", f'{TINY}[disk.root]\npath = "we\\u0007\\tb.img"\n')
    place(machine, "we\x07\tb.img").write_bytes(bytes(8 << 20))

    result = machine.run("clone", "new", "--from", "web")

    assert result.code == 0, result.err
    machine.ok("validate", "new")


@pytest.mark.parametrize(
    "words", [("disk", "remove", "web:common", "--yes"), ("disk", "convert", "web:common", "x.img", "--remove-source")]
)
def test_what_a_clone_reads_too_is_not_removed(machine: Machine, words: tuple[str, ...]) -> None:
    machine.define(
        "web",
        f'{TINY}[disk.root]\npath = "web.img"\nsize = "8MiB"\n'
        '[disk.common]\npath = "common.img"\nsize = "8MiB"\nreadonly = true\n',
    )
    machine.ok("disk", "create", "web")
    machine.ok("clone", "new", "--from", "web")

    refused = machine.run(*words)

    assert (refused.code, refused.codes >= {"disk.locked"}) == (6, True), refused.err
    assert "new has common.img too, as its disk common" in refused.err
    assert (machine.directory / "vmdefs/common.img").exists()
