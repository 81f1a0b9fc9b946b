"""What no case can show: an older QEMU, a kernel without a pool, stacked mounts, and the changes of the host."""

from pathlib import PurePosixPath

import pytest
from attrs import evolve

from kvmlaunch.builder.vm import build_vm, needs_io_uring, wanted_paths
from kvmlaunch.model.change import MountChange, PoolChange, TapChange, render_change
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding, errors_of
from kvmlaunch.model.host import HeldByVm, HostFacts, HugepagePool, Mount
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.preflight.checks import check_plan, plan_changes
from kvmlaunch.units import GIB, MIB
from tests.casebook import Outcome, accepted_cases, load_caps, load_host, planned_cases, run_case

PAGES_8G = 4096


def definition_of(name: str) -> Definition:
    definition = run_case(name).loaded.definition
    assert definition is not None
    return definition


def findings_on(name: str, *, host: HostFacts | None = None, caps: QemuCaps | None = None) -> tuple[Finding, ...]:
    """Give the findings of a case on another host, or with another QEMU."""
    outcome = run_case(name)
    there, can = host or outcome.host, caps or outcome.caps
    return check_plan(build_vm(definition_of(name), there, can), there, can, outcome.places)


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return [found.report.code for found in errors_of(findings)]


def mount_of(outcome: Outcome, *, size: int, uid: int = 0, number: int = 1) -> tuple[Mount, ...]:
    """Give mounts of hugetlbfs on the VM's own mount point."""
    options = ("rw", "pagesize=2M", f"size={size}", f"min_size={size}", f"uid={uid}")
    return (
        Mount(path=outcome.places.hugepages, type="hugetlbfs", source="none", device="0:70", options=options),
    ) * number


def test_a_qemu_older_than_the_tests_is_refused() -> None:
    older = evolve(load_caps("7.2.22"), version=(7, 1, 9))

    assert codes(findings_on("three-lines", caps=older)) == ["qemu.version"]


def test_a_qemu_without_a_q35_machine_is_refused() -> None:
    caps = load_caps("7.2.22")
    without = evolve(caps, machines=tuple(machine for machine in caps.machines if "q35" not in machine.name))

    assert codes(findings_on("three-lines", caps=without)) == ["qemu.machine.unknown"]


def test_a_qemu_without_io_uring_is_told_by_hand_and_gone_round_by_auto() -> None:
    caps = load_caps("7.2.22")
    without = evolve(caps, aio=caps.aio - {"io_uring"})

    assert codes(findings_on("aio-io-uring", caps=without)) == ["qemu.capability"]
    assert codes(findings_on("aio-sparse", caps=without)) == []


def test_a_kernel_without_gigantic_pages_is_told() -> None:
    host = load_host("two-nodes")
    small = tuple(pool for pool in host.pools if pool.page_size == 2 * MIB)
    nodes = tuple(
        evolve(node, pools=tuple(pool for pool in node.pools if pool.page_size == 2 * MIB)) for node in host.nodes
    )

    found = findings_on("hugepages-1gib", host=evolve(host, pools=small, nodes=nodes))

    assert codes(found) == ["host.hugetlbfs.pagesize"]


def test_mounts_that_are_stacked_are_told() -> None:
    outcome = run_case("three-lines")
    twice = evolve(outcome.host, mounts=(*outcome.host.mounts, *mount_of(outcome, size=8 * GIB, number=2)))

    assert codes(findings_on("three-lines", host=twice)) == ["host.hugetlbfs.stacked"]


def test_no_firmware_is_told_where_it_was_looked_for() -> None:
    outcome = run_case("boot-uefi")
    paths = {
        path: evolve(facts, kind="missing") if "OVMF" in str(path) else facts
        for path, facts in outcome.host.paths.items()
    }

    (found,) = errors_of(findings_on("boot-uefi", host=evolve(outcome.host, paths=paths)))

    assert found.report.code == "qemu.capability"
    assert "/usr/share/OVMF/OVMF_CODE_4M.fd" in found.report.why


def test_the_second_choice_of_firmware_is_taken() -> None:
    outcome = run_case("boot-uefi")
    first = {PurePosixPath(f"/usr/share/OVMF/OVMF_{name}_4M.fd") for name in ("CODE", "VARS")}
    paths = {
        path: evolve(facts, kind="missing") if path in first else facts for path, facts in outcome.host.paths.items()
    }

    plan = build_vm(definition_of("boot-uefi"), evolve(outcome.host, paths=paths), outcome.caps)

    assert plan.variables == PurePosixPath("/usr/share/OVMF/OVMF_VARS.fd")


def test_a_pool_is_raised_by_the_shortfall_and_mounted_for_the_user() -> None:
    outcome = run_case("system-user")
    assert outcome.plan is not None

    assert plan_changes(outcome.plan, outcome.host, outcome.places) == (
        PoolChange(page_size=2 * MIB, pages=PAGES_8G),
        MountChange(path=str(outcome.places.hugepages), page_size=2 * MIB, size=8 * GIB, uid=997, gid=997),
    )


def test_reserved_pages_are_not_free() -> None:
    outcome = run_case("three-lines")
    pool = HugepagePool(page_size=2 * MIB, total=5000, free=5000, surplus=0, reserved=4000)
    host = evolve(outcome.host, pools=(pool,))

    plan = build_vm(definition_of("three-lines"), host, outcome.caps)

    assert [change for change in plan_changes(plan, host, outcome.places) if isinstance(change, PoolChange)] == [
        PoolChange(page_size=2 * MIB, pages=PAGES_8G - 1000)
    ]


