"""`status` and `ls`: what VMs there are and how they are."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvmlaunch.builder.guest_agent import CHANNEL
from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.facts import hugepages
from kvmlaunch.facts.agent import is_open
from kvmlaunch.facts.qmp import Query
from kvmlaunch.host.capture import read_all
from kvmlaunch.host.definitions import definition_files
from kvmlaunch.host.logs import read_said
from kvmlaunch.host.places import run_parent
from kvmlaunch.model.evidence import said_by
from kvmlaunch.model.lifecycle import VmState
from kvmlaunch.model.run_files import NOTE, SOCKET, TPM
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.run.process import read_cmdline, read_uid
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.heal import tend
from kvmlaunch.steps.lost import lost_notes
from kvmlaunch.steps.observe import LEFT, Seen, age, is_usurped, monitor_path, namesakes, observe, owner_of, who_holds
from kvmlaunch.storage.snapshot import parse_merging
from kvmlaunch.units import count, render_size

AGENT_SECONDS = 1.0  # for all guests together
ENDS = {
    "guest-shutdown": "the guest powered down",
    "guest-reset": "the guest reset, and QEMU was told to end then",
    "guest-panic": "the guest panicked",
    "host-signal": "QEMU was ended by a signal",
    "host-qmp-quit": "QEMU was told to quit on its monitor",
    "host-qmp-system-reset": "it was reset on its monitor",
    "host-ui": "the display was closed",
    "host-error": "an error of the host ended it",
}
STANDS = {  # by QEMU's run state
    "io-error": ("it waits for its storage: kvmlaunch resume says what is wrong",),
    "suspended": ("it sleeps (ACPI S3): kvmlaunch resume wakes it",),
}


@frozen(kw_only=True)
class Status:
    """How a VM is.  `run_state` is QEMU's own word (`running`, `paused`, `io-error`), "" when it does not answer.

    `addresses` are what the agent in the guest tells, `eth0 10.0.2.15/24`, none without one that answers.
    """

    name: str
    state: str
    run_state: str = ""
    pid: int | None = None
    started: str = ""
    seconds: float = 0.0
    accelerator: str = ""
    memory: str = ""
    resident: int = 0
    user: int | None = None
    definition: str = ""
    addresses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    last_end: str = ""


def end_text(seen: Seen, run_state: str) -> str:
    """Give how the last run ended, in words; also where QEMU was told to stay after its guest had powered down."""
    if seen.state is not VmState.ENDED and run_state != LEFT:
        return ""
    if not seen.last_end and seen.lives:
        return ""
    if not seen.last_end:
        return "it ended without shutting down: killed, or the host went away"
    return ENDS.get(seen.last_end, seen.last_end)


def resident_memory(pid: int) -> int:
    """Give the bytes of RAM that a process holds, huge pages included; 0 when it cannot be seen."""
    with contextlib.suppress(OSError, ValueError):
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
            if ":" in line
        )
        return sum(int(fields.get(name, "0").split()[0]) for name in ("VmRSS", "HugetlbPages")) * 1024
    return 0


def surplus_note(memory: str) -> tuple[str, ...]:
    """Say that pages like a VM's are surplus: the pool was lowered while they are in use, and they go when it ends."""
    for pool in hugepages.parse_pools(dict(read_all("", hugepages.HOST_FILES))):
        if pool.surplus and memory.endswith(f" of {render_size(pool.page_size)}"):
            pages = f"{count(pool.surplus, 'huge page')} of {render_size(pool.page_size)}"
            return (f"{pages} on this host are surplus: vm.nr_hugepages was lowered, they go when they are freed",)
    return ()


def state_notes(seen: Seen) -> Iterator[str]:
    """Give what a user should know of a VM that is not simply running or stopped."""
    if seen.unreadable:
        yield f"[state.quarantined] {seen.unreadable}"
    if seen.state is VmState.FOREIGN:
        yield "QEMU was not started by kvmlaunch"
    if seen.state is VmState.BUSY:
        yield f"held by {who_holds(seen)}"
    if seen.state is VmState.HALF:
        yield f"its start was not finished: kvmlaunch up {seen.name} takes it over, kvmlaunch down {seen.name} ends it"
    if seen.lives and is_usurped(seen):
        yield "its sockets were replaced or removed, as by its command run a second time; kvmlaunch reaches it"
    if seen.lives:
        yield from lost_notes(seen)
        yield from sidecar_notes(seen)
        yield from said_notes(seen)
    if seen.state is VmState.ENDED:
        yield f"what it held is still held: kvmlaunch down {seen.name} gives it back"
    if seen.state is VmState.STOPPED:
        yield from namesakes(seen.name)


def said_notes(seen: Seen) -> Iterator[str]:
    """Give what QEMU has printed since it was started: some of it comes only when the guest's drivers start."""
    argv = read_cmdline(seen.pid or 0)
    since = read_said(seen.places.run, owner_of(seen.places.run)).rpartition("\n# ")[2]
    lines = said_by(argv[0], since) if argv else []
    if lines:
        more = f" ({count(len(lines) - 1, 'line')} more)" if lines[1:] else ""
        text = "".join(character if character.isprintable() else "?" for character in lines[-1])
        yield f"QEMU says{more}: {text}   kvmlaunch logs {seen.name} --source qemu"


