"""The exceptions, and the shape that an error shares with a finding.

Expected refusals are values, all of them at once; broken promises are exceptions.  Both carry
the five fields of `Report`, none of which repeats another; only `cli/show.py` makes sentences
of them.  What else escapes is a bug of ours.

    KvmlaunchError              exit 1
    ├── Refused                      1   said before anything changed
    │   ├── NotRunning               3
    │   ├── UnknownVm                4
    │   │   └── Misnamed             5
    │   ├── DefinitionInvalid        5
    │   ├── PreflightFailed          6
    │   ├── Busy                     7
    │   │   └── Unreachable          7
    │   └── PrivilegeMissing        77
    ├── HostFailed                   1   the host did not do what it was told
    ├── TimedOut                     8
    └── QemuFailed                   9
"""

from typing import ClassVar, NamedTuple


class Report(NamedTuple):
    """One thing that is wrong: what, where, why, and what to do about it.

    `code` is stable, dotted, subject first (`host.hugepages.short`) and described by
    `kvmlaunch explain CODE`.  `where` is `file:line:column key`, a path or a pid; `why` gives the
    facts with their numbers; `hint` is a command or a line that can be pasted.  Several lines
    are allowed in `why` and `hint`.
    """

    code: str
    message: str
    where: str = ""
    why: str = ""
    hint: str = ""


class KvmlaunchError(Exception):
    """What stopped us; `problems` holds every report when there is more than one, `vm` the VM that was named."""

    exit_code: ClassVar[int] = 1

    def __init__(self, report: Report, problems: tuple[Report, ...] = ()) -> None:
        """Keep the report; its message is the text of the exception."""
        super().__init__(report.message)
        self.report = report
        self.problems = problems or (report,)
        self.vm = ""


class Refused(KvmlaunchError):
    """We said no before anything changed."""


class NotRunning(Refused):
    """The command needs a running VM."""

    exit_code = 3


class UnknownVm(Refused):
    """No definition has this name; the report names the nearest ones and the places searched."""

    exit_code = 4


class Misnamed(UnknownVm):
    """No definition could have this name."""

    exit_code = 5


class DefinitionInvalid(Refused):
    """The definition has mistakes; `problems` holds all of them."""

    exit_code = 5


class PreflightFailed(Refused):
    """The host cannot give what the plan needs; `problems` holds every error found."""

    exit_code = 6


class Busy(Refused):
    """Somebody else holds it, or a state forbids it; the report names the holder."""

    exit_code = 7


class Unreachable(Busy):
    """The VM runs, and its monitor cannot be reached: its socket was removed, or another process took its name."""


class PrivilegeMissing(Refused):
    """The caller may not; the report says what needs the privilege and how to get just that."""

    exit_code = 77


class HostFailed(KvmlaunchError):
    """The host did not do what it was told: the path or command, the errno, its own text."""


class TimedOut(KvmlaunchError):
    """Something awaited did not come within its deadline."""

    exit_code = 8


class QemuFailed(KvmlaunchError):
    """QEMU refused or died; its own text stands in `why`, verbatim."""

    exit_code = 9
