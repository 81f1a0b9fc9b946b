"""Two sides in turn, and what became of it: a ratio with its spread, or why there is none.

The sides alternate, so that whatever else the machine does meets both; the first pair warms up and does not count.
A ratio is the median of the pairs' ratios.
"""

import os
import statistics
import subprocess  # noqa: TID253 - the bench runs commands as a shell does
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
PYTHON: Final = sys.executable
KVMLAUNCH: Final = str(Path(sys.executable).parent / "kvmlaunch")
LONGEST: Final = 120  # seconds for one command

Side = Callable[[], float]  # does it once and gives the seconds that count


@frozen(kw_only=True)
class Row:
    """One comparison.  Times are medians in seconds; `aim` is what the ratio, or the difference, should not exceed."""

    group: str
    what: str
    against: str
    pairs: int = 0
    ratio: float = 0.0
    least: float = 0.0
    most: float = 0.0
    ours: float = 0.0
    theirs: float = 0.0
    aim: str = ""
    kept: bool | None = None
    skipped: str = ""


class BenchError(Exception):
    """A command of the bench failed: there is nothing to measure."""


def environment() -> dict[str, str]:
    """Give the environment of every command: byte code may be written, and nothing of ours is switched on."""
    drop = ("PYTHON", "KVMLAUNCH", "_KVMLAUNCH", "COMP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(drop)}


def run(words: Sequence[str], *, extra: Mapping[str, str] | None = None, at: Path | None = None) -> float:
    """Run a command to its end and give the seconds; raises BenchError with its words when it fails, or never ends."""
    begun = time.perf_counter()
    try:
        done = subprocess.run(  # noqa: S603 - the words are the bench's own
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**environment(), **(extra or {})},
            cwd=at,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise BenchError(f"{' '.join(words)[:200]} took more than {LONGEST} s") from late
    seconds = time.perf_counter() - begun
    if done.returncode:
        message = f"{' '.join(words)[:200]} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-600:]}"
        raise BenchError(message)
    return seconds


def command(*words: str, extra: Mapping[str, str] | None = None, at: Path | None = None) -> Side:
    """Give the side that runs a command."""
    return lambda: run(words, extra=extra, at=at)


def in_turn(ours: Side, theirs: Side, pairs: int) -> list[tuple[float, float]]:
    """Measure both sides in turn, theirs first, after one pair that does not count."""
    measured = []
    for number in range(pairs + 1):
        reference = theirs()
        own = ours()
        if number:
            measured.append((own, reference))
    return measured


def compare(
    group: str, what: str, against: str, measured: Sequence[tuple[float, float]], *, aim: float | None = None
) -> Row:
    """Give the row of what was measured; `aim` is the largest ratio wished for."""
    ratios = [own / reference for own, reference in measured]
    ratio = statistics.median(ratios)
    return Row(
        group=group,
        what=what,
        against=against,
        pairs=len(measured),
        ratio=ratio,
        least=min(ratios),
        most=max(ratios),
        ours=statistics.median(own for own, _ in measured),
        theirs=statistics.median(reference for _, reference in measured),
        aim=f"≤ {aim:g}×" if aim else "",
        kept=ratio <= aim if aim else None,
    )


def skipped(group: str, what: str, against: str, why: str) -> Row:
    """Give the row of what was not measured."""
    return Row(group=group, what=what, against=against, skipped=why)
