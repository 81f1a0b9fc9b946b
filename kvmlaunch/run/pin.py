"""Pins vCPU and I/O threads to host CPUs; the sandbox stops QEMU from doing it, not us."""

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, cast

from kvmlaunch.errors import HostFailed, Report
from kvmlaunch.run.qmp import Target, ask


def pin(thread: int, host_cpu: int) -> None:
    """Bind a thread to one host CPU and read it back; raises HostFailed."""
    try:
        os.sched_setaffinity(thread, {host_cpu})
    except OSError as error:
        raise HostFailed(
            Report(
                code="host.failed",
                message=f"thread {thread} could not be pinned to CPU {host_cpu}",
                where=f"thread {thread}",
                why=error.strerror or "",
            )
        ) from error
    if os.sched_getaffinity(thread) != {host_cpu}:
        raise HostFailed(
            Report(
                code="host.failed",
                message=f"thread {thread} is not on CPU {host_cpu}",
                where=f"thread {thread}",
                why="the affinity read back differs",
            )
        )


def pin_and_continue(
    monitor: PurePosixPath, pid: int, vcpus: tuple[int, ...], iothreads: Mapping[str, int], *, go_on: bool
) -> None:
    """Pin vCPUs, and I/O threads by their ids, to host CPUs, then let the guest run unless it is to stay paused."""
    target = Target(path=monitor, pid=pid)
    cpus, threads = (
        cast("list[Any]", answer) for answer in ask(target, (("query-cpus-fast", {}), ("query-iothreads", {})))
    )
    for cpu, host_cpu in zip(sorted(cpus, key=lambda each: each["cpu-index"]), vcpus, strict=False):
        pin(cpu["thread-id"], host_cpu)
    for thread in threads:
        if thread["id"] in iothreads:
            pin(thread["thread-id"], iothreads[thread["id"]])
    if go_on:
        ask(target, (("cont", {}),))
