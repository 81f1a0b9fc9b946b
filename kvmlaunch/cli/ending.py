"""Signals that end a command: each becomes an exception, so that what is half-done is undone on the way out."""

import signal
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; everything half-done is undone on the way out."""


def pass_over(number: int, frame: FrameType | None) -> None:
    """Do nothing about a signal that had arrived when an earlier one was taken."""
    del number, frame


def interrupt(number: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that what is half-done is undone; a further one does not disturb that.

    Further ones are blocked, for the tools that undo it too.  None is set to SIG_IGN: of one that is pending then
    Python complains on stderr, "ignored due to race condition" (Modules/signalmodule.c).
    """
    del frame
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    for each in ENDING:
        signal.signal(each, pass_over)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def listen() -> None:
    """Take the signals from now on."""
    for each in ENDING:
        signal.signal(each, interrupt)
