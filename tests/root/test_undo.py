"""What is taken back, and what is not: a start on top of what was prepared, pages that are gone, foreign mounts."""

import sys

import pytest

from tests.root.conftest import Pool
from tests.root.test_hugepages import HUGE
from tests.root.test_prepared import MOUNT, hers, prepare_for_alice
from tests.sandbox import ALICE, HER_NAME, KVMLAUNCH, TINY, Machine, as_alice

__all__ = ("hers",)

LARGER = HUGE.replace("32MiB", "48MiB")
# `up` whose ground is taken away between the look and the claim: another root undoes what was prepared.
RACE = """
import subprocess, sys
import kvmlaunch.steps.start as up
real = up.claimed
def claimed(*words, **options):
    subprocess.run([sys.argv[1], "preflight", "web", "--undo"], check=True)
    return real(*words, **options)
up.claimed = claimed
from kvmlaunch.cli.main import run
sys.exit(run(["up", "web", "--paused"]))
"""


def test_undo_gives_everything_back_even_where_the_prepared_pages_are_gone(machine: Machine, pool: Pool) -> None:
    pool.set(0)
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    machine.ok("up", "web", "--paused", "--set", "memory.size=48MiB")
    machine.kill(machine.pid("web"))
    pool.set(0)

    undone = machine.run("preflight", "web", "--undo")
    down = machine.run("down", "web")

    assert undone.code == 10, undone.err
    assert down.code == 0, down.err
    assert machine.leftovers() == []


def test_down_ends_although_what_was_prepared_cannot_be_mounted_again(machine: Machine, pool: Pool) -> None:
    pool.set(0)
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    machine.ok("up", "web", "--paused", "--set", "memory.size=48MiB")
    machine.kill(machine.pid("web"))
    pool.set(0)

    down = machine.run("down", "web")
    undone = machine.run("preflight", "web", "--undo")

    assert down.code == 0, down.err
    assert "[host.change.conflict]" in down.err
    assert undone.code in {0, 10}
    assert machine.leftovers() == []


def test_a_preparation_that_fails_leaves_a_running_vm_as_it_was(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("up", "web", "--paused")
    machine.define("web", LARGER)

    prepared = machine.run("preflight", "web", "--apply")
    machine.end("web")

    assert prepared.code == 7, prepared.err
    assert machine.leftovers() == []
    assert pool.settled() == 0


def test_what_is_prepared_while_a_vm_runs_is_undone_without_a_trace(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("up", "web", "--paused")
    machine.ok("preflight", "web", "--apply")
    machine.end("web")

    undone = machine.ok("preflight", "web", "--undo")

    assert "undone" in undone.err
    assert machine.leftovers() == []
    assert pool.settled() == 0


@pytest.mark.parametrize("place", [MOUNT, "/run/kvmlaunch/hugepages"])
def test_a_mount_of_ours_under_a_foreign_one_is_not_forgotten(machine: Machine, pool: Pool, place: str) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    machine.execute("mount", "-t", "tmpfs", "tmpfs", place)

    covered = machine.run("preflight", "web", "--undo")
    machine.execute("umount", place)
    undone = machine.run("preflight", "web", "--undo")

    assert covered.code == 7
    assert covered.codes >= {"host.hugetlbfs.busy"}
    assert undone.code == 0, undone.err
    assert machine.leftovers() == []
    assert pool.settled() == 0


def test_a_file_on_a_users_mount_is_told_too(hers: Machine, pool: Pool) -> None:
    prepare_for_alice(hers)
    mount = next(path for path in hers.mounts() if "hugepages" in path)
    hers.outside(mount).joinpath("left-behind").write_text("")

    undone = hers.ok("preflight", "web", "--undo", "--user", HER_NAME)

    assert "[host.hugetlbfs.files]" in undone.err
    assert pool.settled() == 0


def test_a_start_that_fails_takes_back_nothing_that_it_had_not_begun(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    machine.outside(MOUNT).joinpath("mine").write_text("")
    prepared = pool.total()

    refused = machine.run("up", "web", "--paused", "--set", "memory.size=100TiB")

    assert refused.code == 6
    assert machine.outside(MOUNT).joinpath("mine").exists()
    assert pool.total() == prepared


def test_a_start_whose_prepared_ground_is_taken_away_meanwhile_makes_its_own(machine: Machine, pool: Pool) -> None:
    machine.define("web", TINY)
    machine.ok("preflight", "web", "--apply")

    started = machine.execute(sys.executable, "-c", RACE, KVMLAUNCH)
    log = [path for path in machine.mounts() if path.endswith("/web/log")]
    machine.end("web")

    assert started.code == 0, started.err
    assert len(log) == 1
    assert machine.leftovers() == []
    assert pool.settled() == 0


def test_what_a_users_guest_printed_is_kept_when_all_is_undone_after_it_ended(hers: Machine, pool: Pool) -> None:
    prepare_for_alice(hers)
    assert as_alice(hers, "up", "web").code == 0
    pid = as_alice(hers, "status", "web", "--json").json["vms"][0]["pid"]
    log = hers.outside(f"/run/user/{ALICE}/kvmlaunch/web/log/console.log")
    log.write_text("its last words\n")
    hers.kill(pid)

    undone = hers.run("preflight", "web", "--undo", "--user", HER_NAME)

    kept = hers.outside("/srv/alice/.local/state/kvmlaunch/log/web/console.log")
    assert undone.code == 0, undone.err
    assert not log.parent.exists()
    assert kept.read_text() == "its last words\n"
    assert kept.stat().st_uid == ALICE
    assert pool.settled() == 0


def test_preparing_for_root_by_name_is_preparing_for_root(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)

    machine.ok("preflight", "web", "--apply", "--user", "root")
    there = machine.rundir("web").exists()
    machine.ok("preflight", "web", "--undo")

    assert there
    assert machine.leftovers() == []
    assert pool.settled() == 0
