"""Reports, findings, rows and documents become text; the only place where a report becomes sentences."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from kvmlaunch.cli.session import Session, use_color
from kvmlaunch.errors import KvmlaunchError, Report
from kvmlaunch.facts.console import plain_text
from kvmlaunch.model.finding import Finding

COLORS = {"ok": "green", "warn": "yellow", "FAIL": "red", "skip": "cyan", "error": "red"}
NO_UTF8 = "[\udc80-\udcff]"  # how Python holds a byte that is none
STATUS_WIDTH = 5
WORD_WIDTH = 11


def paint(session: Session, word: str, *, err: bool) -> str:
    """Give a status word, coloured where that is wished."""
    stream = sys.stderr if err else sys.stdout
    return click.style(word, fg=COLORS[word]) if use_color(session, stream.isatty()) else word


def short_path(text: str) -> str:
    """Give a text with the working directory taken out of a path that it begins with."""
    import os  # noqa: PLC0415 - one call

    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return text
    return text.removeprefix(f"{here}/")


def talk(text: str) -> None:
    """Print to stderr; a reader that went away changes nothing of what is done."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True, color=True)  # whether to colour was decided by whoever made the text


def say(session: Session, vm: str, status: str, word: str, text: str) -> None:
    """Print one step of a VM to stderr, `web01  ok    preflight   12 checks`."""
    if session.quiet and status in {"ok", "skip"}:
        return
    state = f"{paint(session, status, err=True)}{' ' * (STATUS_WIDTH - len(status))}"
    talk(f"{plain_text(vm)}  {state} {word:<{WORD_WIDTH}} {plain_text(text)}".rstrip())


def fix_of(report: Report) -> str:
    """Give what to do: what the report says, else what helps with its code in general."""
    from kvmlaunch.cli.hints import as_typed  # noqa: PLC0415 - on a failure only
    from kvmlaunch.model.codes import REMEDIES  # noqa: PLC0415

    return as_typed(report.hint or REMEDIES.get(report.code, ""))


def report_lines(report: Report) -> list[str]:
    """Give the lines beneath a report's message: where, why and what to do, none of them repeated."""
    lines = [f"  {short_path(line)}" for line in plain_text(report.where).splitlines()]
    lines += [f"  {line}" for line in plain_text(report.why).splitlines()]
    return lines + fix_lines(report)


def fix_lines(report: Report) -> list[str]:
    """Give the lines that say what to do."""
    hints = plain_text(fix_of(report)).splitlines()
    return [f"  {'fix: ' if index == 0 else '     '}{line}" for index, line in enumerate(hints)]


def show_error(session: Session, report: Report, vm: str = "") -> None:
    """Print an error to stderr."""
    head = (
        f"{paint(session, 'error', err=True)}: {f'{plain_text(vm)}: ' if vm else ''}"
        f"{plain_text(report.message)}  [{report.code}]"
    )
    talk("\n".join([head, *report_lines(report)]))


def show_warnings(session: Session, vm: str, findings: Iterable[Finding], *, fixes: bool = False) -> None:
    """Print warnings to stderr, with their reason; the fix with -v, or where there is nothing else to do."""
    for finding in findings:
        if finding.severity != "warning":
            continue
        report = finding.report
        say(session, vm, "warn", "", f"{report.message}  [{report.code}]")
        where = f"{short_path(report.where)}: " if report.where else ""
        talk(f"  {where}{report.why}".replace("\n", "\n  "))
        if (session.verbose or fixes) and report.hint:
            talk("\n".join(fix_lines(report)))


def report_document(report: Report) -> dict[str, str]:
    """Give the JSON form of a report."""
    return {
        "code": report.code,
        "message": report.message,
        "where": report.where,
        "why": report.why,
        "hint": fix_of(report),
    }


def finding_document(finding: Finding) -> dict[str, str]:
    """Give the JSON form of a finding."""
    return {"severity": finding.severity, "key": finding.key, **report_document(finding.report)}


def error_document(error: KvmlaunchError) -> dict[str, Any]:
    """Give the JSON form of what stopped us, with every problem of it."""
    problems = [report_document(report) for report in error.problems]
    return {"code": error.report.code, "message": error.report.message, "problems": problems}


def show_failure(session: Session, error: KvmlaunchError, vm: str = "") -> None:
    """Print what stopped us, all problems of it, as text or as one JSON document on stderr.

    `vm` stands before each line of text, where the command is for several VMs.  Where KVMLAUNCH_DEBUG asks for it, the
    traceback comes first.
    """
    if os.environ.get("KVMLAUNCH_DEBUG") and error.__traceback__:
        import traceback  # noqa: PLC0415 - on a failure only

        talk("".join(traceback.format_exception(error)).rstrip())
    if session.json:
        talk(json.dumps({"error": {**error_document(error), "vm": error.vm or vm}}))
        return
    for report in error.problems:
        show_error(session, report, vm)
    if len(error.problems) > 1:
        talk(f"{len(error.problems)} problems")


def show_document(kind: str, document: Mapping[str, Any]) -> None:
    r"""Print one JSON document to stdout, its schema named; a byte of a file's name that is no UTF-8 as `\xff`."""
    text = json.dumps({"schema": f"kvmlaunch/{kind}/1", **document}, ensure_ascii=False)
    click.echo(re.sub(NO_UTF8, lambda found: f"\\\\x{ord(found[0]) - 0xDC00:02x}", text))


def table_lines(rows: Sequence[Sequence[str]], *, gap: int = 2) -> list[str]:
    """Give rows in columns, the last one as long as it is; names in them may be a guest's, and are shown plainly."""
    if not rows:
        return []
    rows = [[plain_text(cell).replace("\n", "?") for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    return [
        (" " * gap).join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns to stdout."""
    for line in table_lines(rows):
        click.echo(line)


def duration_text(seconds: float) -> str:
    """Give a time for people: `12 s`, `3 min`, `5 h`, `2 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length * 2:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
