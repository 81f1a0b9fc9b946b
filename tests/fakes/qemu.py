"""A QEMU that fails in one chosen way once it is to run a VM; questions about its abilities the real one answers.

Called as `qemu.py BEHAVIOUR ARGUMENTS…` by a script that a test writes, tests/sandbox.py.
"""

import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

REAL: Final = "qemu-system-x86_64"
WORDS: Final = "qemu-system-x86_64: -device no-such: 'no-such' is not a valid device model name"
GREETING: Final = (
    b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n'
)
LONG: Final = 10 << 20


def refuse() -> NoReturn:
    """Say why and end, as QEMU does with an option that it does not take."""
    sys.exit(WORDS)


def die_of(number: signal.Signals) -> Callable[[], None]:
    """Give what dies of a signal, in silence."""

    def die() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)

    return die


def hang() -> None:
    """Stay, and open nothing."""
    while True:
        time.sleep(3600)


def sockets_of(arguments: list[str]) -> list[str]:
    """Give the paths of all sockets that QEMU would bind."""
    return re.findall(r"\bpath=([^,]+),server=on", "\n".join(arguments))


def serve(first: bytes, then: Callable[[], None]) -> Callable[[], None]:
    """Give what binds every socket, says something to who connects, and goes on."""

    def run() -> None:
        listeners = []
        for path in sockets_of(sys.argv):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()
            listeners.append(listener)
        monitor = next(each for each in listeners if each.getsockname().endswith("/qmp.sock"))
        connection, _ = monitor.accept()
        with suppress(OSError):
            connection.sendall(first)
        then()

    return run


BEHAVIOURS: Final[dict[str, Callable[[], None]]] = {
    "refuses": refuse,
    "bus": die_of(signal.SIGBUS),
    "sys": die_of(signal.SIGSYS),
    "abrt": die_of(signal.SIGABRT),
    "kill": die_of(signal.SIGKILL),
    "hangs": hang,
    "silent": serve(b"", hang),
    "garbage": serve(b"\xff\x00 SSH-2.0-OpenSSH\r\n", hang),
    "long": serve(b'{"QMP": "' + b"x" * LONG + b'"}\r\n', hang),
    "greets-and-refuses": serve(GREETING, refuse),
}


def main() -> None:
    """Answer a question as the real QEMU, or behave as asked."""
    behaviour, arguments = sys.argv[1], sys.argv[2:]
    if "-uuid" not in arguments:
        os.execvp(REAL, [REAL, *arguments])  # noqa: S606 - it becomes the real one
    BEHAVIOURS[behaviour]()


if __name__ == "__main__":
    main()