def test_a_full_pool_is_not_raised() -> None:
    outcome = run_case("hugepages-1gib")
    assert outcome.plan is not None

    changes = plan_changes(outcome.plan, outcome.host, outcome.places)

    assert [type(change) for change in changes] == [MountChange]


def test_pages_by_hand_are_worth_a_compaction() -> None:
    outcome = run_case("hugepages-by-hand")
    assert outcome.plan is not None

    (pool, _) = plan_changes(outcome.plan, outcome.host, outcome.places)

    assert pool == PoolChange(page_size=2 * MIB, pages=128, compact=True)


def test_pages_of_a_bound_vm_come_from_its_node() -> None:
    outcome = run_case("numa-auto")
    assert outcome.plan is not None

    (pool, mount) = plan_changes(outcome.plan, outcome.host, outcome.places)

    assert pool == PoolChange(page_size=2 * MIB, pages=PAGES_8G - 512, host_numa_node=0)
    assert isinstance(mount, MountChange)
    assert mount.host_numa_node == 0


def test_what_the_vm_holds_already_needs_no_change() -> None:
    outcome = run_case("three-lines")
    held = HeldByVm(mount_size=8 * GIB, mount_page_size=2 * MIB, mount_uid=0, running=True, pid=4711)
    host = evolve(outcome.host, held=held)

    plan = build_vm(definition_of("three-lines"), host, outcome.caps)

    assert plan == outcome.plan
    assert plan_changes(plan, host, outcome.places) == ()


def test_a_mount_of_another_size_is_made_anew_with_the_pages_that_it_gives_back() -> None:
    outcome = run_case("three-lines")
    held = HeldByVm(mount_size=4 * GIB, mount_page_size=2 * MIB, mount_uid=0)
    host = evolve(outcome.host, held=held)

    plan = build_vm(definition_of("three-lines"), host, outcome.caps)

    assert plan_changes(plan, host, outcome.places)[0] == PoolChange(page_size=2 * MIB, pages=PAGES_8G // 2)


def test_ordinary_memory_changes_nothing() -> None:
    outcome = run_case("hugepages-off")
    assert outcome.plan is not None

    assert plan_changes(outcome.plan, outcome.host, outcome.places) == ()


@pytest.mark.parametrize(
    ("name", "multi_queue", "mtu"), [("net-bridge", True, 9000), ("net-bridge-one-queue", False, None)]
)
def test_a_tap_has_several_queues_exactly_when_the_netdev_has(name: str, *, multi_queue: bool, mtu: int | None) -> None:
    outcome = run_case(name)
    assert outcome.plan is not None
    (network,) = outcome.plan.networks

    taps = [
        change for change in plan_changes(outcome.plan, outcome.host, outcome.places) if isinstance(change, TapChange)
    ]

    assert taps == [TapChange(ifname=network.ifname, bridge=network.bridge, uid=0, multi_queue=multi_queue, mtu=mtu)]


def test_a_tap_that_is_there_is_not_made() -> None:
    outcome = run_case("net-tap")
    assert outcome.plan is not None

    changes = plan_changes(outcome.plan, outcome.host, outcome.places)

    assert not [change for change in changes if isinstance(change, TapChange)]


def test_a_tap_of_ours_that_another_user_owns_is_refused() -> None:
    outcome = run_case("net-bridge")
    assert outcome.plan is not None
    (network,) = outcome.plan.networks
    devices = dict(outcome.host.network_devices)
    devices[network.ifname] = evolve(devices["tap-alice"], name=network.ifname, owner_uid=1234)
    other = evolve(outcome.host, network_devices=devices, user=evolve(outcome.host.user, uid=997, name="kvmlaunch"))

    assert codes(findings_on("net-bridge", host=other)) == ["host.tap.missing"]


@pytest.mark.parametrize("name", accepted_cases())
def test_every_change_can_be_told_to_people(name: str) -> None:
    outcome = run_case(name)
    assert outcome.plan is not None

    for change in plan_changes(outcome.plan, outcome.host, outcome.places):
        assert render_change(change)


@pytest.mark.parametrize("name", accepted_cases())
def test_the_page_arithmetic_of_every_case(name: str) -> None:
    plan = run_case(name).plan
    assert plan is not None
    memory = plan.memory

    assert (memory.pages > 0) == (memory.backing == "hugepages")
    assert memory.pages * memory.page_size >= memory.size or memory.backing == "ordinary"
    assert (memory.pages - 1) * memory.page_size < memory.size


@pytest.mark.parametrize("name", planned_cases())
def test_every_path_of_a_plan_is_among_those_that_are_looked_at(name: str) -> None:
    plan = run_case(name).plan
    assert plan is not None
    looked_at = set(wanted_paths(definition_of(name)))

    assert {disk.image or disk.path for disk in plan.disks} | {file.path for file in plan.files} <= looked_at


def test_io_uring_is_tried_only_where_it_decides_something() -> None:
    outcome = run_case("three-lines")

    assert not needs_io_uring(definition_of("three-lines"), outcome.host, outcome.caps)
    assert needs_io_uring(definition_of("aio-sparse"), outcome.host, outcome.caps)
    assert needs_io_uring(definition_of("aio-io-uring"), outcome.host, outcome.caps)
    assert not needs_io_uring(definition_of("empty"), outcome.host, outcome.caps)


def test_a_volume_that_is_missing_may_only_be_inactive() -> None:
    (found,) = errors_of(findings_on("disk-missing-volume"))

    assert found.report.hint.splitlines() == [
        "lvchange --activate y vg0/gone   # where the volume is there and not active",
        "kvmlaunch disk create disk-missing-volume:root   # or: kvmlaunch up disk-missing-volume --create",
    ]
