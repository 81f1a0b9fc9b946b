"""What the host should be: by kind of device, by what the VMs ask, by hand; and the files that keep it."""

import os
import shutil
import subprocess  # noqa: TID253 - the tools of systemd judge what is written
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve

from kvmlaunch.model.definition import ReadAhead
from kvmlaunch.model.tuning import TunePlan
from kvmlaunch.model.wishes import HostWishes, KsmWishes
from kvmlaunch.tune.fleet import VmWish
from kvmlaunch.tune.keep import boot_pages, escape_unit, overriding
from kvmlaunch.tune.plan import plan_tuning
from kvmlaunch.units import GIB, MIB
from tests.tuningbook import host, queue, tuning, without_systemd

pytestmark = pytest.mark.pure

WEB = VmWish(name="web01", page_size=2 * MIB, pages=512)
DB = VmWish(name="db01", page_size=2 * MIB, pages=4096)
ORDINARY = VmWish(name="small")
BIG = VmWish(name="big01", page_size=GIB, pages=3)
MERGING = VmWish(name="dense", ksm=True, trust="a")


def changes(plan: TunePlan) -> dict[str, str]:
    """Give what would change."""
    return {setting.key: setting.wanted.value for setting in plan.changes}


def codes(plan: TunePlan) -> list[str]:
    """Give the codes of what cannot be had."""
    return [finding.report.code for finding in plan.findings]


def text_of(plan: TunePlan, path: str) -> str:
    """Give what a kept file would hold."""
    return next(kept.text for kept in plan.files if kept.path == path)


@pytest.mark.parametrize(
    ("device", "queues", "rotational", "wanted"),
    [
        ("nvme0n1", 8, "0", "none"),
        ("sda", 1, "1", "mq-deadline"),
        ("sdb", 1, "0", "mq-deadline"),
        ("sdc", 16, "0", "none"),
        ("sdd", 16, "1", "mq-deadline"),
        ("vda", 1, "1", "none"),
        ("xvdb", 4, "0", "none"),
    ],
)
def test_a_scheduler_is_chosen_by_the_kind_of_device(device: str, queues: int, rotational: str, wanted: str) -> None:
    found = tuning(devices={device: queues}, files=queue(device, "bfq", rotational=rotational))

    plan = plan_tuning(host(), found, HostWishes(), ())

    assert changes(plan) == {f"scheduler.{device}": wanted}
    assert all(setting.wanted.reason and setting.wanted.source for setting in plan.changes)


def test_a_rule_names_a_device_as_udev_does() -> None:
    found = tuning(devices={"cciss!c0d0": 1}, files=queue("cciss!c0d0", "bfq", rotational="1"))

    plan = plan_tuning(host(), found, HostWishes(), ())

    assert 'KERNEL=="cciss/c0d0"' in text_of(plan, "/etc/udev/rules.d/80-kvmlaunch.rules")


RULES: Final = "/etc/udev/rules.d/80-kvmlaunch.rules"
SATA: Final = {"/sys/block/sda/device/wwid": "t10.ATA     SSD 870 S5Y2\n"}


@pytest.mark.parametrize(
    ("device", "file", "text", "match"),
    [
        ("nvme0n1", "wwid", "eui.0025385b21404321\n", 'ATTR{wwid}=="eui.0025385b21404321"'),
        ("sda", "device/wwid", "t10.ATA     SSD 870 S5Y2   \n", 'ATTR{device/wwid}=="t10.ATA     SSD 870 S5Y2"'),
        ("vda", "serial", "root\n", 'ATTR{serial}=="root"'),
        ("vda", "serial", "\n", 'KERNEL=="vda"'),
        ("vda", "serial", 'a"b*\n', 'KERNEL=="vda"'),
        ("vda", "serial", "it's\n", 'KERNEL=="vda"'),
    ],
)
def test_a_rule_names_a_disk_by_what_stays_with_it(device: str, file: str, text: str, match: str) -> None:
    files = queue(device, "bfq", rotational="1") | {f"/sys/block/{device}/{file}": text}
    written = text_of(plan_tuning(host(), tuning(devices={device: 1}, files=files), HostWishes(), ()), RULES)

    found = tuning(devices={device: 1}, files={**files, RULES: written})

    assert f'SUBSYSTEM=="block", {match}, ATTR{{queue/scheduler}}=' in written
    assert [line.sure for line in found.boot_lines if line.file == RULES] == [True]


