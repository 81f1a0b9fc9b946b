"""`up --wait ready`: wait until the guest itself says that it is there."""

import re
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from kvmlaunch.errors import QemuFailed, Report, TimedOut
from kvmlaunch.host.logs import read_log
from kvmlaunch.model.definition import Ready
from kvmlaunch.model.run_files import CONSOLE_LOG, LOG
from kvmlaunch.run.process import held

TRY_AGAIN = 0.1  # seconds
ONE_TRY = 2.0  # seconds for one connection


def answers_http(url: str) -> bool:
    """Does anything answer HTTP there, with any status."""
    import http.client  # noqa: PLC0415 - only where a VM is waited for

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ONE_TRY)
    try:
        connection.request("GET", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}")
        return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def answers_tcp(target: str) -> bool:
    """Does anything accept a TCP connection there."""
    import socket  # noqa: PLC0415 - only where a VM is waited for

    address, _, port = target.rpartition(":")
    try:
        with socket.create_connection((address.strip("[]"), int(port)), timeout=ONE_TRY):
            return True
    except OSError:
        return False


def prints(log: PurePosixPath, pattern: str) -> bool:
    """Has the guest printed something that matches."""
    return re.search(pattern, read_log(log) or "") is not None


def test_of(ready: Ready, log: PurePosixPath) -> Callable[[], bool]:
    """Give the question that is asked again and again."""
    match ready.kind:
        case "http":
            return lambda: answers_http(ready.target)
        case "tcp":
            return lambda: answers_tcp(ready.target)
        case "console":
            return lambda: prints(log, ready.target)


def wait_until_ready(ready: Ready | None, name: str, pid: int, run: PurePosixPath, seconds: float) -> None:
    """Wait until the guest is ready; None: QEMU runs, which is enough.

    Raises TimedOut `vm.start.timeout`, QemuFailed `qemu.exit` when QEMU ends meanwhile.  The VM is left as it is.
    """
    if ready is None:
        return
    is_ready, deadline = test_of(ready, run / LOG / CONSOLE_LOG), time.monotonic() + seconds
    with held(pid) as process:
        while not is_ready():
            if process is None or process.wait(TRY_AGAIN):
                raise QemuFailed(
                    Report(
                        code="qemu.exit",
                        message=f"{name} ended before it was ready",
                        where=f"pid {pid}",
                        why=f"it was waited for {ready.text}",
                        hint=f"kvmlaunch logs {name}",
                    )
                )
            if time.monotonic() > deadline:
                raise TimedOut(
                    Report(
                        code="vm.start.timeout",
                        message=f"{name} runs, but was not ready in time",
                        where=f"pid {pid}",
                        why=f"{ready.text} did not answer within {seconds:g} s; the VM was left running",
                        hint=f"kvmlaunch logs {name}   # or a longer --timeout",
                    )
                )
