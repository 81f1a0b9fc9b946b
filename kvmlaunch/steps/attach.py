"""`console` and `logs`: a guest's serial port, live and kept."""

import codecs
import contextlib
import fcntl
import os
import select
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from attrs import define

from kvmlaunch.errors import Busy, NotRunning, Report, TimedOut
from kvmlaunch.facts.console import EscapeWatch
from kvmlaunch.host.logs import open_kept
from kvmlaunch.host.rundir import is_locked
from kvmlaunch.model.run_files import CONSOLE, CONSOLE_LOG, LOG, QEMU_LOG
from kvmlaunch.run.process import held, read_cmdline
from kvmlaunch.run.process import is_alive as process_lives
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.control import live
from kvmlaunch.steps.heal import tend
from kvmlaunch.steps.observe import Seen, console_path, observe
from kvmlaunch.steps.waking import woken_by_signals

CHUNK = 1 << 16
PIECE = 512  # bytes: how much a guest has taken is told by the pieces
MOST_KEPT = 1 << 20  # bytes for a terminal that does not read; the guest is never held up for it
FOLLOW_EVERY = 0.25  # seconds
LOOK_EVERY = 0.05  # seconds
UNTAKEN_SECONDS = 10.0  # that a guest may read nothing of what is left for it


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

    def write(self, fd: int, piece: int = CHUNK) -> None:
        """Write as much as is taken at once, in pieces; who went away takes nothing more."""
        with contextlib.suppress(OSError):
            for _ in range(0, min(len(self.kept), CHUNK), piece):
                self.kept = self.kept[os.write(fd, self.kept[:piece]) :]


def no_console(seen: Seen, path: PurePosixPath) -> Busy:
    """Give the refusal of a VM that was started without a serial port, or whose socket for it was removed."""
    argv = seen.record.argv if seen.record else read_cmdline(seen.pid) if seen.pid else ()
    removed = any(f"path={path}" in word for word in argv)
    message = f"the console of {seen.name} cannot be reached" if removed else f"{seen.name} has no serial console"
    gone, never = "its socket was removed or replaced; the VM runs on", "it was started with console.serial = false"
    why = gone if removed else never
    again = f"kvmlaunch restart {seen.name}"
    hint = (
        f"{again}   # makes it anew; until then: kvmlaunch logs {seen.name} -f"
        if removed
        else (f"serial = true   # in [console], then: {again}")
    )
    return Busy(Report(code="vm.state", message=message, where=str(path), why=why, hint=hint))


def connect_console(caller: Caller, word: str) -> tuple[Seen, socket.socket]:
    """Connect to a VM's serial port; raises NotRunning, UnknownVm, Busy: `vm.console.busy` naming the holder."""
    seen = live(caller, word)
    name = seen.name
    path = console_path(seen)
    if not os.path.exists(path):
        raise no_console(seen, seen.places.run / CONSOLE)
    holder = console_holder(seen.places.run / CONSOLE)
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
        if seen.pid and process_lives(seen.pid):
            raise no_console(seen, seen.places.run / CONSOLE) from error
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


@define(kw_only=True)
class Patience:
    """Waits for a guest to take the rest of what was sent: as long as that becomes less now and then."""

    left: int = 0
    until: float = 0.0

    def lasts(self, left: int) -> bool:
        """Tell whether to go on waiting, `left` bytes being there now."""
        now = time.monotonic()
        if left < self.left or not self.until:
            self.left, self.until = left, now + UNTAKEN_SECONDS
        if not left:
            self.until = 0.0
        return now < self.until


def untaken(connection: socket.socket) -> int:
    """Give how much of what was sent QEMU has not read yet, in the kernel's own measure; source: unix(7), SIOCOUTQ."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def converse(connection: socket.socket, process_fd: int, terminal_in: int, terminal_out: int, escape: bytes) -> bool:
    """Pass bytes between a terminal and a console until the escape is typed, the input ends, or QEMU does.

    The console is always drained, so a terminal that stops reading never stops the guest; a terminal is always read, as
    the escape may be typed.  Of a pipe or a file nothing is dropped: no more is read than the guest takes, and its end
    waits for it.  Tells whether QEMU ended; raises TimedOut `vm.console.input` where the guest does not take it.
    """
    output, typed, watch = Output(), Output(), EscapeWatch(escape=escape)
    writes = {terminal_out: output, connection.fileno(): typed}
    typing, patience = os.isatty(terminal_in), Patience()
    with unblocked(terminal_out), unblocked(connection.fileno()), woken_by_signals() as signals_fd:
        while True:
            reads, full = [connection.fileno(), process_fd, signals_fd], len(typed.kept) >= CHUNK and not typing
            patience = patience if full else Patience()
            if full and not patience.lasts(len(typed.kept) + untaken(connection)):
                raise not_taken()
            readable = exchange(reads if full else [*reads, terminal_in], writes, LOOK_EVERY if full else None)
            if has_ended(connection, process_fd, readable, output):
                return True
            if terminal_in in readable:
                chunk = read_terminal(terminal_in)
                sent, left = watch.feed(chunk)
                typed.add(sent)
                if left:
                    typed.write(connection.fileno())
                    return False
                if not chunk:
                    return hand_over(connection, process_fd, writes)


def exchange(reads: Sequence[int], writes: Mapping[int, Output], seconds: float | None) -> list[int]:
    """Write what is taken, and give which descriptors can be read, within so many seconds at most."""
    readable, writable, _ = select.select(reads, [fd for fd, kept in writes.items() if kept.kept], [], seconds)
    for fd in writable:
        writes[fd].write(fd, PIECE)
    return readable


def has_ended(connection: socket.socket, process_fd: int, readable: Sequence[int], output: Output) -> bool:
    """Take what the guest printed; tells whether QEMU has ended."""
    if connection.fileno() not in readable:
        return process_fd in readable
    chunk = read_console(connection)
    output.add(chunk)
    return not chunk


def hand_over(connection: socket.socket, process_fd: int, writes: Mapping[int, Output]) -> bool:
    """Wait until the guest has taken all that was sent; tells whether QEMU ended meanwhile.  Raises TimedOut."""
    typed, patience = writes[connection.fileno()], Patience()
    (output,) = (kept for fd, kept in writes.items() if fd != connection.fileno())
    while left := len(typed.kept) + untaken(connection):
        if not patience.lasts(left):
            raise not_taken()
        if has_ended(connection, process_fd, exchange([connection.fileno(), process_fd], writes, LOOK_EVERY), output):
            return True
    return False


def not_taken() -> TimedOut:
    """Give the failure of a guest that does not read its serial port."""
    return TimedOut(
        Report(
            code="vm.console.input",
            message="the guest does not take all that was sent",
            why=f"for {UNTAKEN_SECONDS:g} s it read next to nothing from its serial port; the rest is dropped",
        )
    )


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
    fd, offset, decoder = open_kept(path), 0, codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while True:
            lives = alive()
            if fd is None:
                fd = open_kept(path)
            elif os.fstat(fd).st_size < offset:
                offset = 0
                decoder.reset()
            chunk = os.pread(fd, CHUNK, offset) if fd is not None else b""
            offset += len(chunk)
            text = decoder.decode(chunk, final=not chunk and not lives)  # a character may come in pieces
            if text:
                yield text
            elif not chunk and not lives:
                return
            elif not chunk:
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
