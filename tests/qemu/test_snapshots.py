"""`disk snapshot` with the real QEMU: taken stopped and live, committed, reverted to, and what is refused."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest

from tests.crashes import traced
from tests.monitor import monitor_at
from tests.qemu.test_run_attach import terminal
from tests.sandbox import SECONDS, TINY, Machine, Result

MIB: Final = 1 << 20
ROOT: Final = '[disk.root]\npath = "web.img"\n'
DATA: Final = '[disk.data]\npath = "data.qcow2"\n'
OVER: Final = "web.img.since-{}.qcow2"
S1: Final = "web.img.since-s1.qcow2"
S2: Final = "web.img.since-s2.qcow2"
MARK: Final = "web.img.committing"


def place(machine: Machine, name: str = "") -> Path:
    """Give a file beside the definitions, or their directory."""
    return machine.directory / "vmdefs" / name


def names(machine: Machine) -> set[str]:
    """Give what lies beside the definitions."""
    return {path.name for path in place(machine).iterdir() if path.suffix != ".toml"}


def format_of(name: str) -> str:
    """Give the format of an image by its name."""
    return "qcow2" if name.endswith(".qcow2") else "raw"


def image_io(machine: Machine, name: str, *commands: str) -> str:
    """Give what qemu-io says of commands on an image, which another process may have open."""
    words = [word for command in commands for word in ("-c", command)]
    share = () if any(command.startswith("write") for command in commands) else ("-r", "-U")
    result = machine.execute("qemu-io", *share, "-f", format_of(name), *words, place(machine, name))
    assert "bytes at offset" in result.out, result.out + result.err
    return result.out


def write(machine: Machine, name: str, pattern: int, offset: str = "0") -> None:
    """Write a pattern into an image."""
    image_io(machine, name, f"write -P {pattern} {offset} 64k")


def holds(machine: Machine, name: str, pattern: int, offset: str = "0") -> bool:
    """Does an image, with what it rests on, hold a pattern."""
    return "verification failed" not in image_io(machine, name, f"read -P {pattern} {offset} 64k")


def write_live(machine: Machine, pattern: int, disk: str = "root", offset: str = "0", length: str = "64k") -> None:
    """Write a pattern as the guest of a running VM would."""
    with monitor_at(machine.rundir("web") / "qmp.sock") as qmp:
        line = f'qemu-io disk-{disk} "write -P {pattern} {offset} {length}"'
        said = qmp.ask("human-monitor-command", **{"command-line": line})
    assert "rror" not in said, said


def live_images(machine: Machine) -> dict[str, str]:
    """Give the file that a running QEMU writes each disk to."""
    with monitor_at(machine.rundir("web") / "qmp.sock") as qmp:
        rows = qmp.ask("query-block")
    return {row["device"]: plain_name(row["inserted"]["image"]["filename"]) for row in rows if "inserted" in row}


def plain_name(filename: str) -> str:
    """Give the name of a file as QEMU tells it, which may be a document."""
    document = json.loads(filename.removeprefix("json:")) if filename.startswith("json:") else None
    return Path(document["file"]["filename"] if document else filename).name


def make_image(machine: Machine, name: str, size: str = "8M") -> None:
    """Make an empty image."""
    result = machine.execute("qemu-img", "create", "-q", "-f", format_of(name), place(machine, name), size)
    assert result.code == 0, result.err


def define(machine: Machine, disks: str = ROOT) -> None:
    """Write a definition with these disks, and make their images, of which all but the first 64 KiB is empty."""
    machine.define("web", f"{TINY}{disks}")
    for name in re.findall(r'path = "(.*)"', disks):
        make_image(machine, name)
        write(machine, name, 1)


def snapshot(machine: Machine, *names_: str) -> None:
    """Take snapshots of all disks."""
    for name in names_:
        machine.ok("disk", "snapshot", "create", "web", name)


def running(machine: Machine, disks: str = ROOT) -> None:
    """Write a definition and start it; it stays at its firmware."""
    define(machine, disks)
    machine.ok("up", "web", "--paused")


def listed(machine: Machine, word: str = "web") -> dict[str, list[str]]:
    """Give the snapshots of each disk."""
    rows: Any = machine.ok("disk", "snapshot", "list", word, "--json").json["disks"]
    return {row["disk"]: row["snapshots"] for row in rows}


def refused(machine: Machine, *words: str) -> tuple[int, str]:
    """Give exit code and stable code of a command of `disk snapshot` that is refused."""
    result = machine.run("disk", "snapshot", *words, "--json")
    return result.code, result.error["code"] if result.code else "not refused"


def opened(printed: Result) -> set[str]:
    """Give the files of the disks that a printed command would open."""
    return {Path(each).name for each in re.findall(r"-drive file=([^,]*)", printed.out)}


def test_a_commit_beneath_a_running_vm_is_no_difference_from_its_definition(machine: Machine) -> None:
    define(machine, f"{ROOT}{DATA}")
    snapshot(machine, "s1", "s2")
    machine.ok("up", "web", "--paused")

    machine.ok("disk", "snapshot", "commit", "web:root")
    committed = machine.run("diff", "web")
    snapshot(machine, "s3")
    kept = machine.run("diff", "web")

    assert (committed.code, committed.out) == (0, ""), committed.out
    assert (kept.code, kept.out) == (0, ""), kept.out


def test_an_image_that_keeps_its_data_elsewhere_is_refused_as_a_start_refuses_it(machine: Machine) -> None:
    define(machine, '[disk.root]\npath = "web.qcow2"\n')
    image, data = place(machine, "web.qcow2"), place(machine, "data")
    data.write_bytes(bytes(1 << 20))
    made = machine.execute("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", image, "1M")

    assert made.code == 0, made.err
    assert refused(machine, "create", "web", "s1") == (6, "disk.backing")


def test_a_snapshot_of_a_stopped_vm_is_an_overlay_that_is_opened_from_then_on(machine: Machine) -> None:
    define(machine)

    snapshot(machine, "s1")

    status = place(machine, S1).stat()
    assert names(machine) == {"web.img", S1}
    assert status.st_mode & 0o7777 == 0o600
    assert opened(machine.ok("print-cmd", "web")) == {S1}
    assert holds(machine, S1, 1)
    assert listed(machine) == {"root": ["s1"]}


def test_what_a_vm_writes_after_a_snapshot_leaves_the_image_as_it_was(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")

    machine.ok("up", "web", "--paused")
    write_live(machine, 2)
    machine.end("web")

    assert holds(machine, "web.img", 1)
    assert holds(machine, S1, 2)


def test_a_snapshot_of_a_running_vm_takes_all_disks_at_one_moment_and_the_vm_goes_on_in_overlays(
    machine: Machine,
) -> None:
    running(machine, f"{ROOT}{DATA}")

    taken = machine.ok("disk", "snapshot", "create", "web", "s1", "--json").json
    write_live(machine, 2)
    write_live(machine, 3, "data")

    assert (taken["disks"], taken["live"], taken["frozen"], taken["already"]) == (["root", "data"], True, None, False)
    assert live_images(machine) == {"disk-root": S1, "disk-data": "data.qcow2.since-s1.qcow2"}
    assert machine.run("diff", "web").code == 0
    assert holds(machine, "web.img", 1)
    assert holds(machine, "data.qcow2", 1)
    machine.end("web")
    assert holds(machine, S1, 2)
    assert holds(machine, "data.qcow2.since-s1.qcow2", 3)


def test_a_snapshot_without_an_agent_says_that_it_is_as_after_a_power_cut(machine: Machine) -> None:
    running(machine)

    told = machine.ok("disk", "snapshot", "create", "web", "s1")

    assert "power cut" in told.err


def test_where_one_disk_of_a_running_vm_cannot_be_switched_none_is(machine: Machine) -> None:
    running(machine, f"{ROOT}{DATA}")
    definition = place(machine, "web.toml")
    make_image(machine, "late.img")
    definition.write_text(f'{definition.read_text()}[disk.late]\npath = "late.img"\n')

    result = machine.run("disk", "snapshot", "create", "web", "s1")

    assert result.code != 0
    assert "internal.bug" not in result.codes
    assert live_images(machine) == {"disk-root": "web.img", "disk-data": "data.qcow2"}
    assert names(machine) == {"web.img", "data.qcow2", "late.img"}


def test_a_snapshot_that_is_there_is_said_and_stays_as_it_is(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, S1, 2)

    again = machine.run("disk", "snapshot", "create", "web", "s1")

    assert (again.code, again.codes) == (6, {"disk.exists"})
    assert holds(machine, S1, 2)


def test_snapshots_are_listed_the_oldest_first_whatever_their_names_are(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "zebra", "apple", "0")

    text = machine.ok("disk", "snapshot", "list", "web").out

    assert listed(machine) == {"root": ["zebra", "apple", "0"]}
    assert [line.split()[1] for line in text.splitlines()] == ["zebra", "apple", "0"]
    assert opened(machine.ok("print-cmd", "web")) == {OVER.format("0")}


def test_info_tells_of_the_chain_beneath_a_snapshot(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1", "s2")

    row = machine.ok("disk", "info", "web", "--json").json["disks"][0]

    assert [Path(image["path"]).name for image in row["chain"]] == [S2, S1, "web.img"]


@pytest.mark.parametrize("name", ["", "S1", "-a", "a b", "a/b", "../a", "a.b", "a\nb", "é", "a" * 41, "a\x1b[2J"])
def test_a_name_that_is_none_is_refused(machine: Machine, name: str) -> None:
    define(machine)

    result = machine.run("disk", "snapshot", "create", "web", "--", name)

    assert (result.code, result.codes) == (5, {"def.name"})
    assert "\x1b" not in result.err
    assert names(machine) == {"web.img"}


def test_a_name_that_one_of_the_disks_has_already_is_refused_for_all(machine: Machine) -> None:
    define(machine, f"{ROOT}{DATA}")
    machine.ok("disk", "snapshot", "create", "web:root", "s1")
    write(machine, S1, 2)

    assert refused(machine, "create", "web", "s1") == (6, "disk.exists")
    assert names(machine) == {"web.img", S1, "data.qcow2"}


def test_a_device_has_no_snapshots_of_ours(machine: Machine) -> None:
    machine.execute("mknod", "/dev/shm/kl-none", "b", "7", "250")  # noqa: S108 - a device that nobody serves
    machine.define("web", f'{TINY}[disk.root]\npath = "/dev/shm/kl-none"\nformat = "raw"\n')

    answers = [refused(machine, *words) for words in (("create", "web", "s1"), ("commit", "web:root"))]
    machine.execute("rm", "/dev/shm/kl-none")  # noqa: S108 - likewise

    assert answers == [(6, "disk.type")] * 2


def test_what_there_is_no_image_of_has_no_snapshots(machine: Machine) -> None:
    machine.define("web", f"{TINY}{ROOT}")

    assert refused(machine, "create", "web", "s1") == (6, "disk.missing")
    assert refused(machine, "create", "nobody", "s1") == (4, "vm.unknown")
    assert refused(machine, "create", "web:rot", "s1") == (4, "disk.unknown")
    assert names(machine) == set()


def test_a_disk_that_is_only_read_is_not_said_to_be_kept(machine: Machine) -> None:
    define(machine, f"{ROOT}readonly = true\n")

    result = machine.run("disk", "snapshot", "create", "web:root", "s1")

    assert names(machine) == {"web.img"}
    assert result.code != 0 or result.err, "nothing was done, and nothing was said"


def test_a_commit_of_a_stopped_vm_merges_all_snapshots_and_ends_them(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, S1, 2)
    write(machine, S1, 3, "1M")
    snapshot(machine, "s2")
    write(machine, S2, 4, "2M")

    done = machine.ok("disk", "snapshot", "commit", "web:root", "--json").json

    assert (done["snapshots"], done["live"]) == (["s1", "s2"], False)
    assert names(machine) == {"web.img"}
    assert [holds(machine, "web.img", *each) for each in ((2, "0"), (3, "1M"), (4, "2M"))] == [True] * 3
    assert place(machine, "web.img").stat().st_size == 8 * MIB
    assert opened(machine.ok("print-cmd", "web")) == {"web.img"}


def test_a_commit_of_a_running_vm_puts_it_back_on_its_image(machine: Machine) -> None:
    running(machine)
    snapshot(machine, "s1")
    write_live(machine, 2)
    snapshot(machine, "s2")
    write_live(machine, 3, offset="1M")

    done = machine.ok("disk", "snapshot", "commit", "web:root", "--json").json
    write_live(machine, 4, offset="2M")

    assert (done["snapshots"], done["live"]) == (["s1", "s2"], True)
    assert live_images(machine) == {"disk-root": "web.img"}
    assert names(machine) == {"web.img"}
    machine.end("web")
    assert [holds(machine, "web.img", *each) for each in ((2, "0"), (3, "1M"), (4, "2M"))] == [True] * 3


def test_a_vm_that_was_started_on_an_overlay_is_committed_while_it_runs(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    machine.ok("up", "web", "--paused")
    write_live(machine, 2)

    machine.ok("disk", "snapshot", "commit", "web:root")
    again = machine.ok("up", "web", "--paused")

    assert "already" in again.err
    assert live_images(machine) == {"disk-root": "web.img"}
    assert names(machine) == {"web.img"}
    assert holds(machine, "web.img", 2)


def test_a_second_commit_has_nothing_to_do(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    machine.ok("disk", "snapshot", "commit", "web:root")

    again = machine.ok("disk", "snapshot", "commit", "web:root")
    machine.ok("clone", "new", "--from", "web")
    cloned = machine.ok("disk", "snapshot", "commit", "web:root")

    assert "no snapshots" in again.err
    assert "no snapshots" in cloned.err


def test_one_disk_of_several_is_committed_and_the_others_keep_their_snapshots(machine: Machine) -> None:
    running(machine, f"{ROOT}{DATA}")
    snapshot(machine, "s1")

    unnamed = refused(machine, "commit", "web")
    machine.ok("disk", "snapshot", "commit", "web:data")

    assert unnamed == (4, "disk.unknown")
    assert live_images(machine) == {"disk-root": S1, "disk-data": "data.qcow2"}
    assert listed(machine) == {"root": ["s1"], "data": []}


def test_revert_drops_what_was_written_since_and_keeps_the_snapshot(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, S1, 2)
    snapshot(machine, "s2")
    write(machine, S2, 3)

    machine.ok("disk", "snapshot", "revert", "web:root", "s2", "--yes")
    at_the_second = holds(machine, S2, 2)
    machine.ok("disk", "snapshot", "revert", "web:root", "s1", "--yes")

    assert at_the_second
    assert listed(machine) == {"root": ["s1"]}
    assert names(machine) == {"web.img", S1}
    assert holds(machine, S1, 1)


def test_revert_without_a_terminal_wants_to_be_told_that_it_is_meant(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, S1, 2)

    result = machine.run("disk", "snapshot", "revert", "web:root", "s1")

    assert result.code == 2
    assert "--yes" in result.err
    assert holds(machine, S1, 2)


def test_revert_on_a_terminal_asks_and_takes_a_no(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, S1, 2)

    with terminal(machine, "disk", "snapshot", "revert", "web:root", "s1") as screen:
        screen.read_until(b"?")
        screen.type(b"n\n")
        code = screen.process.wait(SECONDS)

    assert code != 0
    assert holds(machine, S1, 2)


def test_revert_is_refused_while_the_vm_runs_and_for_a_snapshot_that_there_is_none_of(machine: Machine) -> None:
    running(machine)
    snapshot(machine, "s1")

    live = refused(machine, "revert", "web:root", "s1", "--yes")
    machine.end("web")
    unknown = machine.run("disk", "snapshot", "revert", "web:root", "s2", "--yes")

    assert live == (7, "vm.state")
    assert unknown.code == 6
    assert "s1" in unknown.err
    assert names(machine) == {"web.img", S1}


@pytest.mark.parametrize("verb", ["resize", "convert"])
def test_an_image_with_snapshots_is_not_changed_beneath_them(machine: Machine, verb: str) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, S1, 2)

    machine.run("disk", verb, "web:root", "16MiB" if verb == "resize" else str(place(machine, "copy.img")))

    assert place(machine, "web.img").stat().st_size == 8 * MIB
    assert holds(machine, S1, 2)
    assert verb == "resize" or holds(machine, "copy.img", 2)


def test_a_commit_into_an_image_that_another_vm_rests_on_is_refused(machine: Machine) -> None:
    define(machine)
    machine.ok("clone", "other", "--from", "web")
    snapshot(machine, "s1")
    write(machine, S1, 2)

    answer = refused(machine, "commit", "web:root")

    assert holds(machine, "other.qcow2", 1), "the other VM's disk was changed beneath it"
    assert answer == (6, "disk.base")
    assert names(machine) == {"web.img", "other.qcow2", S1}


def test_a_live_commit_into_an_image_that_another_vm_rests_on_is_refused(machine: Machine) -> None:
    define(machine)
    machine.ok("clone", "other", "--from", "web")
    snapshot(machine, "s1")
    machine.ok("up", "web", "--paused")
    write_live(machine, 2)

    answer = refused(machine, "commit", "web:root")

    assert holds(machine, "other.qcow2", 1), "the other VM's disk was changed beneath it"
    assert answer == (6, "disk.base")


def test_an_overlay_that_another_vm_rests_on_is_neither_committed_nor_dropped(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, S1, 2)
    other = place(machine, "other.qcow2")
    machine.execute("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", S1, other)

    answers = [refused(machine, *words) for words in (("commit", "web:root"), ("revert", "web:root", "s1", "--yes"))]

    assert place(machine, S1).exists()
    assert holds(machine, "other.qcow2", 2)
    assert answers == [(6, "disk.base")] * 2


@pytest.mark.parametrize("beside", ["fork", "unrelated", "link", "loop"])
def test_overlays_that_do_not_lie_in_a_line_are_refused_and_left_alone(machine: Machine, beside: str) -> None:
    define(machine)
    snapshot(machine, "s1")
    if beside == "link":
        place(machine, S2).symlink_to(S1)
    else:
        backing = {"fork": "web.img", "unrelated": "other.img", "loop": S2}[beside]
        make = ("create", "-q", "-u", "-f", "qcow2", "-F", format_of(backing), "-b", backing, place(machine, S2), "8M")
        machine.execute("qemu-img", *make)
    before = names(machine)

    answers = [refused(machine, *words) for words in (("create", "web", "s3"), ("commit", "web:root"))]
    up = machine.run("up", "web", "--paused")

    assert answers == [(6, "disk.snapshot")] * 2
    assert (up.code, up.codes & {"disk.snapshot"}) == (6, {"disk.snapshot"})
    assert S2 in up.err
    assert names(machine) == before


@pytest.mark.parametrize(
    "words",
    [
        ("disk", "convert", "web:root", "vmdefs/other.img"),
        ("clone", "two", "--from", "web", "--full"),
        ("clone", "two", "--from", "web"),
        ("disk", "remove", "web:root", "--yes"),
        ("disk", "check", "web:root", "--repair"),
        ("disk", "snapshot", "revert", "web:root", "s1", "--yes"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("mark", ["merging", "completing", "merged"])
def test_a_disk_whose_commit_was_cut_off_is_nobodys_source_until_it_is_finished(
    machine: Machine, words: tuple[str, ...], mark: str
) -> None:
    define(machine)
    snapshot(machine, "s1")
    place(machine, MARK).write_text(f"{mark}\n")
    before = names(machine)

    result = machine.run(*words, "--json")

    assert (result.code, result.error["code"]) == (6, "disk.snapshot")
    assert names(machine) == before


def test_an_image_whose_name_is_a_protocols_can_be_kept_and_started(machine: Machine) -> None:
    define(machine, '[disk.root]\npath = "nbd:web, 1.img"\n')

    taken = machine.run("disk", "snapshot", "create", "web", "s1")
    up = machine.run("up", "web", "--paused")

    assert (taken.code, up.code) in {(0, 0), (6, 0)}, f"the VM can be started no more\n{taken.err}\n{up.err}"


def test_an_image_with_commas_and_blanks_in_its_name_is_kept_and_committed(machine: Machine) -> None:
    define(machine, '[disk.root]\npath = "web, ,,1.img"\n')
    snapshot(machine, "s1")
    machine.ok("up", "web", "--paused")
    snapshot(machine, "s2")
    write_live(machine, 2)

    machine.ok("disk", "snapshot", "commit", "web:root")

    assert names(machine) == {"web, ,,1.img"}
    assert holds(machine, "web, ,,1.img", 2)


@pytest.fixture
def other(machine: Machine) -> Path:
    """Give another definition of web, with another disk of that name, while web runs from the first."""
    define(machine)
    directory = machine.directory / "other"
    directory.mkdir()
    (directory / "web.toml").write_text(f"{TINY}{ROOT}")
    made = machine.execute("qemu-img", "create", "-q", "-f", "raw", directory / "web.img", "8M")
    assert made.code == 0, made.err
    machine.ok("up", "web", "--paused")
    return directory


@pytest.mark.parametrize("words", [("resize", "web:root", "16MiB"), ("snapshot", "commit", "web:root")])
def test_a_running_vm_is_told_nothing_of_a_disk_that_it_does_not_have(
    machine: Machine, other: Path, words: tuple[str, ...]
) -> None:
    if words[0] == "snapshot":
        overlay = other / S1
        machine.execute("qemu-img", "create", "-q", "-f", "qcow2", "-b", "web.img", "-F", "raw", overlay)
    before = sorted(path.name for path in other.iterdir())

    refused = machine.run("-f", other / "web.toml", "disk", *words)

    assert (refused.code, refused.codes) == (7, {"vm.state"})
    assert sorted(path.name for path in other.iterdir()) == before
    assert place(machine, "web.img").stat().st_size == 8 * MIB


def test_an_overlay_of_a_disk_that_the_running_vm_does_not_have_stays(machine: Machine, other: Path) -> None:
    overlay = other / S1
    machine.execute("qemu-img", "create", "-q", "-f", "qcow2", "-b", "web.img", "-F", "raw", overlay)
    machine.execute("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", overlay)
    size = overlay.stat().st_size

    refused = machine.run("-f", other / "web.toml", "disk", "snapshot", "create", "web", "s1")

    assert (refused.code, refused.codes) == (7, {"vm.state"})
    assert overlay.stat().st_size == size


def test_what_a_disk_rests_on_is_shown_beneath_what_is_opened(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")

    rows = machine.ok("disk", "info", "web").out.splitlines()

    assert [row.split()[1] for row in rows] == [f"vmdefs/{S1}", "vmdefs/web.img"]
    assert "qcow2, 8MiB" in rows[0]
    assert "fully allocated" not in rows[0]


def test_that_a_live_snapshot_ends_the_turning_of_zeros_into_holes_is_said(machine: Machine) -> None:
    define(machine, f'{ROOT}detect_zeroes = "unmap"\n')
    machine.ok("up", "web", "--paused")

    taken = machine.ok("disk", "snapshot", "create", "web", "s1")

    assert "root: detect_zeroes is off until the VM starts again" in taken.err


def test_no_command_is_printed_for_a_disk_that_cannot_be_told(machine: Machine) -> None:
    define(machine)
    machine.ok("disk", "snapshot", "create", "web", "s1")
    place(machine, MARK).write_text("merged\n")

    printed = machine.run("print-cmd", "web")

    assert (printed.code, printed.codes, printed.out) == (6, {"disk.snapshot"}, "")


@contextmanager
def delayed(machine: Machine, *words: str) -> Iterator[list[Result]]:
    """Run a command that has looked at everything and waits five seconds before it takes the VM in hand."""
    ended: list[Result] = []
    options = ("-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:delay_enter=5000000:when=1")
    thread = Thread(target=lambda: ended.append(traced(machine, *words, options=options)))
    thread.start()
    time.sleep(1)
    try:
        yield ended
    finally:
        thread.join()


def test_a_start_sees_a_snapshot_that_was_taken_while_it_looked(machine: Machine) -> None:
    define(machine)

    with delayed(machine, "up", "web", "--paused") as ended:
        snapshot(machine, "s1")

    assert ended[0].code == 0, ended[0].err
    assert live_images(machine) == {"disk-root": S1}


def test_a_disk_grows_as_it_is_when_it_is_taken_in_hand(machine: Machine) -> None:
    define(machine)

    with delayed(machine, "disk", "resize", "web:root", "16MiB") as ended:
        snapshot(machine, "s1")

    assert (ended[0].code, ended[0].codes) == (6, {"disk.base"})
    assert place(machine, "web.img").stat().st_size == 8 * MIB


def test_an_overlay_that_is_marked_as_damaged_is_repaired_as_it_is_said(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    with place(machine, S1).open("r+b") as file:
        file.seek(72 + 7)
        file.write(b"\2")  # incompatible feature bit 1: corrupt

    refused_up = machine.run("up", "web", "--paused", "--json").error
    hint = refused_up["problems"][0]["hint"].partition("   #")[0]
    done = machine.execute("sh", "-euc", hint)

    assert refused_up["code"] == "disk.corrupt"
    assert done.code == 0, done.err
    machine.ok("up", "web", "--paused")


def test_a_commit_that_may_fill_the_store_is_refused_with_how_much(machine: Machine) -> None:
    small = place(machine, "small")
    small.mkdir(parents=True)
    machine.execute("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small)
    define(machine, '[disk.root]\npath = "small/web.img"\n')
    outside = machine.outside(small)
    with (outside / "web.img").open("wb") as file:
        file.truncate(32 * MIB)
    snapshot(machine, "s1")
    machine.ok("up", "web", "--paused")
    for number in range(10):
        write_live(machine, 5, offset=f"{number}M", length="1M")

    assert refused(machine, "commit", "web:root") == (6, "host.space")
    assert sorted(path.name for path in outside.iterdir()) == ["web.img", S1]


def test_an_image_behind_a_link_is_seen_to_go_and_a_log_or_a_cd_is_none(machine: Machine) -> None:
    machine.execute("sh", "-euc", f"mkdir -p {place(machine)}/real; ln -s real {place(machine)}/link")
    define(machine, '[disk.root]\npath = "link/web.img"\n[cdrom.install]\npath = "web.iso"\n')
    machine.ok("up", "web", "--paused")
    machine.execute("sh", "-euc", f"rm {place(machine)}/web.iso {machine.rundir('web')}/log/console.log")
    before = machine.status("web")["notes"]

    place(machine, "real/web.img").unlink()

    assert not any("disk.replaced" in note for note in before)
    assert any("disk.replaced" in note for note in machine.status("web")["notes"])
    assert machine.run("down", "web").codes >= {"disk.replaced"}


@pytest.mark.parametrize("deed", ["mv new.img web.img", "rm web.img"])
def test_an_image_that_goes_while_the_vm_runs_is_said_and_nothing_is_done_to_another(
    machine: Machine, deed: str
) -> None:
    running(machine)
    machine.execute("sh", "-euc", f"cd {place(machine)}; cp web.img new.img; {deed}")

    noted, differs = machine.status("web")["notes"], machine.run("diff", "web")
    words = (
        ("disk", "snapshot", "create", "web", "s1"), ("disk", "resize", "web:root", "16MiB"),
        ("restart", "web", "--force"), ("down", "web"),
    )  # fmt: skip
    tries = [machine.run(*each) for each in words]
    made = machine.run("disk", "create", "web:root")

    assert any(note.startswith("[disk.replaced]") for note in noted)
    assert differs.code == 10
    assert [each.code for each in tries[-1:]] == [7]
    assert all(each.codes & {"disk.replaced", "disk.missing"} for each in tries), [each.err for each in tries]
    assert names(machine) <= {"web.img", "new.img"}
    assert made.code == (0 if deed.startswith("mv") else 7 if "replaced" in made.err else 5)
    saved = next(line for line in tries[-1].err.splitlines() if "cp --sparse" in line).partition("fix: ")[2]
    machine.execute("sh", "-euc", saved.partition("   #")[0])
    assert "web.img.saved" in names(machine)
    machine.end("web")


def lost(machine: Machine, name: str = "web") -> list[str]:
    """Give what status says of a VM's images that are gone."""
    return [note for note in machine.status(name)["notes"] if "disk.replaced" in note]


