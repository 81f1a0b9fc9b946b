"""What files of ours set at boot is never forgotten before they are gone; what is somebody else's in them stays."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.crashes import describe, killed_at, points, sample
from tests.root.conftest import Pool
from tests.root.test_tune import GUEST, KSM, SCRIPT, SWAPPINESS, SYSCTL, etc, state, value, with_systemd
from tests.sandbox import Machine, wait_for

__all__ = ("etc", "with_systemd")

POOL: Final = 'hugepage_pools = { "2MiB" = 8 }\n'


@pytest.fixture
def wishes(machine: Machine, etc: Path, pool: Pool) -> Path:
    """Give host.toml, empty, of a host without a VM and with an empty pool."""
    pool.set(0)
    (machine.directory / "vmdefs/web.toml").unlink()
    (etc / "kvmlaunch/host.toml").write_text("")
    return etc / "kvmlaunch/host.toml"


def reboot(machine: Machine, number: int = 1) -> None:
    """Let another boot begin, in which our sysctl file is read if there is one; the knobs are put back by hand."""
    boot = machine.directory / f"boot{number}"
    boot.write_text(f"{number:08}-2222-3333-4444-555555555555\n")
    machine.execute("mount", "--bind", str(boot), "/proc/sys/kernel/random/boot_id")
    machine.execute("sh", "-c", f"rm -rf /run/kvmlaunch; test ! -e {SYSCTL} || sysctl -qp {SYSCTL}")


def test_a_file_that_was_edited_keeps_its_pool_in_mind_until_it_is_gone(
    machine: Machine, etc: Path, wishes: Path, pool: Pool
) -> None:
    wishes.write_text(POOL)
    machine.ok("tune", "apply", "--persist")
    with (etc / "sysctl.d/80-kvmlaunch.conf").open("a") as file:
        file.write("# reviewed by me\n")

    off, restored = machine.run("tune", "off"), pool.total()
    reboot(machine)
    booted = pool.total()
    forced, left = machine.run("tune", "off", "--force"), pool.total()
    reboot(machine, 2)

    assert (off.code, off.codes, restored) == (10, {"host.change.conflict"}, 0)
    assert booted == 8
    assert (forced.code, left) == (0, 0)
    assert pool.total() == 0
    assert "nothing is tuned" in machine.run("tune", "off").err


def test_what_a_read_only_etc_still_sets_at_boot_is_put_back_then(machine: Machine, wishes: Path, pool: Pool) -> None:
    wishes.write_text(f"{POOL}swappiness = 30\n")
    machine.ok("tune", "apply", "--persist")
    wishes.write_text("")
    machine.execute("mount", "-o", "remount,bind,ro", "/etc")

    unwritten, restored = machine.run("tune", "apply", "--persist"), (pool.total(), value(SWAPPINESS))
    reboot(machine)
    booted = (pool.total(), value(SWAPPINESS))
    machine.execute("mount", "-o", "remount,bind,rw", "/etc")
    again, left = machine.run("tune", "apply", "--persist"), (pool.total(), value(SWAPPINESS))

    assert unwritten.code == 6
    assert restored == (0, "60")
    assert booted == (8, "30")
    assert (again.code, left) == (0, (0, "60"))
    assert "nothing is tuned" in machine.run("tune", "off").err


def test_killed_while_a_wish_goes_and_booted_anew_all_is_taken_back(
    machine: Machine, etc: Path, wishes: Path, pool: Pool
) -> None:
    before = state(etc) | {str(wishes.relative_to(etc)): ""}
    wished, gone = f'{POOL}swappiness = 30\n[ksm]\nmode = "on"\n', "swappiness = 30\n"

    def persisted() -> None:
        wishes.write_text(wished)
        machine.ok("tune", "apply", "--persist")
        wishes.write_text(gone)

    persisted()
    chosen = points(machine, "tune", "apply", "--persist", after=r"renameat.*tune\.json", others=4)
    machine.ok("tune", "off")
    for number, point in enumerate(sample(chosen, 8)):
        persisted()
        killed_at(machine, point, "tune", "apply", "--persist")
        reboot(machine, number + 1)
        machine.execute("sh", "-c", "test ! -x /etc/kvmlaunch/boot.sh || sh /etc/kvmlaunch/boot.sh")
        off = machine.run("tune", "off")

        assert off.code == 0, f"{describe(point, ('tune', 'apply', '--persist'))}: {off.err}"
        assert pool.total() == 0, describe(point, ("tune", "apply", "--persist"))
        assert state(etc) | {str(wishes.relative_to(etc)): ""} == before, describe(point, ("tune", "apply"))


def test_what_the_kernel_resets_beside_a_knob_is_put_back_though_the_wish_came_and_went(
    machine: Machine, wishes: Path
) -> None:
    on = '[ksm]\nmode = "on"\n'
    (KSM / "pages_to_scan").write_text("250")
    wishes.write_text(on)
    machine.ok("tune", "apply", "--persist")
    wishes.write_text("")
    machine.ok("tune", "apply")
    between = value(KSM / "pages_to_scan")
    wishes.write_text(on)
    machine.ok("tune", "apply")

    off = machine.run("tune", "off")

    assert between == "250"
    assert (off.code, value(KSM / "pages_to_scan")) == (0, "250"), off.err
    assert "nothing is tuned" in machine.run("tune", "off").err


def test_a_scan_that_nobody_asks_for_any_more_ends_with_all_its_wishes_in_one_go(
    machine: Machine, wishes: Path
) -> None:
    before = {name: value(KSM / name) for name in ("run", "pages_to_scan", "smart_scan", "advisor_mode")}
    (KSM / "smart_scan").write_text("1")
    wishes.write_text('[ksm]\npages_to_scan = 5000\nsmart_scan = "off"\n')
    machine.define("web", GUEST.replace('"2MiB"', '"off"\nksm = "on"'))
    machine.ok("tune", "apply")
    machine.define("web", GUEST.replace('"2MiB"', '"off"'))

    planned = machine.ok("tune", "plan")
    machine.ok("tune", "apply")
    verified = machine.run("tune", "verify")

    assert {"ksm.run", "ksm.pages_to_scan", "ksm.smart_scan"} <= {
        line.split()[0] for line in planned.out.splitlines() if "no longer wished" in line
    }
    assert "changes, " in planned.err
    assert not planned.err.startswith("0 changes")
    assert verified.code == 0, verified.out
    assert {name: value(KSM / name) for name in before} == before


def test_lines_of_others_between_our_markers_outlive_ours(machine: Machine, etc: Path, wishes: Path) -> None:
    fstab, his = etc / "fstab", "UUID=dead-beef /mnt/other ext4 noauto 0 0\n"
    before = fstab.read_text()
    wishes.write_text('hugetlbfs = "/mnt/huge"\n')
    machine.ok("tune", "apply", "--persist")
    fstab.write_text(fstab.read_text().replace("# kvmlaunch: end", f"{his}# kvmlaunch: end"))

    refused = machine.run("tune", "apply", "--persist")
    forced = machine.run("tune", "off", "--force")

    assert "mv /etc/fstab" not in refused.err
    assert "behind the line '# kvmlaunch: end' of /etc/fstab" in refused.err
    assert forced.code == 0, forced.err
    assert fstab.read_text() == f"{before}{his}"


def test_a_place_that_is_mounted_by_others_gets_no_file_either(machine: Machine, etc: Path, wishes: Path) -> None:
    before = state(etc)
    wishes.write_text('hugetlbfs = "/mnt/taken"\n')
    machine.execute("sh", "-c", "mkdir -p /mnt/taken && mount -t tmpfs none /mnt/taken")

    made = machine.run("tune", "apply", "--persist")
    machine.execute("sh", "-c", "umount /mnt/taken && rmdir /mnt/taken")
    wishes.write_text("")

    assert (made.code, "host.hugetlbfs.place" in made.codes) == (6, True), made.err
    assert state(etc) == before


ODD: Final = ("masked", "markers", "directory")


@pytest.mark.parametrize("odd", ODD)
def test_a_place_of_which_nothing_can_be_told_is_skipped_and_the_rest_is_made(
    machine: Machine, with_systemd: Path, wishes: Path, odd: str
) -> None:
    fstab, unit = with_systemd / "fstab", with_systemd / "systemd/system/mnt-huge.mount"
    unit.parent.mkdir(parents=True, exist_ok=True)
    if odd == "masked":
        unit.symlink_to("/dev/null")
    else:
        fstab.unlink(missing_ok=True)
        fstab.write_text("# kvmlaunch: begin\n") if odd == "markers" else fstab.mkdir()
    wishes.write_text('hugetlbfs = "/mnt/huge"\nswappiness = 7\n')

    made = machine.run("tune", "apply", "--persist")
    during = value(SWAPPINESS), (with_systemd / "sysctl.d/80-kvmlaunch.conf").exists()
    machine.ok("tune", "off")

    assert (made.code, "host.hugetlbfs.place" in made.codes, "internal.bug" in made.codes) == (6, True, False), made.err
    assert during == ("7", True)


def test_a_unit_of_ours_that_was_masked_since_does_not_keep_off_from_its_end(
    machine: Machine, with_systemd: Path, wishes: Path
) -> None:
    unit = with_systemd / "systemd/system/mnt-huge.mount"
    wishes.write_text('hugetlbfs = "/mnt/huge"\n')
    machine.ok("tune", "apply", "--persist")
    unit.unlink()
    unit.symlink_to("/dev/null")

    left, forced = machine.run("tune", "off"), machine.run("tune", "off", "--force")

    assert (left.code, left.codes) == (10, {"host.change.conflict"})
    assert "fix: rm " in left.err
    assert forced.code == 0, forced.err
    assert unit.is_symlink()
    assert "nothing is tuned" in machine.run("tune", "off").err


def test_without_ksm_a_plan_goes_on_though_it_ran_before(machine: Machine, wishes: Path) -> None:
    wishes.write_text('[ksm]\nmode = "on"\n')
    machine.ok("tune", "apply")
    wishes.write_text("")
    (KSM / "run").write_text("0")
    machine.execute("mount", "-t", "tmpfs", "none", KSM)

    planned = machine.run("tune", "plan")
    machine.execute("umount", KSM)
    machine.run("tune", "off")

    assert planned.code == 0, planned.err


@pytest.mark.parametrize("where", ["unit", "fstab"])
def test_a_unit_or_a_line_of_others_for_the_place_is_left_alone(
    machine: Machine, with_systemd: Path, wishes: Path, where: str
) -> None:
    his = with_systemd / ("systemd/system/mnt-huge.mount" if where == "unit" else "fstab")
    his.parent.mkdir(parents=True, exist_ok=True)
    text = "[Mount]\nWhat=/dev/sdz\nWhere=/mnt/huge\n" if where == "unit" else "/dev/sdz /mnt/huge xfs noauto 0 0\n"
    his.write_text(text)
    before = state(with_systemd)
    wishes.write_text('hugetlbfs = "/mnt/huge"\n')

    made = machine.run("tune", "apply", "--persist")
    wishes.write_text("")

    assert (made.code, "host.hugetlbfs.place" in made.codes) == (6, True), made.err
    assert state(with_systemd) == before
    assert "/mnt/huge" not in Path(f"/proc/{machine.holder.pid}/mountinfo").read_text()


def test_a_file_that_no_journal_knows_any_more_is_removed_all_the_same(
    machine: Machine, etc: Path, wishes: Path
) -> None:
    wishes.write_text("swappiness = 7\n")
    machine.ok("tune", "apply", "--persist")
    machine.outside("/var/lib/kvmlaunch/tune.json").unlink()

    machine.ok("tune", "apply", "--persist")
    machine.ok("tune", "off")

    assert not (etc / "sysctl.d/80-kvmlaunch.conf").exists()


def test_a_masked_file_is_a_wish_of_somebody_else(machine: Machine, etc: Path, wishes: Path) -> None:
    mask = etc / "sysctl.d/80-kvmlaunch.conf"
    mask.symlink_to("/dev/null")
    wishes.write_text("swappiness = 7\n")

    made = machine.run("tune", "apply", "--persist")
    machine.ok("tune", "off")

    assert (made.code, made.codes >= {"host.change.conflict"}) == (10, True), made.err
    assert "it leads to /dev/null" in made.err
    assert mask.is_symlink()


def test_a_file_that_is_read_again_after_its_wish_went_sets_nothing_that_stays(
    machine: Machine, wishes: Path, pool: Pool
) -> None:
    wishes.write_text(f"{POOL}swappiness = 30\n")
    machine.ok("tune", "apply", "--persist")
    wishes.write_text("")
    machine.ok("tune", "apply")
    machine.execute("sysctl", "-qp", SYSCTL)

    planned = machine.ok("tune", "plan", "--json").json
    off, left = machine.run("tune", "off"), (pool.total(), value(SWAPPINESS))

    assert {str(SWAPPINESS), "/proc/sys/vm/nr_hugepages"} & set(planned["returning"]), planned["returning"]
    assert planned["changes"] == len(planned["returning"])
    assert (off.code, left) == (0, (0, "60")), off.err
    assert "nothing is tuned" in machine.run("tune", "off").err


def test_what_somebody_sets_after_it_was_put_back_is_his(machine: Machine, wishes: Path) -> None:
    wishes.write_text("swappiness = 30\n")
    machine.ok("tune", "apply", "--persist")
    wishes.write_text("")
    machine.ok("tune", "apply")
    SWAPPINESS.write_text("33")

    off, left = machine.run("tune", "off"), value(SWAPPINESS)

    assert (off.code, left) == (0, "33"), off.err


@pytest.fixture
def least(etc: Path) -> Iterator[Path]:
    """Give the sysctl that the kernel sets anew with THP, at a value of its own."""
    del etc
    knob = Path("/proc/sys/vm/min_free_kbytes")
    before = knob.read_text()
    knob.write_text("40000")
    try:
        yield knob
    finally:
        knob.write_text(before)


def test_what_somebody_sets_beside_thp_is_his_whatever_is_applied_after_it(
    machine: Machine, wishes: Path, least: Path
) -> None:
    wishes.write_text('thp = "always"\n')
    machine.ok("tune", "apply")
    least.write_text("80000")
    wishes.write_text('thp = "always"\nswappiness = 30\n')
    machine.ok("tune", "apply")

    off, left = machine.run("tune", "off"), value(least)

    assert (off.code, left) == (10, "80000"), off.err


def test_what_the_kernel_sets_beside_thp_at_boot_is_put_back_with_it(
    machine: Machine, wishes: Path, least: Path
) -> None:
    wishes.write_text('thp = "always"\n')
    machine.ok("tune", "apply", "--persist")
    wishes.write_text("")
    machine.ok("tune", "apply")
    between = value(least)
    reboot(machine)
    machine.execute("sh", SCRIPT)
    booted = value(least)

    persisted, left = machine.run("tune", "apply", "--persist"), value(least)

    assert (between, booted != "40000") == ("40000", True)
    assert (persisted.code, left) == (0, "40000"), persisted.err
    assert "nothing is tuned" in machine.run("tune", "off").err


def test_a_shared_mount_that_is_taken_away_is_said_and_planned_once(machine: Machine, wishes: Path) -> None:
    wishes.write_text('hugetlbfs = "/mnt/huge"\n')
    machine.ok("tune", "apply", "--persist")
    wishes.write_text("")

    first, made = machine.ok("tune", "plan", "--json").json, machine.ok("tune", "apply")
    again = machine.ok("tune", "plan", "--json").json
    machine.ok("tune", "off")

    assert "/mnt/huge" in first["returning"]
    assert "unmounted" in made.err
    assert "/mnt/huge" not in again["returning"]


def test_a_hugetlbfs_that_somebody_else_keeps_at_the_place_is_as_good(
    machine: Machine, etc: Path, wishes: Path
) -> None:
    fstab = etc / "fstab"
    fstab.write_text(f"{fstab.read_text()}hugetlbfs /mnt/his hugetlbfs pagesize=2M 0 0\n")
    machine.execute("sh", "-euc", "mkdir -p /mnt/his; mount -t hugetlbfs -o pagesize=2M none /mnt/his")
    before = state(etc)
    wishes.write_text('hugetlbfs = "/mnt/his"\n')

    made = machine.run("tune", "apply", "--persist")
    off = machine.run("tune", "off")
    mounted = " /mnt/his " in Path(f"/proc/{machine.holder.pid}/mountinfo").read_text()
    machine.execute("sh", "-c", "umount /mnt/his; rmdir /mnt/his")
    wishes.write_text("")

    assert (made.code, off.code, mounted) == (0, 0, True), made.err
    assert state(etc) == before


def test_a_larger_pool_that_stands_in_no_file_is_told_and_goes_with_its_boot(
    machine: Machine, wishes: Path, pool: Pool
) -> None:
    pool.set(64)
    wishes.write_text(POOL)

    kept = machine.ok("tune", "apply", "--persist", "--json")
    command = next(each["command"] for each in kept.json["files"] if each["path"] == SYSCTL)
    machine.execute("sh", "-c", command)
    during = pool.total()
    reboot(machine)
    booted, verified = pool.total(), machine.run("tune", "verify")
    off = machine.run("tune", "off")

    assert "host.hugepages.unkept" in {each["code"] for each in kept.json["findings"]}
    assert "sysctl -p" not in command
    assert (during, booted) == (64, 8)
    assert verified.code == 0, verified.out
    assert (off.code, pool.total()) == (0, 0)


@pytest.mark.usefixtures("with_systemd")
def test_with_systemd_the_command_of_the_sysctl_file_leaves_a_larger_pool_alone(
    machine: Machine, wishes: Path, pool: Pool
) -> None:
    pool.set(64)
    wishes.write_text(f"{POOL}swappiness = 30\n")
    kept = machine.ok("tune", "apply", "--persist", "--json")
    SWAPPINESS.write_text("60")

    machine.execute("sh", "-c", next(each["command"] for each in kept.json["files"] if each["path"] == SYSCTL))

    assert (pool.total(), value(SWAPPINESS)) == (64, "30")


def test_a_file_of_somebody_elses_is_his_again(machine: Machine, etc: Path, wishes: Path) -> None:
    his = etc / "sysctl.d/80-kvmlaunch.conf"
    his.write_text("kernel.panic = 0\n")
    os.chown(his, 1234, 2345)
    his.chmod(0o640)
    wishes.write_text("swappiness = 30\n")

    machine.ok("tune", "apply", "--persist")
    between = his.read_text(), his.stat().st_uid
    machine.ok("tune", "off")

    assert "vm.swappiness = 30\n" in between[0]
    assert between[1] == 0
    assert his.read_text() == "kernel.panic = 0\n"
    assert (his.stat().st_uid, his.stat().st_gid, his.stat().st_mode & 0o7777) == (1234, 2345, 0o640)


@pytest.mark.usefixtures("with_systemd")
def test_a_mount_unit_of_a_package_keeps_its_place(machine: Machine, etc: Path, wishes: Path) -> None:
    unit = "/usr/local/lib/systemd/system/mnt-huge.mount"
    script = f"mount -t tmpfs tmpfs /usr/local/lib; mkdir -p $(dirname {unit}); echo '[Mount]' > {unit}"
    machine.execute("sh", "-euc", script)
    wishes.write_text('hugetlbfs = "/mnt/huge"\n')
    before = state(etc)

    made = machine.run("tune", "apply", "--persist")

    assert (made.code, made.codes) == (6, {"host.hugetlbfs.place"})
    assert unit in made.err
    assert state(etc) == before


def test_a_file_that_its_owner_put_back_himself_keeps_his_mode(machine: Machine, etc: Path, wishes: Path) -> None:
    his = etc / "sysctl.d/80-kvmlaunch.conf"
    his.write_text("kernel.panic = 0\n")
    wishes.write_text("swappiness = 30\n")
    machine.ok("tune", "apply", "--persist")
    his.write_text("kernel.panic = 0\n")
    his.chmod(0o600)

    machine.ok("tune", "off")

    assert (his.read_text(), his.stat().st_mode & 0o7777) == ("kernel.panic = 0\n", 0o600)


def test_without_an_fstab_the_fix_is_said(machine: Machine, etc: Path, wishes: Path) -> None:
    (etc / "fstab").unlink()
    wishes.write_text('hugetlbfs = "/mnt/huge"\n')

    made = machine.run("tune", "apply", "--persist")
    off = machine.run("tune", "off")

    assert "fix: touch /etc/fstab" in made.err
    assert (made.code, off.code) == (6, 0)


def test_a_file_that_was_made_immutable_is_said_and_goes_later(machine: Machine, etc: Path, wishes: Path) -> None:
    wishes.write_text("swappiness = 30\n")
    machine.ok("tune", "apply", "--persist")
    made_so = machine.execute("chattr", "+i", SYSCTL)
    if made_so.code != 0:
        pytest.skip("no immutable files here")

    held = machine.run("tune", "off")
    machine.execute("chattr", "-i", SYSCTL)
    off = machine.run("tune", "off")

    assert (held.code, held.codes) == (10, {"host.failed"})
    assert f"lsattr -d {SYSCTL}" in held.err
    assert (off.code, (etc / "sysctl.d/80-kvmlaunch.conf").exists()) == (0, False)


@contextmanager
def merged_pages(machine: Machine) -> Iterator[None]:
    """Have a process whose pages are equal, and may be merged."""
    words = "import mmap, time; m = mmap.mmap(-1, 20 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)"
    equal = "m.madvise(mmap.MADV_NOHUGEPAGE); m.madvise(mmap.MADV_MERGEABLE); m.write(b'x' * len(m)); time.sleep(600)"
    process = machine.start(sys.executable, "-c", f"{words}; {equal}")
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_value_of_ours_that_waits_for_merged_pages_is_taken_back(machine: Machine, wishes: Path) -> None:
    across = KSM / "merge_across_nodes"
    wishes.write_text('[ksm]\nmode = "on"\npages_to_scan = 5000\nmerge_across_nodes = "off"\n')
    with merged_pages(machine):
        machine.ok("tune", "apply", "--persist")
        wait_for("pages are merged", lambda: value(KSM / "pages_sharing") != "0")
        wishes.write_text(wishes.read_text().replace('nodes = "off"', 'nodes = "on"'))
        waits = machine.run("tune", "apply", "--persist")
        off = machine.run("tune", "off")

    assert (waits.code, waits.codes & {"host.setting.busy"}) == (6, {"host.setting.busy"})
    assert (off.code, value(across), value(KSM / "run")) == (0, "1", "0")


def test_pages_that_somebody_takes_apart_are_a_change_of_his(machine: Machine, wishes: Path) -> None:
    wishes.write_text('[ksm]\nmode = "on"\n')
    machine.ok("tune", "apply")
    (KSM / "run").write_text("2")

    off, left = machine.run("tune", "off"), value(KSM / "run")
    forced = machine.run("tune", "off", "--force")

    assert (off.code, off.codes, left) == (10, {"host.change.conflict"}, "2")
    assert (forced.code, value(KSM / "run")) == (0, "0")


@pytest.mark.parametrize(
    ("fault", "mend"),
    [
        ("head -c 200k /dev/zero >/var/lib/kvmlaunch/fill", "rm /var/lib/kvmlaunch/fill"),
        ("mount -o remount,ro /var/lib/kvmlaunch", "mount -o remount,rw /var/lib/kvmlaunch"),
    ],
    ids=["full", "read-only"],
)
def test_where_the_journal_cannot_be_written_all_but_pools_is_put_back(
    machine: Machine, etc: Path, wishes: Path, pool: Pool, fault: str, mend: str
) -> None:
    machine.execute("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/lib/kvmlaunch")
    wishes.write_text(f'{POOL}swappiness = 30\nhugetlbfs = "/mnt/huge"\n')
    fstab = (etc / "fstab").read_text()
    machine.ok("tune", "apply", "--persist")
    machine.execute("sh", "-c", fault)

    off, restored = machine.run("tune", "off"), (pool.total(), value(SWAPPINESS))
    files = (etc / "sysctl.d/80-kvmlaunch.conf").exists() or (etc / "fstab").read_text() != fstab
    machine.execute("sh", "-c", mend)
    pool.set(11)
    again = machine.run("tune", "off")

    assert (off.code, off.codes, restored, files) == (10, {"host.space"}, (8, "60"), False)
    assert (again.code, pool.total()) == (0, 3)


def test_files_of_a_journal_that_is_lost_are_named(machine: Machine, wishes: Path) -> None:
    wishes.write_text("swappiness = 30\n")
    machine.ok("tune", "apply", "--persist")
    machine.execute("rm", "/var/lib/kvmlaunch/tune.json")

    lost = machine.run("tune", "off")
    machine.ok("tune", "apply", "--persist")
    off = machine.run("tune", "off")

    assert (lost.code, lost.codes, f"rm {SYSCTL}" in lost.err) == (10, {"host.change.conflict"}, True)
    assert off.code == 0
    SWAPPINESS.write_text("60")


def test_a_knob_is_said_to_be_back_though_a_file_of_ours_stays(machine: Machine, etc: Path, wishes: Path) -> None:
    wishes.write_text("swappiness = 30\n")
    machine.ok("tune", "apply", "--persist")
    with (etc / "sysctl.d/80-kvmlaunch.conf").open("a") as file:
        file.write("# mine\n")

    off = machine.run("tune", "off")

    assert (off.code, value(SWAPPINESS)) == (10, "60")
    assert "vm.swappiness, until" in off.err


def test_files_of_an_earlier_persist_are_said_to_be_behind(machine: Machine, wishes: Path) -> None:
    wishes.write_text("swappiness = 30\n")
    machine.ok("tune", "apply", "--persist")
    wishes.write_text("swappiness = 40\n")

    behind, again = machine.ok("tune", "apply"), machine.ok("tune", "apply", "--persist")
    machine.ok("tune", "off")

    assert f"{SYSCTL} still says" in behind.err
    assert "still says" not in again.err
