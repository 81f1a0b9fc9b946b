"""kvmlaunch killed at a chosen system call: by strace, which injects the signal as the call is entered.

`points` runs a command once to see its calls; those that change something are all taken, of the others a few.
"""

import os
import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.sandbox import Machine, Result, finish, status_field, wait_for

WARM: Final = Path(__file__).parent / "warm.py"
CALL: Final = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)")
CHANGING: Final = {
    *("mkdirat", "renameat", "renameat2", "unlinkat", "linkat", "mount", "umount2", "vfork", "clone3", "flock"),
    *("connect", "symlinkat"),
    *("fchown", "fchownat", "rmdir", "mkdir", "unlink", "ftruncate", "pidfd_open", "wait4", "pidfd_send_signal"),
}  # fmt: skip


@frozen
class Point:
    """The nth call of a name, and the call itself, for the message."""

    name: str
    number: int
    text: str

    def __str__(self) -> str:
        """Give it in one line."""
        return f"{self.name}#{self.number} {self.text[:60]}"


def traced(machine: Machine, *words: str, options: Sequence[str]) -> Result:
    """Run kvmlaunch under strace from the end of its imports on: itself only, what it starts is left alone."""
    process = machine.start(sys.executable, WARM, *words)
    wait_for("kvmlaunch stands still", lambda: status_field(process.pid, "State").startswith("T"))
    tracer = machine.start("strace", "-p", str(process.pid), *options)
    assert tracer.stderr
    assert "attached" in (said := tracer.stderr.readline()), said
    process.send_signal(signal.SIGCONT)
    ended = finish(process)
    finish(tracer)
    return ended


def is_change(name: str, text: str, result: int) -> bool:
    """Does a call change something, or stand just before or after what does."""
    if name in CHANGING:
        return result >= 0
    return name in {"write", "openat"} and ("O_CREAT" in text or 'nr_hugepages", O_WRONLY' in text)


def calls(log: Path) -> Iterator[tuple[Point, int]]:
    """Give every call of a log with its result."""
    seen: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        if found := CALL.match(line):
            seen[found[1]] += 1
            yield Point(found[1], seen[found[1]], found[2]), int(found[3])
        elif started := re.match(r"^(\w+)\(", line):
            seen[started[1]] += 1


def points(machine: Machine, *words: str, after: str, others: int) -> list[Point]:
    """Give where to kill a command, from its first call that matches `after` on: at each change, and at some others.

    The command is run once, to its end.
    """
    log = machine.directory / "calls"
    result = traced(machine, *words, options=("-o", str(log), "-s", "128"))
    assert result.code == 0, result.err
    everything = list(calls(log))
    begin = next(index for index, (point, _) in enumerate(everything) if re.search(after, f"{point.name}({point.text}"))
    later = [each for each in everything[begin:] if "WNOHANG" not in each[0].text]  # a look that not every run takes
    rest = [
        point
        for point, result in later
        if not is_change(point.name, point.text, result) and point.name not in {"exit_group", "execve"}
    ]
    step = max(1, len(rest) // others)
    chosen = {point for point, result in later if is_change(point.name, point.text, result)} | set(rest[::step])
    return [point for point, _ in later if point in chosen]


def sample(chosen: Sequence[Point], every: int = 4) -> Sequence[Point]:
    """Give every fourth point or so, for a command that is slow to sweep; all of them with KVMLAUNCH_SWEEP=all."""
    return chosen if os.environ.get("KVMLAUNCH_SWEEP") == "all" else chosen[::every]


def killed_at(machine: Machine, point: Point, *words: str) -> Result:
    """Run a command that is killed at a point; gives what was seen of it."""
    inject = f"inject={point.name}:signal=SIGKILL:when={point.number}"
    return traced(machine, *words, options=("-o", "/dev/null", "-e", f"trace={point.name}", "-e", inject))


def describe(point: Point, words: Sequence[str]) -> str:
    """Give a sentence for a failure."""
    return f"kvmlaunch {shlex.join(words)}, killed at {point}"
