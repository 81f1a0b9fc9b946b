"""What `doctor` says of one subject of the host."""

from collections.abc import Mapping
from typing import Literal

from kvmlaunch.model.value import Factory, frozen

Verdict = Literal["FAIL", "warn", "ok", "skip"]


@frozen(kw_only=True)
class Diagnosis:
    """One subject of the host: how it is, with its numbers, and what mends it.

    `gain` orders them: what a mend is worth, from 9 (a guest runs at all, or ten times as fast) down to 0.  `fix` is a
    command that can be pasted, "" where nothing is wrong; `source` what the judgement rests on.
    """

    subject: str
    verdict: Verdict
    found: str
    why: str = ""
    fix: str = ""
    source: str = ""
    gain: int = 0
    numbers: Mapping[str, object] = Factory(dict)


@frozen(kw_only=True)
class Trial:
    """A guest that was booted under KVM to see whether it makes progress.

    `kernel` is what was booted, "" where none could be had; `progressed` is None when nothing was tried.
    """

    kernel: str = ""
    progressed: bool | None = None
    seconds: float = 0.0
    words: str = ""
