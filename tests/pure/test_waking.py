"""A signal that arrives as a wait begins ends it."""

import os
import select
import signal

from kvmlaunch.steps.waking import woken_by_signals

LONG = 30


def test_a_signal_that_came_just_before_a_wait_ends_it() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with woken_by_signals() as signals_fd:
            quiet = select.select([signals_fd], [], [], 0)[0]
            os.kill(os.getpid(), signal.SIGUSR1)
            woken = select.select([signals_fd], [], [], LONG)[0]
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert quiet == []
    assert woken == [signals_fd]


def test_what_was_woken_before_is_woken_again_afterwards() -> None:
    with woken_by_signals(), woken_by_signals():
        pass

    assert signal.set_wakeup_fd(-1) == -1
