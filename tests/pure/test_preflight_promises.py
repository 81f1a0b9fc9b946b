"""A live QEMU that is as planned gives no finding; every single deviation gives one."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, Final

import pytest
from attrs import evolve, fields

from kvmlaunch.builder.render import render_argv
from kvmlaunch.model.evidence import DriveEvidence, Evidence, RamMapping
from kvmlaunch.model.plan import (
    AcceleratorPromise,
    DrivePromise,
    IdentityPromise,
    MemoryPromise,
    Place,
    Plan,
    SandboxPromise,
)
from kvmlaunch.preflight.promises import check_promises, check_words
from kvmlaunch.units import MIB
from tests.casebook import accepted_cases, plan_of, run_case

O_DIRECT, O_RDWR = 0o40000, 0o2
PLAIN = "hugepages-by-hand"
CASE: Final = "disk-every-key"


def only(plan: Plan, kind: type[Any]) -> Any:  # noqa: ANN401 - a promise of that kind
    """Give the one promise of a kind."""
    (found,) = (promise for promise in plan.promises if isinstance(promise, kind))
    return found


def drive_evidence(promise: DrivePromise) -> DriveEvidence:
    """Give a drive that is as promised, with its file open twice."""
    flags = O_RDWR | (O_DIRECT if promise.direct else 0)
    return DriveEvidence(
        id=promise.id,
        path=f"/somewhere/{promise.path.tail}" if isinstance(promise.path, Place) else str(promise.path),
        format=promise.format,
        readonly=promise.readonly,
        direct=promise.direct,
        no_flush=promise.no_flush,
        writeback=promise.writeback,
        detect_zeroes=promise.detect_zeroes,
        iops=promise.iops,
        bandwidth=promise.bandwidth,
        open_flags=(flags, flags),
    )


def ram_evidence(promise: MemoryPromise) -> RamMapping:
    """Give a mapping of RAM as promised."""
    flags = {"rd", "wr", "dd"} | ({"ht"} if promise.page_size > 4096 else {"hg"}) | ({"mg"} if promise.merge else set())
    resident = promise.size if promise.prealloc else 12 * MIB
    return RamMapping(size=promise.size, page_size=promise.page_size, resident=resident, flags=frozenset(flags))


def evidence_of(name: str) -> Evidence:
    """Give what a QEMU shows that keeps every promise of a case."""
    plan = plan_of(name)
    memory, identity = only(plan, MemoryPromise), only(plan, IdentityPromise)
    sandbox = only(plan, SandboxPromise).seccomp
    return Evidence(
        kvm_enabled=only(plan, AcceleratorPromise).kvm,
        name=identity.name,
        uuid=identity.uuid,
        machine=f"{identity.machine}-machine",
        vcpus=identity.vcpus,
        ram=(ram_evidence(memory),),
        drives=tuple(drive_evidence(promise) for promise in plan.promises if isinstance(promise, DrivePromise)),
        seccomp=2 if sandbox else 0,
        no_new_privs=1 if sandbox else 0,
        uid=identity.uid,
        cap_eff=0 if identity.uid else 0x1FFFFFFFFFF,
        locked_bytes=memory.size if memory.lock else 0,
        cmdline=render_argv(plan, run_case(name).places),
        run_state="prelaunch" if any(option.flag == "-S" for option in plan.options) else "running",
    )


def problems(name: str, evidence: Evidence) -> list[tuple[str, str]]:
    """Give key and message of each finding."""
    found = check_promises(plan_of(name), render_argv(plan_of(name), run_case(name).places), evidence)
    assert all(finding.severity == "error" and finding.report.code == "qemu.promise" for finding in found)
    assert all(finding.report.why and finding.report.hint for finding in found)
    return [(finding.key, finding.report.message) for finding in found]


@pytest.mark.parametrize("name", accepted_cases())
def test_a_qemu_as_planned_gives_no_finding(name: str) -> None:
    assert problems(name, evidence_of(name)) == []


def drive(evidence: Evidence, **changes: Any) -> Evidence:  # noqa: ANN401 - values of any field
    """Give evidence whose drive differs."""
    (only_drive,) = evidence.drives
    return evolve(evidence, drives=(evolve(only_drive, **changes),))


def ram(evidence: Evidence, **changes: Any) -> Evidence:  # noqa: ANN401 - values of any field
    """Give evidence whose RAM differs."""
    (mapping,) = evidence.ram
    return evolve(evidence, ram=(evolve(mapping, **changes),))


Deviation = Callable[[Evidence], Evidence]
DEVIATIONS: Final[tuple[tuple[str, str, str, Deviation], ...]] = (
    ("kvm is off", CASE, "accel", lambda seen: evolve(seen, kvm_enabled=False)),
    ("kvm is on", "accel-tcg", "accel", lambda seen: evolve(seen, kvm_enabled=True)),
    ("another machine", CASE, "machine", lambda seen: evolve(seen, machine="pc-q35-6.0-machine")),
    ("a guest that stands still", CASE, "", lambda seen: evolve(seen, run_state="internal-error")),
    ("a guest that runs unasked", "paused", "", lambda seen: evolve(seen, run_state="running")),
    ("another name", CASE, "name", lambda seen: evolve(seen, name="other")),
    ("another uuid", CASE, "uuid", lambda seen: evolve(seen, uuid="00000000-0000-0000-0000-000000000000")),
    ("a vCPU less", CASE, "cpu.vcpus", lambda seen: evolve(seen, vcpus=1)),
    ("another user", CASE, "security.user", lambda seen: evolve(seen, uid=1000)),
    ("capabilities", "system-user", "security.user", lambda seen: evolve(seen, cap_eff=0x1000)),
    ("no filter", CASE, "security.sandbox", lambda seen: evolve(seen, seccomp=0)),
    ("new privileges", CASE, "security.sandbox", lambda seen: evolve(seen, no_new_privs=0)),
    ("no RAM", "hugepages-off", "memory.size", lambda seen: evolve(seen, ram=())),
    ("less RAM", "hugepages-off", "memory.size", lambda seen: ram(seen, size=64 * MIB)),
    ("small pages", PLAIN, "memory.hugepages", lambda seen: ram(seen, page_size=4096)),
    ("huge pages", "hugepages-off", "memory.hugepages", lambda seen: ram(seen, page_size=2 * MIB)),
    ("merged pages", "hugepages-off", "memory.ksm", lambda seen: ram(seen, flags=frozenset({"mg", "hg"}))),
    ("pages that are not there", PLAIN, "memory.prealloc", lambda seen: ram(seen, resident=64 * MIB)),
    ("memory that is not locked", "memory-locked", "memory.lock", lambda seen: evolve(seen, locked_bytes=4096)),
    ("no drive", CASE, "disk.root", lambda seen: evolve(seen, drives=())),
    ("another file", CASE, "disk.root.path", lambda seen: drive(seen, path="/srv/vm/data.img")),
    ("another format", CASE, "disk.root.format", lambda seen: drive(seen, format="qcow2")),
    ("a read-only drive", CASE, "disk.root.readonly", lambda seen: drive(seen, readonly=True)),
    ("buffered I/O", CASE, "disk.root.cache", lambda seen: drive(seen, direct=False)),
    ("ignored flushes", CASE, "disk.root.cache", lambda seen: drive(seen, no_flush=True)),
    ("a volatile cache", "cache-directsync", "disk.root.cache", lambda seen: drive(seen, writeback=True)),
    ("kept zeros", CASE, "disk.root.detect_zeroes", lambda seen: drive(seen, detect_zeroes="off")),
    ("no ceiling of requests", CASE, "disk.root.limits", lambda seen: drive(seen, iops=0)),
    ("no ceiling of bytes", CASE, "disk.root.limits", lambda seen: drive(seen, bandwidth=0)),
    ("a file that is not open", CASE, "disk.root.path", lambda seen: drive(seen, open_flags=())),
    (
        "a buffered descriptor",
        CASE,
        "disk.root.cache",
        lambda seen: drive(seen, open_flags=(O_RDWR | O_DIRECT, O_RDWR)),
    ),
    ("a direct descriptor", "cache-writeback", "disk.root.cache", lambda seen: drive(seen, open_flags=(O_DIRECT,))),
    ("a CD-ROM that is written", "cdrom", "cdrom.cd0.readonly", lambda seen: drive(seen, readonly=False)),
    ("another program", CASE, "qemu.binary", lambda seen: evolve(seen, cmdline=("/opt/qemu", *seen.cmdline[1:]))),
    ("another argument", CASE, "", lambda seen: evolve(seen, cmdline=(*seen.cmdline, "-snapshot"))),
    ("no command line", CASE, "", lambda seen: evolve(seen, cmdline=())),
    ("a fallback", CASE, "", lambda seen: evolve(seen, log="warning: Falling back to aio=threads")),
)


@pytest.mark.parametrize(("what", "name", "key", "deviate"), DEVIATIONS, ids=[each[0] for each in DEVIATIONS])
def test_a_single_deviation_is_found(what: str, name: str, key: str, deviate: Deviation) -> None:
    found = problems(name, deviate(evidence_of(name)))

    assert [each for each, _ in found] == [key], what


def test_what_qemu_prints_at_a_start_that_went_well_is_said() -> None:
    evidence, argv = evidence_of(CASE), ("/usr/bin/qemu-system-x86_64", "-nodefaults")
    lines = [f"qemu-system-x86_64: warning: number {number}" for number in range(12)]

    (found,) = check_words(argv, evolve(evidence, log="\n".join(["[INFO virtiofsd] connected", *lines])))

    assert (found.severity, found.report.code) == ("warning", "qemu.said")
    assert found.report.why.splitlines() == [*lines[:10], "… and 2 lines more"]
    assert not list(check_words(argv, evidence))


@pytest.mark.parametrize("state", ["suspended", "shutdown", "guest-panicked"])
def test_a_guest_that_is_quick_to_end_its_own_run_breaks_no_promise(state: str) -> None:
    assert problems(CASE, evolve(evidence_of(CASE), run_state=state)) == []
    assert problems("paused", evolve(evidence_of("paused"), run_state=state)) != []


def test_a_guest_that_turns_its_volatile_cache_off_breaks_no_promise() -> None:
    name = "cache-writeback"

    assert problems(name, drive(evidence_of(name), writeback=False)) == []


def test_without_the_sandbox_no_filter_is_missed() -> None:
    assert only(plan_of("sandbox-off"), SandboxPromise).seccomp is False
    assert problems("sandbox-off", evidence_of("sandbox-off")) == []


def test_what_was_merged_by_hand_is_no_deviation() -> None:
    evidence = evidence_of("ksm-on")

    assert "mg" in evidence.ram[0].flags
    assert problems("ksm-on", evidence) == []


def test_ordinary_memory_may_be_swapped_out_again() -> None:
    evidence = evidence_of("memory-locked")

    assert problems("memory-locked", ram(evidence, resident=4096)) == []


def test_all_deviations_are_found_at_once() -> None:
    evidence = drive(evolve(evidence_of(CASE), kvm_enabled=False, seccomp=0), direct=False, path="/x")

    assert {key for key, _ in problems(CASE, evidence)} == {
        "accel",
        "security.sandbox",
        "disk.root.cache",
        "disk.root.path",
    }


def test_every_field_of_the_evidence_is_looked_at() -> None:
    deviating = {
        each.name
        for each in fields(Evidence)
        for _, name, _, deviate in DEVIATIONS
        if getattr(deviate(evidence_of(name)), each.name) != getattr(evidence_of(name), each.name)
    }

    assert {each.name for each in fields(Evidence)} - deviating == set()


def test_every_field_of_a_drive_is_looked_at() -> None:
    deviating = {
        each.name
        for each in fields(DriveEvidence)
        for _, name, _, deviate in DEVIATIONS
        for before, after in zip(evidence_of(name).drives, deviate(evidence_of(name)).drives, strict=False)
        if getattr(before, each.name) != getattr(after, each.name)
    }

    assert {each.name for each in fields(DriveEvidence)} - deviating == {"id"}


def test_the_promise_of_a_hostile_path_is_the_path() -> None:
    promise = only(plan_of("path-comma"), DrivePromise)

    assert promise.path == PurePosixPath("/srv/vm/a,b=c d.img")


def test_a_drive_that_qemu_closed_as_damaged_is_a_damaged_image() -> None:
    plan, evidence = plan_of("qcow2"), evidence_of("qcow2")
    log = "qcow2: Marking image as corrupt: Cluster allocation offset 0x12345600 unaligned; further events suppressed\n"

    found = check_promises(plan, evidence.cmdline, evolve(evidence, drives=evidence.drives[1:], log=log))

    assert [each.report.code for each in found] == ["disk.corrupt"]
    assert "Marking image as corrupt" in found[0].report.why
