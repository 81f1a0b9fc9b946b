"""Many definitions, many VMs, and what stays resident."""

import os
import shutil
import signal
import subprocess  # noqa: TID253 - top runs until it is interrupted
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import evolve

from tests.bench.measure import (
    KVMLAUNCH,
    PYTHON,
    BenchError,
    Row,
    command,
    compare,
    environment,
    in_turn,
    run,
    skipped,
)

MANY_PAIRS: Final = 5
MOST_SECONDS: Final = 2.0  # for 1,000 definitions
MOST_HOST_SECONDS: Final = 3.0  # for what doctor and tune say of 1,000 definitions
STATUS_SECONDS: Final = 1.0  # for 50 running VMs
LINEAR: Final = 12.0  # ten times as many definitions may take so many times as long
VMS: Final = 50
TOP_INTERVAL: Final = 2.0  # seconds, as `top` has it
TOP_LOOKS: Final = 8
TOP_PERCENT: Final = 5.0
BARE: Final = "python3 -c pass"

DEFINITION: Final = """\
vcpus = 2
memory = "1GiB"
description = "number {number}"
[disk.root]
path = "{number}.img"
[disk.data]
path = "{number}-data.img"
cache = "writeback"
[network.lan]
forwards = ["tcp:127.0.0.1:{port}:22"]
"""

TINY: Final = """\
accel = "tcg"
[memory]
size = "16MiB"
hugepages = "off"
[console]
log = false
[network.lan]
type = "none"
"""


def in_seconds(row: Row, most: float) -> Row:
    """Give a row whose aim is a time."""
    return evolve(row, aim=f"< {most:g} s", kept=row.ours < most)


def measure_validate(directory: Path) -> Iterator[Row]:
    """Give the rows of `validate`, each number of definitions against a tenth of it: linear is at most ten times."""
    for number in (1, 10, 100, 1000):
        place = directory / f"defs-{number}"
        place.mkdir()
        for each in range(number):
            (place / f"vm{each}.toml").write_text(DEFINITION.format(number=each, port=20000 + each))
    sides = {
        number: command(KVMLAUNCH, "validate", "--quiet", "--defs", f"defs-{number}", at=directory)
        for number in (1, 10, 100, 1000)
    }
    for number in (10, 100, 1000):
        measured = in_turn(sides[number], sides[number // 10], MANY_PAIRS)
        row = compare("c", f"validate of {number:,} definitions", f"of {number // 10:,}", measured, aim=LINEAR)
        yield in_seconds(row, MOST_SECONDS) if number == max(sides) else row


def measure_host(directory: Path) -> Iterator[Row]:
    """Give the rows of `doctor` and `tune plan` for many definitions, each number against fewer."""
    for words in (("doctor", "--no-boot"), ("tune", "plan", "--all")):
        sides = {
            number: command(
                *("sh", "-c", '"$@" || test $? -eq 6', "sh", KVMLAUNCH, *words, "--json", "--defs", f"defs-{number}"),
                at=directory,
            )
            for number in (1, 100, 1000)
        }
        for number, less in ((100, 1), (1000, 100)):
            measured = in_turn(sides[number], sides[less], MANY_PAIRS)
            row = compare("c", f"{' '.join(words)} of {number:,} definitions", f"of {less:,}", measured, aim=LINEAR)
            yield in_seconds(row, MOST_HOST_SECONDS) if number == max(sides) else row


def measure_status(home: Path, token: str) -> Iterator[Row]:
    """Give the rows of `status` of running VMs, paused and of 16 MiB each."""
    place = home / "many"
    place.mkdir()
    names = [f"bench-{token}-{number}" for number in range(VMS)]
    for name in names:
        (place / f"{name}.toml").write_text(TINY)
    options = ("--defs", str(place))
    bare = command(PYTHON, "-c", "pass", at=home)
    started = 0
    try:
        for number in (1, 10, VMS):
            run((KVMLAUNCH, "up", *names[started:number], "--paused", "--quiet", "-j", "4", *options), at=home)
            started = number
            side = command(KVMLAUNCH, "status", *names[:number], *options, at=home)
            row = compare("c", f"status of {number} running VMs", BARE, in_turn(side, bare, MANY_PAIRS))
            yield in_seconds(row, STATUS_SECONDS) if number == VMS else row
        yield measure_top(names, options, home)
        yield measure_resident(names[0])
    finally:
        with suppress(BenchError):
            ending = ("--force", "--timeout", "1ms", "-j", "4", "--quiet")
            run((KVMLAUNCH, "down", *names[: max(started, 1)], *ending, *options), at=home)


def measure_top(names: Sequence[str], options: Sequence[str], home: Path) -> Row:
    """Give what `top` of many VMs takes of a CPU, in percent, and for one look."""
    words = (KVMLAUNCH, "top", *names, "--interval", f"{TOP_INTERVAL:g}s", *options)
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=home, env=environment()) as child:  # noqa: S603 - our own
        assert child.stdout is not None
        try:
            used = []
            for line in child.stdout:  # an empty line ends a table
                if not line.strip():
                    used.append((cpu_seconds(child.pid), time.monotonic()))
                if len(used) > TOP_LOOKS:
                    break
        finally:
            child.send_signal(signal.SIGINT)
    if len(used) <= TOP_LOOKS:
        message = "top ended early"
        raise BenchError(message)
    spent, passed = used[-1][0] - used[0][0], used[-1][1] - used[0][1]
    share = 100 * spent / passed
    return Row(
        group="d",
        what=f"percent of a CPU that top of {len(names)} VMs takes",
        against=f"one CPU, a look every {TOP_INTERVAL:g} s",
        pairs=TOP_LOOKS,
        ratio=share,
        ours=spent / TOP_LOOKS,
        aim=f"< {TOP_PERCENT:g}",
        kept=share < TOP_PERCENT,
    )


def cpu_seconds(pid: int) -> float:
    """Give the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cmdline(pid: str) -> bytes:
    """Give the argv of a process, empty when it is gone or nobody's business of ours."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def measure_resident(name: str) -> Row:
    """Count the processes that a running VM keeps: those that name it or are kvmlaunch's, beside this one."""
    found = [
        argv for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid() and (argv := cmdline(pid))
    ]
    qemus = [argv for argv in found if f"guest={name}".encode() in argv]
    others = [argv for argv in found if name.encode() in argv and argv not in qemus]
    helpers = [argv for argv in found if b"/bin/kvmlaunch\0" in argv and name.encode() in argv]
    kept = len(qemus) == 1 and not others and not helpers
    return Row(
        group="d",
        what="processes that stay after up",
        against="the one QEMU",
        pairs=1,
        ratio=float(len(qemus) + len(others)),
        least=float(len(qemus)),
        most=float(len(qemus) + len(others)),
        aim="QEMU alone",
        kept=kept,
    )


def can_run() -> str:
    """Give why no VM can be started here, "" when they can."""
    if not (shutil.which("qemu-system-x86_64") or shutil.which("kvm")):
        return "QEMU is not installed"
    return ""


def skipped_status(why: str) -> Iterator[Row]:
    """Give the rows of `status` that were not measured."""
    for number in (1, 10, VMS):
        yield skipped("c", f"status of {number} running VMs", BARE, why)
