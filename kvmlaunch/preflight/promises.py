"""Checks that every promise of the plan is kept by the live QEMU."""

import re
from collections.abc import Iterator
from typing import Final, assert_never

from kvmlaunch.model.evidence import DriveEvidence, Evidence, said_by
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.image import MARKED
from kvmlaunch.model.plan import (
    AcceleratorPromise,
    DrivePromise,
    IdentityPromise,
    MemoryPromise,
    Plan,
    Promise,
    SandboxPromise,
)
from kvmlaunch.model.value import evolve
from kvmlaunch.units import count, render_size

O_DIRECT = 0o40000
ORDINARY_PAGE = 4096  # of ordinary memory, which may be swapped out again, some may be missing
MOST_LINES = 10
FELL_BACK = r"(?i).*(?:falling back|fallback to).*"
# To which a guest that runs can bring itself, within milliseconds too: it sleeps, is off or has panicked.
OF_GUESTS: Final = frozenset({"running", "suspended", "shutdown", "guest-panicked"})


def fell_back(log: str) -> list[str]:
    """Give the lines in which QEMU says that it took another engine than it was told."""
    return re.findall(FELL_BACK, log) if "back" in log.lower() else []


def broken(what: str, planned: object, seen: object, key: str) -> Finding:
    """Give the finding of a promise that is not kept."""
    return error(
        code="qemu.promise",
        message=f"{what} is not as planned",
        key=key,
        why=f"planned: {planned}; the live QEMU has: {seen}",
    )


def compare(what: str, planned: object, seen: object, key: str) -> Iterator[Finding]:
    """Give a finding when two values differ."""
    if planned != seen:
        yield broken(what, planned, seen, key)


def check_memory(promise: MemoryPromise, evidence: Evidence) -> Iterator[Finding]:
    """Check the RAM mappings: sum, page size, no `mg` where merging is off, preallocated hugepages all there."""
    size = sum(mapping.size for mapping in evidence.ram)
    if size < promise.size:
        yield broken("the size of the RAM mapping", render_size(promise.size), render_size(size), "memory.size")
    for mapping in evidence.ram:
        yield from compare("the page size of the RAM mapping", promise.page_size, mapping.page_size, "memory.hugepages")
        if not promise.merge and "mg" in mapping.flags:
            yield broken("merging of the guest's pages", "off", "on (VmFlags mg)", "memory.ksm")
    resident = sum(mapping.resident for mapping in evidence.ram)
    if promise.prealloc and promise.page_size > ORDINARY_PAGE and resident < promise.size:
        yield broken("preallocated memory", render_size(promise.size), render_size(resident), "memory.prealloc")
    # The kernel counts no huge pages as locked: they are in memory for good, which is seen above.
    if promise.lock and promise.page_size == ORDINARY_PAGE and evidence.locked_bytes < promise.size:
        yield broken("locked memory", render_size(promise.size), render_size(evidence.locked_bytes), "memory.lock")


def closed_drive(promise: DrivePromise, evidence: Evidence) -> Finding | None:
    """Give the refusal of an image that QEMU found damaged as its guest read it, and closed (`disk.corrupt`)."""
    line = next((line for line in evidence.log.splitlines() if any(words in line for words in MARKED)), "")
    if not line or promise.format != "qcow2":
        return None
    word = f"{evidence.name}:{promise.table.removeprefix('disk.')}"
    return error(
        code="disk.corrupt",
        message=f"{promise.path} is damaged",
        key=promise.table,
        why=line,
        hint=f"kvmlaunch disk check {word} --repair   # on a copy first; or go back to a backup",
    )


def check_drive(promise: DrivePromise, evidence: Evidence) -> Iterator[Finding]:
    """Check a drive: file, format, read-only, cache mode, limits, and O_DIRECT on its descriptors."""
    table = promise.table
    seen = next((drive for drive in evidence.drives if drive.id == promise.id), None)
    if seen is None:
        yield closed_drive(promise, evidence) or broken(
            f"drive {promise.id}", str(promise.path), "no such drive", table
        )
        return
    for name in ("format", "readonly", "direct", "no_flush", "detect_zeroes", "iops", "bandwidth"):
        key = {"direct": "cache", "no_flush": "cache", "iops": "limits", "bandwidth": "limits"}.get(name, name)
        yield from compare(
            f"{name} of drive {promise.id}", getattr(promise, name), getattr(seen, name), f"{table}.{key}"
        )
    if not promise.writeback:
        # The other way round is the guest's choice: a driver that cannot flush, as the firmware's, turns it off.
        yield from compare(
            f"the volatile cache of drive {promise.id}", planned=False, seen=seen.writeback, key=f"{table}.cache"
        )
    if not promise.is_at(seen.path):
        yield broken(f"the file of drive {promise.id}", str(promise.path), seen.path, f"{table}.path")
    others = [drive for drive in evidence.drives if drive.id != promise.id]
    alone = not any(drive.path == seen.path or drive.format == "qcow2" for drive in others)
    yield from check_descriptors(promise, seen, table, alone=alone)


