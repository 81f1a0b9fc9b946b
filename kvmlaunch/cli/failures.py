"""How a command ends that no step of ours refused: usage, a standard output that takes nothing, a bug."""

import errno
import os
import sys
import tempfile
import traceback

import click

from kvmlaunch.cli.session import vm_of
from kvmlaunch.errors import HostFailed, KvmlaunchError, PreflightFailed, Report
from kvmlaunch.host.tree import failed

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = errno.EBADF
# What a system call fails of wherever it stands, and what to do about it.
OF_THE_HOST = {
    errno.EMFILE: "ulimit -n   # so many files may a process open: raise it",
    errno.ENFILE: "sysctl fs.file-max   # so many files may all processes open: raise it",
    errno.ENOMEM: "free -h   # memory is short",
    errno.ENOLCK: "cat /proc/locks   # the kernel has no room for a lock, or the file system none at all",
    errno.EIO: "dmesg   # tells of the device that failed",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS), ""),
}


def usage_failure(error: click.ClickException) -> KvmlaunchError:
    """Give what click says of a command line as an error of ours, with the VM that it named."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"{context.command_path} --help" if context else "kvmlaunch --help"
    failure = KvmlaunchError(Report(code="usage", message=error.format_message(), hint=hint))
    failure.vm = vm_of(context.params) if context else ""
    return failure


def output_failure(error: Exception) -> KvmlaunchError | None:
    """Give the failure of standard output to take an answer, None for any other error.

    What could not be written is still buffered, so that writing it fails again.
    """
    if not isinstance(error, OSError):
        return None
    # Without a buffer nothing is left to be written again: then it is where click wrote.
    writing = any(frame.name == "echo" for frame in traceback.extract_tb(error.__traceback__))
    if writing and error.errno in {*FULL, CLOSED}:
        return unanswered(error)
    try:
        sys.stdout.flush()
    except OSError as again:
        return unanswered(again)
    return None


def unanswered(error: OSError) -> KvmlaunchError:
    """Give the failure of a standard output: whatever the command does to a VM or a host is done by then."""
    full, what = error.errno in FULL, "it is closed" if error.errno == CLOSED else os.strerror(error.errno or 0)
    why = "what the command does is done; its answer alone could not be written"
    report = Report(code="host.space" if full else "host.failed", message=f"standard output: {what}", why=why)
    return PreflightFailed(report) if full else HostFailed(report)


def host_failure(error: Exception) -> KvmlaunchError | None:
    """Give the failure of a system call that any host may have at any place, None for any other error."""
    if not isinstance(error, OSError) or error.errno not in OF_THE_HOST:
        return None
    failure = failed(str(error.filename or "a system call"), error)
    where = str(error.filename or "")
    return type(failure)(failure.report._replace(where=where, hint=OF_THE_HOST[error.errno]))


def bug_failure(error: Exception) -> KvmlaunchError:
    """Give what says that something of ours broke; the traceback is kept, and printed where KVMLAUNCH_DEBUG asks."""
    text = "".join(traceback.format_exception(error))
    if os.environ.get("KVMLAUNCH_DEBUG"):
        click.echo(text, err=True)
    with tempfile.NamedTemporaryFile("w", prefix="kvmlaunch-bug-", suffix=".log", delete=False) as file:
        file.write(text)
    report = Report(
        code="internal.bug",
        message=f"{type(error).__name__}: {error}",
        where=file.name,
        why="a bug of kvmlaunch's; nothing of yours is wrong",
        hint="please report it with this file",
    )
    return KvmlaunchError(report)
