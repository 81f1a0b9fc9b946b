"""Several VMs at once on one host: exactly those are named that do not fit, and what runs counts once."""

import json
import os
import shutil
import subprocess  # noqa: TID253 - a test runs kvmlaunch as its users do
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from attrs import evolve

from kvmlaunch.builder.vm import build_vm
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.host import HeldByVm, HostFacts, HugepagePool, Listener
from kvmlaunch.preflight.fleet import Member, check_fleet
from kvmlaunch.steps.caller import current_caller
from kvmlaunch.steps.fleet import Looked, resolve_together
from kvmlaunch.steps.load import load_subject
from kvmlaunch.steps.resolve import resolve, wanted_for
from kvmlaunch.units import GIB, MIB
from tests.casebook import TESTS, Case, host_of, load, load_caps, load_host, places_of

BIG = 'vcpus = 1\nmemory = "8GiB"\n'
SMALL = 'vcpus = 1\nmemory = "1GiB"\n'
ORDINARY = 'vcpus = 1\n[memory]\nhugepages = "off"\nsize = '
HOST = "kvm-intel-8cpu"
TWO_NODES = "two-nodes"


def member(name: str, text: str, host: str = HOST, *, held: HeldByVm | None = None) -> Member:
    """Give a VM as planned on a captured host, with what it holds there."""
    case = Case(name=name, text=text, host=host, qemu="7.2.22", why="", file=PurePosixPath(f"/srv/vm/{name}.toml"))
    captured = load_host(host)
    definition = load(case, captured).definition
    assert definition is not None, load(case, captured).findings
    facts = host_of(case, definition, places_of(case, captured))
    facts = evolve(facts, held=held or facts.held)
    return Member(plan=build_vm(definition, facts, load_caps("7.2.22")), host=facts)


def fleet(*texts: str, host: str = HOST) -> list[Member]:
    """Give VMs a, b, c … of these definitions."""
    return [member("abcdefgh"[place], text, host) for place, text in enumerate(texts)]


def named(members: Sequence[Member], host: HostFacts | None = None) -> dict[str, list[str]]:
    """Give the codes of each VM that does not fit."""
    found = check_fleet(members, host or members[0].host)
    return {
        each.plan.name: [finding.report.code for finding in its]
        for each, its in zip(members, found, strict=True)
        if its
    }


def only(members: Sequence[Member]) -> Finding:
    """Give the one finding that there is."""
    (finding,) = (finding for its in check_fleet(members, members[0].host) for finding in its)
    return finding


def running(*, pages: int = 0) -> HeldByVm:
    """Give what a VM holds that runs, with so many pages of 2 MiB."""
    if not pages:
        return HeldByVm(running=True, pid=4711)
    return HeldByVm(mount_size=pages * 2 * MIB, mount_page_size=2 * MIB, mount_uid=0, running=True, pid=4711)


def test_no_vm_is_a_fleet_that_fits() -> None:
    assert check_fleet((), load_host(HOST)) == ()


def test_the_first_vms_that_fit_fit_and_the_next_is_named() -> None:
    members = fleet(BIG, BIG, BIG, BIG)

    assert named(members) == {"d": ["host.hugepages.short"]}


def test_a_vm_that_does_not_fit_takes_nothing_from_those_after_it() -> None:
    members = fleet(BIG, BIG, BIG, BIG, SMALL)

    assert named(members) == {"d": ["host.hugepages.short"]}


def test_the_order_of_the_definitions_decides_who_fits() -> None:
    members = fleet(BIG, BIG, BIG, 'memory = "3GiB"')

    assert named(members) == {"d": ["host.hugepages.short"]}
    assert named(members[::-1]) == {"a": ["host.hugepages.short"]}


def test_a_shortage_is_told_with_numbers_that_add_up_and_a_size_that_fits() -> None:
    members = fleet(BIG, BIG, BIG, BIG)

    report = only(members).report

    assert report.message == "4096 huge pages of 2MiB cannot be had beside the other VMs"
    assert "8GiB more are needed, 1638MiB are left: 29491MiB are available" in report.why
    assert "the host keeps 3276MiB, the VMs that fit take 24GiB" in report.why
    assert report.hint == "kvmlaunch up d --set memory.size=1GiB"
    assert named([*members[:3], member("d", SMALL)]) == {}


