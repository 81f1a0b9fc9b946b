"""How a command ends that no step of ours refused: usage, a standard output that takes nothing, a bug."""

import errno
import os
import sys
import tempfile
import traceback

import click

from kvmlaunch.cli.session import Session, vm_of
from kvmlaunch.cli.show import show_failure
from kvmlaunch.errors import HostFailed, KvmlaunchError, PreflightFailed, Report

FULL = (errno.ENOSPC, errno.EDQUOT)


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
    if error.errno in FULL and writing:
        return PreflightFailed(Report(code="host.space", message=f"standard output: {os.strerror(error.errno or 0)}"))
    try:
        sys.stdout.flush()
    except OSError as again:
        closed, full = again.errno == errno.EBADF, again.errno in FULL
        what = "it is closed" if closed else os.strerror(again.errno or 0)
        report = Report(code="host.space" if full else "host.failed", message=f"standard output: {what}")
        return PreflightFailed(report) if full else HostFailed(report)
    return None


def show_bug(session: Session, error: Exception) -> int:
    """Say that something of ours broke, keep the traceback, and print it where KVMLAUNCH_DEBUG asks; gives the code."""
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
    show_failure(session, KvmlaunchError(report))
    return KvmlaunchError.exit_code
