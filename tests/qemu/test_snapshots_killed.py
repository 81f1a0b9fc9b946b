"""`disk snapshot` killed at its system calls: no data are lost, and the next command finishes or begins anew."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from subprocess import TimeoutExpired  # noqa: TID253 - what waiting for a command raises
from typing import Final

import pytest

from tests.crashes import Point, calls, describe, killed_at, points, sample
from tests.monitor import monitor_at
from tests.qemu.test_disks import tools
from tests.qemu.test_snapshots import (
    DATA,
    MARK,
    ROOT,
    S1,
    S2,
    define,
    holds,
    listed,
    live_images,
    make_image,
    names,
    opened,
    place,
    refused,
    running,
    snapshot,
    write,
    write_live,
)
from tests.sandbox import KVMLAUNCH, Machine, finish, wait_for

CREATE: Final = ("disk", "snapshot", "create", "web", "s1")
COMMIT: Final = ("disk", "snapshot", "commit", "web:root")
REVERT: Final = ("disk", "snapshot", "revert", "web:root", "s1", "--yes")
BEGUN: Final = "web.img.merging"
FILES: Final = {"flock", "vfork", "link", "linkat", "unlink", "unlinkat", "rename", "renameat", "fchown", "fsync"}


def file_points(machine: Machine, *words: str, after: str, more: Sequence[str] = ()) -> list[Point]:
    """Give where a command that changes files is killed, from a first call on; the command is run once."""
    first = points(machine, *words, after=after, others=1)[0]
    everything = [point for point, _ in calls(machine.directory / "calls")]
    return [point for point in everything[everything.index(first) :] if point.name in {*FILES, *more}]


def without_overlays(machine: Machine) -> None:
    """Remove all snapshots of a VM that is down, and whatever a command left; the image holds the first pattern."""
    for name in names(machine) - {"web.img"}:
        place(machine, name).unlink()
    write(machine, "web.img", 1)


def with_overlays(machine: Machine) -> None:
    """Lay two snapshots over an image of a VM that is down: each has written something of its own.

    The first time they are taken, later what was there then is laid there again.
    """
    kept = machine.directory / "kept"
    without_overlays(machine)
    if kept.exists():
        shutil.copytree(kept, place(machine), dirs_exist_ok=True)
        return
    write(machine, "web.img", 1, "1M")
    snapshot(machine, "s1")
    write(machine, S1, 2)
    snapshot(machine, "s2")
    write(machine, S2, 3, "2M")
    shutil.copytree(place(machine), kept)


def settled(machine: Machine) -> None:
    """Wait until no qemu-img that a killed command left is at work."""
    wait_for("qemu-img has ended", lambda: not tools(machine))


def test_a_snapshot_that_is_killed_at_any_point_is_whole_or_not_there_and_can_be_taken(machine: Machine) -> None:
    define(machine)

    for point in sample(file_points(machine, *CREATE, after=r"openat\(.*\.making")):
        without_overlays(machine)
        killed_at(machine, point, *CREATE)
        settled(machine)
        top = opened(machine.ok("print-cmd", "web")).pop()
        kept = holds(machine, top, 1)
        again = machine.run(*CREATE)

        assert top in {"web.img", S1}, describe(point, CREATE)
        assert kept, describe(point, CREATE)
        assert again.code == 0, f"{describe(point, CREATE)}\n{again.err}"
        assert names(machine) == {"web.img", S1}, describe(point, CREATE)
        assert holds(machine, S1, 1), describe(point, CREATE)


def test_a_snapshot_of_two_disks_that_is_killed_between_them_can_be_taken(machine: Machine) -> None:
    define(machine, f'{ROOT}[disk.data]\npath = "data.qcow2"\n')
    named = [point for point in file_points(machine, *CREATE, after=r"openat\(.*\.making") if point.name == "link"]
    for name in names(machine) - {"web.img", "data.qcow2"}:
        place(machine, name).unlink()

    killed_at(machine, named[1], *CREATE)
    settled(machine)
    half = listed(machine)
    again = machine.run(*CREATE)

    assert half == {"root": ["s1"], "data": []}
    assert again.code == 0, again.err
    assert listed(machine) == {"root": ["s1"], "data": ["s1"]}


def test_a_commit_of_a_stopped_vm_that_is_killed_at_any_point_loses_nothing_and_is_finished_by_the_next(
    machine: Machine,
) -> None:
    define(machine)
    with_overlays(machine)

    for point in sample(file_points(machine, *COMMIT, after=r"vfork\(")):
        with_overlays(machine)
        killed_at(machine, point, *COMMIT)
        settled(machine)
        marked = place(machine, MARK).read_text() if MARK in names(machine) else ""
        up = machine.run("up", "web", "--paused", "-n")
        top = {"merged\n": "web.img", "merging\n": S2}[marked] if marked else opened(up).pop()
        whole = [holds(machine, top, *each) for each in ((2, "0"), (1, "1M"), (3, "2M"))]
        again = machine.run(*COMMIT)

        assert whole == [True] * 3, f"{describe(point, COMMIT)}: {top}"
        assert (up.code, up.codes & {"disk.snapshot"}) == ((6, {"disk.snapshot"}) if marked else (0, set()))
        assert again.code == 0, f"{describe(point, COMMIT)}\n{again.err}"
        assert names(machine) == {"web.img"}, describe(point, COMMIT)
        assert [holds(machine, "web.img", *each) for each in ((2, "0"), (1, "1M"), (3, "2M"))] == [True] * 3


def test_a_revert_that_is_killed_at_any_point_is_finished_by_the_same_command(machine: Machine) -> None:
    define(machine)
    with_overlays(machine)

    for point in sample(file_points(machine, *REVERT, after=r"unlink.*since")):
        with_overlays(machine)
        killed_at(machine, point, *REVERT)
        settled(machine)
        again = machine.run(*REVERT)

        assert again.code == 0, f"{describe(point, REVERT)}\n{again.err}"
        assert names(machine) == {"web.img", S1}, describe(point, REVERT)
        assert holds(machine, S1, 1), describe(point, REVERT)


def live_points(machine: Machine) -> list[Point]:
    """Give where a live commit is killed: at its questions to QEMU, and around the mark and the removals."""
    found = file_points(machine, *COMMIT, after=r"sendto|sendmsg|connect\(", more=("sendto", "sendmsg"))
    asking = [point for point in found if point.name in {"sendto", "sendmsg"}]
    files = [point for point in found if point not in asking and point.name not in {"flock", "fsync"}]
    return [*sample(asking[:-6:2]), *asking[-6:], *files]


def around(found: Sequence[Point]) -> list[Point]:
    """Give the points where the mark gets its name, QEMU is told to switch, and overlays and mark are removed."""
    return [point for point in found if point.name.startswith(("rename", "unlink")) or "block-job-c" in point.text]


def test_a_live_commit_that_is_killed_at_any_point_is_finished_by_the_next_command(machine: Machine) -> None:
    running(machine)
    snapshot(machine, "s1")
    unfinished = []

    for pattern, point in enumerate(live_points(machine), 2):
        snapshot(machine, "s1")
        write_live(machine, pattern)
        killed_at(machine, point, *COMMIT)
        again = machine.run(*COMMIT)
        if again.code != 0:
            unfinished.append(f"{describe(point, COMMIT)} → {again.code}\n{again.err}")
            machine.ok(*COMMIT)

        assert live_images(machine) == {"disk-root": "web.img"}, describe(point, COMMIT)
        assert names(machine) == {"web.img"}, describe(point, COMMIT)
        assert holds(machine, "web.img", pattern), describe(point, COMMIT)

    assert not unfinished, "\n".join(unfinished)


def test_a_live_commit_that_is_killed_and_then_its_vm_too_never_shows_what_was_before(machine: Machine) -> None:
    running(machine)
    snapshot(machine, "s1")
    found = live_points(machine)

    for pattern, point in enumerate(around(found), 2):
        snapshot(machine, "s1")
        write_live(machine, pattern)
        killed_at(machine, point, *COMMIT)
        machine.end("web")
        marked = MARK in names(machine)
        up = machine.run("up", "web", "--paused")
        if up.code != 0:
            mark = place(machine, MARK).read_text().strip()
            assert (marked, up.codes & {"disk.snapshot"}) == (True, {"disk.snapshot"}), describe(point, COMMIT)
            assert mark in {"completing", "merged"}
            newest = "web.img" if holds(machine, "web.img", pattern) else S1
            assert holds(machine, newest, pattern), describe(point, COMMIT)
            for name in names(machine) - {"web.img", *({S1} if newest == S1 else ())}:
                place(machine, name).unlink()
            machine.ok("up", "web", "--paused")

        assert holds(machine, live_images(machine)["disk-root"], pattern), describe(point, COMMIT)
        machine.ok(*COMMIT)


def test_an_image_into_which_a_commit_was_cut_off_is_no_snapshot_any_more(machine: Machine) -> None:
    running(machine)
    snapshot(machine, "s1")
    write_live(machine, 2)
    found = file_points(machine, *COMMIT, after=r"sendto|sendmsg|connect\(")
    marking = next(point for point in found if point.name.startswith("rename") and MARK in point.text)
    snapshot(machine, "s1")
    write_live(machine, 3)
    killed_at(machine, marking, *COMMIT)
    machine.end("web")
    torn = BEGUN in names(machine)

    reverted = machine.run(*REVERT)
    started = machine.ok("up", "web", "--paused")
    whole = holds(machine, live_images(machine)["disk-root"], 3)
    machine.end("web")
    machine.ok(*COMMIT)

    assert torn
    assert (reverted.code, reverted.codes) == (6, {"disk.snapshot"})
    assert started.code == 0
    assert whole
    assert names(machine) == {"web.img"}
    assert holds(machine, "web.img", 3)


def test_a_commit_that_failed_leaves_no_way_back_to_a_snapshot_until_it_is_through(machine: Machine) -> None:
    define(machine)
    with_overlays(machine)
    machine.execute("chattr", "+i", place(machine, "web.img"))

    failed = machine.run(*COMMIT)
    machine.execute("chattr", "-i", place(machine, "web.img"))
    reverted = machine.run(*REVERT)
    machine.ok(*COMMIT)

    assert failed.code != 0
    assert (reverted.code, reverted.codes) == (6, {"disk.snapshot"})
    assert names(machine) == {"web.img"}
    assert holds(machine, "web.img", 2)
    assert holds(machine, "web.img", 3, "2M")


def test_a_commit_that_qemu_takes_long_to_complete_is_not_given_up_by_the_next_command(machine: Machine) -> None:
    running(machine)
    snapshot(machine, "s1")
    write_live(machine, 2)
    socket = machine.rundir("web") / "qmp.sock"
    with monitor_at(socket) as qmp:
        # A job that is not finalized by itself stands for one that waits for a slow disk.
        qmp.ask("block-commit", device="disk-root", **{"job-id": "commit-root", "auto-finalize": False})
        wait_for("the job is ready", lambda: qmp.ask("query-block-jobs")[0]["ready"])
        place(machine, MARK).write_text("completing\n")
        qmp.ask("block-job-complete", device="commit-root")
        wait_for("it is completing", lambda: qmp.ask("query-block-jobs")[0]["status"] == "pending")
    still = live_images(machine)

    second = machine.start(KVMLAUNCH, *COMMIT)
    with suppress(TimeoutExpired):
        second.wait(3)
    with monitor_at(socket) as qmp:
        qmp.ask("job-finalize", id="commit-root")
        wait_for("the job is done", lambda: not qmp.ask("query-block-jobs"))
    write_live(machine, 9)
    finish(second)
    machine.end("web")

    assert still == {"disk-root": S1}
    assert MARK in names(machine) or holds(machine, opened(machine.ok("print-cmd", "web")).pop(), 9), (
        "`up` would open what is older"
    )


def test_overlays_that_are_merged_are_not_opened_and_the_next_commit_removes_them(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1", "s2")
    write(machine, "web.img", 2)
    place(machine, MARK).write_text("merged\n")

    up = machine.run("up", "web", "--paused")
    others = [refused(machine, *words[2:]) for words in (CREATE, REVERT)]
    machine.ok(*COMMIT)

    assert (up.code, up.codes & {"disk.snapshot"}) == (6, {"disk.snapshot"})
    assert "disk snapshot commit web:root" in up.err
    assert others == [(6, "disk.snapshot")] * 2
    assert names(machine) == {"web.img"}
    assert holds(machine, "web.img", 2)


@pytest.mark.parametrize("mark", ["completing\n", "", "\0\xff", "merged or not"])
def test_a_commit_that_was_cut_off_before_its_vm_ended_is_left_to_a_person(machine: Machine, mark: str) -> None:
    define(machine)
    snapshot(machine, "s1")
    place(machine, MARK).write_text(mark)
    before = names(machine)

    up = machine.run("up", "web", "--paused")
    commit = machine.run(*COMMIT)

    assert (up.code, up.codes & {"disk.snapshot"}) == (6, {"disk.snapshot"})
    assert (commit.code, commit.codes) == (6, {"disk.snapshot"})
    assert "web.img" in commit.err
    assert S1 in commit.err
    assert names(machine) == before


def taking_points(machine: Machine) -> list[Point]:
    """Give where a snapshot is killed: from its first mark on, at what it does to files and asks of QEMU."""
    found = file_points(machine, *CREATE, after=r"(rename|openat)\(.*\.taking", more=("sendto", "sendmsg"))
    return [point for point in found if point.name not in {"flock", "fchown"}]


def images(machine: Machine) -> set[str]:
    """Give what lies beside the definitions, without a mark that has no name yet: the next one takes its place."""
    return {name for name in names(machine) if not name.endswith(".taking.new")}


def without_snapshots(machine: Machine) -> None:
    """End the snapshots of both disks of a VM."""
    for disk in ("root", "data"):
        machine.ok("disk", "snapshot", "commit", f"web:{disk}")


def test_a_live_snapshot_that_is_killed_at_any_point_is_one_of_all_disks_or_none(machine: Machine) -> None:
    running(machine, f"{ROOT}{DATA}")
    found = taking_points(machine)
    without_snapshots(machine)

    for pattern, point in enumerate(sample(found), 2):
        killed_at(machine, point, *CREATE)
        settled(machine)
        switched = S1 in live_images(machine).values()
        for disk in ("root", "data"):
            write_live(machine, pattern, disk)
        machine.end("web")
        started = machine.run("up", "web", "--paused")
        taken = listed(machine)
        live = live_images(machine)
        whole = [holds(machine, name, pattern) for name in live.values()]
        left = {name for name in images(machine) if "taking" in name or "making" in name}
        before = holds(machine, "web.img", pattern)
        without_snapshots(machine)

        assert started.code == 0, f"{describe(point, CREATE)}\n{started.err}"
        assert taken == dict.fromkeys(("root", "data"), ["s1"] if switched else []), describe(point, CREATE)
        assert whole == [True, True], describe(point, CREATE)
        assert before != switched, f"{describe(point, CREATE)}: the image is not as it was at the snapshot"
        assert left == set(), describe(point, CREATE)


def test_a_live_snapshot_that_is_killed_is_settled_by_the_next_one(machine: Machine) -> None:
    running(machine, f"{ROOT}{DATA}")
    found = taking_points(machine)
    without_snapshots(machine)

    for point in sample(found):
        killed_at(machine, point, *CREATE)
        settled(machine)
        switched = S1 in live_images(machine).values()
        said = machine.run("disk", "snapshot", "list", "web").err
        marked = {"web.img.taking", "data.qcow2.taking"} & names(machine)
        snapshot(machine, "s2")
        taken = listed(machine)
        without_snapshots(machine)

        expected = ["s1", "s2"] if switched else ["s2"]
        assert taken == dict.fromkeys(("root", "data"), expected), describe(point, CREATE)
        assert bool(marked) == ("was cut off" in said), describe(point, CREATE)
        assert images(machine) == {"web.img", "data.qcow2"}, describe(point, CREATE)


def test_a_snapshot_of_a_stopped_vm_that_is_killed_is_settled_by_the_next_command(machine: Machine) -> None:
    define(machine, f"{ROOT}{DATA}")
    found = taking_points(machine)
    without_snapshots(machine)

    for number, point in enumerate(sample(found)):
        killed_at(machine, point, *CREATE)
        settled(machine)
        if number % 2:
            machine.ok("up", "web", "--paused")
            machine.end("web")
        else:
            machine.run("disk", "resize", "web:root", "+1MiB")  # refused where the snapshot is whole
        taken = listed(machine)
        without_snapshots(machine)

        assert taken in ({"root": [], "data": []}, {"root": ["s1"], "data": ["s1"]}), describe(point, CREATE)
        assert images(machine) == {"web.img", "data.qcow2"}, describe(point, CREATE)


@pytest.mark.parametrize("text", ["", "../x root", "s1", "\0\xff", "s1 gone"])
def test_a_mark_that_is_none_of_ours_is_removed(machine: Machine, text: str) -> None:
    define(machine)
    place(machine, "web.img.taking").write_text(text)

    machine.ok("up", "web", "--paused")

    assert names(machine) == {"web.img"}


def test_a_commit_whose_qemu_img_is_still_at_work_is_not_begun_twice(machine: Machine) -> None:
    define(machine)
    snapshot(machine, "s1")
    write(machine, S1, 2)
    holder = machine.start("qemu-io", "-f", "qcow2", place(machine, S1), stdin=-1)
    assert holder.stdin
    holder.stdin.write("length\n")
    holder.stdin.flush()
    wait_for("the overlay is locked", lambda: refused(machine, *COMMIT[2:])[1] == "disk.locked")

    answers = [refused(machine, *words[2:]) for words in (COMMIT, REVERT)]
    machine.kill(holder.pid)

    assert answers == [(6, "disk.locked")] * 2
    assert names(machine) == {"web.img", S1}
    assert holds(machine, S1, 2)


def cut_off(machine: Machine, *marked: str, text: str = "s1 root data") -> None:
    """Leave what a command leaves that is killed when both overlays of a snapshot have their names."""
    for name in marked:
        place(machine, f"{name}.taking").write_text(f"{text}\n")


def both(machine: Machine) -> None:
    """Define a VM with two disks, and take a snapshot of them."""
    define(machine, f"{ROOT}{DATA}")
    snapshot(machine, "s1")


def test_a_vm_that_runs_with_other_disks_tells_nothing_of_a_snapshot_that_was_cut_off(machine: Machine) -> None:
    both(machine)
    cut_off(machine, "web.img", "data.qcow2")
    make_image(machine, "other.img")
    make_image(machine, "other.qcow2")
    before = names(machine)
    machine.execute(KVMLAUNCH, "up", "web", "--paused", "-n")
    moved = ("--set", "disk.root.path=vmdefs/other.img", "--set", "disk.data.path=vmdefs/other.qcow2")
    machine.ok("up", "web", "--paused", *moved)

    refused_ = machine.run("disk", "snapshot", "create", "web", "s2")

    assert (refused_.code, refused_.codes) == (7, {"vm.state"})
    assert names(machine) == before


def test_what_was_written_to_a_snapshot_that_was_cut_off_stays_whatever_else_is_there(machine: Machine) -> None:
    both(machine)
    write(machine, S1, 2)
    cut_off(machine, "web.img", "data.qcow2")
    words = ("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "web.img")
    machine.execute(*words, place(machine, "web.img.since-mine.qcow2"), "8M")

    up = machine.run("up", "web", "--paused")

    assert (up.code, up.codes & {"disk.snapshot"}) == (6, {"disk.snapshot"})
    assert holds(machine, S1, 2)
    assert place(machine, "data.qcow2.since-s1.qcow2").exists()


def test_a_mark_speaks_of_its_own_image_alone(machine: Machine) -> None:
    both(machine)
    cut_off(machine, "data.qcow2")

    up = machine.ok("up", "web", "--paused")

    assert "cut off" not in up.err
    assert listed(machine) == {"root": ["s1"], "data": ["s1"]}
    assert not place(machine, "data.qcow2.taking").exists()


def test_a_snapshot_of_a_disk_that_is_not_there_is_not_settled(machine: Machine) -> None:
    both(machine)
    cut_off(machine, "web.img", "data.qcow2")
    place(machine, "data.qcow2").rename(machine.directory / "away.qcow2")
    before = names(machine)

    up = machine.run("up", "web", "--paused")

    assert (up.code, up.codes) == (6, {"disk.snapshot"})
    assert "put it back" in up.err
    assert names(machine) == before


def test_a_directory_is_no_mark_and_a_disk_that_is_read_only_has_none(machine: Machine) -> None:
    define(machine, f"{ROOT}{DATA}readonly = true\n")
    place(machine, "web.img.taking").mkdir()
    cut_off(machine, "data.qcow2")

    up = machine.ok("up", "web", "--paused")
    create = machine.run("disk", "snapshot", "create", "web", "s1")

    assert "cut off" not in up.err
    assert (create.code, "internal.bug" in create.codes) == (1, False)
    assert names(machine) == {"web.img", "data.qcow2", "web.img.taking", "data.qcow2.taking"}


def test_every_command_that_settles_a_snapshot_says_so(machine: Machine) -> None:
    both(machine)
    resize, convert = ("disk", "resize", "web:root", "+1MiB"), ("disk", "convert", "web:root", "../n.img")
    clone = ("clone", "new", "--from", "web")
    for words in (COMMIT, REVERT, CREATE, resize, convert, clone):
        for disk in ("root", "data"):
            machine.ok("disk", "snapshot", "commit", f"web:{disk}")
        snapshot(machine, "s1")
        cut_off(machine, "web.img", "data.qcow2")

        said = machine.run(*words)

        assert "the snapshot s1 was cut off" in said.err, words
        assert not {"web.img.taking", "data.qcow2.taking"} & names(machine), words


def test_up_of_a_running_vm_settles_a_snapshot_as_well(machine: Machine) -> None:
    running(machine, f"{ROOT}{DATA}")
    for name, format_, beneath in ((S1, "raw", "web.img"), ("data.qcow2.since-s1.qcow2", "qcow2", "data.qcow2")):
        words = ("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", format_, "-b", beneath, place(machine, name))
        machine.execute(*words, "8M")
    cut_off(machine, "web.img", "data.qcow2")

    again = machine.ok("up", "web", "--paused")

    assert "the snapshot s1 was cut off" in again.err
    assert names(machine) == {"web.img", "data.qcow2"}