def sidecar_notes(seen: Seen) -> Iterator[str]:
    """Say what beside a live QEMU has died: its TPM's emulator, the daemon of a share."""
    with contextlib.suppress(OSError):
        noted = [name.removesuffix(NOTE) for name in os.listdir(seen.places.run) if name.endswith(f"{SOCKET}{NOTE}")]
        for socket in noted:
            from kvmlaunch.run.sidecar import noted_pid  # noqa: PLC0415 - where there is one

            if noted_pid(seen.places.run, socket) is None:
                what = "the emulator of its TPM" if socket == TPM else f"the daemon of {socket.removesuffix(SOCKET)}"
                yield f"{what} has ended: what needs it fails until kvmlaunch restart {seen.name}"


def merging_notes(name: str, answer: object) -> Iterator[str]:
    """Say of which disks QEMU merges the snapshots, by its answer to query-block-jobs, and who goes on with that."""
    for disk, job in parse_merging(answer).items():
        length, done = job.get("len"), job.get("offset")
        share = f"{done * 100 // length} %" if isinstance(length, int) and isinstance(done, int) and length else "begun"
        command = f"kvmlaunch disk snapshot commit {name}:{disk}"
        yield f"the snapshots of disk {disk} are being merged ({share}): {command} goes on where its command was ended"


def build_status(seen: Seen, answer: object, jobs: object) -> Status:
    """Give the status of what was seen, with QEMU's answers to query-status and query-block-jobs, None for not asked.

    Instead of the first there may be the error that it came to.
    """
    record = seen.record
    run_state = str(answer.get("status", "")) if isinstance(answer, dict) else ""
    state = VmState.RUNNING.value if seen.state is VmState.FOREIGN else seen.state.value
    if seen.state is VmState.RUNNING and isinstance(answer, dict) and not answer.get("running", True):
        state = VmState.PAUSED.value
    if seen.lives and isinstance(answer, KvmlaunchError) and seen.state is not VmState.FOREIGN:
        state = VmState.HUNG.value
    notes = (
        *STANDS.get(run_state, ()),
        *merging_notes(seen.name, jobs),
        *((*record.notes, *surplus_note(record.memory)) if record and seen.lives else ()),
        *state_notes(seen),
    )
    head = Status(
        name=seen.name, state=state, run_state=run_state, pid=seen.pid, notes=notes, last_end=end_text(seen, run_state)
    )
    if record is None:
        pid = seen.pid or 0
        return evolve(
            head,
            seconds=age(seen) if seen.lives else 0.0,
            resident=resident_memory(pid) if pid else 0,
            user=read_uid(pid) if pid else None,
        )
    return evolve(
        head,
        started=record.started,
        seconds=age(seen) if seen.lives else 0.0,
        accelerator=record.accelerator,
        memory=record.memory,
        resident=resident_memory(seen.pid) if seen.pid else 0,
        user=record.uid,
        definition=record.definition,
    )


def status_of(caller: Caller, names: Sequence[str]) -> tuple[Status, ...]:
    """Look at VMs, all monitors at once."""
    seen = [observe(caller, name) for name in names]
    living = [each for each in seen if each.lives]
    answers: dict[str, object] = {}
    chardevs: dict[str, object] = {}
    jobs: dict[str, object] = {}
    for each in living:
        with contextlib.suppress(KvmlaunchError):
            tend(caller, each.places)
    if living:
        from kvmlaunch.run.qmp import Target, ask_all  # noqa: PLC0415 - only when something runs

        targets = [Target(path=monitor_path(each), pid=each.pid) for each in living]
        queries: tuple[Query, ...] = (("query-status", {}), ("query-chardev", {}), ("query-block-jobs", {}))
        for each, answer in zip(living, ask_all(targets, queries), strict=True):
            answers[each.name] = answer[0] if isinstance(answer, list) else answer
            chardevs[each.name], jobs[each.name] = answer[1:] if isinstance(answer, list) else (None, None)
    told = addresses_of([each for each in living if is_open(chardevs[each.name], CHANNEL)])
    found = (build_status(each, answers.get(each.name), jobs.get(each.name)) for each in seen)
    return tuple(evolve(each, addresses=told.get(each.name, ())) for each in found)


def addresses_of(seen: Sequence[Seen]) -> dict[str, tuple[str, ...]]:
    """Give the addresses that the agents of guests tell, as far as they do within a second in all."""
    if not seen:
        return {}
    from kvmlaunch.steps.agent import addresses  # noqa: PLC0415 - where an agent listens only

    told, deadline = {}, time.monotonic() + AGENT_SECONDS
    for each in seen:
        left = deadline - time.monotonic()
        found = addresses(each, min(left, AGENT_SECONDS / 2)) if left > 0 else ()
        told[each.name] = tuple(f"{device.name} {text}" for device in found for text in device.addresses)
    return told


def with_definitions(caller: Caller, found: Sequence[Status]) -> tuple[Status, ...]:
    """Give each status with the file that defines its VM, where no record of a run names it."""
    files = definition_files(caller.search)
    return tuple(evolve(each, definition=each.definition or str(files.get(each.name, ""))) for each in found)


def known_names(caller: Caller) -> tuple[str, ...]:
    """Give every VM that has a definition or a run directory, sorted."""
    names = set(definition_files(caller.search))
    with contextlib.suppress(OSError, KvmlaunchError):
        parent = run_parent(caller.uid, caller.environment)
        names |= {entry for entry in os.listdir(parent) if os.path.isdir(parent / entry)}
    return tuple(sorted(names))


def met_names(caller: Caller) -> tuple[str, ...]:
    """Give every VM that has a live QEMU, or left something behind."""
    quiet = {VmState.STOPPED}
    return tuple(name for name in known_names(caller) if observe(caller, name).state not in quiet)


def running_names(caller: Caller) -> tuple[str, ...]:
    """Give every VM that has a live QEMU."""
    return tuple(name for name in known_names(caller) if observe(caller, name).lives)
