"""What holds for all tests: the tier of each, `--regenerate`, and skips that count as failures."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

TESTS: Final = Path(__file__).resolve().parent
TIERS: Final = ("pure", "qemu", "boot", "root")

# No test asserts a time, and a busy machine fails none.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="rewrite argv.txt and findings.txt of every case")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to rewrite expectations where nobody reads the difference."""
    if config.getoption("--regenerate") and os.environ.get("CI"):
        message = "--regenerate is not for continuous integration: run it on your own machine and read the diff"
        raise pytest.UsageError(message)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a test the marker of its tier: its directory beneath tests/, `pure` for those in no tier's."""
    directory = item.path.relative_to(TESTS).parts[0]
    item.add_marker(directory if directory in TIERS else "pure")


def skips_are_failures() -> bool:
    """Is this the machine where every test has to run."""
    return os.environ.get("KVMLAUNCH_REQUIRE") == "all"


def fail_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that says why it is one; what is expected to fail is no skip."""
    if not report.skipped or hasattr(report, "wasxfail") or not skips_are_failures():
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}\n{reason}\nKVMLAUNCH_REQUIRE=all: nothing may be skipped here"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped where nothing may be."""
    report = yield
    fail_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module that is skipped where nothing may be."""
    report = yield
    fail_skipped(report)
    return report