def test_where_nothing_is_left_the_hint_leaves_the_vm_out() -> None:
    members = fleet(BIG, BIG, BIG, 'memory = "1600MiB"', SMALL)

    assert only(members).report.hint.startswith("lifecycle.autostart = false")


def test_ordinary_memory_counts_as_much_as_pages() -> None:
    members = fleet(BIG, f'{ORDINARY}"16GiB"', f'{ORDINARY}"2GiB"')

    assert named(members) == {"c": ["host.memory.short"]}


def pooled(host: HostFacts, *, reserved: int) -> HostFacts:
    """Give a host with 8 GiB of its memory in a pool, so many pages of it promised to others."""
    pool = HugepagePool(page_size=2 * MIB, total=4096, free=4096, surplus=0, reserved=reserved)
    return evolve(host, pools=(pool,), memory=evolve(host.memory, available=host.memory.available - 8 * GIB))


def test_free_pages_of_a_pool_are_taken_before_memory() -> None:
    members = fleet(BIG, BIG, BIG, BIG)

    assert named(members, pooled(members[0].host, reserved=0)) == {"d": ["host.hugepages.short"]}


def test_pages_that_others_were_promised_are_not_free() -> None:
    members = fleet(BIG, BIG, BIG)

    assert named(members, pooled(members[0].host, reserved=4096)) == {"c": ["host.hugepages.short"]}


@pytest.mark.parametrize(("node", "fits"), [("0", False), ("1", True)])
def test_pages_of_a_node_by_hand_come_from_it_alone(node: str, *, fits: bool) -> None:
    on_node = 'vcpus = 1\n[memory]\nsize = "20GiB"\nnuma = '
    members = fleet(f'{on_node}"0"', f'{on_node}"{node}"', host=TWO_NODES)

    found = named(members)

    assert found == ({} if fits else {"b": ["host.hugepages.short"]})
    assert fits or "NUMA node 0" in only(members).report.why


def test_a_node_chosen_by_auto_gives_way_to_another() -> None:
    members = fleet(*['vcpus = 1\nmemory = "20GiB"'] * 3, host=TWO_NODES)

    assert {each.plan.memory.host_numa_node for each in members} == {0}
    assert named(members) == {"c": ["host.hugepages.short"]}


def test_pages_of_another_size_have_a_pool_of_their_own() -> None:
    gigantic = 'vcpus = 1\n[memory]\nsize = "4GiB"\nhugepages = "1GiB"\nnuma = "none"\n'
    members = fleet(gigantic, gigantic, host=TWO_NODES)
    host = evolve(members[0].host, memory=evolve(members[0].host.memory, available=0))

    assert named(members, host) == {}
    assert named([*members, member("c", gigantic, TWO_NODES)], host) == {"c": ["host.hugepages.short"]}


def test_a_vm_that_runs_is_not_counted_twice() -> None:
    members = [member("a", BIG, held=running(pages=4096)), *fleet(BIG, BIG, BIG)[1:3]]
    beside = pooled(members[0].host, reserved=4096)

    assert named(members, beside) == {}
    assert named([*members, member("d", BIG)], beside) == {"d": ["host.hugepages.short"]}


def test_ordinary_memory_that_a_running_guest_has_not_touched_is_its_own() -> None:
    members = [member("a", f'{ORDINARY}"20GiB"', held=running()), *fleet(BIG, f'{ORDINARY}"10GiB"')[1:]]

    assert named(members) == {"b": ["host.memory.short"]}


def test_what_is_prepared_for_a_vm_is_its_own() -> None:
    prepared = evolve(running(pages=4096), running=False, pid=None)
    member_a = member("a", BIG, held=prepared)
    host = evolve(member_a.host, memory=evolve(member_a.host.memory, available=GIB))

    assert named([member_a], host) == {}
    assert named([member("a", BIG)], host) == {"a": ["host.hugepages.short"]}


def test_vms_that_run_come_before_all_others() -> None:
    port = '[network.lan]\nforwards = ["tcp:127.0.0.1:8080:80"]\n'
    members = [member("a", SMALL + port), member("b", SMALL + port, held=running(pages=512))]

    assert named(members) == {"a": ["host.port.used"]}


