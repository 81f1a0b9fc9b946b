"""Asks the agent in a guest over its channel: one deadline, typed errors, and nothing that it says is believed.

The channel serves one client after the other; a second one waits in its backlog, within its own deadline.
"""

import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

from kvmlaunch.errors import HostFailed, Report, TimedOut
from kvmlaunch.facts.agent import AgentRefused, Conversation, NoAgent, Query
from kvmlaunch.facts.console import plain_text
from kvmlaunch.run.qmp import CHUNK, Target, open_socket

TOKEN_BYTES = 4
LONGEST_TEXT = 300  # characters of the guest's in a message


def ask_agent(
    target: Target, queries: Sequence[Query], *, seconds: float, stay: float = 0.0, longest: float = 0.0
) -> list[Any]:
    """Give the answers of a guest's agent; raises TimedOut `agent.timeout`, HostFailed `agent.error`, NotRunning, Busy.

    A guest that is asked to power down may end the channel before it answers: what came so far is given.  The channel
    is held for `stay` seconds more: without a client the agent sleeps between two turns, and a command's output comes
    a piece a turn (measured: 20 times slower).  An answer that keeps coming is given `seconds` again with each piece,
    up to `longest` in all: what a command has printed takes a while.
    """
    conversation = Conversation(queries=queries, token=int.from_bytes(os.urandom(TOKEN_BYTES), "big"))
    begun = time.monotonic()
    with open_socket(target, seconds) as connection:
        try:
            converse(connection, conversation, seconds, begun + max(seconds, longest))
            if stay:
                select.select([connection], [], [], stay)
        except (NoAgent, AgentRefused) as error:
            raise HostFailed(
                Report(
                    code="agent.error",
                    message=f"the guest's agent: {plain_text(str(error))[:LONGEST_TEXT]}",
                    where=str(target.path),
                    why=f"it was asked {', '.join(command for command, _ in queries)}",
                )
            ) from error
        except OSError as error:
            raise HostFailed(
                Report(
                    code="agent.error", message="the guest's agent went away", where=str(target.path), why=str(error)
                )
            ) from error
    return conversation.answers


def converse(connection: socket.socket, conversation: Conversation, seconds: float, end: float) -> None:
    """Carry a conversation on to its end, with no pause longer than `seconds`; raises TimedOut, OSError."""
    left = conversation.begin()
    deadline = min(end, time.monotonic() + seconds)
    while not conversation.done:
        remaining = deadline - time.monotonic()
        writes = [connection] if left else []
        readable, writable, _ = select.select([connection], writes, [], max(0.0, remaining))
        if remaining <= 0:
            raise late(conversation)
        if writable:
            left = left[connection.send(left) :]
        if readable:
            chunk = connection.recv(CHUNK)
            if not chunk:
                return
            left += conversation.feed(chunk)
            deadline = min(end, time.monotonic() + seconds)


def late(conversation: Conversation) -> TimedOut:
    """Give the error of an agent that does not answer."""
    if conversation.synced:
        heard = "it began to answer, and went silent"
    else:
        heard = "what it said is no answer" if conversation.heard else "it said nothing"
    return TimedOut(
        Report(
            code="agent.timeout",
            message="the guest's agent does not answer",
            why=f"{heard}: it does not run, hangs, or talks to somebody else",
            hint="systemctl status qemu-guest-agent   # in the guest",
        )
    )
