"""What the commands that one types most may import: names are counted, not milliseconds.

A heavy module costs as much as the whole rest of `print-cmd`.  Each is imported where it is needed, in a function.
"""

import os
import shutil
import signal
import subprocess  # noqa: TID253 - a test runs kvmlaunch as its users do
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
HEAVY = ("sh", "asyncio", "rich", "psutil", "filelock", "optuna", "toml_rs", "subprocess", "ctypes", "difflib", "attr")
CAPTURED = "/srv/kvmlaunch/vmdefs/web01.img"
# What only some commands need of ours: a plan is printed without checks, a definition is read without a plan.
NO_PLAN = ("kvmlaunch.builder", "kvmlaunch.preflight", "kvmlaunch.facts.sources", "kvmlaunch.host.apply")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a capture of a host that holds the answers of its QEMU, so that no QEMU is asked."""
    directory = tmp_path_factory.mktemp("host") / "facts"
    shutil.copytree(TESTS / "hosts" / "kvm-intel-8cpu", directory)
    shutil.copytree(TESTS / "qemus" / "7.2.22", directory / "qemu")
    return directory


def imported_by(arguments: tuple[str, ...], environment: dict[str, str] | None = None) -> set[str]:
    """Give the names of all modules that a command imports; it has to succeed."""
    command = [sys.executable, "-X", "importtime", "-m", "kvmlaunch", *arguments]
    known = {name: value for name, value in os.environ.items() if not name.startswith("KVMLAUNCH")}
    ran = subprocess.run(  # noqa: S603 - the words are ours
        command, cwd=ROOT, env=known | (environment or {}), capture_output=True, text=True, timeout=60, check=False
    )

    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = [line for line in ran.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def beneath(names: set[str], roots: tuple[str, ...]) -> list[str]:
    """Give the names that are one of the modules, or lie in one of them."""
    return sorted(name for name in names if any(name == root or name.startswith(f"{root}.") for root in roots))


def test_print_cmd_imports_nothing_heavy(facts: Path) -> None:
    found = imported_by(("print-cmd", "web01", "--facts", str(facts), "--set", f"disk={CAPTURED}"))

    assert "kvmlaunch.builder.vm" in found
    assert beneath(found, HEAVY) == []


def test_print_cmd_imports_no_checks(facts: Path) -> None:
    found = imported_by(("print-cmd", "web01", "--facts", str(facts)))

    assert beneath(found, ("kvmlaunch.preflight", "kvmlaunch.host.apply")) == []


def test_explain_imports_nothing_heavy(facts: Path) -> None:
    found = imported_by(("explain", "web01", "--facts", str(facts)))

    assert beneath(found, HEAVY) == []


def test_validate_imports_nothing_heavy_and_no_plan() -> None:
    found = imported_by(("validate", "web01"))

    assert "kvmlaunch.define.load" in found
    assert beneath(found, (*HEAVY, *NO_PLAN)) == []


def test_a_start_imports_nothing_that_its_qemu_would_have_to_wait_for() -> None:
    late = ("cli.run", "steps.up", "steps.start", "run.launch", "run.verify", "run.qmp", "preflight.promises")
    script = "".join(f"import kvmlaunch.{name}\n" for name in late) + "import sys; print(*sys.modules)"

    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - our words

    found = set(ran.stdout.split())
    assert "kvmlaunch.run.spawn" in found
    assert beneath(found, tuple({*HEAVY} - {"subprocess"})) == []


def test_completion_of_a_name_imports_nothing_heavy_and_parses_nothing() -> None:
    words = {"_KVMLAUNCH_COMPLETE": "bash_complete", "COMP_WORDS": "kvmlaunch print-cmd we", "COMP_CWORD": "2"}

    found = imported_by((), words)

    assert "click.shell_completion" in found
    assert beneath(found, (*HEAVY, "tomli")) == []


def test_completion_of_a_command_imports_none_of_them() -> None:
    words = {"_KVMLAUNCH_COMPLETE": "bash_complete", "COMP_WORDS": "kvmlaunch pr", "COMP_CWORD": "1"}

    found = imported_by((), words)

    assert beneath(found, (*HEAVY, "tomli", "kvmlaunch.builder", "kvmlaunch.define")) == []


def test_a_heavy_module_would_be_seen() -> None:
    found = imported_by(("init", "--help"))
    planted = found | {"rich.table", "asyncio"}

    assert beneath(planted, HEAVY) == ["asyncio", "rich.table"]


def test_an_interruption_of_the_imports_ends_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(99)\n")
    command = ["env", "--default-signal=INT", sys.executable, "-m", "kvmlaunch", "version"]

    ran = subprocess.run(  # noqa: S603 - the words are ours
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, timeout=60, check=False
    )

    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, b"")
