"""What `preflight --apply` prepares: for root and for an ordinary user, until it is undone."""

import json
from pathlib import Path

import pytest

from tests.root.conftest import Pool
from tests.root.test_hugepages import HUGE, PAGES, huge_kilobytes
from tests.sandbox import (
    ALICE,
    HER_NAME,
    KVMLAUNCH,
    Machine,
    Process,
    Result,
    as_alice,
    is_alive,
    status_field,
    wait_for,
)

MOUNT = "/run/kvmlaunch/hugepages/0/web/mount"


def paste(machine: Machine) -> Process:
    """Start the printed command by hand, and wait until it is seen."""
    printed = machine.ok("print-cmd", "web").out.strip()
    process = machine.start("sh", "-c", f"exec {printed}")
    wait_for("it is seen", lambda: machine.run("status", "web").code == 0)
    return process


def test_preparing_shows_what_it_does_and_a_second_time_does_nothing(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    short = max(0, PAGES - pool.idle())

    first = machine.ok("preflight", "web", "--apply", "--json").json["vms"][0]
    gained = pool.gained()
    second = machine.ok("preflight", "web", "--apply", "--json").json["vms"][0]

    assert first["prepared"]
    assert any("mount hugetlbfs" in change for change in first["changes"])
    assert second["changes"] == []
    assert gained == short
    assert machine.journals() == ["0-web.json"]


def test_preflight_alone_changes_nothing(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)

    shown = machine.ok("preflight", "web", "--json").json["vms"][0]

    assert shown["changes"]
    assert pool.gained() == 0
    assert machine.leftovers() == []


def test_undo_takes_back_all_of_it_and_twice_is_fine(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")

    machine.ok("preflight", "web", "--undo")
    machine.ok("preflight", "web", "--undo")

    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_the_printed_command_runs_as_it_stands_on_a_prepared_host(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    total = pool.total()

    pasted = paste(machine)
    mapped = huge_kilobytes(pasted.pid)
    seen = machine.status("web")

    assert mapped == PAGES * 2048
    assert seen["state"] == "running"
    assert "QEMU was not started by kvmlaunch" in seen["notes"]
    assert seen["pid"] == pasted.pid
    assert pool.total() == total


def test_undo_is_refused_while_a_pasted_qemu_uses_the_pages(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    pasted = paste(machine)

    refused = machine.run("preflight", "web", "--undo")
    alive = is_alive(pasted.pid)
    pasted.terminate()
    pasted.communicate(timeout=60)
    machine.ok("preflight", "web", "--undo")

    assert refused.code == 7
    assert refused.codes >= {"host.hugetlbfs.busy"}
    assert str(pasted.pid) in refused.err
    assert alive
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_nothing_is_changed_where_a_running_vm_uses_what_would_be_replaced(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    machine.ok("up", "web", "--paused")
    total, journals, mounts = pool.total(), machine.journals(), machine.mounts()

    refused = machine.run("preflight", "web", "--apply", "--set", "memory.size=256MiB")

    assert (refused.code, refused.codes) == (7, {"host.hugetlbfs.busy"})
    assert "kvmlaunch down web" in refused.err
    assert (pool.total(), machine.journals(), machine.mounts()) == (total, journals, mounts)
    machine.end("web")
    machine.ok("preflight", "web", "--undo")
    assert pool.settled() == 0


def test_a_prepared_vm_that_ran_as_another_user_is_roots_again(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    other = ("up", "web", "--paused", "--set", f"security.user={HER_NAME}")

    machine.ok(*other)
    machine.end("web")
    machine.ok("up", "web", "--paused")
    machine.end("web")
    machine.ok(*other)
    machine.kill(machine.pid("web"))
    machine.ok("preflight", "web", "--undo")

    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_a_prepared_mount_that_somebody_gave_away_is_given_back(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    machine.execute("chown", str(ALICE), MOUNT)

    machine.ok("up", "web", "--paused")
    owner = machine.execute("stat", "-c", "%u", MOUNT).out.strip()
    machine.end("web")
    machine.ok("preflight", "web", "--undo")

    assert owner == "0"
    assert pool.settled() == 0


def test_what_a_killed_preflight_left_is_taken_back_by_undo(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    raised = f"{PAGES} × 2 MiB reserved"
    for number in range(3):
        process = machine.start(KVMLAUNCH, "preflight", "web", "--apply")
        assert process.stderr is not None
        for line in process.stderr:
            if raised in line:
                break
        process.kill()
        process.wait()
        left = pool.gained()
        undone = machine.ok("preflight", "web", "--undo")

        assert left in {0, PAGES}, number
        assert pool.settled() == 0, undone.err
        assert machine.leftovers() == []


def test_whoever_is_in_a_prepared_mount_is_named(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    sleeper = machine.start("sh", "-c", f"cd {MOUNT}; exec sleep 60")
    wait_for("it is there", lambda: machine.execute("readlink", f"/proc/{sleeper.pid}/cwd").out.strip() == MOUNT)

    refused = machine.run("preflight", "web", "--undo")
    sleeper.kill()
    sleeper.wait()
    machine.ok("preflight", "web", "--undo")

    assert (refused.code, refused.codes) == (7, {"host.hugetlbfs.busy"})
    assert f"by pid {sleeper.pid} (sleep)" in refused.err
    assert pool.settled() == 0


def test_up_uses_what_was_prepared_and_down_returns_to_it(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    prepared = pool.total()

    machine.ok("up", "web", "--paused")
    during, mounts = pool.total(), machine.mounts().count(MOUNT)
    ended = machine.end("web")
    pasted = paste(machine)

    assert during == prepared
    assert mounts == 1
    assert "--undo" in ended.err
    assert MOUNT in machine.mounts()
    assert is_alive(pasted.pid)
    pasted.terminate()
    pasted.communicate(timeout=60)
    machine.ok("preflight", "web", "--undo")
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_a_killed_qemu_does_not_take_what_was_prepared_along(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"))
    machine.define("other")

    machine.ok("up", "other", "--paused")
    machine.end("other")
    machine.ok("up", "web", "--paused")
    machine.end("web")

    assert MOUNT in machine.mounts()
    machine.ok("preflight", "web", "--undo")
    assert pool.settled() == 0
    assert machine.leftovers() == []


@pytest.fixture
def hers(shared_machine: Machine, pool: Pool) -> Machine:
    """Give a machine on which alice has a definition with huge pages, and no runtime directory yet."""
    del pool
    place = shared_machine.outside("/srv/alice/vmdefs/web.toml")
    place.write_text(HUGE)
    shared_machine.execute("chown", "-R", f"{ALICE}:{ALICE}", "/srv/alice")
    return shared_machine


@pytest.fixture
def machine(shared_machine: Machine) -> Machine:
    """Give the machine that the pool is for: the one with alice."""
    return shared_machine


def prepare_for_alice(machine: Machine) -> Result:
    """Prepare her VM, as root."""
    return machine.execute(
        KVMLAUNCH, "preflight", "web", "--apply", "--user", HER_NAME, at="/srv/alice", env={"HOME": "/root"}
    )


def test_a_user_without_anything_prepared_is_told_the_line_to_ask_root_for(hers: Machine, pool: Pool) -> None:
    hers.execute("install", "-d", "-m", "0700", "-o", str(ALICE), "-g", str(ALICE), f"/run/user/{ALICE}")

    result = as_alice(hers, "up", "web", "--paused")

    assert result.code == 77
    assert result.codes >= {"host.privilege"}
    assert f"sudo kvmlaunch preflight web --apply --user {HER_NAME}" in result.err
    assert pool.gained() == 0


def test_a_user_cannot_prepare_the_host_and_nothing_changes(hers: Machine, pool: Pool) -> None:
    hers.execute("install", "-d", "-m", "0700", "-o", str(ALICE), "-g", str(ALICE), f"/run/user/{ALICE}")

    result = as_alice(hers, "preflight", "web", "--apply")

    assert result.code == 77
    assert "raise the pool" in result.err or "mount hugetlbfs" in result.err
    assert pool.gained() == 0
    assert hers.journals() == []


def test_the_line_for_root_is_for_what_was_asked(hers: Machine) -> None:
    hers.execute("install", "-d", "-m", "0700", "-o", str(ALICE), "-g", str(ALICE), f"/run/user/{ALICE}")

    refused = as_alice(hers, "up", "web", "--set", "vcpus=2")
    apply = as_alice(hers, "preflight", "web", "--apply", "--set", "vcpus=2")
    undo = as_alice(hers, "preflight", "web", "--undo")

    for result in (refused, apply):
        assert f"fix: sudo kvmlaunch preflight web --apply --set vcpus=2 --user {HER_NAME}\n" in result.err
    assert undo.code == 77
    assert f"fix: sudo kvmlaunch preflight web --undo --user {HER_NAME}\n" in undo.err


def test_a_user_runs_a_vm_with_huge_pages_once_root_has_prepared_it(hers: Machine, pool: Pool) -> None:
    prepared = prepare_for_alice(hers)
    assert prepared.code == 0, prepared.err

    results = []
    for _ in range(2):
        started = as_alice(hers, "up", "web", "--paused")
        pid = as_alice(hers, "status", "web", "--json").json["vms"][0]["pid"] if started.code == 0 else 0
        results.append(
            (started.code, started.err, status_field(pid, "Uid").split()[:1], huge_kilobytes(pid) if pid else 0)
        )
        ended = as_alice(hers, "down", "web", "--force", "--timeout", "10ms")
        assert ended.code == 0, ended.err
        assert "32MiB of huge pages on /" in ended.err
        assert "--undo" in ended.err

    assert [result[0] for result in results] == [0, 0], results
    assert all(result[2:] == ([str(ALICE)], PAGES * 2048) for result in results)
    undone = hers.run("preflight", "web", "--undo", "--user", HER_NAME)
    assert undone.code == 0, undone.err
    assert pool.settled() == 0
    assert hers.leftovers() == []


def test_the_command_printed_for_a_user_is_what_runs_for_her(hers: Machine, pool: Pool) -> None:
    assert prepare_for_alice(hers).code == 0

    printed = as_alice(hers, "print-cmd", "web", "-0").out
    started = as_alice(hers, "up", "web")
    pid = as_alice(hers, "status", "web", "--json").json["vms"][0]["pid"]
    ran = Path(f"/proc/{pid}/cmdline").read_text()

    assert started.code == 0, started.err
    assert ran == printed
    assert pool.total() >= PAGES


def test_root_does_not_take_a_users_pages_while_her_vm_runs(hers: Machine, pool: Pool) -> None:
    assert prepare_for_alice(hers).code == 0
    assert as_alice(hers, "up", "web", "--paused").code == 0
    pid = as_alice(hers, "status", "web", "--json").json["vms"][0]["pid"]

    refused = hers.run("preflight", "web", "--undo", "--user", HER_NAME)

    assert refused.code == 7
    assert is_alive(pid)
    assert pool.total() >= PAGES


def test_a_users_vm_whose_runtime_directory_went_away_is_seen_and_ended(hers: Machine) -> None:
    assert prepare_for_alice(hers).code == 0
    assert as_alice(hers, "up", "web", "--paused").code == 0
    pid = as_alice(hers, "status", "web", "--json").json["vms"][0]["pid"]
    hers.execute("sh", "-c", f"rm -rf /run/user/{ALICE}/kvmlaunch")

    seen = as_alice(hers, "status", "web", "--json").json["vms"][0]
    second = as_alice(hers, "up", "web", "--paused")
    ended = as_alice(hers, "down", "web", "--force", "--timeout", "10ms")

    assert (seen["state"], seen["pid"]) == ("running", pid)
    assert second.code == 7, second.err
    assert ended.code == 0, ended.err
    assert not is_alive(pid)


@pytest.mark.parametrize("planted", ["link to a directory", "link for the runtime directory"])
def test_what_a_user_plants_leads_root_nowhere(hers: Machine, pool: Pool, planted: str) -> None:
    assert prepare_for_alice(hers).code == 0
    pool.written = True  # the pages stay in a mount that no longer lies where it was, and end with these namespaces
    victim = hers.outside("/srv/victim")
    victim.mkdir(mode=0o755)
    (victim / "record.json").write_text("{}")
    (victim / "qmp.sock").write_text("precious")
    runtime = f"/run/user/{ALICE}"
    match planted:
        case "link to a directory":
            hers.execute(
                "sh",
                "-c",
                f"mv {runtime}/kvmlaunch/web {runtime}/kvmlaunch/moved; ln -s /srv/victim {runtime}/kvmlaunch/web",
            )
        case _:
            hers.execute(
                "sh",
                "-c",
                f"mv {runtime}/kvmlaunch {runtime}/moved; ln -s /srv {runtime}/kvmlaunch; ln -s /srv/victim /srv/web",
            )
    before = (victim.stat().st_uid, victim.stat().st_mode, sorted(path.name for path in victim.iterdir()))

    undone = hers.run("preflight", "web", "--undo", "--user", HER_NAME)
    again = prepare_for_alice(hers)

    assert "internal.bug" not in undone.codes | again.codes, undone.err + again.err
    assert (victim.stat().st_uid, victim.stat().st_mode, sorted(path.name for path in victim.iterdir())) == before
    assert (victim / "qmp.sock").read_text() == "precious"
    assert pool.surplus() >= 0


def test_a_journal_of_another_boot_takes_no_pages(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    taken = max(0, PAGES - pool.idle())
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"))
    place = machine.outside("/var/lib/kvmlaunch/journal/0-web.json")
    journal = json.loads(place.read_text())
    before = pool.total()
    text = json.dumps({**journal, "boot_id": "00000000-0000-0000-0000-000000000000"})
    machine.ok("down", "web")
    given_back = pool.total()
    place.write_text(text)
    pool.set(given_back + PAGES)

    machine.ok("down", "web")
    machine.ok("preflight", "web", "--undo")

    assert given_back == before - taken
    assert pool.total() == given_back + PAGES
    assert not place.exists()


def test_what_was_prepared_for_a_user_stays_over_her_up_and_down(hers: Machine) -> None:
    prepare_for_alice(hers)
    log = hers.outside(f"/run/user/{ALICE}/kvmlaunch/web/log")
    before = log.is_dir()

    started = as_alice(hers, "up", "web", "--paused")
    ended = as_alice(hers, "down", "web", "--force", "--timeout", "10ms")

    assert before
    assert (started.code, ended.code) == (0, 0), started.err + ended.err
    assert log.is_dir()
    undone = hers.run("preflight", "web", "--undo", "--user", HER_NAME)
    assert undone.code == 0, undone.err
    assert not log.exists()


def test_a_larger_start_on_a_prepared_host_returns_to_what_was_prepared(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    prepared, mounts = pool.total(), sorted(machine.mounts())

    machine.ok("up", "web", "--paused", "--set", "memory.size=48MiB")
    during = huge_kilobytes(machine.pid("web"))
    machine.end("web")

    assert during == 24 * 2048
    assert pool.total() == prepared
    assert sorted(machine.mounts()) == mounts
    machine.ok("preflight", "web", "--undo")
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_what_was_prepared_comes_back_after_a_larger_start_was_killed(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    prepared, mounts = pool.total(), sorted(machine.mounts())
    machine.ok("up", "web", "--paused", "--set", "memory.size=48MiB")

    machine.kill(machine.pid("web"))
    machine.ok("down", "web")

    assert pool.total() == prepared
    assert sorted(machine.mounts()) == mounts


def test_undo_says_when_somebody_lowered_the_pool_meanwhile(machine: Machine, pool: Pool) -> None:
    pool.set(0)
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    pool.set(0)

    undone = machine.run("preflight", "web", "--undo")
    again = machine.run("preflight", "web", "--undo")

    assert undone.code == 10
    assert "[host.change.conflict]" in undone.err
    assert again.code == 0
    assert pool.total() == 0
    assert machine.leftovers() == []


def test_a_file_that_was_left_on_the_mount_is_told_and_goes_away_with_it(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    machine.outside(MOUNT).joinpath("left-behind").write_text("")

    undone = machine.ok("preflight", "web", "--undo")

    assert "[host.hugetlbfs.files]" in undone.err
    assert "left-behind" in undone.err
    assert pool.settled() == 0
    assert machine.leftovers() == []
