"""A finding: something that a check saw, with its severity."""

from typing import Literal

from kvmlaunch.errors import Report
from kvmlaunch.model.value import frozen

Severity = Literal["error", "warning"]


@frozen(kw_only=True)
class Finding:
    """What a check saw.

    `key` is the dotted key path of the definition that it is about ("" when it is about none);
    whoever shows the finding turns it into file, line and column in `report.where`.
    """

    severity: Severity
    report: Report
    key: str = ""


def error(*, code: str, message: str, key: str = "", where: str = "", why: str = "", hint: str = "") -> Finding:
    """Give a finding that stops the VM."""
    report = Report(code=code, message=message, where=where, why=why, hint=hint)
    return Finding(severity="error", report=report, key=key)


def warning(*, code: str, message: str, key: str = "", where: str = "", why: str = "", hint: str = "") -> Finding:
    """Give a finding that is said and does not stop the VM."""
    report = Report(code=code, message=message, where=where, why=why, hint=hint)
    return Finding(severity="warning", report=report, key=key)


def errors_of(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Give the findings that stop the VM."""
    return tuple(finding for finding in findings if finding.severity == "error")
