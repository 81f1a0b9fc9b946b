"""Several VMs at once, each in a process of its own: one failure does not stop the others."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence


def run_each(names: Sequence[str], action: Callable[[str], int], *, at_once: int) -> dict[str, int]:
    """Run an action for each name, so many at once, and give its exit code by name.

    With one at once it runs here; else in forked children, whose output goes where ours does.  Interrupted, it ends
    them too, and waits until each has undone its half.
    """
    if at_once < 2 or len(names) < 2:  # noqa: PLR2004 - nothing is at once
        return {name: action(name) for name in names}
    codes: dict[str, int] = {}
    running: dict[int, str] = {}
    waiting = list(names)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                running[start_child(name, action)] = name
            pid, status = os.waitpid(-1, 0)
            if pid in running:
                codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
    except BaseException:
        end_children(running)
        raise
    return {name: codes[name] for name in names}


def start_child(name: str, action: Callable[[str], int]) -> int:
    """Fork a child that runs the action and ends with its exit code; gives its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = action(name)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001 - a bug in a child has nobody else to tell it
        if isinstance(error, Exception):
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def end_children(pids: Iterable[int]) -> None:
    """Interrupt children that are not yet reaped, and wait for them."""
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        os.waitpid(pid, 0)


def common_code(codes: dict[str, int]) -> int:
    """Give the exit code of all: that of the failures when they agree, else 1; 0 when there is none."""
    failures = {code for code in codes.values() if code}
    return failures.pop() if len(failures) == 1 else int(bool(failures))
