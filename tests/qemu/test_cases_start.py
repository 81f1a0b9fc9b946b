"""Every golden argv is given to a QEMU of its version: a golden that no QEMU took is an opinion."""

import os
import re
import shutil
import socket
import subprocess  # noqa: TID253 - a test starts QEMU by itself
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from kvmlaunch.builder.render import render_argv
from kvmlaunch.facts.evidence import parse_drives
from kvmlaunch.host.command import run_tool
from kvmlaunch.host.lock import host_lock
from kvmlaunch.model.plan import DrivePromise, IdentityPromise
from tests.casebook import TESTS, Outcome, accepted_cases, golden_argv, load_case, run_case
from tests.casestage import (
    MARKER,
    SUBSTITUTIONS,
    Substitution,
    make_stage,
    missing_tools,
    pages_on_stage,
    render_script,
    seen_from_outside,
    substitute,
)
from tests.monitor import SECONDS, Monitor, negotiated

SECONDS_OF_A_MOUNT: Final = 10
POOL: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
OTHER: Final = "10.0"
CACHE: Final = TESTS.parent / ".cache" / "qemu10"


@cache
def binary_of(version: str) -> Path:
    """Give the QEMU of a case's version; the test is skipped where there is none."""
    found = installed() if version.startswith("7.2") else newer()
    if found is None:
        pytest.skip(f"no QEMU {version} on this machine")
    said = run_tool((str(found), "-version")).out
    wanted = ".".join(version.split(".")[:2])
    if f"version {wanted}." not in said:
        pytest.skip(f"the goldens are for QEMU {wanted}, and {found} says: {said.splitlines()[0]}")
    return found


def installed() -> Path | None:
    """Give the QEMU of this machine."""
    found = shutil.which("qemu-system-x86_64")
    return Path(found) if found else None


def newer() -> Path | None:
    """Give QEMU 10: named by KVMLAUNCH_QEMU10, unpacked in /opt, or fetched once beneath .cache."""
    name = "qemu-system-x86_64"
    places = (os.environ.get("KVMLAUNCH_QEMU10", ""), f"/opt/qemu10/{name}", str(CACHE / name))
    found = next((Path(place) for place in places if place and os.access(place, os.X_OK)), None)
    if found is None and run_tool((str(TESTS / "qemus" / "fetch-10.sh"), str(CACHE)), timeout=900).status == 0:
        return CACHE / name
    return found


def change_pool(pages: int) -> int:
    """Change the pool of 2 MiB pages by a number; give what the kernel made of it.  The host's lock is held."""
    total = POOL / "nr_hugepages"
    before = int(total.read_text())
    total.write_text(str(max(0, before + pages)))
    return int(total.read_text()) - before


def lower_pool(pages: int) -> int:
    """Lower the pool by pages that nobody holds, at most by so many; give by how many."""
    free, reserved = (int((POOL / name).read_text()) for name in ("free_hugepages", "resv_hugepages"))
    return -change_pool(-min(pages, max(0, free - reserved)))


