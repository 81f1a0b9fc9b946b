"""The record of a start, made of what was planned."""

import os
from datetime import UTC, datetime

from kvmlaunch.model.plan import MemoryPlan
from kvmlaunch.model.record import Record
from kvmlaunch.run.process import read_boot_id, read_start_time
from kvmlaunch.steps.resolve import Resolved
from kvmlaunch.units import count, render_size


def memory_text(memory: MemoryPlan) -> str:
    """Give what backs a guest, in words."""
    if memory.backing == "hugepages":
        return f"{count(memory.pages, 'page')} of {render_size(memory.page_size)}"
    return "ordinary"


def notes_of(resolved: Resolved) -> tuple[str, ...]:
    """Give what `status` has to repeat as long as the VM runs."""
    unsafe = tuple(
        f"{disk.table}: cache=unsafe, data is lost when the host or QEMU crashes"
        for disk in resolved.plan.disks
        if disk.cache == "unsafe"
    )
    root = ("QEMU runs as root",) if resolved.host.user.uid == 0 else ()
    tcg = ("TCG: slow, and no security boundary",) if resolved.plan.accelerator == "tcg" else ()
    return (*unsafe, *root, *tcg)


def record_of(resolved: Resolved, argv: tuple[str, ...], pid: int, state: str) -> Record:
    """Give the record of a start."""
    definition = resolved.subject.definition
    return Record(
        vm=resolved.name,
        uuid=resolved.plan.uuid,
        state="running" if state == "running" else "intent",
        pid=pid,
        start_time=read_start_time(pid) if pid else 0,
        boot_id=read_boot_id(),
        launcher=os.getpid(),
        launcher_start=read_start_time(os.getpid()),
        uid=resolved.host.user.uid,
        definition=str(definition.file),
        digest=definition.digest,
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
        argv=argv,
        accelerator=resolved.plan.accelerator,
        memory=memory_text(resolved.plan.memory),
        stop_timeout=float(definition.lifecycle.stop_timeout),
        notes=notes_of(resolved),
    )