def test_a_host_cpu_that_two_vms_are_pinned_to_is_told_with_free_ones() -> None:
    pinned = 'memory = "1GiB"\n[cpu]\nvcpus = 2\npin = '
    members = fleet(f'{pinned}"6-7"', f'{pinned}"5-6"', f'{pinned}"4-5"')

    report = only(members).report

    assert named(members) == {"b": ["fleet.pin"]}
    assert report.message == "another VM is pinned to host CPU 6"
    assert report.why == "a has CPU 6, b wants 5-6"
    assert report.hint == "kvmlaunch up b --set cpu.pin=4-5"


def test_a_host_cpu_of_another_vms_io_thread_is_told_and_what_is_shared_is_not() -> None:
    thread = 'memory = "1GiB"\n[iothreads]\ncount = 1\npin = "6"\n'
    vcpus = 'memory = "1GiB"\n[cpu]\nvcpus = 2\npin = "6-7"\n'
    sharing = 'memory = "1GiB"\niothreads = { count = 1, pin = "auto" }\n[cpu]\nvcpus = 2\npin = "4-5"\n'

    assert named(fleet(thread, vcpus)) == {"b": ["fleet.pin"]}
    assert named(fleet(vcpus, sharing)) == {}


def test_more_pinned_vcpus_than_the_host_has_cpus_name_the_vm_that_finds_none() -> None:
    pinned = [f'memory = "1GiB"\n[cpu]\nvcpus = 2\npin = "{cpus}"\n' for cpus in ("0-1", "2-3", "4-5", "6-7", "0,7")]

    report = only(fleet(*pinned)).report

    assert report.why == "a has CPU 0; d has CPU 7, e wants 0,7"
    assert report.hint == "kvmlaunch up e --set cpu.pin=none"


def test_automatic_pins_meet_as_each_vm_takes_the_same() -> None:
    automatic = 'memory = "1GiB"\n[cpu]\nvcpus = 4\npin = "auto"\n'

    assert named(fleet(automatic, automatic)) == {"b": ["fleet.pin"]}


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ("tcp:127.0.0.1:8080", "tcp:127.0.0.1:8080", True),
        ("tcp:127.0.0.1:8080", "tcp:0.0.0.0:8080", True),
        ("tcp:0.0.0.0:8080", "tcp:127.0.0.1:8080", True),
        ("tcp:127.0.0.1:8080", "tcp:127.0.0.2:8080", False),
        ("tcp:127.0.0.1:8080", "udp:127.0.0.1:8080", False),
        ("tcp:127.0.0.1:8080", "tcp:127.0.0.1:8081", False),
    ],
)
def test_one_port_is_one_vms(first: str, second: str, *, overlap: bool) -> None:
    texts = [f'{SMALL}[network.lan]\nforwards = ["{each}:80"]\n' for each in (first, second)]

    assert named(fleet(*texts)) == ({"b": ["host.port.used"]} if overlap else {})


def test_the_hint_for_a_port_is_a_forward_that_is_free() -> None:
    members = fleet(*[f'{SMALL}[network.lan]\nforwards = ["tcp:127.0.0.1:{port}:80"]\n' for port in (8080, 8081, 8080)])
    host = evolve(members[0].host, listeners=(Listener(protocol="tcp", address="127.0.0.1", port=8082),))

    ((finding,),) = (its for its in check_fleet(members, host) if its)

    assert finding.report.why == "a binds 127.0.0.1:8080"
    assert finding.report.hint == '"tcp:127.0.0.1:8083:80"   # in network.lan.forwards'


def test_two_vms_that_do_not_fit_are_told_two_ports() -> None:
    members = fleet(*[f'{SMALL}[network.lan]\nforwards = ["tcp:127.0.0.1:8080:80"]\n' for _ in range(3)])

    hints = [finding.report.hint for its in check_fleet(members, members[0].host) for finding in its]

    assert hints == [f'"tcp:127.0.0.1:{port}:80"   # in network.lan.forwards' for port in (8081, 8082)]


def test_two_screens_on_one_port_are_told_with_the_next() -> None:
    screen = f'{SMALL}[display]\ntype = "vnc"\naddress = "127.0.0.1:5901"\n'

    assert only(fleet(screen, screen)).report.hint == "kvmlaunch up b --set display.address=127.0.0.1:5902"