def needs_a_stage(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs root and the tools of a stage."""
    tools = missing_tools()
    root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces, taps and mounts")
    found = pytest.mark.skipif(bool(tools), reason=f"missing: {', '.join(tools)}")
    marked: Callable[..., None] = root(found(test))
    return marked


@contextmanager
def started(script: str, log: Path, pages: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a script in namespaces of its own; what is left of it in the end is killed.

    The pool grows by the pages that its mount reserves, under the lock that holds until they are reserved.
    """
    with ExitStack() as stack:
        with host_lock() if pages else nullcontext():
            gained = change_pool(pages) if pages else 0
            stack.callback(give_back, gained)
            with log.open("wb") as output:
                process = subprocess.Popen(  # noqa: S603 - the script is ours
                    ("unshare", "--mount", "--net", "--propagation", "private", "sh", "-euc", script),  # noqa: S607
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_for_stage(process)
        yield process


def give_back(pages: int) -> None:
    """Lower the pool by the pages that were gained; a mount gives them up some time after its last process ended."""
    deadline = time.monotonic() + SECONDS_OF_A_MOUNT
    while pages > 0 and time.monotonic() < deadline:
        with host_lock():
            pages -= lower_pool(pages)
        time.sleep(0.005 if pages else 0)


def wait_for_stage(process: "subprocess.Popen[bytes]") -> None:
    """Wait until the stage is set, or the script has ended."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and not seen_from_outside(process.pid, MARKER).exists():
        assert time.monotonic() < deadline, "the stage was not set"
        time.sleep(0.005)


def connect(process: "subprocess.Popen[bytes]", path: str) -> socket.socket:
    """Give a connection to a socket of the process's namespace, once it listens; fails when the process ends."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "QEMU ended before it listened"
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
        else:
            return connection
        time.sleep(0.01)
    pytest.fail("QEMU did not listen")


def check_drive(promise: DrivePromise, answer: object) -> None:
    """Hold what query-block says of a drive against its promise."""
    seen = next(drive for drive in parse_drives(answer) if drive.id == promise.id)
    names = ("format", "readonly", "direct", "no_flush", "writeback", "detect_zeroes", "iops", "bandwidth")
    assert promise.is_at(seen.path)
    assert {name: getattr(seen, name) for name in names} == {name: getattr(promise, name) for name in names}


def check_answers(outcome: Outcome, qmp: Monitor) -> None:
    """Hold what QEMU says of itself against the promises of the case."""
    plan = outcome.plan
    assert plan is not None
    assert qmp.ask("query-status")["status"] == "prelaunch"
    blocks = qmp.ask("query-block")
    for promise in plan.promises:
        match promise:
            case DrivePromise():
                check_drive(promise, blocks)
            case IdentityPromise():
                assert qmp.ask("query-name")["name"] == promise.name
                assert qmp.ask("query-uuid")["UUID"] == promise.uuid
                assert len(qmp.ask("query-cpus-fast")) == promise.vcpus
            case _:
                pass


def check_start(outcome: Outcome, version: str, argv: tuple[str, ...], place: Path) -> None:
    """Start a QEMU with the argv of a case, hear what it makes of it, and quit."""
    binary = binary_of(version)
    script = render_script(make_stage(place, outcome), outcome, binary, substitute(argv))
    log = place / "log"

    with started(script, log, pages_on_stage(outcome)) as process:
        try:
            path = str(seen_from_outside(process.pid, outcome.places.run / "qmp.sock"))
            with negotiated(connect(process, path)) as qmp:
                check_answers(outcome, qmp)
                qmp.ask("quit")
            status = process.wait(SECONDS)
        except BaseException as error:
            error.add_note(f"{script}\n\n{log.read_text(errors='replace')}")
            raise

    assert status == 0, log.read_text()
    assert complaints(log.read_text()) == []


@needs_a_stage
@pytest.mark.parametrize("name", accepted_cases())
def test_qemu_takes_the_argv_of(name: str, tmp_path: Path) -> None:
    check_start(run_case(name), load_case(name).qemu, golden_argv(name), tmp_path)


@needs_a_stage
@pytest.mark.parametrize("name", [name for name in accepted_cases(OTHER) if load_case(name).qemu != OTHER])
def test_qemu_10_takes_what_is_built_for_it_of(name: str, tmp_path: Path) -> None:
    outcome = run_case(name, OTHER)
    assert outcome.plan is not None

    check_start(outcome, OTHER, render_argv(outcome.plan, outcome.places)[1:], tmp_path)


# What QEMU may say, and why; nothing else is said.
EXPECTED: Final = {
    "TCG doesn't support requested feature": "a CPU model under TCG in place of KVM",
    "This family of AMD CPU doesn't support hyperthreading": "max is an AMD CPU, the host of the case is none",
    "Please configure -smp options properly": "its second line",
    "is deprecated: machines more than 3 years old": "kvmlaunch warns of it too: qemu.machine.deprecated",
    "qemu_madvise: Invalid argument": "RAM of an odd size on hugepages: only whole pages stay out of a dump",
    "madvise doesn't support MADV_DONTDUMP": "its second line",
}


def complaints(text: str) -> list[str]:
    """Give what QEMU said beyond what is expected."""
    return [line for line in text.splitlines() if not any(words in line for words in EXPECTED)]


def test_every_substitution_is_used_by_a_case() -> None:
    argvs = [golden_argv(name) for name in accepted_cases()]

    for each in SUBSTITUTIONS:
        assert any(replaced(argv, each) for argv in argvs), each


def replaced(argv: tuple[str, ...], each: Substitution) -> bool:
    """Does a substitution change this argv."""
    return any(flag == each.flag and re.search(each.pattern, value) for flag, value in pairwise(argv))
