"""Asks monitors over their sockets: short connections, one deadline for all of them, and typed errors.

A QMP socket serves one client; the next one connects and hangs, and so does a stopped QEMU.  So every
exchange has a deadline, and none lasts.  What is said stands in `facts/qmp.py`.
"""

import json
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from kvmlaunch.errors import Busy, HostFailed, KvmlaunchError, NotRunning, Report, TimedOut, Unreachable
from kvmlaunch.facts.qmp import Conversation, NoQmp, Query, QueryRefused
from kvmlaunch.model.value import frozen
from kvmlaunch.run.process import foreign, is_alive

CHUNK = 1 << 16
BACKLOG_PAUSE = 0.02  # seconds
Answers = list[object]


@frozen(kw_only=True)
class Target:
    """A monitor, or the channel to a guest's agent: its socket, and the pid that must be behind it (None: any)."""

    path: PurePosixPath
    pid: int | None = None
    kind: Literal["monitor", "agent"] = "monitor"

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return "monitor" if self.kind == "monitor" else "channel to the guest's agent"


def refused(target: Target, why: str) -> NotRunning | Unreachable:
    """Give the error of a socket that nobody serves; a VM whose process lives is not stopped for that."""
    message, where = f"nobody answers on the {target.name}", str(target.path)
    if target.kind == "monitor" and target.pid is not None and is_alive(target.pid):
        report = Report(code="qmp.unreachable", message=message, where=where, why=f"pid {target.pid} runs; {why}")
        return Unreachable(report._replace(hint=by_force(target)))
    code = "vm.stopped" if target.kind == "monitor" else "agent.missing"
    return NotRunning(Report(code=code, message=message, where=where, why=why))


def by_force(target: Target) -> str:
    """Give the command that ends a VM of which the monitor is of no use."""
    return f"kvmlaunch down {target.path.parent.name} --force --timeout 0   # works without the monitor"


def open_socket(target: Target, seconds: float) -> socket.socket:
    """Connect to a socket of QEMU's, waiting for a place in a full backlog: one client, and one that waits, fill it.

    Raises what try_socket does, and TimedOut.
    """
    deadline = time.monotonic() + seconds
    while (connection := try_socket(target)) is None:
        if time.monotonic() > deadline:
            raise late(target, seconds)
        time.sleep(BACKLOG_PAUSE)
    return connection


def try_socket(target: Target) -> socket.socket | None:
    """Connect at once and check who listens there; None where the backlog is full.

    Raises NotRunning, Unreachable, Busy `qmp.identity`, PrivilegeMissing.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(str(target.path))
        check_peer(target, peer_pid(connection))
    except BlockingIOError:
        connection.close()
        return None
    except PermissionError as error:
        connection.close()
        raise (refused(target, "permission denied") if target.pid is None else foreign(target.pid)) from error
    except OSError as error:
        connection.close()
        raise refused(target, error.strerror or str(error)) from error
    except KvmlaunchError:
        connection.close()
        raise
    return connection


def check_peer(target: Target, peer: int) -> None:
    """Refuse a listener that is not the process that it must be (`qmp.identity`)."""
    if target.pid is not None and peer != target.pid:
        raise Busy(
            Report(
                code="qmp.identity",
                message=f"another process holds the socket of the {target.name}",
                where=str(target.path),
                why=f"pid {peer} listens there, the VM is pid {target.pid}",
                hint=by_force(target),
            )
        )


def peer_pid(connection: socket.socket) -> int:
    """Give the pid of the process that listens on the other end: SO_PEERCRED, unix(7)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def late(target: Target, seconds: float) -> TimedOut:
    """Give the error of a socket at which nobody answers."""
    monitor = target.kind == "monitor"
    return TimedOut(
        Report(
            code="qmp.timeout" if monitor else "agent.timeout",
            message=f"{'QEMU does not answer' if monitor else 'no turn came'} on the {target.name}",
            where=str(target.path),
            why=f"no answer within {seconds:g} s: it is stopped, or another client is connected",
            hint=by_force(target),
        )
    )


