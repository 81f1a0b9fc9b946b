"""Run one short tool and give what it said: the only door to `sh`.

Not for what lasts (`run/spawn.py`), nor in threads or event loops: sh forks from Python.
"""

import os
import shlex
from collections.abc import Sequence
from typing import BinaryIO, cast

from kvmlaunch.errors import HostFailed, Report, TimedOut
from kvmlaunch.model.value import frozen

# The Debian package of a tool, for the hint when it is missing.
PACKAGES = {
    "findmnt": "util-linux",
    "ip": "iproute2",
    "kvm": "qemu-system-x86",
    "lsblk": "util-linux",
    "lvs": "lvm2",
    "mount": "mount",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "strace": "strace",
    "swtpm": "swtpm",
    "umount": "mount",
    "virtiofsd": "virtiofsd",
}
ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@frozen(kw_only=True)
class ToolResult:
    """How a tool ended: `status` is its exit status, or minus the signal that ended it."""

    status: int
    out: str
    err: str


# `input` is what subprocess calls it too.
def run_tool(argv: Sequence[str], *, timeout: float = 30, input: str | None = None) -> ToolResult:  # noqa: A002
    """Give the outcome of a tool, whatever its status; `input` is its standard input, which is empty without.

    Raises HostFailed when it cannot be started, TimedOut when it took longer than `timeout` seconds
    and was killed.  Its streams are files in memory: QEMU drops what a full pipe did not take when
    it quits (seen with 7.2.22: half of the answers).
    """
    assert argv
    assert all(type(word) is str for word in argv)
    with memory_file(input or "") as given, memory_file() as out, memory_file() as err:
        status = run_with(argv, timeout, given, out, err)
        return ToolResult(status=status, out=text_of(out), err=text_of(err))


def run_with(argv: Sequence[str], timeout: float, given: BinaryIO, out: BinaryIO, err: BinaryIO) -> int:
    """Give the status of a tool that was run with these streams."""
    import logging  # noqa: PLC0415 - sh imports it, print-cmd does without

    import sh

    logging.getLogger("sh").setLevel(logging.WARNING)
    logging.getLogger("kvmlaunch.command").debug(shlex.join(argv))
    try:
        tool = sh.Command(argv[0], search_paths=search_path())
        done = tool(
            *argv[1:],
            _in=given,
            _out=out,
            _err=err,
            _tty_out=False,
            _env=ENVIRONMENT,
            _cwd="/",
            _timeout=timeout,
            _return_cmd=True,
        )
    except sh.CommandNotFound as error:
        raise HostFailed(report_missing(argv[0])) from error
    except sh.TimeoutException as error:
        raise TimedOut(report_late(argv, timeout)) from error
    except sh.ErrorReturnCode as error:
        return error.exit_code
    except (OSError, sh.ForkException) as error:
        raise HostFailed(report_unstarted(argv, str(error))) from error
    return done.exit_code or 0


def search_path() -> list[str]:
    """Give the caller's PATH and the system's own directories, which a user's PATH may lack."""
    return f"{os.environ.get('PATH', '')}:{ENVIRONMENT['PATH']}".strip(":").split(":")


def memory_file(content: str = "") -> BinaryIO:
    """Give a file in memory, to be read from its beginning."""
    stream = os.fdopen(os.memfd_create("kvmlaunch"), "w+b", buffering=0)
    stream.write(content.encode(errors="surrogateescape"))
    stream.seek(0)
    return cast("BinaryIO", stream)


def text_of(stream: BinaryIO) -> str:
    """Give all that was written to a file in memory; bytes that are no UTF-8 are kept as surrogates."""
    stream.seek(0)
    return stream.read().decode(errors="surrogateescape")


def report_missing(tool: str) -> Report:
    """Give the report for a tool that is not there."""
    name = tool.rpartition("/")[2]
    package = PACKAGES.get(name)
    return Report(
        code="host.tool.missing",
        message=f"{name} is not installed",
        where=tool,
        why="no such program on the search path" if "/" not in tool else "no such program, or not executable",
        hint=f"apt install {package}" if package else "",
    )


def report_late(argv: Sequence[str], timeout: float) -> Report:
    """Give the report for a tool that did not end."""
    return Report(
        code="host.tool.timeout",
        message=f"{argv[0].rpartition('/')[2]} did not end within {timeout:g} s and was killed",
        where=" ".join(argv),
    )


def report_unstarted(argv: Sequence[str], why: str) -> Report:
    """Give the report for a tool that could not be started."""
    name = argv[0].rpartition("/")[2]
    return Report(code="host.tool.failed", message=f"{name} could not be started", where=" ".join(argv), why=why)
