"""The host tuned for real: planned, made, kept, verified, taken back, whatever happens between.

/etc is a copy in the machine's own namespace; the knobs are the kernel's, and put back by hand when a test fails.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from tests.crashes import describe, killed_at, points, sample
from tests.root.conftest import Pool
from tests.root.test_prepared import hers
from tests.sandbox import TINY, Machine, as_alice

__all__ = ("hers",)

SWAPPINESS: Final = Path("/proc/sys/vm/swappiness")
KSM: Final = Path("/sys/kernel/mm/ksm")
THP: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KNOBS: Final = (
    *(SWAPPINESS, THP),
    *(KSM / name for name in ("advisor_mode", "smart_scan", "sleep_millisecs", "pages_to_scan", "run")),
)
JOURNAL: Final = "/var/lib/kvmlaunch/tune.json"
SCRIPT, SYSCTL = "/etc/kvmlaunch/boot.sh", "/etc/sysctl.d/80-kvmlaunch.conf"
WISHES: Final = 'swappiness = 7\nthp = "always"\nhugetlbfs = "/mnt/huge"\n[ksm]\nmode = "on"\nsleep_millisecs = 77\n'
GUEST: Final = TINY.replace('hugepages = "off"', 'hugepages = "2MiB"') + "[lifecycle]\nautostart = true\n"
PAGES: Final = 16


def value(knob: Path) -> str:
    """Give what a knob holds: the word in brackets, or the whole."""
    text = knob.read_text().strip()
    return text.partition("[")[2].partition("]")[0] or text


@pytest.fixture
def etc(machine: Machine, pool: Pool) -> Iterator[Path]:
    """Give /etc of the machine, a copy of its own with the wishes in it; the knobs are put back in the end."""
    before = {knob: value(knob) for knob in KNOBS}
    copy = machine.directory / "etc"
    machine.execute("sh", "-euc", f"cp -a /etc {copy}; mount --bind {copy} /etc")
    (copy / "kvmlaunch").mkdir(exist_ok=True)
    (copy / "kvmlaunch/host.toml").write_text(WISHES)
    machine.define("web", GUEST)
    try:
        yield copy
    finally:
        for knob, was in before.items():
            with suppress(OSError):
                knob.write_text(was)
        if pool.gained() > 0:
            pool.set(pool.before)


def text_of(path: Path) -> str:
    """Give what a file holds, or what a link says."""
    if path.is_symlink():
        return str(path.readlink())
    return path.read_text(errors="replace") if path.is_file() else ""


def knobs() -> dict[str, str]:
    """Give every knob of the kernel's memory and of its disks' queues that can be written, but for the pools."""
    found = {}
    for tree in (Path("/proc/sys/vm"), Path("/sys/kernel/mm"), *Path("/sys/block").glob("*/queue")):
        for path in sorted(tree.rglob("*")):
            if path.is_file() and path.stat().st_mode & 0o600 == 0o600 and "hugepages" not in str(path):
                with suppress(OSError):
                    found[str(path)] = value(path)
    return found


def state(etc: Path) -> dict[str, str]:
    """Give what tuning may touch beside the pool: knobs, every file beneath /etc with its mode."""
    files = {str(path.relative_to(etc)): f"{path.lstat().st_mode:o} {text_of(path)}" for path in sorted(etc.rglob("*"))}
    return {**files, **knobs()}


@pytest.fixture
def with_systemd(machine: Machine, etc: Path) -> Path:
    """Give /etc of a machine whose first process calls itself systemd, so that its files are written."""
    (machine.directory / "comm").write_text("systemd\n")
    machine.execute("mount", "--bind", str(machine.directory / "comm"), "/proc/1/comm")
    return etc


def mountinfo(machine: Machine) -> str:
    """Give the mounts of a machine."""
    return Path(f"/proc/{machine.holder.pid}/mountinfo").read_text()


def test_planned_made_kept_verified_and_taken_back_without_a_trace(machine: Machine, pool: Pool, etc: Path) -> None:
    before, mounts = state(etc), mountinfo(machine)

    plan = machine.ok("tune", "plan", "--json").json
    first = machine.ok("tune", "apply")
    made = machine.ok("tune", "apply", "--persist")
    during, again = state(etc), machine.ok("tune", "apply", "--persist")
    verified, planned = machine.run("tune", "verify"), machine.ok("tune", "plan")
    off, twice = machine.run("tune", "off"), machine.run("tune", "off")

    assert plan["changes"] >= 5
    assert during[str(SWAPPINESS)] == "7"
    assert (during[str(KSM / "run")], during[str(KSM / "sleep_millisecs")], during[str(THP)]) == ("1", "77", "always")
    assert {"sysctl.d/80-kvmlaunch.conf", "kvmlaunch/boot.sh"} <= during.keys() - before.keys()
    assert "hugetlbfs /mnt/huge" in during["fstab"]
    assert "[host.notactive]" in made.err
    assert "as it should be" not in first.err
    assert "as it should be" not in made.err
    assert "as it should be" in again.err
    assert verified.code == 0, verified.out
    assert not any(kept["written"] for kept in plan["files"])
    assert planned.out.count("(as it is)") == len(plan["files"])
    assert (off.code, twice.code) == (0, 0), off.err
    assert "nothing is tuned" in twice.err
    assert state(etc) == before
    assert mountinfo(machine) == mounts
    assert not machine.outside(JOURNAL).exists()
    assert pool.gained() == 0


def test_the_pool_is_raised_to_the_sum_and_lowered_by_what_it_was_raised(
    machine: Machine, pool: Pool, etc: Path
) -> None:
    machine.define("db", GUEST)
    short = max(0, 2 * PAGES - pool.total())

    machine.ok("tune", "apply", "--persist")
    raised, kept = pool.gained(), (etc / "sysctl.d/80-kvmlaunch.conf").read_text()
    machine.ok("up", "web", "--paused")
    with_vm = pool.gained()
    machine.end("web")
    machine.ok("tune", "off")

    assert raised == with_vm == short
    assert f"vm.nr_hugepages = {2 * PAGES}\n" in kept
    assert pool.settled() == 0


def test_pages_that_a_vm_reserved_itself_are_said_and_added_once_it_has_stopped(
    machine: Machine, pool: Pool, etc: Path
) -> None:
    del etc
    pool.set(0)
    machine.ok("up", "web", "--paused")

    applied, verified = machine.ok("tune", "apply"), machine.ok("tune", "verify")
    machine.end("web")
    after = machine.run("tune", "verify")
    again = machine.ok("tune", "apply")
    machine.ok("tune", "off")

    for said in (applied, verified):
        assert f"{PAGES} pages of the pool will go when web stops" in said.err
        assert "[host.hugepages.borrowed]" in said.err
    assert after.code == 10
    assert f"0 → {PAGES}" in again.err
    assert "borrowed" not in again.err
    assert pool.total() == 0


def test_the_pool_is_lowered_when_fewer_vms_start_with_the_host(machine: Machine, pool: Pool, etc: Path) -> None:
    pool.set(0)
    machine.define("db", GUEST)
    machine.ok("tune", "apply", "--persist")
    both = pool.total()
    machine.define("db", TINY)

    planned = machine.ok("tune", "plan")
    machine.ok("tune", "apply", "--persist")
    one, kept = pool.total(), (etc / "sysctl.d/80-kvmlaunch.conf").read_text()
    machine.ok("tune", "off")

    assert (both, one) == (2 * PAGES, PAGES)
    assert f"{2 * PAGES} → {PAGES}  fewer are wished" in planned.out
    assert f"vm.nr_hugepages = {PAGES}\n" in kept
    assert pool.total() == 0


def test_what_is_no_longer_wished_is_put_back_by_the_next_apply(machine: Machine, etc: Path) -> None:
    before = value(SWAPPINESS)
    machine.ok("tune", "apply", "--persist")
    (etc / "kvmlaunch/host.toml").write_text('thp = "always"\nhugepages = "keep"\n')

    planned = machine.run("tune", "plan", "--exit-code")
    machine.ok("tune", "apply", "--persist")
    during = state(etc)
    machine.ok("tune", "off")

    assert planned.code == 10
    assert f"vm.swappiness  7 → {before}" in planned.out
    assert during[str(SWAPPINESS)] == before
    assert during[str(THP)] == "always"
    assert "sysctl.d/80-kvmlaunch.conf" not in during
    assert "hugetlbfs" not in during["fstab"]


def test_after_a_reboot_the_systems_own_tools_make_it_so_again(machine: Machine, pool: Pool, etc: Path) -> None:
    before = state(etc)
    machine.ok("tune", "apply", "--persist")

    SWAPPINESS.write_text("60")
    (KSM / "run").write_text("0")
    (machine.directory / "boot").write_text("11111111-2222-3333-4444-555555555555\n")
    machine.execute("mount", "--bind", str(machine.directory / "boot"), "/proc/sys/kernel/random/boot_id")
    machine.execute("sh", "-c", "rm -rf /run/kvmlaunch; umount /mnt/huge")
    differing = machine.run("tune", "verify", "--json")
    machine.execute("sysctl", "-p", SYSCTL)
    machine.execute("sh", SCRIPT)
    machine.execute("mount", "--target", "/mnt/huge", "--fstab", "/etc/fstab")
    verified = machine.run("tune", "verify")
    machine.ok("tune", "off")

    assert differing.code == 10
    assert {each["key"] for each in differing.json["differences"]} == {"vm.swappiness", "ksm.run", "hugetlbfs"}
    assert "/mnt/huge" not in mountinfo(machine)
    assert verified.code == 0, verified.out
    assert state(etc) == before
    assert pool.settled() == 0


def test_naming_a_vm_adds_it_and_takes_nothing_of_the_others_back(machine: Machine, pool: Pool, etc: Path) -> None:
    pool.set(0)
    manual = GUEST.replace("autostart = true", "autostart = false")
    for name in ("one", "two"):
        machine.define(name, manual)
    kept = etc / "sysctl.d/80-kvmlaunch.conf"

    pages = []
    for words in (("--persist",), ("one", "--persist"), ("two", "--persist")):
        machine.ok("tune", "apply", *words)
        pages.append((pool.total(), f"vm.nr_hugepages = {pool.total()}\n" in kept.read_text()))
    verified = machine.run("tune", "verify")
    machine.ok("tune", "apply", "--persist")

    assert pages == [(PAGES, True), (2 * PAGES, True), (3 * PAGES, True)]
    assert verified.code == 0, verified.out
    assert pool.total() == PAGES
    machine.ok("tune", "off")


def test_the_boot_loaders_file_stays_until_tuning_is_taken_back(machine: Machine, etc: Path) -> None:
    before = state(etc)
    grub = etc / "default/grub.d/kvmlaunch.cfg"

    machine.ok("tune", "apply", "--boot")
    verified, planned = machine.run("tune", "verify"), machine.run("tune", "plan", "--exit-code")
    machine.ok("tune", "apply", "--persist")
    there = grub.exists()
    machine.ok("tune", "off")

    assert verified.code == 0, verified.out
    assert planned.code == 0, planned.out
    assert there
    assert not grub.exists()
    assert state(etc) == before


def test_a_shared_mount_that_is_gone_is_a_difference_and_a_change(machine: Machine, etc: Path) -> None:
    machine.ok("tune", "apply", "--persist")
    machine.execute("umount", "/mnt/huge")

    verified, planned = machine.run("tune", "verify"), machine.run("tune", "plan", "--exit-code")
    machine.ok("tune", "apply")
    again = machine.run("tune", "verify")
    machine.ok("tune", "off")

    assert (verified.code, planned.code) == (10, 10)
    assert "/mnt/huge" in verified.out
    assert again.code == 0, again.out
    assert "/mnt/huge" not in mountinfo(machine)
    del etc


@pytest.mark.parametrize("words", [("tmpfs", "size=1M"), ("hugetlbfs", "pagesize=2M,mode=1777")])
def test_what_somebody_else_mounts_over_the_shared_mount_is_left_to_him(
    machine: Machine, etc: Path, words: tuple[str, str]
) -> None:
    del etc
    machine.ok("tune", "apply")
    machine.execute("mount", "-t", words[0], "-o", words[1], "theirs", "/mnt/huge")

    refused = machine.run("tune", "off")
    there = mountinfo(machine)
    machine.execute("umount", "/mnt/huge")
    again = machine.run("tune", "off")

    assert (refused.code, refused.codes) == (10, {"host.change.conflict"})
    assert there.count(" /mnt/huge ") == 2
    assert again.code == 0, again.err
    assert " /mnt/huge " not in mountinfo(machine)


def test_nothing_is_mounted_over_a_mount_of_somebody_else(machine: Machine, etc: Path) -> None:
    del etc
    machine.execute("sh", "-euc", "mkdir -p /mnt/huge; mount -t tmpfs theirs /mnt/huge; echo precious >/mnt/huge/f")

    full = machine.run("tune", "apply")
    machine.execute("rm", "/mnt/huge/f")
    empty = machine.run("tune", "apply")
    there = mountinfo(machine)
    machine.ok("tune", "off")

    assert (full.code, full.codes) == (6, {"host.hugetlbfs.place"})
    assert "host.hugetlbfs.place" in empty.codes
    assert there.count(" /mnt/huge ") == 1


def test_a_mount_that_fstab_still_makes_at_boot_keeps_its_place(machine: Machine, etc: Path) -> None:
    before = state(etc)
    machine.ok("tune", "apply", "--persist")
    wishes = etc / "kvmlaunch/host.toml"
    text = wishes.read_text()
    wishes.write_text(text.replace('hugetlbfs = "/mnt/huge"\n', "").replace("swappiness = 7\n", ""))

    machine.ok("tune", "apply")
    mounted, place = " /mnt/huge " in mountinfo(machine), machine.outside("/mnt/huge").is_dir()
    verified = machine.run("tune", "verify", "--json").json["differences"]
    machine.ok("tune", "off")
    wishes.write_text(text)

    assert (mounted, place) == (False, True)
    assert {"/etc/fstab", SYSCTL} <= {each["key"] for each in verified}
    assert state(etc) == before


def test_lines_of_somebody_else_between_our_markers_stay(machine: Machine, etc: Path) -> None:
    machine.ok("tune", "apply", "--persist")
    fstab = etc / "fstab"
    text = fstab.read_text().replace("hugetlbfs /mnt/huge", "tmpfs /srv tmpfs defaults 0 0\nhugetlbfs /mnt/huge")
    fstab.write_text(text)

    again, off = machine.run("tune", "apply", "--persist"), machine.run("tune", "off")
    left = fstab.read_text()
    machine.ok("tune", "off", "--force")

    assert (again.code, again.codes & {"host.change.conflict"}) == (10, {"host.change.conflict"})
    assert (off.code, off.codes) == (10, {"host.change.conflict"})
    assert left == text


def test_pages_of_a_vm_that_ran_meanwhile_do_not_stay(machine: Machine, pool: Pool, etc: Path) -> None:
    del etc
    pool.set(0)
    machine.define("db", GUEST)
    machine.ok("up", "web", "--paused")

    machine.ok("tune", "apply")
    machine.end("web")
    machine.ok("tune", "apply")
    both = pool.total()
    machine.ok("tune", "off")

    assert both == 2 * PAGES
    assert pool.total() == 0


def test_pages_that_a_file_sets_at_the_next_boot_are_taken_back(machine: Machine, pool: Pool, etc: Path) -> None:
    pool.set(0)
    machine.ok("up", "web", "--paused")
    machine.ok("tune", "apply", "--persist")
    machine.end("web")
    (machine.directory / "boot").write_text("11111111-2222-3333-4444-555555555555\n")
    machine.execute("mount", "--bind", str(machine.directory / "boot"), "/proc/sys/kernel/random/boot_id")
    machine.execute("sysctl", "-p", SYSCTL)
    booted = pool.total()
    machine.ok("tune", "off")

    assert booted == PAGES
    assert pool.total() == 0
    assert not (etc / "sysctl.d/80-kvmlaunch.conf").exists()


def test_a_pool_shrinks_beside_a_vm_that_uses_it_and_is_settled(machine: Machine, pool: Pool, etc: Path) -> None:
    del etc
    pool.set(0)
    machine.define("db", GUEST)
    machine.ok("tune", "apply")
    machine.ok("up", "web", "--paused")
    machine.define("db", TINY)

    shrunk = machine.run("tune", "apply")
    total, planned = pool.total(), machine.run("tune", "plan", "--exit-code")
    verified = machine.run("tune", "verify")
    machine.end("web")
    machine.ok("tune", "off")

    assert (shrunk.code, planned.code, verified.code) == (0, 0, 0), shrunk.err + planned.out + verified.out
    assert total == PAGES
    assert pool.total() == 0


def test_the_shared_mount_of_a_later_boot_is_taken_back_too(machine: Machine, etc: Path) -> None:
    del etc
    mounts = mountinfo(machine)
    machine.ok("tune", "apply", "--persist")
    journal = machine.outside(JOURNAL)
    document = json.loads(journal.read_text())
    document["entries"] = [
        {**each, **({"boot_id": "another"} if "boot_id" in each else {})} for each in document["entries"]
    ]
    journal.write_text(json.dumps(document))

    off = machine.run("tune", "off")

    assert off.code == 0, off.err
    assert mountinfo(machine) == mounts


def test_where_systemd_runs_its_files_keep_everything_and_go_without_a_trace(
    machine: Machine, pool: Pool, with_systemd: Path
) -> None:
    before = state(with_systemd)
    system = with_systemd / "systemd/system"

    made = machine.ok("tune", "apply", "--persist")
    verified = machine.run("tune", "verify")
    unit, mount = system / "kvmlaunch-hugepages.service", system / "mnt-huge.mount"
    links = [
        (system / f"{target}.wants/{name.name}").readlink()
        for target, name in (("sysinit.target", unit), ("multi-user.target", mount))
    ]
    judged = machine.execute("systemd-analyze", "verify", "/etc/systemd/system/mnt-huge.mount")
    fstab = (with_systemd / "fstab").read_text()
    machine.ok("tune", "off")

    assert "[host.notactive]" not in made.err
    assert verified.code == 0, verified.out
    assert links == [
        Path("/etc/systemd/system/kvmlaunch-hugepages.service"),
        Path("/etc/systemd/system/mnt-huge.mount"),
    ]
    assert (judged.code, judged.err) == (0, "")
    assert "hugetlbfs" not in fstab
    assert not (with_systemd / "kvmlaunch/boot.sh").exists()
    assert state(with_systemd) == before
    assert pool.settled() == 0


def test_killed_while_it_writes_what_systemd_reads_all_goes_back(machine: Machine, with_systemd: Path) -> None:
    before, words = state(with_systemd), ("tune", "apply", "--persist")
    chosen = points(machine, *words, after=r"openat\(.*80-kvmlaunch\.conf", others=1)
    machine.ok("tune", "off")
    assert any(point.name == "symlinkat" for point in chosen)

    for point in sample(chosen, 8):
        killed_at(machine, point, *words)
        off = machine.run("tune", "off")

        assert off.code == 0, f"{describe(point, words)}: {off.err}"
        assert state(with_systemd) == before, describe(point, words)


def test_a_program_that_tunes_as_well_is_named_beside_what_was_turned(machine: Machine, etc: Path) -> None:
    del etc
    machine.execute("cp", "/bin/sleep", "tuned")
    machine.start("./tuned", "100")
    machine.ok("tune", "apply")
    SWAPPINESS.write_text("33")

    verified = machine.run("tune", "verify")
    planned = machine.run("tune", "plan")

    assert verified.code == 10
    assert "perhaps tuned (pid" in verified.out
    assert "[host.tuned.conflict]" in planned.err
    machine.ok("tune", "off", "--force")


def test_a_later_file_that_overrides_ours_is_named(machine: Machine, etc: Path) -> None:
    machine.ok("tune", "apply", "--persist")
    (etc / "sysctl.d/99-local.conf").write_text("vm.swappiness = 60\nvm.nr_hugepages = 2048\n")

    verified = machine.run("tune", "verify")
    machine.ok("tune", "off")

    assert verified.code == 10
    assert "/etc/sysctl.d/99-local.conf" in verified.out
    assert "nr_hugepages" not in verified.out  # a larger pool is as good


def test_a_file_of_tmpfiles_that_wins_over_ours_is_named(machine: Machine, with_systemd: Path) -> None:
    machine.ok("tune", "apply", "--persist")
    (with_systemd / "tmpfiles.d/a.conf").write_text(f"w {KSM}/run - - - - 0\n")

    verified = machine.run("tune", "verify", "--json")
    machine.ok("tune", "off")

    assert verified.code == 10
    named = [(each["place"], each["found"]) for each in verified.json["differences"]]
    assert named == [("/etc/tmpfiles.d/a.conf", "0")]


def test_a_foreign_change_is_reported_and_left_and_forced_back_when_asked(machine: Machine, etc: Path) -> None:
    before = value(SWAPPINESS)
    machine.ok("tune", "apply", "--persist")
    SWAPPINESS.write_text("33")
    (etc / "kvmlaunch/boot.sh").write_text("mine now\n")

    again = machine.run("tune", "apply", "--persist")
    SWAPPINESS.write_text("44")
    off = machine.run("tune", "off")
    left, script = value(SWAPPINESS), (etc / "kvmlaunch/boot.sh").read_text()
    forced = machine.run("tune", "off", "--force")

    assert again.code == 10
    assert again.codes >= {"host.change.conflict"}
    assert off.code == 10
    assert off.err.count("[host.change.conflict]") == 2
    assert (left, script) == ("44", "mine now\n")
    assert forced.code == 0, forced.err
    assert value(SWAPPINESS) == "33" != before
    assert not (etc / "kvmlaunch/boot.sh").exists()


def test_a_read_only_etc_leaves_the_knobs_made_and_nothing_half_written(machine: Machine, etc: Path) -> None:
    before = state(etc)
    machine.execute("mount", "-o", "remount,bind,ro", "/etc")

    made = machine.run("tune", "apply", "--persist")
    during = state(etc)
    off = machine.run("tune", "off")

    assert made.code == 6
    assert made.codes >= {"host.space"}
    assert during[str(SWAPPINESS)] == "7"
    assert {name for name in during if not name.startswith("/")} == {
        name for name in before if not name.startswith("/")
    }
    assert off.code == 0, off.err
    assert state(etc) == before


def test_a_setting_that_the_kernel_refuses_is_kept_by_no_file(machine: Machine, etc: Path) -> None:
    machine.execute("sh", "-euc", f"mount --bind {SWAPPINESS} {SWAPPINESS}; mount -o remount,bind,ro {SWAPPINESS}")

    made = machine.run("tune", "apply", "--persist")
    kept = {path: machine.outside(path).read_text() for path in (SCRIPT, SYSCTL)}
    planned = machine.run("tune", "plan", "--json").json
    machine.ok("tune", "off")

    assert "host.setting.refused" in made.codes
    assert not any("swappiness" in text for text in kept.values())
    assert "vm.nr_hugepages" in kept[SYSCTL]
    assert {each["path"] for each in planned["files"] if not each["written"]} == {SCRIPT, SYSCTL}
    del etc


def test_what_was_tuned_is_the_same_from_wherever_it_is_asked(machine: Machine, pool: Pool, etc: Path) -> None:
    pool.set(0)
    machine.ok("tune", "apply", "--persist")
    empty = machine.directory / "empty"
    empty.mkdir()

    elsewhere = machine.run("tune", "plan", "--defs", empty, "--exit-code")
    verified = machine.run("tune", "verify", "--defs", empty)
    machine.define("web", GUEST.replace("autostart = true", "autostart = false"))
    stopped = machine.run("tune", "plan", "--defs", empty, "--exit-code")
    machine.ok("tune", "off")

    assert (elsewhere.code, verified.code) == (0, 0), elsewhere.out + verified.out
    assert stopped.code == 10
    assert pool.total() == 0
    del etc


def test_a_definition_that_was_only_named_does_not_stop_what_does_not_count_it(machine: Machine, etc: Path) -> None:
    solo = machine.directory / "solo.toml"
    solo.write_text(GUEST.replace("autostart = true", "autostart = false"))
    machine.ok("tune", "apply", "--persist", solo)
    solo.write_text("broken = \n")

    planned, applied = machine.run("tune", "plan"), machine.run("tune", "apply", "--persist")
    machine.ok("tune", "off")

    assert (planned.code, applied.code) == (0, 0), planned.err + applied.err
    del etc


def test_there_is_one_vm_of_a_name_wherever_its_definition_lies(machine: Machine, pool: Pool, etc: Path) -> None:
    pool.set(0)
    machine.ok("tune", "apply")
    other = machine.directory / "other/web.toml"
    other.parent.mkdir()
    other.write_text(GUEST)

    machine.ok("tune", "apply", other, "--defs", machine.directory / "other")

    assert pool.total() == PAGES
    machine.ok("tune", "off")
    del etc


def test_a_wish_file_that_leads_nowhere_is_no_empty_wish(machine: Machine, etc: Path) -> None:
    (etc / "kvmlaunch/host.toml").unlink()
    (etc / "kvmlaunch/host.toml").symlink_to("/nowhere")

    planned = machine.run("tune", "plan")

    assert planned.code != 0
    assert "host.toml" in planned.err


def test_a_wish_with_mistakes_is_refused_whole_with_every_place(machine: Machine, etc: Path) -> None:
    before = state(etc)
    (etc / "kvmlaunch/host.toml").write_text(
        'swapiness = 1\nthp = "some"\ngovernor = 3\n[ksm]\nmode = true\nscan = 1\n'
    )

    made = machine.run("tune", "apply")

    assert made.code == 5
    assert made.err.count("/etc/kvmlaunch/host.toml:") == 5
    assert {name: text for name, text in state(etc).items() if "host.toml" not in name} == {
        name: text for name, text in before.items() if "host.toml" not in name
    }


def test_more_pages_than_the_host_can_spare_are_refused_before_anything_is_changed(machine: Machine, etc: Path) -> None:
    before = state(etc)
    (etc / "kvmlaunch/host.toml").write_text(WISHES.replace("[ksm]", 'hugepage_pools = { "2MiB" = 1000000 }\n[ksm]'))

    made = machine.run("tune", "apply")

    assert made.code == 6
    assert made.codes >= {"host.memory.short"}
    assert state(etc)[str(SWAPPINESS)] == before[str(SWAPPINESS)]


def test_killed_at_any_change_the_next_command_puts_all_back(machine: Machine, pool: Pool, etc: Path) -> None:
    before, words = state(etc), ("tune", "apply", "--persist")
    chosen = points(machine, *words, after=r"renameat.*tune\.json", others=4)
    machine.ok("tune", "off")
    assert len(chosen) > 20

    for point, healer in zip(sample(chosen, 8), itertools.cycle(((), words))):
        killed_at(machine, point, *words)
        if healer:
            machine.ok(*healer)
        off = machine.run("tune", "off")

        assert off.code == 0, f"{describe(point, words)}: {off.err}"
        assert state(etc) == before, describe(point, words)
    assert pool.settled() == 0


def test_killed_while_taking_back_the_next_command_finishes_it(machine: Machine, pool: Pool, etc: Path) -> None:
    before, words = state(etc), ("tune", "off")
    machine.ok("tune", "apply", "--persist")
    chosen = points(machine, *words, after=r"flock", others=4)

    for point in sample(chosen, 8):
        machine.ok("tune", "apply", "--persist")
        killed_at(machine, point, *words)
        off = machine.run(*words)

        assert off.code == 0, f"{describe(point, words)}: {off.err}"
        assert state(etc) == before, describe(point, words)
    assert pool.settled() == 0


def test_pages_in_use_go_back_when_they_are_free(machine: Machine, pool: Pool, etc: Path) -> None:
    del etc
    pool.set(0)
    machine.ok("tune", "apply")
    machine.ok("up", "web", "--paused")

    held = machine.run("tune", "off")
    machine.end("web")
    free = machine.run("tune", "off")

    assert held.code == 10
    assert "[host.change.conflict]" in held.err
    assert free.code == 0, free.err
    assert pool.total() == 0


def test_a_broken_definition_is_refused_and_never_left_out_of_the_sum(machine: Machine, etc: Path) -> None:
    before = state(etc)
    machine.define("db", GUEST.replace("32MiB", "32 Mb"))

    results = [machine.run("tune", *words) for words in (("plan",), ("apply", "--persist"), ("verify",))]
    doctor = machine.run("doctor", "--no-boot")

    assert [result.code for result in results] == [5, 5, 5]
    assert all("vmdefs/db.toml:" in result.err for result in results)
    assert "kvmlaunch validate db" in doctor.out
    assert state(etc) == before


def test_a_damaged_journal_is_an_error_until_somebody_has_looked(machine: Machine, etc: Path) -> None:
    del etc
    machine.ok("tune", "apply")
    place = machine.outside(JOURNAL)
    text = place.read_text()
    place.write_text(text[:100])

    results = [machine.run("tune", *words) for words in (("off",), ("apply",), ("verify",))]
    place.write_text(text)

    assert [result.code for result in results] == [6, 6, 6]
    assert all(result.codes >= {"host.journal.unreadable"} for result in results)
    machine.ok("tune", "off")


def test_a_shared_mount_with_a_space_in_its_name_is_taken_away_again(machine: Machine, etc: Path) -> None:
    (etc / "kvmlaunch/host.toml").write_text('hugetlbfs = "/mnt/k l/huge"\n')

    machine.ok("tune", "apply")
    during = mountinfo(machine)
    machine.ok("tune", "off")

    assert "/mnt/k\\040l/huge" in during
    assert machine.outside("/mnt/k l").exists() is False
    assert "/mnt/k" not in mountinfo(machine)


def test_a_disk_on_a_loop_device_is_tuned_at_the_device_at_the_bottom(machine: Machine, etc: Path) -> None:
    image = machine.directory / "disk.img"
    image.write_bytes(bytes(1 << 20))
    loop = machine.execute("losetup", "--find", "--show", str(image)).out.strip()
    machine.define("web", f'{GUEST}[disk.root]\npath = "{loop}"\n')
    try:
        (etc / "kvmlaunch/host.toml").write_text('scheduler = "kyber"\n')
        (setting,) = (
            each for each in machine.ok("tune", "plan", "--json").json["settings"] if "scheduler" in each["key"]
        )
        knob, before = Path(setting["path"]), setting["current"]
        requests = (knob.parent / "nr_requests").read_text()

        machine.ok("tune", "apply")
        during = value(knob)
        machine.ok("tune", "off")
    finally:
        machine.execute("losetup", "--detach", loop)

    assert "loop" not in setting["key"]
    assert before != during == "kyber"
    assert value(knob) == before
    assert (knob.parent / "nr_requests").read_text() == requests


def test_an_ordinary_user_sees_the_plan_and_is_told_who_may(hers: Machine) -> None:
    planned, made = as_alice(hers, "tune", "plan"), as_alice(hers, "tune", "apply", "web", "--persist")
    verified, off = as_alice(hers, "tune", "verify", "web"), as_alice(hers, "tune", "off", "--force")

    assert planned.code == 0, planned.err
    assert (made.code, off.code) == (77, 77)
    assert "fix: sudo kvmlaunch tune apply web --persist\n" in made.err
    assert "sudo kvmlaunch tune verify web\n" in verified.err
    assert "fix: sudo kvmlaunch tune off --force\n" in off.err