class Link:
    """A conversation on its connection; `left` is still to be sent, `outcome` how it ended, None while it goes on."""

    def __init__(self, target: Target, connection: socket.socket, conversation: Conversation) -> None:
        """Begin a conversation on a connection."""
        self.target, self.connection, self.conversation = target, connection, conversation
        self.left = b""
        self.outcome: Answers | KvmlaunchError | None = None

    @property
    def wishes(self) -> int:
        """What to wait for, as poll(2) has it."""
        return select.POLLIN | (select.POLLOUT if self.left else 0)

    def go_on(self, happened: int) -> None:
        """Do what the connection is ready for."""
        try:
            if self.left and happened & select.POLLOUT:
                self.left = self.left[self.connection.send(self.left) :]
            if happened & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self.receive()
        except BlockingIOError:
            return
        except QueryRefused as error:
            command, arguments = self.conversation.current
            report = Report(
                code="qmp.error",
                message=f"QEMU refused: {error}",
                where=str(self.target.path),
                why=f"it was sent {command}{f' {json.dumps(dict(arguments))}' if arguments else ''}",
                hint=f"kvmlaunch monitor {self.target.path.parent.name} query-commands   # lists what it takes",
            )
            self.outcome = HostFailed(report)
        except (NoQmp, OSError) as error:
            self.outcome = refused(self.target, str(error))

    def receive(self) -> None:
        """Take what has arrived; the end of the connection ends the conversation."""
        chunk = self.connection.recv(CHUNK)
        if chunk:
            self.left += self.conversation.feed(chunk)
        elif not self.conversation.close():
            self.outcome = refused(self.target, "the connection was closed")
        if self.conversation.done and self.outcome is None:
            self.outcome = self.conversation.answers


def converse(links: Sequence[Link], deadline: float) -> None:
    """Carry conversations on until each has an outcome, or the deadline has come."""
    poller = select.poll()
    going = {link.connection.fileno(): link for link in links}
    while going and (left := deadline - time.monotonic()) > 0:
        for fd, link in going.items():
            poller.register(fd, link.wishes)
        for fd, happened in poller.poll(left * 1000):
            going[fd].go_on(happened)
            if going[fd].outcome is not None:
                poller.unregister(fd)
                del going[fd]


def ask_all(
    targets: Sequence[Target], queries: Sequence[Query], *, seconds: float = 2.0
) -> list[Answers | KvmlaunchError]:
    """Ask many monitors the same at once."""
    return ask_each([(target, queries) for target in targets], seconds=seconds)


def ask_each(asked: Sequence[tuple[Target, Sequence[Query]]], *, seconds: float) -> list[Answers | KvmlaunchError]:
    """Ask many monitors at once; one that does not answer gives its error in its place, and delays no other."""
    deadline = time.monotonic() + seconds
    outcomes: dict[int, Answers | KvmlaunchError] = {}
    links: dict[int, Link] = {}
    waiting = dict(enumerate(asked))
    try:
        while True:
            for number, (target, queries) in tuple(waiting.items()):
                try:
                    connection = try_socket(target)
                except KvmlaunchError as error:
                    outcomes[number] = error
                else:
                    if connection is None:
                        continue
                    links[number] = Link(target, connection, Conversation(queries))
                del waiting[number]
            going = [link for link in links.values() if link.outcome is None]
            now = time.monotonic()
            if now >= deadline or not (going or waiting):
                break
            if not going:
                time.sleep(BACKLOG_PAUSE)
            converse(going, min(deadline, now + BACKLOG_PAUSE) if waiting else deadline)
    finally:
        for link in links.values():
            link.connection.close()
    for number, link in links.items():
        outcomes[number] = late(link.target, seconds) if link.outcome is None else link.outcome
    outcomes |= {number: late(target, seconds) for number, (target, _) in waiting.items()}
    return [outcomes[number] for number in range(len(asked))]


def ask(target: Target, queries: Sequence[Query], *, seconds: float = 5.0) -> Answers:
    """Ask one monitor and give its answers in order; raises NotRunning, Busy, TimedOut, HostFailed `qmp.error`."""
    (outcome,) = ask_all((target,), queries, seconds=seconds)
    if isinstance(outcome, KvmlaunchError):
        raise outcome
    return outcome


def greet(target: Target, queries: Sequence[Query], others: Sequence[Target], *, seconds: float) -> Answers:
    """Ask one monitor, and negotiate with others at the same time; raises as `ask` does."""
    first, *rest = ask_each(((target, queries), *((other, ()) for other in others)), seconds=seconds)
    if isinstance(first, KvmlaunchError):
        raise first
    for outcome in rest:
        if isinstance(outcome, KvmlaunchError):
            raise outcome
    return first


def listener_pid(path: PurePosixPath) -> int | None:
    """Give the pid of the process that listens on a socket, None when nobody does or it is out of reach."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(1.0)
    try:
        connection.connect(os.fspath(path))
        return peer_pid(connection)
    except OSError:
        return None
    finally:
        connection.close()
