"""The QEMU Machine Protocol without a socket: what was received goes in, what is to be sent comes out.

A conversation is one exchange: greeting, negotiation, then queries in order, each sent when the one before was
answered.  Events that arrive between are passed over: QEMU keeps them in a log of its own.
Source: QEMU docs/interop/qmp-spec.rst.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

Query = tuple[str, Mapping[str, object]]  # a command and its arguments
NEGOTIATION: Final[Query] = ("qmp_capabilities", {})
LONGEST_LINE: Final = 4 << 20  # bytes; query-qmp-schema, the longest answer, has about a quarter of a MiB


class NoQmp(ValueError):
    """What was received is not the protocol."""


class QueryRefused(ValueError):
    """QEMU answered a query with an error, its words as they are."""


class Conversation:
    """One exchange with a monitor; `answers` are those to the queries so far."""

    def __init__(self, queries: Sequence[Query]) -> None:
        """Begin an exchange in which nothing was received."""
        self.queries = queries
        self.answers: list[Any] = []
        self.greeted = False
        self.negotiated = False
        self.kept = bytearray()  # the beginning of a line

    @property
    def done(self) -> bool:
        """Is everything answered."""
        return self.negotiated and len(self.answers) == len(self.queries)

    @property
    def current(self) -> Query:
        """What is sent next, or waits for its answer."""
        return self.queries[len(self.answers)] if self.negotiated else NEGOTIATION

    def feed(self, received: bytes) -> bytes:
        """Take what was received and give what is to be sent; raises NoQmp, QueryRefused."""
        first, *others = received.split(b"\n")
        self.kept += first
        if len(self.kept) > LONGEST_LINE:
            message = f"a line of more than {LONGEST_LINE} bytes"
            raise NoQmp(message)
        if not others:
            return b""
        lines = (bytes(self.kept), *others[:-1])
        self.kept = bytearray(others[-1])
        return b"".join(self.take(line) for line in lines if line.strip() and not self.done)

    def take(self, line: bytes) -> bytes:
        """Take one message and give what is to be sent upon it."""
        message = parse_message(line)
        if "event" in message:  # one may come before the greeting: of a job that goes on
            return b""
        if not self.greeted:
            if "QMP" not in message:
                raise NoQmp("the greeting is missing")
            self.greeted = True
        elif "error" in message:
            raise QueryRefused(error_text(message["error"]))
        elif "return" not in message:
            raise NoQmp(f"neither answer, error nor event: {line[:60]!r}")
        elif self.negotiated:
            self.answers.append(message["return"])
        else:
            self.negotiated = True
        return b"" if self.done else render_query(self.current)

    def close(self) -> bool:
        """Take the end of the connection; tells whether that is an answer, as it is to `quit`."""
        if self.negotiated and not self.done and self.current[0] == "quit":
            self.answers.append({})
        return self.done


def parse_message(line: bytes) -> dict[str, Any]:
    """Give one message; raises NoQmp."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NoQmp(f"no JSON: {line[:60]!r}") from error
    if not isinstance(message, dict):
        raise NoQmp(f"no object: {line[:60]!r}")
    return message


def render_query(query: Query) -> bytes:
    """Give the line of a query."""
    command, arguments = query
    document = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
    return json.dumps(document).encode() + b"\n"


def error_text(error: object) -> str:
    """Give QEMU's own words of an error."""
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