def test_an_overlay_that_is_gone_bars_another_snapshot(machine: Machine) -> None:
    running(machine)
    snapshot(machine, "s1")
    write_live(machine, 5)
    kept = lost(machine)
    place(machine, S1).unlink()

    assert kept == []
    assert len(lost(machine)) == 1
    assert refused(machine, "create", "web", "s2") == (7, "disk.replaced")
    assert not place(machine, S2).exists()


@pytest.mark.parametrize("deed", ["mv web.img old.img; cp old.img web.img", "mv web.img old.img"])
def test_an_image_that_was_renamed_is_not_the_vms_any_more(machine: Machine, deed: str) -> None:
    running(machine)
    machine.execute("sh", "-euc", f"cd {place(machine)}; {deed}")

    started = machine.run("up", "web")

    assert len(lost(machine)) == 1
    assert machine.run("diff", "web").code == 10
    assert "disk.replaced" in started.codes
    assert machine.run("restart", "web").code in {6, 7}
    assert "disk.replaced" in machine.run("down", "web").codes


def test_a_base_that_is_gone_is_lost_with_the_clone_that_runs(machine: Machine) -> None:
    define(machine)
    machine.ok("clone", "new", "--from", "web")
    machine.ok("up", "new", "--paused")
    before = lost(machine, "new")
    place(machine, "web.img").unlink()

    assert before == []
    assert len(lost(machine, "new")) == 1
    assert "disk.replaced" in machine.run("down", "new").codes


def test_a_live_commit_that_goes_on_without_its_command_is_told_and_bars_the_disk_until_it_is_finished(
    machine: Machine,
) -> None:
    running(machine)
    snapshot(machine, "s1")
    write_live(machine, 2, offset="128k", length="256k")
    with monitor_at(machine.rundir("web") / "qmp.sock") as qmp:
        qmp.ask("block-commit", **{"device": "disk-root", "job-id": "commit-root", "speed": 1})

    notes = machine.status("web")["notes"]
    refusal = machine.run("disk", "snapshot", "create", "web", "s2")
    with monitor_at(machine.rundir("web") / "qmp.sock") as qmp:
        qmp.ask("block-job-set-speed", device="commit-root", speed=0)
    machine.ok("disk", "snapshot", "commit", "web:root")

    assert any("disk root are being merged" in note for note in notes)
    assert (refusal.code, refusal.codes) == (7, {"vm.state"})
    assert "kvmlaunch disk snapshot commit web:root" in refusal.err
    assert listed(machine) == {"root": []}
    assert not any("merged" in note for note in machine.status("web")["notes"])
