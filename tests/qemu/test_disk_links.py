"""Disks behind links, disks of which one is broken, and an overlay that a killed command left unused."""

from pathlib import Path
from typing import Final

from tests.qemu.test_snapshots import S1, names, place, running
from tests.sandbox import TINY, Machine

LINKED: Final = f'{TINY}[disk.root]\npath = "link.img"\n'


def linked(machine: Machine) -> Path:
    """Define a VM whose image is a link to one in another directory; gives that."""
    real = machine.directory / "store" / "base.img"
    real.parent.mkdir()
    with real.open("wb") as file:
        file.truncate(8 << 20)
    machine.define("web", LINKED)
    place(machine, "link.img").symlink_to(real)
    return real


def test_a_clone_of_a_linked_image_lies_beside_the_image_and_protects_it(machine: Machine) -> None:
    real = linked(machine)

    machine.ok("clone", "new", "--from", "web")
    base = machine.run("up", "web", "--paused")
    grown, gone = machine.run("disk", "resize", "web", "+1MiB"), machine.run("disk", "remove", "web:root", "--yes")
    machine.ok("up", "new", "--paused")
    machine.end("new")

    assert (real.parent / "new.qcow2").exists()
    assert [each.code for each in (base, grown, gone)] == [6, 6, 6]
    assert real.stat().st_size == 8 << 20


def test_no_overlay_is_made_over_a_file_that_a_link_leads_away_to(machine: Machine) -> None:
    linked(machine)
    machine.define("over", f'{TINY}[disk.root]\npath = "over.qcow2"\nbacking = "link.img"\n')

    result = machine.run("disk", "create", "over")

    assert (result.code, result.codes) == (6, {"disk.backing"})
    assert not place(machine, "over.qcow2").exists()


def test_a_link_to_nothing_is_told_and_nothing_is_made(machine: Machine) -> None:
    machine.define("web", f'{LINKED}size = "8MiB"\n')
    place(machine, "link.img").symlink_to(machine.directory / "gone.img")

    answers = [machine.run("disk", "create", "web"), machine.run("up", "web", "--create")]

    assert [(each.code, "disk.type" in each.codes) for each in answers] == [(6, True)] * 2
    assert all("gone.img" in each.err for each in answers)
    assert not (machine.directory / "gone.img").exists()


def test_one_image_that_cannot_be_read_hides_no_other(machine: Machine) -> None:
    disks = "".join(f'[disk.{name}]\npath = "{name}.qcow2"\nsize = "8MiB"\n' for name in ("bad", "good"))
    machine.define("web", f"{TINY}{disks}")
    machine.ok("disk", "create", "web")
    with place(machine, "bad.qcow2").open("r+b") as file:
        file.write(b"GARBAGE!")

    checked, told = machine.run("disk", "check", "web"), machine.run("disk", "info", "web", "--json")

    assert (checked.code, told.code) == (6, 6)
    assert "good: sound" in checked.err
    assert "bad.qcow2 cannot be read" in checked.err
    assert [bool(disk["error"]) for disk in told.json["disks"]] == [True, False]


def test_an_overlay_that_a_killed_command_left_unused_is_no_snapshot_to_commit(machine: Machine) -> None:
    running(machine)
    make = ("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "web.img")
    machine.execute(*make, str(place(machine, S1)), "8M")
    place(machine, "web.img.taking").write_text("s1 root\n")

    machine.ok("disk", "snapshot", "commit", "web:root")

    assert names(machine) == {"web.img"}
    machine.end("web")
