"""Every golden argv is given to a QEMU of its version: a golden that no QEMU took is an opinion."""

import json
import os
import shutil
import socket
import subprocess  # noqa: S404, TID253 - a test starts QEMU by itself
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import frozen

from kvmlaunch.facts.evidence import parse_drives
from kvmlaunch.host.lock import host_lock
from kvmlaunch.host.command import run_tool
from kvmlaunch.model.plan import DrivePromise, IdentityPromise
from tests.casebook import TESTS, accepted_cases, golden_argv, load_case, run_case
from tests.casestage import (
    MARKER,
    SUBSTITUTIONS,
    make_stage,
    missing_tools,
    render_script,
    seen_from_outside,
    substitute,
)

SECONDS: Final = 120
POOL: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
PAGES: Final = 80  # a worker's share: one guest of 129 MiB at a time
CACHE: Final = TESTS.parent / ".cache" / "qemu10"


@frozen(kw_only=True)
class Monitor:
    """A QMP connection."""

    stream: Any

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - whatever QEMU answers
        """Give the return value of a command."""
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self.stream.flush()
        while True:
            message = self.receive()
            if "event" not in message:
                assert "return" in message, message
                return message["return"]

    def receive(self) -> Mapping[str, Any]:
        """Give the next message."""
        line = self.stream.readline()
        assert line, "QEMU closed its monitor"
        message: Mapping[str, Any] = json.loads(line)
        return message


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
    found = next((Path(place) for place in places if place and Path(place).is_file()), None)
    if found is None and run_tool((str(TESTS / "qemus" / "fetch-10.sh"), str(CACHE)), timeout=900).status == 0:
        return CACHE / name
    return found


@pytest.fixture(scope="session")
def _pages() -> Iterator[None]:
    """Raise the pool of 2 MiB pages for the guests of this session, and lower it again by as much."""
    with host_lock():
        before = int((POOL / "nr_hugepages").read_text())
        (POOL / "nr_hugepages").write_text(str(before + PAGES))
        gained = int((POOL / "nr_hugepages").read_text()) - before
    yield
    with host_lock():
        now = int((POOL / "nr_hugepages").read_text())
        (POOL / "nr_hugepages").write_text(str(max(0, now - gained)))


@contextmanager
def started(script: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a script in namespaces of its own; what is left of it in the end is killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the script is ours
            ("unshare", "--mount", "--net", "--propagation", "private", "sh", "-euc", script),  # noqa: S607
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def connect(process: "subprocess.Popen[bytes]", path: str) -> socket.socket:
    """Give a connection to a socket of the process's namespace, once it listens; fails when the process ends."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "QEMU ended before it listened"
        if seen_from_outside(process.pid, MARKER).exists():
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


@contextmanager
def monitor(process: "subprocess.Popen[bytes]", path: str) -> Iterator[Monitor]:
    """Give a monitor past its greeting and the negotiation of capabilities."""
    with connect(process, path) as connection, connection.makefile("rwb") as stream:
        qmp = Monitor(stream=stream)
        assert "QMP" in qmp.receive()
        qmp.ask("qmp_capabilities")
        yield qmp


def check_drive(promise: DrivePromise, answer: object) -> None:
    """Hold what query-block says of a drive against its promise."""
    seen = next(drive for drive in parse_drives(answer) if drive.id == promise.id)
    names = ("format", "readonly", "direct", "no_flush", "writeback", "detect_zeroes", "iops", "bandwidth")
    assert seen.path == str(promise.path)
    assert {name: getattr(seen, name) for name in names} == {name: getattr(promise, name) for name in names}


def check_answers(name: str, qmp: Monitor) -> None:
    """Hold what QEMU says of itself against the promises of the case."""
    plan = run_case(name).plan
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


@pytest.mark.usefixtures("_pages")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces, taps and mounts")
@pytest.mark.skipif(bool(missing_tools()), reason=f"missing: {', '.join(missing_tools())}")
@pytest.mark.parametrize("name", accepted_cases())
def test_qemu_takes_the_argv_of(name: str, tmp_path: Path) -> None:
    outcome, binary = run_case(name), binary_of(load_case(name).qemu)
    stage = make_stage(tmp_path, outcome)
    script = render_script(stage, outcome, binary, substitute(golden_argv(name)))
    log = tmp_path / "log"

    with started(script, log) as process:
        try:
            path = str(seen_from_outside(process.pid, outcome.places.run / "qmp.sock"))
            with monitor(process, path) as qmp:
                check_answers(name, qmp)
                qmp.ask("quit")
            status = process.wait(SECONDS)
        except BaseException as error:
            error.add_note(f"{script}\n\n{log.read_text(errors='replace')}")
            raise

    assert status == 0, log.read_text()
    assert complaints(log.read_text()) == []


# What QEMU says of a CPU model that TCG cannot emulate in full.
EMULATED: Final = "warning: TCG doesn't support requested feature"


def complaints(text: str) -> list[str]:
    """Give what QEMU said, without what is owed to the substitutions."""
    return [line for line in text.splitlines() if EMULATED not in line]


def test_every_substitution_has_its_reason_and_is_used() -> None:
    argvs = [golden_argv(name) for name in accepted_cases()]

    for each in SUBSTITUTIONS:
        assert each.why
        assert any(each.flag in argv for argv in argvs), each.flag