def check_descriptors(promise: DrivePromise, seen: DriveEvidence, table: str, *, alone: bool) -> Iterator[Finding]:
    """Check O_DIRECT in fdinfo: on every descriptor of the image when it is promised, on none when not.

    Where the drive is not `alone`, as another has its file or may rest on it, one such descriptor is enough.
    """
    if not seen.open_flags:
        yield broken(f"the descriptor of drive {promise.id}", "open", "not open", f"{table}.path")
    # Another drive may have the same file open in its own way: as its image, or as what its image rests on.
    as_planned = [flags for flags in seen.open_flags if bool(flags & O_DIRECT) == promise.direct]
    for flags in seen.open_flags if alone or not as_planned else ():
        yield from compare(f"O_DIRECT of drive {promise.id}", promise.direct, bool(flags & O_DIRECT), f"{table}.cache")


def check_identity(promise: IdentityPromise, evidence: Evidence) -> Iterator[Finding]:
    """Check name, UUID, number of vCPUs and uid; no capability is left to anybody but root."""
    yield from compare("the name", promise.name, evidence.name, "name")
    yield from compare("the machine type", f"{promise.machine}-machine", evidence.machine, "machine")
    yield from compare("the UUID", promise.uuid, evidence.uuid, "uuid")
    yield from compare("the number of vCPUs", promise.vcpus, evidence.vcpus, "cpu.vcpus")
    yield from compare("the uid of QEMU", promise.uid, evidence.uid, "security.user")
    if promise.uid != 0 and evidence.cap_eff:
        yield broken("capabilities of QEMU", "none", f"CapEff {evidence.cap_eff:#x}", "security.user")


def check_promise(promise: Promise, evidence: Evidence) -> Iterator[Finding]:
    """Check one promise."""
    match promise:
        case AcceleratorPromise():
            yield from compare("KVM", promise.kvm, evidence.kvm_enabled, "accel")
        case MemoryPromise():
            yield from check_memory(promise, evidence)
        case DrivePromise():
            yield from check_drive(promise, evidence)
        case SandboxPromise():
            if promise.seccomp:
                yield from compare("the seccomp filter (Seccomp)", 2, evidence.seccomp, "security.sandbox")
                yield from compare("NoNewPrivs", 1, evidence.no_new_privs, "security.sandbox")
        case IdentityPromise():
            yield from check_identity(promise, evidence)
        case _:
            assert_never(promise)


def check_run_state(argv: tuple[str, ...], seen: str, *, later: bool) -> Iterator[Finding]:
    """Check that the guest runs, or that it is held where argv says -S; `later` it may have been let run since."""
    held = "-S" in argv
    if seen not in ({"prelaunch", "paused"} if held else OF_GUESTS) and not (later and seen in OF_GUESTS):
        yield broken("the run state", "prelaunch" if held else "running", seen, "")


def check_cmdline(argv: tuple[str, ...], seen: tuple[str, ...]) -> Iterator[Finding]:
    """Check that the process has the planned argv, word by word; names only the words that differ."""
    if argv == seen:
        return
    gone = " ".join(word for word in argv if word not in seen) or "nothing"
    come = " ".join(word for word in seen if word not in argv) or "nothing"
    wrapper = bool(seen) and argv[:1] != seen[:1]
    hint = (
        f"qemu.binary is a wrapper: name the program itself, {seen[0]}"
        if wrapper
        else "is something changing QEMU's title?"
    )
    yield error(
        code="qemu.promise",
        message="/proc/PID/cmdline is not the planned command line",
        key="qemu.binary" if wrapper else "",
        why=f"missing: {gone}\nnot planned: {come}",
        hint=hint,
    )


def check_words(argv: tuple[str, ...], evidence: Evidence) -> Iterator[Finding]:
    """Say what QEMU has printed at a start that it went through with: nobody would look into its log for it."""
    said = said_by(argv[0], evidence.log)
    if said:
        more = [f"… and {count(len(said) - MOST_LINES, 'line')} more"] if len(said) > MOST_LINES else []
        yield warning(
            code="qemu.said",
            message="QEMU runs as planned, and has something to say",
            why="\n".join([*said[:MOST_LINES], *more]),
            hint=f"kvmlaunch logs {evidence.name} --source qemu",
        )


def check_promises(
    plan: Plan, argv: tuple[str, ...], evidence: Evidence, *, later: bool = False
) -> tuple[Finding, ...]:
    """Check every promise, that the process has the planned argv, and that QEMU fell back on nothing.

    `later` is for a QEMU that somebody has started before, and may have let run since.
    """
    found = [finding for promise in plan.promises for finding in check_promise(promise, evidence)]
    found += check_cmdline(argv, evidence.cmdline)
    found += check_run_state(argv, evidence.run_state, later=later)
    found += [broken("an engine of QEMU's", "no fallback", line, "") for line in fell_back(evidence.log)]
    hint = f"kvmlaunch explain {plan.name}   # shows the plan; please report it when no raw.args interferes"
    return tuple(evolve(each, report=each.report._replace(hint=each.report.hint or hint)) for each in found)
