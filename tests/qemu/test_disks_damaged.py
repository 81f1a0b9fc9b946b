"""Images that QEMU has marked as damaged, and stores without room: nothing is laid over them, or merged into them."""

import os
import subprocess  # noqa: TID253 - a holder of an image, as its users have one
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

import pytest

from tests.monitor import monitor_at
from tests.qemu.test_snapshots import MIB, S1, define, delayed, live_images, make_image, place, refused, snapshot, write
from tests.sandbox import TINY, Machine, Result

QCOW2: Final = '[disk.root]\npath = "web.qcow2"\n'
OVERLAY: Final = "web.qcow2.since-s1.qcow2"


def mark(machine: Machine, name: str) -> None:
    """Set the bit by which QEMU tells that an image is damaged: incompatible feature 1."""
    with place(machine, name).open("r+b") as file:
        file.seek(72 + 7)
        features = file.read(1)[0]
        file.seek(72 + 7)
        file.write(bytes([features | 2]))


def fix_of(error: dict[str, object]) -> str:
    """Give the command of the hint of the first problem."""
    problems = error["problems"]
    assert isinstance(problems, list)
    return str(problems[0]["hint"]).partition("   #")[0]


@pytest.mark.parametrize(
    "words",
    [
        ("disk", "snapshot", "create", "web", "s1"),
        ("clone", "new", "--from", "web"),
        ("clone", "new", "--from", "web", "--full"),
        ("disk", "resize", "web:root", "16MiB"),
        ("up", "web", "--paused"),
    ],
    ids=" ".join,
)
def test_nothing_is_laid_over_a_damaged_image_until_it_is_mended(machine: Machine, words: tuple[str, ...]) -> None:
    define(machine, QCOW2)
    mark(machine, "web.qcow2")
    before = {path.name for path in place(machine).iterdir()}

    error = machine.run(*words, "--json").error
    after = {path.name for path in place(machine).iterdir()}
    mended = machine.execute("sh", "-euc", fix_of(error))

    assert error["code"] == "disk.corrupt"
    assert after == before
    assert mended.code == 0, mended.err
    assert machine.run(*words).code == 0


@pytest.mark.parametrize("where", ["web.qcow2", OVERLAY])
def test_what_lies_over_a_damaged_image_is_neither_started_nor_merged(machine: Machine, where: str) -> None:
    define(machine, QCOW2)
    snapshot(machine, "s1")
    write(machine, OVERLAY, 5)
    mark(machine, where)

    started = machine.run("up", "web", "--paused", "--json").error
    merged = refused(machine, "commit", "web:root")
    kept = refused(machine, "create", "web", "s2")
    mended = machine.execute("sh", "-euc", fix_of(started))

    assert started["code"] == "disk.corrupt"
    assert merged == kept == (6, "disk.corrupt")
    assert mended.code == 0, mended.err
    assert refused(machine, "commit", "web:root") == (0, "not refused")


def test_a_clone_whose_base_was_found_damaged_since_is_not_started(machine: Machine) -> None:
    define(machine, QCOW2)
    machine.ok("clone", "new", "--from", "web")
    mark(machine, "web.qcow2")

    error = machine.run("up", "new", "--paused", "--json").error
    mended = machine.execute("sh", "-euc", fix_of(error))

    assert error["code"] == "disk.corrupt"
    assert mended.code == 0, mended.err
    machine.ok("up", "new", "--paused")


def test_a_base_that_is_cut_off_is_said_to_be(machine: Machine) -> None:
    define(machine, QCOW2)
    snapshot(machine, "s1")
    with place(machine, "web.qcow2").open("r+b") as file:
        file.truncate(50)

    error = machine.run("up", "web", "--paused", "--json").error

    assert error["code"] == "disk.backing"
    assert "web.qcow2: it is cut off" in error["problems"][0]["why"]