def test_every_conflict_of_a_vm_is_told() -> None:
    forwards = 'forwards = ["tcp:127.0.0.1:8080:80", "udp:127.0.0.1:53:53"]'
    text = f'{SMALL}[network.lan]\nmac = "52:54:00:00:00:01"\n{forwards}\n[disk.root]\npath = "web01.img"\n'

    assert named(fleet(text, text)) == {"b": ["host.port.used", "host.port.used", "fleet.mac", "disk.locked"]}


def test_a_mac_address_by_hand_is_one_vms_whatever_its_spelling() -> None:
    members = fleet(*[f'{SMALL}[network.lan]\nmac = "{mac}"\n' for mac in ("52:54:00:AB:00:01", "52:54:00:ab:00:01")])

    assert named(members) == {"b": ["fleet.mac"]}
    assert only(members).report.why == "a has it too"


def test_a_uuid_by_hand_is_one_vms_whatever_its_spelling() -> None:
    uuid = "123e4567-e89b-42d3-a456-42661417400a"
    members = fleet(*[f'{SMALL}uuid = "{each}"\n' for each in (uuid, uuid.upper(), uuid[:-1] + "b")])

    assert named(members) == {"b": ["fleet.uuid"]}
    assert only(members).report.why == "a has it too"


def test_computed_macs_and_taps_never_meet() -> None:
    assert named(fleet(*[f'{SMALL}[network.lan]\nbridge = "br0"\n'] * 5)) == {}


def test_two_vms_without_a_network_share_none() -> None:
    assert named(fleet(*[f'{SMALL}[network.lan]\ntype = "none"\n'] * 2)) == {}


def test_one_tap_is_one_vms() -> None:
    text = f'{SMALL}[network.lan]\nifname = "tap-alice"\n'

    assert named(fleet(text, text)) == {"b": ["fleet.tap"]}


def test_one_image_is_one_vms_whatever_its_path() -> None:
    members = fleet(*[f'{SMALL}[disk.root]\npath = "/srv/vm/{name}.img"\n' for name in ("web01", "link")])

    assert named(members) == {"b": ["disk.locked"]}
    assert only(members).report.why == "a writes it as disk.root, b writes it"
    assert only(members).report.hint.startswith("kvmlaunch disk convert b:root /srv/vm/b-root.img ")


@pytest.mark.parametrize("writer", [0, 1])
def test_an_image_that_one_writes_is_shared_with_no_reader(writer: int) -> None:
    disks = [f'{SMALL}[disk.root]\npath = "web01.img"\nreadonly = {str(place != writer).lower()}\n' for place in (0, 1)]

    assert named(fleet(*disks)) == {"b": ["disk.locked"]}


def test_an_image_that_all_only_read_is_shared() -> None:
    text = f'{SMALL}[disk.root]\npath = "web01.img"\nreadonly = true\n'

    assert named(fleet(text, text, text)) == {}


def test_a_block_device_that_two_vms_write_is_told() -> None:
    text = f'{SMALL}[disk.root]\npath = "/dev/vg0/db01"\n'

    assert only(fleet(text, text)).report.hint == "readonly = true   # in [disk.root] of both VMs"


def overlay(name: str, path: str) -> Member:
    """Give a VM whose image at a path is seen to rest on the golden one."""
    made = member(name, f'{SMALL}[disk.root]\npath = "{path}"\n')
    facts = evolve(made.host.paths[PurePosixPath(path)], chain=("/srv/vm/golden.qcow2",))
    return evolve(made, host=evolve(made.host, paths={PurePosixPath(path): facts}))


def test_a_backing_file_is_shared_until_a_vm_writes_it() -> None:
    overlays = [overlay("a", "/srv/vm/clone.qcow2"), overlay("b", "/srv/vm/db01-wal.qcow2")]
    golden = member("c", f'{SMALL}[disk.root]\npath = "/srv/vm/golden.qcow2"\n')

    assert named(overlays) == {}
    assert named([*overlays, golden]) == {"c": ["disk.locked"]}
    assert named([golden, *overlays]) == {"a": ["disk.locked"], "b": ["disk.locked"]}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a directory of definitions beside a saved host that holds its QEMU's answers."""
    shutil.copytree(TESTS / "hosts" / HOST, tmp_path / "facts")
    shutil.copytree(TESTS / "qemus" / "7.2.22", tmp_path / "facts" / "qemu")
    (tmp_path / "vmdefs").mkdir()
    return tmp_path


