"""A console's bytes: what is sent arrives whole or is said not to, what is shown in pieces reads as one text."""

import itertools
import os
import pty
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.errors import TimedOut
from kvmlaunch.facts.console import PlainText, plain_text
from kvmlaunch.steps import attach
from kvmlaunch.steps.attach import converse, follow

pytestmark = pytest.mark.pure


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket, int, int]]:
    """Give both ends of a console, a process that lives, and a terminal that takes everything."""
    ours, guests = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    lives, kept = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    with ours, guests:
        yield ours, guests, lives, null
    for fd in (lives, kept, null):
        os.close(fd)


def read_late(guests: socket.socket) -> Iterator[bytes]:
    """Read as a guest that boots first."""
    time.sleep(0.3)
    while chunk := guests.recv(1 << 16):
        yield chunk


def read_slowly(guests: socket.socket, pause: float) -> Iterator[bytes]:
    """Read as a guest that has other things to do."""
    while chunk := guests.recv(1000):
        yield chunk
        time.sleep(pause)


def sent_to(
    ends: tuple[socket.socket, socket.socket, int, int], file: Path, read: Callable[[], Iterator[bytes]]
) -> tuple[bool, bytes]:
    """Send a file to a guest that reads so; gives whether QEMU ended, and what the guest has taken."""
    ours, _, lives, null = ends
    taken: list[bytes] = []
    reader = threading.Thread(target=lambda: taken.extend(read()))
    reader.start()
    with file.open("rb") as stream:
        ended = converse(ours, lives, stream.fileno(), null, b"\x1d")
    ours.shutdown(socket.SHUT_RDWR)
    reader.join()
    return ended, b"".join(taken)


def test_what_is_piped_in_arrives_whole_though_the_guest_reads_it_late(
    ends: tuple[socket.socket, socket.socket, int, int], tmp_path: Path
) -> None:
    _, guests, _, _ = ends
    sent = os.urandom(3_000_000).replace(b"\x1d", b"x")
    (tmp_path / "input").write_bytes(sent)

    ended, taken = sent_to(ends, tmp_path / "input", lambda: read_late(guests))

    assert ended is False
    assert taken == sent


@pytest.mark.parametrize("size", [6, 1_000_000])
def test_what_a_guest_does_not_take_is_said(
    ends: tuple[socket.socket, socket.socket, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    ours, _, lives, null = ends
    monkeypatch.setattr(attach, "UNTAKEN_SECONDS", 0.2)
    (tmp_path / "input").write_bytes(b"x" * size)

    with (tmp_path / "input").open("rb") as file, pytest.raises(TimedOut) as caught:
        converse(ours, lives, file.fileno(), null, b"\x1d")

    assert caught.value.report.code == "vm.console.input"


@pytest.mark.parametrize(("size", "pause"), [(30_000, 0.15), (400_000, 0.015)])
def test_a_guest_that_is_slow_is_waited_for(
    ends: tuple[socket.socket, socket.socket, int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    pause: float,
) -> None:
    _, guests, _, _ = ends
    monkeypatch.setattr(attach, "UNTAKEN_SECONDS", 2.0)
    (tmp_path / "input").write_bytes(b"x" * size)

    ended, taken = sent_to(ends, tmp_path / "input", lambda: read_slowly(guests, pause))

    assert (ended, len(taken)) == (False, size)


def test_the_escape_is_heard_though_the_guest_takes_nothing(
    ends: tuple[socket.socket, socket.socket, int, int],
) -> None:
    ours, _, lives, null = ends
    outer, inner = pty.openpty()
    tty.setraw(inner)

    def type_much() -> None:
        for _ in range(600):
            os.write(outer, b"x" * 1000)
        os.write(outer, b"\x1d")

    typist = threading.Thread(target=type_much)
    typist.start()
    ended = converse(ours, lives, inner, null, b"\x1d")
    typist.join()
    os.close(outer)
    os.close(inner)

    assert ended is False


def test_a_log_that_grows_within_a_character_reads_as_it_was_written(tmp_path: Path) -> None:
    log, pieces = tmp_path / "log", [bytes([byte]) for byte in "é€".encode()]
    log.write_bytes(b"")
    lives = iter([*([True] * len(pieces)), *([False] * 9)])

    def alive() -> bool:
        if pieces:
            with log.open("ab") as file:
                file.write(pieces.pop(0))
        return next(lives)

    assert "".join(follow(PurePosixPath(log), alive)) == "é€"


SEQUENCES = ("\x1b[1;31m", "\x1b]0;title\x07", "\x9b2J", "\x1b(B", "\x1bc", "text", "ü", "\n", "\x1b]8;;http://x\x1b\\")


@given(parts=st.lists(st.sampled_from(SEQUENCES), max_size=8), cuts=st.lists(st.integers(0, 80), max_size=5))
def test_text_in_pieces_is_as_plain_as_the_whole(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces, shown = PlainText(), ""
    for begin, end in itertools.pairwise(places):
        shown += pieces.feed(text[begin:end])

    assert shown + pieces.feed("", last=True) == plain_text(text)


def test_a_flood_of_beginnings_is_told_as_quickly_as_any_text() -> None:
    """A search that begins anew at each of them would take hours."""
    assert PlainText().feed("\x90" * 300_000 + "\n") == "\n"