def test_a_commit_that_has_no_room_is_not_begun_and_its_snapshot_can_be_gone_back_to(machine: Machine) -> None:
    small = place(machine, "small")
    small.mkdir(parents=True)
    machine.execute("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small)
    define(machine, '[disk.root]\npath = "small/web.img"\n')
    outside: Path = machine.outside(small)
    with (outside / "web.img").open("wb") as file:
        file.truncate(32 * MIB)
    snapshot(machine, "s1")
    machine.execute("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 10M", small / S1)

    assert refused(machine, "commit", "web:root") == (6, "host.space")
    assert sorted(path.name for path in outside.iterdir()) == ["web.img", S1]
    assert refused(machine, "revert", "web:root", "s1", "--yes") == (0, "not refused")


def test_a_running_disk_is_grown_as_it_is_when_it_is_taken_in_hand(machine: Machine) -> None:
    define(machine)
    machine.ok("up", "web", "--paused")

    with delayed(machine, "disk", "resize", "web:root", "16MiB") as ended:
        snapshot(machine, "s1")

    assert (ended[0].code, ended[0].codes) == (6, {"disk.base"})
    assert live_images(machine) == {"disk-root": S1}
    assert place(machine, "web.img").stat().st_size == 8 * MIB


def test_an_image_that_qemu_drops_as_damaged_is_named_while_the_vm_runs(machine: Machine) -> None:
    machine.define("web", f"{TINY}{QCOW2}")
    make_image(machine, "web.qcow2", "1G")
    write(machine, "web.qcow2", 1, "512M")  # behind the first L2 table, which QEMU reads at the start
    machine.ok("up", "web", "--paused")
    with place(machine, "web.qcow2").open("r+b") as file:

        def entry(offset: int) -> int:
            file.seek(offset)
            return int.from_bytes(file.read(8), "big") & 0x00FF_FFFF_FFFF_FE00

        file.seek(entry(entry(40) + 8))  # the first entry of the second L2 table
        file.write((1 << 63 | 0x1_0200).to_bytes(8, "big"))  # a cluster that begins within another
    with monitor_at(machine.rundir("web") / "qmp.sock") as qmp:
        qmp.ask("human-monitor-command", **{"command-line": 'qemu-io disk-root "write 512M 64k"'})

    resized = machine.run("disk", "resize", "web:root", "2GiB", "--json").error
    kept = machine.run("disk", "snapshot", "create", "web", "s1", "--json").error
    notes = machine.ok("status", "web", "--json").json["vms"][0]["notes"]

    assert resized["code"] == kept["code"] == "disk.corrupt"
    assert any("orrupt" in note for note in notes), notes


def test_a_disk_that_the_running_vm_does_not_have_is_no_error_of_qemus(machine: Machine) -> None:
    define(machine)
    machine.ok("up", "web", "--paused")
    make_image(machine, "data.img")
    machine.define("web", f'{TINY}[disk.root]\npath = "web.img"\n[disk.data]\npath = "data.img"\n')

    assert machine.run("disk", "resize", "web:data", "16MiB").codes == {"vm.state"}


DRY: Final = [
    ("disk", "convert", "web:root", "vmdefs/new.qcow2", "--remove-source"),
    ("disk", "check", "web:root", "--repair"),
    ("disk", "remove", "web:root"),
    ("disk", "snapshot", "create", "web", "s2"),
    ("disk", "snapshot", "commit", "web:root"),
    ("disk", "snapshot", "revert", "web:root", "s1"),
]


def run(machine: Machine, words: tuple[str, ...], *more: str) -> Result:
    """Run a command of `disk` that asks nobody."""
    asked = ("--yes",) if {"revert", "remove"} & set(words) else ()
    return machine.run(*words, *asked, *more)


@contextmanager
def opened(machine: Machine, name: str) -> Iterator[None]:
    """Have another program hold an image for a while."""
    holder = machine.start("qemu-io", "-f", "qcow2", place(machine, name), stdin=subprocess.PIPE)
    assert holder.stdin
    assert holder.stdout
    try:
        holder.stdin.write("length\n")
        holder.stdin.flush()
        assert "MiB" in holder.stdout.readline()  # it answers once the image is open, and locked
        yield
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("words", DRY, ids=lambda words: " ".join(words[:3]))
def test_a_dry_run_changes_no_byte(machine: Machine, words: tuple[str, ...]) -> None:
    define(machine, QCOW2)
    if "snapshot" in words:
        snapshot(machine, "s1")
        write(machine, OVERLAY, 5)
    before = {path.name: path.read_bytes() for path in place(machine).iterdir()}

    said, document = run(machine, words, "--dry-run"), run(machine, words, "--dry-run", "--json")
    after = {path.name: path.read_bytes() for path in place(machine).iterdir()}

    assert (said.code, document.code) == (0, 0), said.err + document.err
    assert after == before
    assert "would" in said.err or "sound" in said.err
    assert document.json["dry_run"] is True
    assert not document.json.get("removed")


@pytest.mark.parametrize("words", DRY, ids=lambda words: " ".join(words[:3]))
@pytest.mark.parametrize("fault", ["damaged", "open", "clone", "running"])
def test_a_dry_run_is_refused_what_the_command_is(machine: Machine, words: tuple[str, ...], fault: str) -> None:
    define(machine, QCOW2)
    if "snapshot" in words:
        snapshot(machine, "s1")
        write(machine, OVERLAY, 5)
    top = OVERLAY if "snapshot" in words else "web.qcow2"
    if fault == "damaged":
        mark(machine, top)
    elif fault == "clone":
        over = ("create", "-q", "-f", "qcow2", "-b", top, "-F", "qcow2", place(machine, "over.qcow2"))
        assert machine.execute("qemu-img", *over).code == 0
    elif fault == "running":
        machine.ok("up", "web", "--paused")
    with opened(machine, top) if fault == "open" else nullcontext():
        dry = run(machine, words, "--dry-run")
        real = run(machine, words)

    mended = fault == "damaged" and "check" in words  # which a dry run leaves as it is, and says
    assert (dry.code, dry.codes) == ((6, {"disk.corrupt"}) if mended else (real.code, real.codes)), dry.err + real.err


def test_what_a_guest_writes_at_the_beginning_of_a_raw_disk_is_no_mark_of_qemus(machine: Machine) -> None:
    raw = '[disk.root]\npath = "web.img"\nformat = "raw"\n'
    define(machine, raw)
    make_image(machine, "other.qcow2")
    mark(machine, "other.qcow2")
    with place(machine, "web.img").open("r+b") as file:
        file.write(place(machine, "other.qcow2").read_bytes()[:4096])

    machine.ok("disk", "resize", "web:root", "16MiB")
    snapshot(machine, "s1")
    machine.ok("up", "web", "--paused")
    machine.ok("disk", "snapshot", "commit", "web:root")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_nothing_is_removed_from_a_directory_that_cannot_be_written_to(machine: Machine, more: tuple[str, ...]) -> None:
    define(machine)
    machine.execute("mount", "--bind", place(machine), place(machine))
    machine.execute("mount", "-o", "remount,bind,ro", place(machine))

    assert machine.run("disk", "remove", "web:root", "--yes", *more).codes == {"disk.permission"}


def spoil(machine: Machine, name: str) -> None:
    """Set a reserved bit in the first entry of the L1 table: QEMU reads nothing there, and marks nothing."""
    with place(machine, name).open("r+b") as file:
        file.seek(40)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        entry = int.from_bytes(file.read(8), "big")
        file.seek(table)
        file.write((entry | 1 << 1 | 1 << 57).to_bytes(8, "big"))


@pytest.mark.parametrize(
    "words",
    [
        ("disk", "convert", "web:root", "web.img", "--remove-source"),
        ("clone", "new", "--from", "web"),
        ("clone", "new", "--from", "web", "--full"),
        ("disk", "snapshot", "create", "web", "s1"),
        ("disk", "resize", "web:root", "16MiB"),
    ],
    ids=" ".join,
)
def test_an_image_that_a_check_finds_damaged_is_not_left_for_a_copy_of_it(
    machine: Machine, words: tuple[str, ...]
) -> None:
    define(machine, QCOW2)
    spoil(machine, "web.qcow2")

    refusal = machine.run(*words)

    assert refusal.codes == {"disk.corrupt"}
    assert {path.name for path in place(machine).iterdir()} == {"web.qcow2", "web.toml"}


def test_a_copy_of_a_damaged_image_is_said_to_lack_something(machine: Machine) -> None:
    define(machine, QCOW2)
    spoil(machine, "web.qcow2")

    converted = machine.ok("disk", "convert", "web:root", "web.img")

    assert "damaged" in converted.err
    assert "kvmlaunch disk check web:root" in converted.err


@pytest.mark.parametrize(
    "words",
    [
        ("disk", "check", "web:root"),
        ("disk", "check", "web:root", "--repair"),
        ("disk", "convert", "web:root", "new.img"),
        ("up", "web", "--paused"),
    ],
    ids=" ".join,
)
def test_an_image_that_rests_on_itself_is_said_to(machine: Machine, words: tuple[str, ...]) -> None:
    define(machine, QCOW2)
    image = place(machine, "web.qcow2")
    machine.execute("qemu-img", "rebase", "-u", "-b", image.name, "-F", "qcow2", image)

    refusal = machine.run(*words)

    assert (refusal.code, refusal.codes) == (6, {"disk.backing"})
    assert "leads back to it" in refusal.err


@pytest.mark.parametrize(
    "words",
    [("disk", "convert", "web:root", "new.img"), ("clone", "new", "--from", "web", "--full")],
    ids=" ".join,
)
def test_what_an_image_makes_qemu_open_elsewhere_is_not_copied(machine: Machine, words: tuple[str, ...]) -> None:
    define(machine, QCOW2)
    image = place(machine, "web.qcow2")
    machine.execute("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", image, "5M")

    assert machine.run(*words).codes == {"disk.backing"}
    assert {path.name for path in place(machine).iterdir()} == {"web.qcow2", "web.toml"}


@pytest.mark.parametrize("more", [(), ("--full",)])
def test_nobody_is_told_to_read_a_qcow2_without_a_header_as_raw(machine: Machine, more: tuple[str, ...]) -> None:
    define(machine, QCOW2)
    with place(machine, "web.qcow2").open("r+b") as file:
        file.write(bytes(4))

    refusal = machine.run("clone", "new", "--from", "web", *more)

    assert refusal.codes & {"disk.header", "disk.corrupt"}
    assert "backup" in refusal.err
    assert "mv " not in refusal.err


def test_no_disk_is_made_for_a_vm_that_could_not_be_started_then(machine: Machine) -> None:
    machine.define("web", f'cdrom = "no.iso"\n{TINY}[disk.root]\npath = "new.img"\nsize = "1MiB"\n')

    assert machine.run("up", "web", "--create", "--paused").codes == {"disk.missing"}
    assert not place(machine, "new.img").exists()


def test_a_base_that_was_deleted_beneath_a_running_vm_is_told_as_one(machine: Machine) -> None:
    define(machine)
    machine.ok("up", "web", "--paused")
    snapshot(machine, "s1")
    place(machine, "web.img").unlink()

    info, status = machine.run("disk", "info", "web"), machine.run("status", "web")

    assert info.codes == {"disk.replaced"}
    assert "what the disk held before is in /proc/" in status.out


@pytest.mark.parametrize(("name", "stated", "code"), [("gold.img", "qcow2", 6), ("gold.qcow2", "raw", 0)])
def test_what_a_disk_rests_on_is_checked_as_what_the_overlay_says(
    machine: Machine, name: str, stated: str, code: int
) -> None:
    define(machine, QCOW2)
    make_image(machine, "base.qcow2")
    write(machine, "base.qcow2", 3)
    if stated == "qcow2":
        spoil(machine, "base.qcow2")
        place(machine, "base.qcow2").rename(place(machine, name))
    else:
        place(machine, name).write_bytes(bytes(8 * MIB))
    words = ("create", "-q", "-f", "qcow2", "-b", name, "-F", stated, place(machine, "web.qcow2"))
    assert machine.execute("qemu-img", *words).code == 0

    taken = machine.run("disk", "snapshot", "create", "web", "s1")

    assert taken.code == code, taken.err
    assert (f"-r all {place(machine, name)}" in taken.err) == bool(code)


def test_a_copy_of_what_a_check_cannot_read_is_made_and_said_to_lack_something(machine: Machine) -> None:
    define(machine, QCOW2)
    with place(machine, "web.qcow2").open("r+b") as file:  # an entry of the table of counts that leads nowhere
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        entry = int.from_bytes(file.read(8), "big")
        file.seek(table)
        file.write((entry | 1 << 63).to_bytes(8, "big"))

    converted = machine.run("disk", "convert", "web:root", "web.img")

    assert (converted.code, "damaged" in converted.err) == (0, True), converted.err


def misplace(machine: Machine, name: str) -> None:
    """Have the first entry of the first L2 table lead into the middle of a cluster: QEMU marks it when it is read."""
    with place(machine, name).open("r+b") as file:
        file.seek(40)
        file.seek(int.from_bytes(file.read(8), "big"))
        table = int.from_bytes(file.read(8), "big") & 0x00FFFFFFFFFFFE00
        file.seek(table)
        file.write((1 << 63 | 0x12345600).to_bytes(8, "big"))


@pytest.mark.parametrize("kept", [1, 63])
@pytest.mark.parametrize("beneath", [False, True])
def test_an_image_that_was_cut_off_is_not_started(machine: Machine, kept: int, *, beneath: bool) -> None:
    machine.define("web", f'{TINY}{QCOW2}size = "64MiB"\n')
    machine.ok("disk", "create", "web")
    if beneath:
        machine.ok("disk", "snapshot", "create", "web", "s1")
    os.truncate(place(machine, "web.qcow2"), kept * MIB)

    result = machine.run("up", "web", "--paused")

    assert (result.code, result.codes & {"disk.corrupt"}) == (6, {"disk.corrupt"})
    assert "web.qcow2 is cut off" in result.err


@pytest.mark.parametrize(("offset", "mended"), [(20, False), (40, False), (48, False), (56, False), (64, True)])
def test_an_image_with_a_header_that_qemu_does_not_take_is_said_to_be_damaged(
    machine: Machine, offset: int, *, mended: bool
) -> None:
    machine.define("web", f'{TINY}{QCOW2}size = "64MiB"\n')
    machine.ok("disk", "create", "web")
    with place(machine, "web.qcow2").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 8)

    started = machine.run("up", "web", "--paused")
    checked = machine.run("disk", "check", "web:root", "--repair")

    assert started.codes & {"disk.corrupt"}, started.err
    assert checked.codes == {"disk.corrupt"}
    assert machine.leftovers() == []
    assert ("--repair" in checked.err) == mended
    assert "go back to a backup" in checked.err


