"""Huge pages: reserved exactly, seen in the live QEMU, given back by what was taken, whatever happens between."""

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.crashes import describe, killed_at, points, sample, traced
from tests.root.conftest import POOL, Pool
from tests.sandbox import TINY, Machine, cmdline, finish, is_alive, wait_for

PAGES = 16  # of 2 MiB: the RAM of the smallest VM here
HUGE = TINY.replace('hugepages = "off"', 'hugepages = "2MiB"')
LAZY = HUGE.replace('hugepages = "2MiB"', 'hugepages = "2MiB"\nprealloc = false')


def huge_kilobytes(pid: int) -> int:
    """Give what a process has mapped of 2 MiB pages, from smaps."""
    text = Path(f"/proc/{pid}/smaps").read_text(errors="replace")
    sizes = re.findall(r"^Size: +(\d+) kB\nKernelPageSize: +2048 kB$", text, re.MULTILINE)
    return sum(map(int, sizes))


def meminfo() -> list[str]:
    """Give the lines of /proc/meminfo that count huge pages."""
    return [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages")]


def test_up_reserves_exactly_and_down_gives_back_exactly(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    short = max(0, PAGES - pool.idle())
    before = meminfo()

    machine.ok("up", "web", "--paused")
    gained, mapped = pool.gained(), huge_kilobytes(machine.pid("web"))
    used = machine.ok("top", "web", "--interval", "100ms", "--json").json["vms"][0]
    machine.end("web")

    assert gained == short
    assert (used["hugetlb"], used["hugetlb_page"]) == (PAGES * 2 << 20, 2 << 20)
    assert mapped == PAGES * 2048
    assert meminfo() == before
    assert machine.leftovers() == []


def test_the_printed_command_is_what_runs_with_huge_pages_too(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)

    before = machine.ok("print-cmd", "web", "-0").out
    machine.ok("up", "web")
    ran = Path(f"/proc/{machine.pid('web')}/cmdline").read_text()
    beside = machine.ok("print-cmd", "web", "-0").out
    machine.end("web")

    assert before == beside == ran == machine.ok("print-cmd", "web", "-0").out
    assert pool.settled() == 0


def test_an_odd_size_takes_the_next_whole_page(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE.replace("32MiB", "33MiB"))
    short = max(0, PAGES + 1 - pool.idle())

    machine.ok("up", "web", "--paused")

    assert pool.gained() == short
    assert "17 pages" in machine.status("web")["memory"]


def test_the_administrators_own_pages_are_never_taken_away(machine: Machine, pool: Pool) -> None:
    pool.set(pool.before + PAGES + 4)
    machine.define("web", HUGE)

    machine.ok("up", "web", "--paused")
    during = pool.gained()
    machine.end("web")

    assert during == PAGES + 4
    assert pool.gained() == PAGES + 4


def test_pages_of_a_vm_that_has_not_touched_them_are_not_given_to_another(machine: Machine, pool: Pool) -> None:
    machine.define("first", LAZY)
    machine.define("second", LAZY)
    short = max(0, 2 * PAGES - pool.idle())

    machine.ok("up", "first", "--paused")
    machine.ok("up", "second", "--paused")

    assert pool.gained() == short
    machine.ok("down", "first", "second", "--force", "--timeout", "10ms")
    assert pool.settled() == 0


def test_a_mount_keeps_its_pages_from_everybody_else(machine: Machine, pool: Pool) -> None:
    machine.define("web", LAZY)
    machine.ok("up", "web", "--paused")
    machine.execute("mkdir", "/run/kvmlaunch/thief")

    options = f"pagesize=2M,min_size={(pool.idle() + 1) * 2}M"
    stolen = machine.execute("mount", "-t", "hugetlbfs", "-o", options, "none", "/run/kvmlaunch/thief")

    assert stolen.code != 0
    machine.execute("rmdir", "/run/kvmlaunch/thief")
    machine.end("web")
    assert pool.settled() == 0


@pytest.mark.parametrize(("count", "jobs"), [(6, 6), (20, 8)])
def test_many_vms_at_once_take_the_sum_and_give_it_back(machine: Machine, pool: Pool, count: int, jobs: int) -> None:
    names = [f"vm{number}" for number in range(count)]
    for name in names:
        machine.define(name, HUGE)
    short = max(0, count * PAGES - pool.idle())

    machine.ok("up", *names, "--paused", "-j", str(jobs))
    gained, running = pool.gained(), len(machine.qemus())
    machine.ok("down", "--all", "--force", "--timeout", "10ms", "-j", str(jobs))

    assert running == count
    assert gained == short
    assert pool.settled() == 0
    assert machine.leftovers() == []


@pytest.mark.parametrize("command", ["up", "down", "preflight"])
def test_a_killed_qemu_has_its_pages_given_back_by_the_next_command(machine: Machine, pool: Pool, command: str) -> None:
    machine.define("web", HUGE)
    machine.define("other", TINY)
    machine.ok("up", "web", "--paused")

    machine.kill(machine.pid("web"))
    match command:
        case "up":
            machine.ok("up", "other", "--paused")
        case "down":
            machine.ok("down", "web")
        case _:
            machine.ok("preflight", "other", "--apply")

    assert pool.settled() == 0
    assert not any("/hugepages/" in path for path in machine.mounts())


def test_a_pool_that_the_administrator_sets_to_nothing_leaves_the_vm_alive(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("up", "web", "--paused")
    pid = machine.pid("web")

    pool.set(0)
    alive, surplus, notes = is_alive(pid), pool.surplus(), machine.status("web")["notes"]
    machine.end("web")

    assert alive
    assert surplus > 0
    assert any(f"{surplus} huge pages of 2MiB on this host are surplus" in note for note in notes)
    assert pool.gained() <= 0
    assert machine.leftovers() == []


HOLD = "import mmap, time; m = mmap.mmap(-1, 10 << 21, flags=0x40022); m[:] = bytes(10 << 21); time.sleep(600)"


def test_pages_that_the_kernel_lent_to_others_do_not_stay(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    overcommit = POOL / "nr_overcommit_hugepages"
    before, lent_before = overcommit.read_text(), pool.surplus()
    assert pool.idle() == 0
    overcommit.write_text(str(int(before) + 10))
    try:
        holder = machine.start(sys.executable, "-c", HOLD)
        wait_for("pages are lent", lambda: pool.surplus() == lent_before + 10)
        machine.ok("up", "web", "--paused")
        during = pool.surplus()
        machine.end("web")
        lent = pool.surplus()
        machine.kill(holder.pid)
    finally:
        overcommit.write_text(before)

    assert (during, lent) == (lent_before, lent_before + 10)
    assert pool.settled() == 0


def test_pages_that_the_administrator_adds_meanwhile_stay(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("up", "web", "--paused")

    pool.set(pool.total() + 5)
    machine.end("web")

    assert pool.gained() == 5


def test_a_failed_start_gives_everything_back(machine: Machine, pool: Pool) -> None:
    machine.define("web", f'{HUGE}[raw]\nargs = ["-device", "no-such-device"]\n')

    result = machine.run("up", "web", "--paused")

    assert result.code == 9
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_an_interrupted_start_gives_everything_back(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    process = machine.start("kvmlaunch", "up", "web", "--set", f"qemu.binary={machine.fake('hangs')}")
    wait_for("QEMU was spawned", machine.qemus)

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode == 130
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_more_pages_than_the_host_can_spare_are_refused_before_anything_changes(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE.replace("32MiB", "100TiB"))

    result = machine.run("up", "web", "--paused")

    assert result.code == 6
    assert result.codes & {"host.memory.short", "host.hugepages.short"}
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_auto_takes_ordinary_memory_when_pages_cannot_be_had_and_says_why(machine: Machine, pool: Pool) -> None:
    available = int(re.findall(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[0]) // 1024
    machine.define("web", TINY.replace('"off"', '"auto"').replace("32MiB", f"{available - 200}MiB"))

    machine.ok("up", "web", "--paused")

    assert machine.status("web")["memory"] == "ordinary"
    assert pool.settled() == 0


def test_pages_of_one_gibibyte_beyond_the_host_are_refused(machine: Machine, pool: Pool) -> None:
    if not Path("/sys/kernel/mm/hugepages/hugepages-1048576kB").exists():
        pytest.skip("this machine has no pages of 1 GiB")
    machine.define("web", HUGE.replace("2MiB", "1GiB").replace("32MiB", "100TiB"))

    result = machine.run("up", "web", "--paused")

    assert result.code == 6
    assert pool.settled() == 0


def test_up_that_raises_the_pool_is_healed_wherever_it_is_killed(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("print-cmd", "web")
    words = ("up", "web", "--paused")
    places = points(machine, *words, after=r"flock", others=1)
    machine.end("web")
    changes = [point for point in places if point.name in {"mount", "openat", "write", "renameat", "mkdirat", "vfork"}]

    for index, point in enumerate(sample(changes, 2)):
        killed_at(machine, point, *words)
        try:
            if index % 2:
                machine.ok("up", "web", "--paused")
            machine.end("web")
            assert pool.settled() == 0
            assert machine.leftovers() == []
        except AssertionError as error:
            error.add_note(describe(point, words))
            raise


def test_down_that_lowers_the_pool_is_healed_wherever_it_is_killed(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("up", "web", "--paused")
    words = ("down", "web", "--force", "--timeout", "10ms")
    places = points(machine, *words, after=r"flock", others=1)
    changes = [
        point for point in places if point.name in {"umount2", "openat", "write", "renameat", "unlinkat", "mkdirat"}
    ]

    for point in sample(changes, 2):
        machine.ok("up", "web", "--paused")
        killed_at(machine, point, *words)
        try:
            machine.ok("down", "web", "--force", "--timeout", "10ms")
            assert pool.settled() == 0
            assert machine.leftovers() == []
        except AssertionError as error:
            error.add_note(describe(point, words))
            raise


def test_nothing_is_taken_from_a_vm_whose_run_directory_another_namespace_hides(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.define("other")
    machine.ok("up", "web")
    hide = "umount -l /run/kvmlaunch/vm/web/log; umount -l /run/kvmlaunch/hugepages/0/web/mount; mount -t tmpfs t"
    hidden = ["unshare", "-m", "--propagation", "private", "sh", "-c"]

    other = finish(
        machine.start(*hidden, f"{hide} /run/kvmlaunch; kvmlaunch up other && kvmlaunch down other --force --timeout 0")
    )
    down = finish(machine.start(*hidden, f"{hide} /run/kvmlaunch; kvmlaunch down web --force --timeout 0"))
    alive, gained = machine.status("web")["state"], pool.gained()
    machine.end("web")

    assert "web could not be healed: web runs" in other.err
    assert (down.code, down.codes) == (7, {"vm.state"})
    assert (alive, gained) == ("running", PAGES)
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_a_process_of_anybodys_with_a_vms_uuid_keeps_nothing_from_going_back(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.define("other")
    machine.ok("up", "web")
    uuid = re.findall(r"-uuid (\S+)", machine.ok("print-cmd", "web").out)[0]
    machine.kill(machine.pid("web"))
    decoy = machine.start("setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", "sleep 60; :", "-uuid", uuid)
    wait_for("it has its words", lambda: uuid.encode() in cmdline(decoy.pid))

    healed = machine.ok("up", "other")
    decoy.kill()
    machine.end("other")

    assert "could not be healed" not in healed.err
    assert pool.settled() == 0
    machine.end("web")


def test_a_mount_that_is_busy_is_reported_and_kept(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("up", "web", "--paused")
    place = "/run/kvmlaunch/hugepages/0/web/mount"
    holder = machine.start("sh", "-c", f"cd {place} && exec sleep infinity")
    wait_for("it sits there", lambda: cmdline(holder.pid).startswith(b"sleep"))

    result = machine.run("down", "web", "--force", "--timeout", "10ms")
    holder.kill()
    holder.communicate()
    again = machine.run("down", "web")

    assert result.code == 7
    assert result.codes >= {"host.hugetlbfs.busy"}
    assert again.code == 0, again.err
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_a_file_left_on_a_mount_goes_with_it(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE.replace("32MiB", "34MiB"))
    machine.ok("up", "web", "--paused")
    machine.kill(machine.pid("web"))
    (machine.outside("/run/kvmlaunch/hugepages/0/web/mount") / "left").touch()

    machine.ok("down", "web")

    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_mounts_that_somebody_stacked_are_refused(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    machine.ok("preflight", "web", "--apply")
    place = "/run/kvmlaunch/hugepages/0/web/mount"
    machine.execute("mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", place)

    result = machine.run("up", "web", "--paused")
    machine.execute("umount", place)
    machine.ok("up", "web", "--paused")

    assert result.code == 6
    assert result.codes >= {"host.hugetlbfs.stacked"}
    machine.end("web")
    machine.ok("preflight", "web", "--undo")
    assert pool.settled() == 0
    assert machine.leftovers() == []


def test_a_mount_that_the_kernel_refuses_once_is_counted_again(machine: Machine, pool: Pool) -> None:
    machine.define("web", HUGE)
    refused_once = ("-o", "/dev/null", "-e", "trace=mount", "-e", "inject=mount:error=ENOMEM:when=1")

    started = traced(machine, "up", "web", "--paused", options=refused_once)

    assert started.code == 0, started.err
    assert huge_kilobytes(machine.pid("web")) == PAGES * 2048
    machine.end("web")
    assert pool.settled() == 0
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("wish", "code", "said"), [("auto", 0, "host.hugepages.none"), ("2MiB", 6, "host.hugepages.short")]
)
def test_pages_that_the_kernel_refuses_leave_the_pool_as_it_was(
    machine: Machine, pool: Pool, wish: str, code: int, said: str
) -> None:
    machine.define("web", HUGE.replace('"2MiB"', f'"{wish}"'))
    pool.set(0)
    refused = ("-o", "/dev/null", "-P", str(POOL / "nr_hugepages"), "-e", "trace=write", "-e", "inject=write:retval=2")

    started = traced(machine, "up", "web", "--paused", options=refused)

    assert started.code == code, started.err
    assert said in started.err
    assert "the kernel granted 0" in started.err
    assert pool.total() == 0
    machine.end("web")
    assert machine.leftovers() == []
