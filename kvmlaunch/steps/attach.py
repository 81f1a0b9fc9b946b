"""`console` and `logs`: a guest's serial port, live and kept."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from attrs import define

from kvmlaunch.errors import Busy, NotRunning, Report
from kvmlaunch.facts.console import EscapeWatch
from kvmlaunch.host.logs import open_kept
from kvmlaunch.host.rundir import is_locked
from kvmlaunch.model.run_files import CONSOLE, CONSOLE_LOG, LOG, QEMU_LOG
from kvmlaunch.run.process import held
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.control import live
from kvmlaunch.steps.heal import tend
from kvmlaunch.steps.observe import Seen, observe
from kvmlaunch.steps.waking import woken_by_signals

CHUNK = 1 << 16
MOST_KEPT = 1 << 20  # bytes for a terminal that does not read; the guest is never held up for it
FOLLOW_EVERY = 0.25  # seconds


@define(kw_only=True)
class Output:
    """What is to be written to a side that may not be reading: the oldest gives way."""

    kept: bytes = b""
    dropped: int = 0

    def add(self, chunk: bytes) -> None:
        """Add output, dropping the oldest beyond 1 MiB."""
        self.kept += chunk
        if len(self.kept) > MOST_KEPT:
            self.dropped += len(self.kept) - MOST_KEPT
            self.kept = self.kept[-MOST_KEPT:]

    def write(self, fd: int) -> None:
        """Write as much as is taken at once; who went away takes nothing more."""
        with contextlib.suppress(OSError):
            self.kept = self.kept[os.write(fd, self.kept[:CHUNK]) :]


def connect_console(caller: Caller, word: str) -> tuple[Seen, socket.socket]:
    """Connect to a VM's serial port; raises NotRunning, UnknownVm, Busy `vm.console.busy` naming the holder."""
    seen = live(caller, word)
    name = seen.name
    path = seen.places.run / CONSOLE
    if not os.path.exists(path):
        raise NotRunning(
            Report(
                code="vm.stopped",
                message=f"{name} has no serial console",
                where=str(path),
                why="console.serial is false",
                hint="console.serial = true",
            )
        )
    holder = console_holder(path)
    if holder:
        raise Busy(
            Report(
                code="vm.console.busy",
                message=f"the console of {name} is in use",
                where=str(path),
                why=holder,
                hint=f"kvmlaunch logs {name} -f   # shows it all the same",
            )
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError) as error:
        connection.close()
        raise NotRunning(
            Report(
                code="vm.stopped",
                message=f"{name} ended at this moment",
                where=str(path),
                why="nobody listens at its serial console any more",
                hint=f"kvmlaunch status {name}",
            )
        ) from error
    return seen, connection


def console_holder(path: PurePosixPath) -> str:
    """Give who is connected to a console, "" when nobody is: who connects holds a lock file beside the socket."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        return Path(lock).read_text(encoding="utf-8") if is_locked(lock) else ""
    except OSError:
        return ""


def converse(connection: socket.socket, process_fd: int, terminal_in: int, terminal_out: int, escape: bytes) -> bool:
    """Pass bytes between a terminal and a console until the escape is typed or QEMU ends.

    The console is always drained, so a terminal that stops reading never stops the guest.  Tells whether QEMU ended.
    """
    output, typed, watch = Output(), Output(), EscapeWatch(escape=escape)
    with unblocked(terminal_out), unblocked(connection.fileno()), woken_by_signals() as signals_fd:
        while True:
            reads = [connection.fileno(), terminal_in, process_fd, signals_fd]
            writes = [(terminal_out, output), (connection.fileno(), typed)]
            readable, writable, _ = select.select(reads, [fd for fd, kept in writes if kept.kept], [])
            for fd, kept in writes:
                if fd in writable:
                    kept.write(fd)
            if connection.fileno() in readable:
                chunk = read_console(connection)
                if not chunk:
                    return True
                output.add(chunk)
            elif process_fd in readable:
                return True
            if terminal_in in readable:
                chunk = read_terminal(terminal_in)
                sent, left = watch.feed(chunk)
                typed.add(sent)
                if left or not chunk:
                    typed.write(connection.fileno())
                    return False


def read_console(connection: socket.socket) -> bytes:
    """Give what the guest printed, nothing when QEMU has ended; one that had not read all resets the connection."""
    try:
        return connection.recv(CHUNK)
    except ConnectionResetError:
        return b""


def read_terminal(fd: int) -> bytes:
    """Give what was typed, nothing when the terminal has gone away."""
    try:
        return os.read(fd, CHUNK)
    except OSError:
        return b""


@contextlib.contextmanager
def unblocked(fd: int) -> Iterator[None]:
    """Have a descriptor that does not block for a while: the shell shares a terminal's, and expects another."""
    before = os.get_blocking(fd)
    os.set_blocking(fd, False)
    try:
        yield
    finally:
        os.set_blocking(fd, before)


def follow(path: PurePosixPath, alive: Callable[[], bool]) -> Iterator[str]:
    """Give a log's text and then what is added, also after it was truncated, as long as `alive` says so.

    The file stays open, so its last words are read even after `down` has removed it.
    """
    fd, offset = open_kept(path), 0
    try:
        while True:
            lives = alive()
            if fd is None:
                fd = open_kept(path)
            elif os.fstat(fd).st_size < offset:
                offset = 0
            chunk = os.pread(fd, CHUNK, offset) if fd is not None else b""
            offset += len(chunk)
            if chunk:
                yield chunk.decode(errors="replace")
            elif not lives:
                return
            else:
                time.sleep(FOLLOW_EVERY)
    finally:
        if fd is not None:
            os.close(fd)


def log_texts(caller: Caller, name: str, source: str) -> list[PurePosixPath]:
    """Give the files that hold a VM's log, the oldest first: `console` kept and live, or `qemu`."""
    places, file = caller.places(name), QEMU_LOG if source == "qemu" else CONSOLE_LOG
    tend(caller, places)
    return [places.logs / f"{file}.1", places.logs / file, places.run / LOG / file]


def is_alive(caller: Caller, name: str) -> bool:
    """Does a VM's QEMU live."""
    seen = observe(caller, name)
    if seen.pid is None:
        return False
    with held(seen.pid) as process:
        return process is not None and not process.wait(0)