# Behind the counts of what is used, and before the first table: qemu-img check finds nothing wrong there (7.2.22).
@pytest.mark.parametrize("beneath", [False, True])
def test_an_image_that_lacks_its_first_table_is_neither_started_nor_called_sound(
    machine: Machine, *, beneath: bool
) -> None:
    machine.define("web", f'{TINY}{QCOW2}size = "64MiB"\n')
    machine.ok("disk", "create", "web")
    if beneath:
        machine.ok("disk", "snapshot", "create", "web", "s1")
    os.truncate(place(machine, "web.qcow2"), 190 << 10)

    started = machine.run("up", "web", "--paused")
    checked = machine.run("disk", "check", "web")
    converted = machine.run("disk", "convert", "web:root", "copy.img", "--remove-source")

    assert (started.code, checked.code, converted.code) == (6, 6, 6), converted.err
    assert "cut off" in started.err
    assert checked.codes == {"disk.corrupt"}
    assert place(machine, "web.qcow2").exists()


def test_what_a_crash_left_counted_behind_the_end_keeps_no_image_from_its_start(machine: Machine) -> None:
    machine.define("web", f"{TINY}{QCOW2}")
    image = place(machine, "web.qcow2")
    machine.execute("qemu-img", "create", "-q", "-f", "qcow2", image, "200M")
    words = ("break write_aio A", "aio_write 0 30M", "aio_write 40M 30M", "sleep 300", "flush", "sigraise 9")
    options = f"driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename={image}"
    machine.execute("qemu-io", "--image-opts", *(each for word in words for each in ("-c", word)), options)

    checked = machine.execute("qemu-img", "check", "-q", image)

    assert checked.code == 3  # leaks
    assert image.stat().st_size < 70 * MIB
    machine.ok("up", "web", "--paused")


def test_tables_that_qemu_finds_wrong_at_the_start_are_a_damaged_image(machine: Machine) -> None:
    machine.define("web", f'{TINY}{QCOW2}size = "8MiB"\n')
    machine.ok("disk", "create", "web")
    misplace(machine, "web.qcow2")

    copied = machine.run("disk", "convert", "web:root", "new.img")
    result = machine.run("up", "web")

    assert (copied.code, copied.codes) == (6, {"disk.corrupt"})
    assert (result.code, result.codes & {"disk.corrupt", "qemu.promise"}) == (6, {"disk.corrupt"})
    assert machine.qemus() == []