def test_disks_that_tell_the_same_go_by_their_names() -> None:
    serials = {"/sys/block/vda/serial": "root\n", "/sys/block/vdb/serial": "root\n"}
    paths = {"/sys/block/sda/device/wwid": "naa.5000\n", "/sys/block/sdb/device/wwid": "naa.5000\n"}
    names = ("sda", "sdb", "vda")  # vdb is no VM's
    files = {path: text for name in names for path, text in queue(name, "bfq", rotational="1").items()}

    plan = plan_tuning(host(), tuning(devices=dict.fromkeys(names, 1), files=files | serials | paths), HostWishes(), ())

    assert [f'KERNEL=="{name}"' in text_of(plan, RULES) for name in names] == [True, True, True]


def test_the_script_finds_a_disk_by_what_stays_with_it(tmp_path: Path) -> None:
    files = queue("sda", "none", rotational="1") | SATA
    found = without_systemd(tuning(devices={"sda": 1}, files=files))
    script = text_of(plan_tuning(host(), found, HostWishes(), ()), "/etc/kvmlaunch/boot.sh")
    for name, text in {"sdb": "t10.ATA     SSD 870 S5Y2    \n", "sda": "t10.ATA     SSD 870 S5Y\n"}.items():
        place = tmp_path / "sys/block" / name
        (place / "device").mkdir(parents=True)
        (place / "queue").mkdir()
        (place / "device/wwid").write_text(text)
        (place / "queue/scheduler").write_text("none\n")

    ran = subprocess.run(  # noqa: S603 - our own script
        ["sh", "-eu", "-c", script.replace(" /sys/", f" {tmp_path}/sys/")],  # noqa: S607 - of PATH
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (ran.returncode, ran.stderr) == (0, "")
    assert [(tmp_path / f"sys/block/{name}/queue/scheduler").read_text() for name in ("sda", "sdb")] == [
        "none\n",
        "mq-deadline\n",
    ]


def test_a_device_without_a_choice_of_scheduler_is_left_alone() -> None:
    plan = plan_tuning(host(), tuning(devices={"nvme0n1": 8}), HostWishes(), ())

    assert plan.settings == ()


@pytest.mark.parametrize(("word", "today"), [("deadline", "mq-deadline"), ("noop", "none"), ("cfq", "bfq")])
@pytest.mark.parametrize("key", ["scheduler", "elevator"])
def test_the_words_of_old_kernels_are_understood_and_said(word: str, today: str, key: str) -> None:
    found = tuning(devices={"sda": 1}, files=queue("sda", "kyber", rotational="1"))

    wishes = HostWishes(**{key: word})  # type: ignore[arg-type]

    plan = plan_tuning(host(), found, wishes, ())

    assert changes(plan) == {"scheduler.sda": today}
    assert "host.scheduler.renamed" in codes(plan)
    assert "Linux 5.0" in plan.changes[0].wanted.reason


def test_read_ahead_is_that_of_the_volume_and_the_scheduler_that_of_the_disk_beneath() -> None:
    files = queue("sda", "none", rotational="1") | queue("dm-0", "none")
    wishes = HostWishes(scheduler="bfq", read_ahead=ReadAhead(4 * MIB))

    plan = plan_tuning(host(), tuning(devices={"sda": 1}, files=files, opened={"dm-0": {"vms": ["a"]}}), wishes, ())

    assert changes(plan) == {"scheduler.sda": "bfq", "read_ahead.dm-0": "4096"}


def test_a_size_of_pages_that_the_command_line_reserves_is_not_told_to_it_again() -> None:
    files = {"/proc/cmdline": "quiet hugepagesz=1G hugepages=2\n"}
    wishes = HostWishes(hugepage_pools={"1GiB": 4})

    plan = plan_tuning(host(), tuning(files=files, grub="update-grub"), wishes, (), boot=True)
    ours = files | {"/etc/default/grub.d/kvmlaunch.cfg": 'GRUB_CMDLINE_LINUX="x hugepagesz=1G hugepages=3"\n'}
    again = plan_tuning(host(), tuning(files=ours, grub="update-grub"), wishes, (), boot=True)

    assert "host.cmdline.hugepages" in codes(plan)
    assert not any("hugepages=4" in kept.text for kept in plan.files if kept.option == "--boot")
    assert "host.cmdline.hugepages" not in codes(again)
    assert any("hugepages=4" in kept.text for kept in again.files if kept.option == "--boot")


def test_grubby_is_told_nothing_over_a_word_of_somebody_else() -> None:
    wishes = HostWishes(hugepage_pools={"1GiB": 4})

    plan = plan_tuning(
        host(), tuning(files={"/proc/cmdline": "hugepages=512\n"}, grub="grub2-mkconfig -o x"), wishes, (), boot=True
    )

    assert "host.cmdline.hugepages" in codes(plan)
    assert not any(kept.option == "--boot" for kept in plan.files)


def test_grubby_is_told_one_size_of_pages() -> None:
    wishes = HostWishes(hugepage_pools={"2MiB": 512, "1GiB": 4})

    plan = plan_tuning(host(), tuning(grub="grub2-mkconfig -o x"), wishes, (), boot=True)

    (kept,) = (kept for kept in plan.files if kept.option == "--boot")
    assert kept.command == "grubby --update-kernel=ALL --args='hugepagesz=1G hugepages=4'"


def test_a_governor_that_some_cpus_lack_is_said_of_those() -> None:
    place = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_{}"
    files = {
        place.format(number, name): text
        for number, words in ((0, "performance powersave"), (1, "powersave"))
        for name, text in (("governor", "powersave\n"), ("available_governors", f"{words}\n"))
    }

    plan = plan_tuning(host(), tuning(files=files), HostWishes(governor="performance"), ())

    (found,) = (each for each in plan.findings if each.report.code == "host.governor.unknown")
    assert "of CPU 1" in found.report.message
    assert changes(plan) == {"governor.cpu0": "performance"}


def test_pages_of_different_nodes_that_are_merged_already_are_said() -> None:
    buddies = "Node 0, zone Normal 1 1 0\nNode 1, zone Normal 1 1 0\n"
    files = {"/proc/buddyinfo": buddies, "/sys/kernel/mm/ksm/pages_shared": "7\n"}

    plan = plan_tuning(host(), tuning(files=files), HostWishes(ksm=KsmWishes(mode="on")), ())

    assert "host.setting.busy" in codes(plan)


def test_one_device_may_be_wanted_otherwise_than_the_others() -> None:
    files = queue("sda", "none", rotational="1") | queue("sdb", "none", rotational="1")
    wishes = HostWishes(schedulers={"sda": "bfq", "sdb": "keep"}, read_ahead=ReadAhead(4 * MIB))

    plan = plan_tuning(host(), tuning(devices={"sda": 1, "sdb": 1}, files=files), wishes, ())

    assert changes(plan) == {"scheduler.sda": "bfq", "read_ahead.sda": "4096", "read_ahead.sdb": "4096"}


def test_a_scheduler_or_device_that_is_not_there_is_skipped_and_the_rest_is_planned() -> None:
    files = queue("sda", "none", rotational="1", offered=("none", "mq-deadline")) | queue("sdb", "none", rotational="1")
    wishes = HostWishes(scheduler="bfq", schedulers={"sdz": "none"})

    plan = plan_tuning(host(), tuning(devices={"sda": 1, "sdb": 1}, files=files), wishes, ())

    assert changes(plan) == {"scheduler.sdb": "bfq"}
    assert codes(plan).count("host.scheduler.unknown") == 2


def test_the_pool_is_the_sum_for_the_vms_and_never_lowered() -> None:
    short = plan_tuning(host(pages=100), tuning(), HostWishes(), (WEB, DB, ORDINARY))
    enough = plan_tuning(host(pages=9000), tuning(), HostWishes(), (WEB, DB, ORDINARY))

    assert changes(short) == {"hugepages.2MiB": "4608"}
    assert "web01 512, db01 4096" in short.changes[0].wanted.reason
    assert changes(enough) == {}


def test_a_pool_that_would_leave_the_host_too_little_is_refused_with_the_numbers() -> None:
    plan = plan_tuning(host(total=16 * GIB, available=9 * GIB), tuning(), HostWishes(), (WEB, DB))

    assert changes(plan) == {}
    assert codes(plan) == ["host.memory.short"]
    assert plan.findings[0].severity == "error"


def test_pools_by_hand_come_before_the_sum() -> None:
    by_hand = plan_tuning(host(), tuning(), HostWishes(hugepage_pools={"2MiB": 64, "1GiB": 2}), (WEB,))
    kept = plan_tuning(host(), tuning(), HostWishes(hugepages="keep"), (WEB,))

    assert changes(by_hand) == {"hugepages.2MiB": "64", "hugepages.1GiB": "2"}
    assert changes(kept) == {}


def test_ksm_follows_the_vms_and_scans_before_it_is_switched_on() -> None:
    plan = plan_tuning(host(), tuning(), HostWishes(), (MERGING, WEB))
    nobody = plan_tuning(host(), tuning(), HostWishes(hugepages="keep"), (WEB,))

    assert [key for key in changes(plan) if key.startswith("ksm")] == ["ksm.advisor_mode", "ksm.run"]
    assert "dense" in plan.changes[1].wanted.reason
    assert changes(nobody) == {}


@pytest.mark.parametrize(("mode", "run"), [("on", "1"), ("unmerge", "2")])
def test_ksm_by_hand_is_written_as_the_kernel_has_it(mode: str, run: str) -> None:
    plan = plan_tuning(host(), tuning(), HostWishes(ksm=KsmWishes(mode=mode)), ())  # type: ignore[arg-type]

    assert changes(plan)["ksm.run"] == run


def test_ksm_switched_off_by_hand_stops_a_running_one() -> None:
    running = tuning(files={"/sys/kernel/mm/ksm/run": "1\n"})

    assert changes(plan_tuning(host(), running, HostWishes(ksm=KsmWishes(mode="off")), ())) == {"ksm.run": "0"}


def test_an_old_kernel_without_advisor_scans_by_number() -> None:
    found = tuning()
    ksm = {name: knob for name, knob in found.ksm.items() if name in {"run", "pages_to_scan"}}
    plan = plan_tuning(
        host(),
        type(found)(ksm=ksm, buddies={0: (1,), 1: (1,)}),
        HostWishes(ksm=KsmWishes(mode="on", pages_to_scan=500)),
        (),
    )

    assert changes(plan) == {"ksm.pages_to_scan": "500", "ksm.run": "1"}


@pytest.mark.parametrize(
    ("gib", "found", "pages"),
    [(24, "100", "629"), (2, "100", "500"), (4096, "100", "30000"), (24, "5000", ""), (0, "100", "")],
)
def test_an_old_kernel_without_advisor_scans_as_the_advisor_would(gib: int, found: str, pages: str) -> None:
    seen = tuning(files={"/proc/meminfo": f"MemTotal: {gib << 20} kB\n", "/sys/kernel/mm/ksm/pages_to_scan": found})
    old = evolve(seen, ksm={name: knob for name, knob in seen.ksm.items() if name != "advisor_mode"})

    plan = plan_tuning(host(), old, HostWishes(ksm=KsmWishes(mode="on")), ())

    assert changes(plan).get("ksm.pages_to_scan", "") == pages


def test_on_several_nodes_pages_are_not_merged_across_them_while_nothing_is_merged() -> None:
    nodes = "Node 0, zone Normal 1\nNode 1, zone Normal 1\n"
    fresh = plan_tuning(host(), tuning(files={"/proc/buddyinfo": nodes}), HostWishes(), (MERGING,))
    merged = {"/proc/buddyinfo": nodes, "/sys/kernel/mm/ksm/pages_shared": "7\n"}
    later = plan_tuning(host(), tuning(files=merged), HostWishes(), (MERGING,))

    assert changes(fresh)["ksm.merge_across_nodes"] == "0"
    assert "ksm.merge_across_nodes" not in changes(later)


def test_a_running_ksm_that_is_kept_scans_as_is_wished_by_hand() -> None:
    running = tuning(files={"/sys/kernel/mm/ksm/run": "1\n"})
    wishes = HostWishes(ksm=KsmWishes(mode="keep", sleep_millisecs=77))

    plan = plan_tuning(host(), running, wishes, ())

    assert changes(plan) == {"ksm.sleep_millisecs": "77"}
    assert codes(plan) == []


@pytest.mark.parametrize(
    ("wishes", "keys"),
    [
        (
            HostWishes(ksm=KsmWishes(mode="off", sleep_millisecs=77, pages_to_scan=5)),
            ["pages_to_scan", "sleep_millisecs"],
        ),
        (HostWishes(thp="always", swappiness=7, numa_balancing="off"), ["thp", "swappiness", "numa_balancing"]),
    ],
)
def test_a_wish_that_cannot_be_made_is_said(wishes: HostWishes, keys: list[str]) -> None:
    found = type(tuning())(ksm={name: knob for name, knob in tuning().ksm.items() if name != "advisor_mode"})

    plan = plan_tuning(host(), found, wishes, ())

    skipped = [finding for finding in plan.findings if finding.report.code == "host.setting.refused"]
    assert [finding.key.removeprefix("ksm.") for finding in skipped] == keys
    assert not changes(plan).keys() & {"thp.enabled", "vm.swappiness", "kernel.numa_balancing", "ksm.sleep_millisecs"}


def test_a_knob_of_ksm_that_this_kernel_lacks_is_said() -> None:
    found = type(tuning())(ksm={"run": tuning().ksm["run"]})

    plan = plan_tuning(host(), found, HostWishes(ksm=KsmWishes(mode="on", smart_scan="on")), ())

    assert codes(plan) == ["host.setting.refused"]
    assert "smart_scan is not there" in plan.findings[0].report.why


def test_ksm_in_vain_and_between_guests_of_different_trust_is_said() -> None:
    on = HostWishes(ksm=KsmWishes(mode="on"))
    other = VmWish(name="guest", ksm=True, trust="b")

    assert "host.ksm.on" in codes(plan_tuning(host(), tuning(), on, (WEB,)))
    assert "host.ksm.trust" in codes(plan_tuning(host(), tuning(), on, (MERGING, other)))
    assert "host.ksm.missing" in codes(plan_tuning(host(), type(tuning())(), on, ()))


def test_transparent_huge_pages_are_made_possible_where_a_vm_has_ordinary_memory() -> None:
    never = tuning(files={"/sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n"})

    assert changes(plan_tuning(host(), never, HostWishes(), (ORDINARY,))) == {"thp.enabled": "madvise"}
    assert changes(plan_tuning(host(), never, HostWishes(), ())) == {}
    assert changes(plan_tuning(host(), never, HostWishes(thp="keep"), (ORDINARY,))) == {}


def test_what_is_never_forced_is_set_by_hand_alone() -> None:
    wishes = HostWishes(swappiness=10, numa_balancing="off", halt_poll_ns=0, governor="performance")

    plan = plan_tuning(host(), tuning(), wishes, ())

    assert changes(plan) == {"vm.swappiness": "10", "kernel.numa_balancing": "0", "kvm.halt_poll_ns": "0"}
    assert codes(plan) == ["host.governor.unknown"]
    assert all(setting.wanted.origin.kind == "file" for setting in plan.changes)


def test_programs_that_undo_settings_and_dead_words_on_the_command_line_are_said() -> None:
    found = tuning(files={"/proc/cmdline": "root=/dev/sda1 elevator=noop\n"}, daemons={"tuned": 77})

    plan = plan_tuning(host(), found, HostWishes(), ())

    assert sorted(codes(plan)) == ["host.cmdline.elevator", "host.tuned.conflict"]


WISHES = HostWishes(swappiness=10, thp="always", hugetlbfs="/mnt/huge pages")


def kept_plan(*, init: str, boot: bool = False) -> TunePlan:
    """Give a plan with something for every keeper."""
    files = queue("sda", "none", rotational="1")
    found = without_systemd(tuning(devices={"sda": 1}, files=files), init=init)
    return plan_tuning(host(), found, WISHES, (WEB, BIG), boot=boot)


def test_with_systemd_every_setting_has_the_file_that_is_read_at_boot() -> None:
    plan = kept_plan(init="systemd")

    assert "vm.nr_hugepages = 512\n" in text_of(plan, "/etc/sysctl.d/80-kvmlaunch.conf")
    assert "vm.swappiness = 10\n" in text_of(plan, "/etc/sysctl.d/80-kvmlaunch.conf")
    assert 'KERNEL=="sda", ATTR{queue/scheduler}="mq-deadline"' in text_of(plan, "/etc/udev/rules.d/80-kvmlaunch.rules")
    tmpfiles = text_of(plan, "/etc/tmpfiles.d/kvmlaunch.conf")
    assert "w /sys/kernel/mm/transparent_hugepage/enabled - - - - always\n" in tmpfiles
    unit = text_of(plan, "/etc/systemd/system/kvmlaunch-hugepages.service")
    assert "echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" in unit
    assert "echo 3 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages" in unit
    assert "Where=/mnt/huge pages" in text_of(plan, "/etc/systemd/system/mnt-huge\\x20pages.mount")
    assert all(not kept.inactive for kept in plan.files)


def test_a_parameter_of_a_module_is_set_when_the_module_appears() -> None:
    plan = plan_tuning(host(), tuning(), HostWishes(halt_poll_ns=0), ())

    assert text_of(plan, "/etc/udev/rules.d/80-kvmlaunch.rules").endswith(
        'ACTION=="add|change", SUBSYSTEM=="module", KERNEL=="kvm", ATTR{parameters/halt_poll_ns}="0"\n'
    )


def test_enabling_a_unit_is_the_link_that_systemctl_would_make() -> None:
    links = {kept.path: kept.text for kept in kept_plan(init="systemd").files if kept.kind == "link"}

    wants = "/etc/systemd/system"
    assert links == {
        f"{wants}/sysinit.target.wants/kvmlaunch-hugepages.service": f"{wants}/kvmlaunch-hugepages.service",
        f"{wants}/multi-user.target.wants/mnt-huge\\x20pages.mount": f"{wants}/mnt-huge\\x20pages.mount",
    }


def test_without_systemd_a_script_holds_it_all_and_fstab_the_mount() -> None:
    plan = kept_plan(init="init")
    script = next(kept for kept in plan.files if kept.path == "/etc/kvmlaunch/boot.sh")

    assert script.mode == 0o755
    assert "set_knob always /sys/kernel/mm/transparent_hugepage/enabled\n" in script.text
    assert "set_knob mq-deadline /sys/block/sda/queue/scheduler\n" in script.text
    assert text_of(plan, "/etc/fstab").startswith("hugetlbfs /mnt/huge\\040pages hugetlbfs ")
    assert "rc.local" in script.inactive


def test_a_script_that_rc_local_runs_is_active() -> None:
    found = tuning(files={"/etc/rc.local": "#!/bin/sh\n/etc/kvmlaunch/boot.sh\n", "/proc/1/comm": "init\n"})

    plan = plan_tuning(host(), found, WISHES, ())

    assert [kept.inactive for kept in plan.files if kept.path.endswith("boot.sh")] == [""]


def test_the_boot_loader_is_given_huge_pages_while_memory_is_empty_and_only_when_asked() -> None:
    wishes = HostWishes(hugepage_pools={"2MiB": 512, "1GiB": 4}, thp="never")
    asked = plan_tuning(host(), tuning(grub="update-grub"), wishes, (), boot=True)
    unasked = plan_tuning(host(), tuning(grub="update-grub"), wishes, ())

    text = text_of(asked, "/etc/default/grub.d/kvmlaunch.cfg")
    assert "hugepagesz=2M hugepages=512 hugepagesz=1G hugepages=4" in text
    assert "transparent_hugepage=never" in text
    assert [kept.command for kept in asked.files if "grub" in kept.path] == ["update-grub"]
    assert not any("grub" in kept.path for kept in unasked.files)


RULE = 'KERNEL=="sda", ATTR{{queue/scheduler}}="{}"\n'
WRITE = "w /sys/kernel/mm/ksm/run - - - - {}\n"


@pytest.mark.parametrize(
    ("files", "by"),
    [
        ({"/etc/sysctl.d/99-local.conf": "vm.swappiness = 60\n"}, "/etc/sysctl.d/99-local.conf"),
        ({"/etc/sysctl.conf": "vm.swappiness = 60\n"}, ""),  # systemd does not read it but by a link
        ({"/etc/sysctl.d/99-sysctl.conf": "vm.swappiness = 60\n"}, "/etc/sysctl.d/99-sysctl.conf"),
        ({"/etc/sysctl.d/99-local.conf": "vm.swappiness = 10\n"}, ""),
        ({"/etc/sysctl.d/99-local.conf": "vm.swap* = 60\n. = 1\n"}, ""),
        ({"/etc/sysctl.d/10-early.conf": "vm.swappiness = 60\n"}, ""),
        ({"/etc/udev/rules.d/99-disks.rules": RULE.format("bfq")}, "/etc/udev/rules.d/99-disks.rules"),
        ({"/etc/udev/rules.d/99-disks.rules": RULE.format("mq-deadline")}, ""),
        ({"/etc/udev/rules.d/60-disks.rules": RULE.format("bfq")}, ""),
        ({"/usr/lib/tmpfiles.d/alone.conf": WRITE.format(0)}, "/usr/lib/tmpfiles.d/alone.conf"),
        ({"/usr/lib/tmpfiles.d/zswap.conf": WRITE.format(0)}, ""),
        (
            {"/usr/lib/tmpfiles.d/zz.conf": "w /sys/kernel/mm/*/run - - - - 0\n"},
            "/usr/lib/tmpfiles.d/zz.conf",
        ),
        ({"/usr/lib/tmpfiles.d/alone.conf": "w /sys/kernel/mm/*/run - - - - 0\n"}, ""),
    ],
)
def test_the_file_that_wins_over_ours_at_boot_is_named(files: dict[str, str], by: str) -> None:
    wishes = HostWishes(swappiness=10, ksm=KsmWishes(mode="on"), scheduler="mq-deadline")
    before = tuning(devices={"sda": 1}, files=queue("sda", "none"))
    plan = plan_tuning(host(), before, wishes, ())
    ours = {kept.path: kept.text for kept in plan.files if kept.path.startswith("/etc")}

    seen = tuning(devices={"sda": 1}, files={**queue("sda", "none"), **ours, **files})
    lines = [line for setting in plan.settings if (line := overriding(seen, setting))]

    assert {"/etc/sysctl.d/80-kvmlaunch.conf", "/etc/udev/rules.d/80-kvmlaunch.rules"} < set(ours)
    assert [line.file for line in lines] == ([by] if by else [])


@pytest.mark.parametrize(
    ("local", "runs", "by"),
    [("/etc/kvmlaunch/boot.sh\n", True, []), ("/etc/kvmlaunch/boot.sh\n", False, ["99"]), ("", True, ["99"])],
)
def test_what_our_script_sets_after_everything_else_is_overridden_by_nothing(
    local: str, by: list[str], *, runs: bool
) -> None:
    wishes = HostWishes(swappiness=10)
    files = {"/proc/1/comm": "init\n", "/etc/rc.local": local, "/etc/sysctl.d/99-local.conf": "vm.swappiness = 60\n"}
    plan = plan_tuning(host(), tuning(files=files, rc_local=runs), wishes, ())
    ours = {kept.path: kept.text for kept in plan.files}

    seen = tuning(files=files | ours, rc_local=runs)
    lines = [line for setting in plan.settings if (line := overriding(seen, setting))]

    assert [line.file[14:16] for line in lines] == by
    assert bool(next(kept.inactive for kept in plan.files if kept.path.endswith("boot.sh"))) is bool(by)


@pytest.mark.parametrize(
    ("place", "name"),
    [("/mnt/huge", "mnt-huge"), ("/mnt/huge-1", "mnt-huge\\x2d1"), ("/a b/ä", "a\\x20b-\\xc3\\xa4"), ("/.x", "\\x2ex")],
)
def test_a_mount_units_name_is_escaped_as_systemd_escape_does(place: str, name: str) -> None:
    assert escape_unit(place) == name


def test_nothing_wished_and_nobody_asking_is_no_plan_at_all() -> None:
    plan = plan_tuning(host(), tuning(), HostWishes(), ())

    assert (plan.settings, plan.files, plan.findings) == ((), (), ())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for kept in kept_plan(init="systemd").files:
        if kept.kind == "file" and kept.path.endswith((".service", ".mount")):
            (tmp_path / kept.path.rpartition("/")[2]).write_text(kept.text)
    units = sorted(str(path) for path in tmp_path.iterdir())

    verified = subprocess.run(  # noqa: S603 - our own units
        ["systemd-analyze", "verify", "--man=no", *units],  # noqa: S607 - of PATH
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip

    assert len(units) == 2
    assert [line for line in verified.stderr.splitlines() if "kvmlaunch" in line or "mnt-huge" in line] == []


@pytest.mark.skipif(not shutil.which("systemd-tmpfiles"), reason="systemd-tmpfiles is not installed")
def test_systemd_tmpfiles_writes_what_the_file_says(tmp_path: Path) -> None:
    text = text_of(kept_plan(init="systemd"), "/etc/tmpfiles.d/kvmlaunch.conf")
    knob = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    knob.parent.mkdir(parents=True)
    knob.write_text("")
    file = tmp_path / "kvmlaunch.conf"
    file.write_text(text.replace(" /sys/", f" {tmp_path}/sys/"))

    made = subprocess.run(  # noqa: S603 - our own file
        ["systemd-tmpfiles", "--create", str(file)],  # noqa: S607 - of PATH
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert made.stderr == ""
    assert knob.read_text().strip() == "always"


def test_the_script_is_a_posix_script_that_sets_what_is_there_and_skips_what_is_not(tmp_path: Path) -> None:
    script = next(kept.text for kept in kept_plan(init="init").files if kept.path.endswith("boot.sh"))
    knob = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    knob.parent.mkdir(parents=True)
    knob.write_text("")

    ran = subprocess.run(  # noqa: S603 - our own script
        ["sh", "-eu", "-c", script.replace(" /sys/", f" {tmp_path}/sys/").replace(" /proc/", f" {tmp_path}/proc/")],  # noqa: S607
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (ran.returncode, ran.stderr) == (0, "")
    assert knob.read_text().strip() == "always"


def test_pools_of_two_sizes_share_the_room_that_the_host_has() -> None:
    wishes = HostWishes(hugepage_pools={"2MiB": 4608, "1GiB": 9})

    plan = plan_tuning(host(total=24 * GIB, available=20 * GIB), tuning(), wishes, ())

    assert changes(plan) == {"hugepages.2MiB": "4608"}
    assert codes(plan) == ["host.memory.short"]


def test_a_larger_pool_that_another_file_asks_for_is_not_lowered_at_boot() -> None:
    others = {"/etc/sysctl.d/50-admin.conf": "vm.nr_hugepages = 2048\n"}

    systemd = plan_tuning(host(pages=2048), tuning(files=others), HostWishes(), (WEB,))
    script = plan_tuning(host(pages=2048), without_systemd(tuning(files=others)), HostWishes(), (WEB,))

    assert "vm.nr_hugepages = 2048\n" in text_of(systemd, "/etc/sysctl.d/80-kvmlaunch.conf")
    assert "raise_pool 512 /sys/kernel/mm/hugepages/" in text_of(script, "/etc/kvmlaunch/boot.sh")
    assert "-ge 512 ] || echo 512" in text_of(systemd, "/etc/systemd/system/kvmlaunch-hugepages.service")


@pytest.mark.parametrize(
    ("cmdline", "pages"),
    [
        ("hugepages=2048", 2048),
        ("default_hugepagesz=2M hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=1024", 1024),
        ("hugepagesz=1G hugepages=4096", 512),
        ("hugepages=16", 512),
    ],
)
def test_a_larger_pool_of_the_kernel_command_line_is_not_lowered_at_boot(cmdline: str, pages: int) -> None:
    found = tuning(files={"/proc/cmdline": f"root=/dev/vda {cmdline}\n"})

    plan = plan_tuning(host(pages=2048), found, HostWishes(), (WEB,))

    assert f"vm.nr_hugepages = {pages}\n" in text_of(plan, "/etc/sysctl.d/80-kvmlaunch.conf")


def test_the_sysctl_is_left_out_where_it_would_count_pages_of_another_size() -> None:
    found = tuning(files={"/proc/meminfo": "Hugepagesize:    1048576 kB\n"})

    plan = plan_tuning(host(), found, HostWishes(), (WEB,))

    assert not any(kept.path.endswith("80-kvmlaunch.conf") for kept in plan.files)
    assert any(kept.path.endswith("kvmlaunch-hugepages.service") for kept in plan.files)


def test_a_shared_mount_that_would_hide_files_is_refused() -> None:
    plan = plan_tuning(host(), tuning(hidden=3), HostWishes(hugetlbfs="/home"), ())

    assert codes(plan) == ["host.hugetlbfs.place"]


def test_a_distribution_whose_grub_reads_no_drop_ins_is_given_the_command() -> None:
    found = tuning(grub="grub2-mkconfig -o /boot/grub2/grub.cfg")

    plan = plan_tuning(host(), found, HostWishes(hugepage_pools={"1GiB": 4}), (), boot=True)

    (kept,) = (kept for kept in plan.files if "grub" in kept.path)
    assert kept.command == "grubby --update-kernel=ALL --args='hugepagesz=1G hugepages=4'"
    assert kept.inactive


def test_what_auto_has_made_already_stays_in_the_plan_and_so_is_kept() -> None:
    made = tuning(files={"/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n"})

    plan = plan_tuning(host(), made, HostWishes(), (ORDINARY,))

    assert [setting.key for setting in plan.settings] == ["thp.enabled"]
    assert changes(plan) == {}


@pytest.mark.parametrize(
    ("cmdline", "pages"),
    [
        ("hugepages=48", 48),
        ("hugepages=0:16,1:32", 48),
        ("hugepagesz=2048K hugepages=48", 48),
        ("hugepagesz=1G hugepages=4", 0),
        ("hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=48 hugepages=9", 48),
    ],
)
def test_pages_of_the_kernel_command_line_are_read_as_the_kernel_does(cmdline: str, pages: int) -> None:
    assert boot_pages(cmdline.split(), 2 * MIB, 2 * MIB) == pages


@pytest.mark.parametrize("device", ["nvme0n1", "zd0"])
def test_a_device_without_schedulers_to_choose_from_is_left_and_not_spoken_of(device: str) -> None:
    seen = tuning(
        devices={device: 4}, files={**queue(device, "none"), f"/sys/block/{device}/queue/scheduler": "none\n"}
    )

    plan = plan_tuning(host(), seen, HostWishes(), ())

    assert (plan.changes, codes(plan)) == ((), [])


@pytest.mark.parametrize(
    ("local", "run"),
    [
        ("#!/bin/sh\n/etc/kvmlaunch/boot.sh\n", True),
        ("#!/bin/sh\n[ -x /etc/kvmlaunch/boot.sh ] && sh /etc/kvmlaunch/boot.sh\nexit 0\n", True),
        ("#!/bin/sh\nexit 0\n/etc/kvmlaunch/boot.sh\n", False),
        ("#!/bin/sh\n# /etc/kvmlaunch/boot.sh\n", False),
    ],
)
def test_whether_rc_local_runs_our_script_is_seen(local: str, run: bool) -> None:  # noqa: FBT001
    seen = evolve(without_systemd(tuning()), local_script=local)

    plan = plan_tuning(host(systemd=False), seen, HostWishes(swappiness=10), ())

    assert [kept.inactive == "" for kept in plan.files if kept.path.endswith("boot.sh")] == [run]
