"""Collects evidence from the live QEMU: its monitor, and what the kernel says of it."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmlaunch.errors import KvmlaunchError, QemuFailed, Report
from kvmlaunch.facts.evidence import guest_ram, parse_drives, parse_open_flags, parse_smaps, parse_status
from kvmlaunch.facts.qmp import Query
from kvmlaunch.model.evidence import DriveEvidence, Evidence
from kvmlaunch.model.value import evolve
from kvmlaunch.run.process import read_cmdline

LEAST_RAM = 1 << 20  # bytes: no mapping of a guest's RAM is smaller
QUERIES: tuple[Query, ...] = (
    ("query-kvm", {}),
    ("query-name", {}),
    ("query-uuid", {}),
    ("query-cpus-fast", {}),
    ("query-block", {}),
    ("qom-get", {"path": "/machine", "property": "type"}),
    ("query-status", {}),
)


def file_of(path: str) -> tuple[int, int] | None:
    """Give device and inode of what a path leads to; None where that cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def file_flags(pid: int, files: Collection[tuple[int, int] | None]) -> Iterator[tuple[tuple[int, int], int]]:
    """Give device and inode with the open flags of every descriptor that a process has on one of some files."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        file = file_of(f"/proc/{pid}/fd/{name}")
        if file and file in files:
            with suppress(OSError, ValueError):
                yield file, parse_open_flags(Path(f"/proc/{pid}/fdinfo/{name}").read_text(encoding="ascii"))


def with_flags(drives: tuple[DriveEvidence, ...], pid: int) -> Iterator[DriveEvidence]:
    """Give each drive with the flags of the descriptors on its file."""
    files = [file_of(drive.path) for drive in drives]
    flags = tuple(file_flags(pid, files))
    for drive, file in zip(drives, files, strict=True):
        yield evolve(drive, open_flags=tuple(opened for of, opened in flags if of == file))


def kernel_view(pid: int) -> Mapping[str, str]:
    """Give /proc/PID/status by field."""
    return parse_status(Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace"))


def collect_evidence(pid: int, answers: Sequence[Any], ram_size: int, log: str) -> Evidence:
    """Read everything that a promise can be held against; `answers` are QEMU's to QUERIES.

    `ram_size` in bytes tells the RAM mapping from others; `log` is what QEMU has printed.  Raises QemuFailed
    `qemu.promise` when the process cannot be looked at.
    """
    kvm, name, uuid, cpus, blocks, machine, run_state = answers
    try:
        status = kernel_view(pid)
        smaps = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")
        mappings = tuple(parse_smaps(smaps, least=LEAST_RAM))
        drives = tuple(with_flags(parse_drives(blocks), pid))
    except (OSError, ValueError) as error:
        raise unseen(pid, error) from error
    return Evidence(
        kvm_enabled=kvm["enabled"],
        name=name.get("name", ""),
        uuid=uuid["UUID"],
        machine=machine,
        run_state=run_state["status"],
        vcpus=len(cpus),
        ram=guest_ram(mappings, ram_size),
        drives=drives,
        seccomp=int(status.get("Seccomp", "0")),
        no_new_privs=int(status.get("NoNewPrivs", "0")),
        uid=int(status["Uid"].split()[1]),
        cap_eff=int(status["CapEff"], 16),
        locked_bytes=int(status.get("VmLck", "0 kB").split()[0]) * 1024,
        cmdline=read_cmdline(pid),
        log=log,
    )


def unseen(pid: int, error: Exception) -> KvmlaunchError:
    """Give the error of a QEMU that cannot be looked at, so nothing that was promised can be read back."""
    return QemuFailed(
        Report(
            code="qemu.promise",
            message="the live QEMU cannot be read back",
            where=f"pid {pid}",
            why=str(error),
            hint="run as root, or as the user that QEMU runs as",
        )
    )