def define(place: Path, **texts: str) -> None:
    """Write definitions."""
    for name, text in texts.items():
        (place / "vmdefs" / f"{name}.toml").write_text(text)


def validate(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `validate` there."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("KVMLAUNCH")}
    command = [sys.executable, "-m", "kvmlaunch", "validate", *words]
    return subprocess.run(  # noqa: S603 - the words are ours
        command, cwd=place, env={**known, "HOME": str(place)}, capture_output=True, text=True, timeout=60, check=False
    )


def test_validate_together_names_who_does_not_fit_on_a_saved_host(place: Path) -> None:
    define(place, a=BIG, b=BIG, c=BIG, d=BIG, e=SMALL)

    ran = validate(place, "--together", "--facts", "facts")

    assert ran.returncode == 6, ran.stderr
    assert "error: d: 4096 huge pages of 2MiB cannot be had beside the other VMs  [host.hugepages.short]" in ran.stderr
    assert "vmdefs/d.toml:2:10 memory.size" in ran.stderr
    assert [line.split()[:3] for line in ran.stderr.splitlines() if "together" in line] == [
        *([name, "ok", "together"] for name in "abc"), ["d", "FAIL", "together"], ["e", "ok", "together"],
    ]  # fmt: skip


def test_validate_together_of_some_leaves_the_others_out(place: Path) -> None:
    define(place, a=BIG, b=BIG, c=BIG, d=BIG)

    ran = validate(place, "--together", "--facts", "facts", "a", "b", "d")

    assert ran.returncode == 0, ran.stderr


def test_validate_together_as_json_says_who_fits(place: Path) -> None:
    mac = '[network.lan]\nmac = "52:54:00:00:00:01"\n'
    define(place, a=SMALL + mac, b=SMALL + mac)

    ran = validate(place, "--together", "--facts", "facts", "--json")

    rows = json.loads(ran.stdout)["definitions"]
    assert ran.returncode == 6
    assert [(row["name"], row["fits"], [found["code"] for found in row["findings"]]) for row in rows] == [
        ("a", True, []),
        ("b", False, ["fleet.mac"]),
    ]


def test_a_definition_with_mistakes_is_told_beside_those_that_do_not_fit(place: Path) -> None:
    define(
        place, a="vcpu = 1\n", b='memory = "64GiB"\n[memory.x]\n', c='[memory]\nsize = "64GiB"\nhugepages = "2MiB"\n'
    )

    ran = validate(place, "--together", "--facts", "facts")

    assert ran.returncode == 1
    assert {"[def.key.unknown]", "[host.hugepages.short]"} <= set(ran.stderr.split())


def test_validate_alone_builds_no_plan_and_wants_no_facts(place: Path) -> None:
    define(place, a=BIG)

    assert validate(place, "--facts", "facts").returncode == 2
    assert validate(place).returncode == 0


def test_the_host_is_looked_at_once_and_each_vm_sees_its_own_paths(place: Path) -> None:
    define(place, a=f'{SMALL}[disk.root]\npath = "/srv/vm/web01.img"\n', b=SMALL)
    caller = current_caller(directories=(str(place / "vmdefs"),), facts=place / "facts")
    first, second = (load_subject(caller, name).definition for name in "ab")
    looked = Looked(wanted=wanted_for((first, second), everything=True))

    seen = looked.read_host(first, caller, None)
    caps = looked.read_caps(first, caller)
    shutil.rmtree(place / "facts")

    assert list(seen.paths) == [PurePosixPath("/srv/vm/web01.img")]
    assert looked.read_host(second, caller, None) == evolve(seen, paths={})
    assert looked.read_caps(second, caller) is caps


def test_several_vms_are_planned_as_each_alone(place: Path) -> None:
    define(place, a=BIG, b=f'{SMALL}[disk.root]\npath = "/srv/vm/web01.img"\n')
    caller = current_caller(directories=(str(place / "vmdefs"),), facts=place / "facts")
    subjects = {name: load_subject(caller, name) for name in "ab"}

    together = resolve_together(caller, subjects)

    for name, resolved in together.resolved.items():
        alone = resolve(caller, subjects[name], everything=True)
        assert (resolved.plan, resolved.places) == (alone.plan, alone.places)
