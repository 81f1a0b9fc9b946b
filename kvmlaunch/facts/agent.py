"""What is said to the agent in a guest: bytes in, bytes and answers out; no socket here.

The guest is not believed: what came before our own token is thrown away, an answer has a bounded length, and every
text in it is a text of the guest's.  Source: QEMU docs, interop/qemu-ga-ref, "guest-sync-delimited".
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import Factory, define

from kvmlaunch.model.value import frozen

Query = tuple[str, Mapping[str, object]]
DELIMITER: Final = b"\xff"
LONGEST_ANSWER: Final = 64 << 20  # what a command of the guest's may have printed, in base64
MOST_INTERFACES: Final = 64
LOOPBACK: Final = "lo"
LINK_LOCAL: Final = ("fe80:", "169.254.")
LARGEST_CODE: Final = 255


class NoAgent(Exception):
    """What came is no answer of an agent."""


class AgentRefused(Exception):
    """The agent answered with an error."""


@define(kw_only=True)
class Conversation:
    """A conversation with an agent: a token to find its beginning, then one query after the other."""

    queries: Sequence[Query]
    token: int
    answers: list[Any] = Factory(list)
    synced: bool = False
    heard: bool = False  # anything at all
    kept: bytearray = Factory(bytearray)

    @property
    def done(self) -> bool:
        """Was every query answered."""
        return self.synced and len(self.answers) == len(self.queries)

    def begin(self) -> bytes:
        """Give what is sent first: it ends whatever somebody else has left half said."""
        return DELIMITER + render("guest-sync-delimited", {"id": self.token})

    def feed(self, chunk: bytes) -> bytes:
        """Take what arrived, and give what is to be sent.  Raises NoAgent, AgentRefused."""
        self.heard = True
        self.kept += chunk
        if len(self.kept) > LONGEST_ANSWER:
            message = f"the answer is longer than {LONGEST_ANSWER >> 20} MiB"
            raise NoAgent(message)
        reply = b""
        while b"\n" in self.kept and not self.done:
            line, _, rest = bytes(self.kept).partition(b"\n")
            self.kept = bytearray(rest)
            reply += self.take(line)
        return reply

    def take(self, line: bytes) -> bytes:
        """Take one line, and give the query that follows it."""
        if not self.synced:
            _, found, text = line.rpartition(DELIMITER)
            self.synced = bool(found) and is_token(text, self.token)
            return self.following() if self.synced else b""
        self.answers.append(parse_answer(line))
        return self.following()

    def following(self) -> bytes:
        """Give the next query, nothing after the last."""
        return render(*self.queries[len(self.answers)]) if len(self.answers) < len(self.queries) else b""


def render(command: str, arguments: Mapping[str, object]) -> bytes:
    """Give a query as it is sent."""
    return json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})}).encode() + b"\n"


def is_token(text: bytes, token: int) -> bool:
    """Is this the answer to our own synchronisation."""
    try:
        return bool(json.loads(text) == {"return": token})
    except (ValueError, RecursionError):
        return False


def parse_answer(line: bytes) -> Any:  # noqa: ANN401 - whatever the guest says
    """Give what an agent returned; raises AgentRefused for its error, NoAgent for no answer."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = "the answer is no JSON"
        raise NoAgent(message) from error
    match document:
        case {"return": value}:
            return value
        case {"error": {"desc": str(text)}}:
            raise AgentRefused(text)
        case _:
            message = "the answer has neither return nor error"
            raise NoAgent(message)


@frozen(kw_only=True)
class Interface:
    """A network device of a guest, with its addresses, as the guest tells."""

    name: str
    addresses: tuple[str, ...]


def parse_interfaces(answer: object) -> tuple[Interface, ...]:
    """Give the network devices of guest-network-get-interfaces that have addresses, without loopback."""
    rows = answer if isinstance(answer, list) else []
    found = [
        Interface(name=str(row.get("name", "")), addresses=parse_addresses(row.get("ip-addresses")))
        for row in rows[:MOST_INTERFACES]
        if isinstance(row, Mapping) and row.get("name") != LOOPBACK
    ]
    return tuple(each for each in found if each.addresses)


def parse_addresses(rows: object) -> tuple[str, ...]:
    """Give the addresses of one device with their prefixes; those of a link alone say nothing to others."""
    found = [row for row in rows[:MOST_INTERFACES] if isinstance(row, Mapping)] if isinstance(rows, list) else []
    pairs = [(row.get("ip-address"), row.get("prefix")) for row in found]
    texts = [f"{address}/{prefix}" for address, prefix in pairs if type(address) is str and type(prefix) is int]
    return tuple(text for text in texts if not text.lower().startswith(LINK_LOCAL))


@frozen(kw_only=True)
class Execution:
    """How a command in a guest is: over with a status, or a signal, and what it printed; or not yet (`exited`)."""

    exited: bool
    status: int = 0
    signal: int = 0
    out: bytes = b""
    err: bytes = b""
    truncated: bool = False

    @property
    def code(self) -> int:
        """The exit code, as a shell has it: 128 and the signal for a command that was killed."""
        return min(LARGEST_CODE, 128 + self.signal) if self.signal else self.status


def parse_execution(answer: object) -> Execution:
    """Give the answer of guest-exec-status; raises NoAgent for no such answer."""
    if not isinstance(answer, Mapping) or type(answer.get("exited")) is not bool:
        message = "guest-exec-status told no status"
        raise NoAgent(message)
    if answer["exited"] and not {"exitcode", "signal"} & answer.keys():
        message = "guest-exec-status told no exit code, and no signal"
        raise NoAgent(message)
    return Execution(
        exited=bool(answer["exited"]),
        status=parse_number(answer.get("exitcode", 0)),
        signal=parse_number(answer.get("signal", 0)),
        out=decoded(answer.get("out-data", "")),
        err=decoded(answer.get("err-data", "")),
        truncated=bool(answer.get("out-truncated") or answer.get("err-truncated")),
    )


def parse_number(value: object) -> int:
    """Give a status or a signal, 255 for what no exit code can be, as an exception of Windows; raises NoAgent.

    Those are numbers of 32 bits: GetExitCodeProcess.
    """
    if type(value) is int and -(1 << 31) <= value < 1 << 32:
        return min(value, LARGEST_CODE) if value >= 0 else LARGEST_CODE
    message = "a status is no number of 32 bits"
    raise NoAgent(message)


def parse_frozen(answer: object) -> int:
    """Give how many file systems guest-fsfreeze-freeze holds; raises NoAgent for no such answer."""
    if type(answer) is int and answer >= 0:
        return answer
    message = "guest-fsfreeze-freeze told no number of file systems"
    raise NoAgent(message)


def decoded(value: object) -> bytes:
    """Give what stands in base64; raises NoAgent."""
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError) as error:
        message = "the output is no base64"
        raise NoAgent(message) from error


def is_open(chardevs: object, label: str) -> bool:
    """Has a guest opened its end of a channel, by query-chardev: without, nobody would answer."""
    rows = chardevs if isinstance(chardevs, list) else []
    ours = [row for row in rows if isinstance(row, Mapping) and row.get("label") == label]
    return any(row.get("frontend-open") is True for row in ours)
