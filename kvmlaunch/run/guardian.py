"""A child that does one thing should this process be killed: what must not stay as it is then."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

DONE = b"."
HELD_OFF = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # of a terminal, or of a whole group: it waits for our end


@contextlib.contextmanager
def guarded(deed: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Have something done by a child unless it is told that it was: what is given tells it.

    So it is done where this process is killed within, or interrupted; the child is gone when the block ends.  It
    notices by a pipe, whose other end is ours alone: the kernel closes that whatever ends us.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_OFF)
    try:
        child = os.fork()
        if child == 0:
            os.close(write_end)
            stand_by(read_end, deed)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(read_end)

    def done() -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(write_end, DONE)

    try:
        yield done
    finally:
        os.close(write_end)
        os.waitpid(child, 0)


def stand_by(read_end: int, deed: Callable[[], object]) -> NoReturn:
    """Wait, signals held off, for the word that all is done, or for the end of who would say it; ends this process."""
    try:
        os.setsid()
        if os.read(read_end, 1) != DONE:
            deed()
    finally:
        os._exit(0)
