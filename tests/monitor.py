"""A QMP connection of a test's own, for what kvmlaunch does not say."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import frozen

SECONDS: Final = 120  # for whatever must happen: generous, as the machine may be busy


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


@contextmanager
def negotiated(connection: socket.socket) -> Iterator[Monitor]:
    """Give the monitor of a connection past its greeting and the negotiation of capabilities."""
    with connection, connection.makefile("rwb") as stream:
        qmp = Monitor(stream=stream)
        assert "QMP" in qmp.receive()
        qmp.ask("qmp_capabilities")
        yield qmp


@contextmanager
def monitor_at(path: Path) -> Iterator[Monitor]:
    """Give the monitor that listens at a path."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(str(path))
    with negotiated(connection) as qmp:
        yield qmp
