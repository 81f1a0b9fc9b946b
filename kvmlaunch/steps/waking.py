"""Waiting without a limit, and hearing of a signal all the same."""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def woken_by_signals() -> Iterator[int]:
    """Give a descriptor, to be waited for with others, that is readable once a signal with a handler has arrived.

    Python runs a handler between two of its instructions: after a signal that came as the wait was entered
    nothing would, as the wait does not end.  Source: signal.set_wakeup_fd; select(2), "the self-pipe trick".
    """
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    previous = signal.set_wakeup_fd(write_end)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(previous)
        os.close(read_end)
        os.close(write_end)
