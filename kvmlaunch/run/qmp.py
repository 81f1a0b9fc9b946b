"""The only door to qemu.qmp: short connections with deadlines, and typed errors.

A QMP socket serves one client; the next one connects and hangs, and so does a stopped QEMU.  So every
exchange has a deadline, and none lasts.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from kvmlaunch.errors import Busy, HostFailed, KvmlaunchError, NotRunning, Report, TimedOut
from kvmlaunch.model.value import frozen

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

Query = tuple[str, Mapping[str, object]]


@frozen(kw_only=True)
class Target:
    """A monitor: its socket, and the pid that must be behind it (None: whoever listens)."""

    path: PurePosixPath
    pid: int | None = None


def refused(target: Target, why: str) -> NotRunning:
    """Give the error of a monitor that nobody serves."""
    return NotRunning(
        Report(code="vm.stopped", message="nobody answers on the monitor", where=str(target.path), why=why)
    )


def open_socket(target: Target, seconds: float) -> socket.socket:
    """Connect to a monitor's socket and check who listens there; raises NotRunning, Busy `qmp.identity`, TimedOut."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(seconds)
    try:
        connection.connect(str(target.path))
        peer = peer_pid(connection)
        if target.pid is not None and peer != target.pid:
            raise Busy(
                Report(
                    code="qmp.identity",
                    message="another process holds the monitor's socket",
                    where=str(target.path),
                    why=f"pid {peer} listens there, the VM is pid {target.pid}",
                    hint="kvmlaunch down NAME --force   ends the VM without the monitor",
                )
            )
    except (TimeoutError, BlockingIOError) as error:  # a full backlog: nobody has accepted for a while
        connection.close()
        raise late(target, seconds) from error
    except OSError as error:
        connection.close()
        raise refused(target, error.strerror or str(error)) from error
    except KvmlaunchError:
        connection.close()
        raise
    connection.settimeout(0)
    return connection


def peer_pid(connection: socket.socket) -> int:
    """Give the pid of the process that listens on the other end: SO_PEERCRED, unix(7)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def late(target: Target, seconds: float) -> TimedOut:
    """Give the error of a monitor that does not answer."""
    return TimedOut(
        Report(
            code="qmp.timeout",
            message="QEMU does not answer on its monitor",
            where=str(target.path),
            why=f"no answer within {seconds:g} s: it is stopped, or another client is connected",
            hint="kvmlaunch down NAME --force   works without the monitor",
        )
    )


async def exchange(connection: socket.socket, queries: Sequence[Query]) -> list[object]:
    """Negotiate, ask in order, leave; `quit` cuts the connection itself, which is its success."""
    client = QMPClient("kvmlaunch")
    await client.connect(connection)
    answers: list[object] = []
    try:
        for command, arguments in queries:
            try:
                answers.append(await client.execute(command, dict(arguments) or None))
            except ExecInterruptedError:
                if command != "quit":
                    raise
                answers.append({})
    finally:
        with contextlib.suppress(EOFError, OSError, QMPError):
            await client.disconnect()
    return answers


async def ask_within(target: Target, queries: Sequence[Query], seconds: float) -> list[object]:
    """Ask a monitor; raises NotRunning, Busy, TimedOut, HostFailed `qmp.error` with QEMU's own words."""
    connection = open_socket(target, seconds)
    try:
        return await asyncio.wait_for(exchange(connection, queries), seconds)
    except TimeoutError as error:
        raise late(target, seconds) from error
    except ExecuteError as error:
        raise HostFailed(
            Report(code="qmp.error", message=f"QEMU refused: {error}", where=str(target.path), why=str(queries))
        ) from error
    except (ConnectError, ExecInterruptedError, QMPError, EOFError, OSError) as error:
        raise refused(target, str(error)) from error
    finally:
        connection.close()


def ask(target: Target, queries: Sequence[Query], *, seconds: float = 5.0) -> list[object]:
    """Ask one monitor and give its answers in order."""
    return asyncio.run(ask_within(target, queries, seconds))


async def ask_each(
    targets: Sequence[Target], queries: Sequence[Query], seconds: float
) -> list[list[object] | KvmlaunchError]:
    """Ask many monitors at once."""

    async def ask_one(target: Target) -> list[object] | KvmlaunchError:
        try:
            return await ask_within(target, queries, seconds)
        except KvmlaunchError as error:
            return error

    return list(await asyncio.gather(*(ask_one(target) for target in targets)))


def ask_all(
    targets: Sequence[Target], queries: Sequence[Query], *, seconds: float = 2.0
) -> list[list[object] | KvmlaunchError]:
    """Ask many monitors at once; one that does not answer gives its error in its place."""
    return asyncio.run(ask_each(targets, queries, seconds))


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
