"""Several VMs at once, each in a process of its own: one failure does not stop the others."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence

from kvmlaunch.model.value import frozen

Action = Callable[[str], tuple[int, str]]  # of a name: does it, gives the exit code and an answer


@frozen(kw_only=True)
class Child:
    """A process that acts for one VM; its answer is left in the memory file `answer`."""

    name: str
    answer: int


def run_each(names: Sequence[str], action: Action, *, at_once: int) -> dict[str, tuple[int, str]]:
    """Run an action for each name, so many at once, and give its exit code and answer by name.

    With one at once it runs here; else in forked children, whose output goes where ours does.  Interrupted, it ends
    them too, and waits until each has undone its half.
    """
    if at_once < 2 or len(names) < 2:  # noqa: PLR2004 - nothing is at once
        return {name: action(name) for name in names}
    done: dict[str, tuple[int, str]] = {}
    running: dict[int, Child] = {}
    waiting = list(names)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                start_child(waiting.pop(0), action, running)
            pid, status = os.waitpid(-1, 0)
            if pid in running:
                ended = running.pop(pid)
                done[ended.name] = code_of(status), read_answer(ended)
    except BaseException:
        end_children(running)
        raise
    return {name: done[name] for name in names}


def start_child(name: str, action: Action, running: dict[int, Child]) -> None:
    """Fork a child that runs the action and ends with its exit code; it is added to those that run.

    Signals wait meanwhile: one between fork and note would lose the child, or let it end its siblings.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = Child(name=name, answer=os.memfd_create("kvmlaunch-answer"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid:
        running[pid] = child
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code, answer = action(name)
        with open(child.answer, "w", encoding="utf-8") as file:
            file.write(answer)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001 - a bug in a child has nobody else to tell it
        if isinstance(error, Exception) and not isinstance(error, BrokenPipeError):
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def code_of(status: int) -> int:
    """Give the exit code of a child; one that a signal ended has failed."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 1


def read_answer(child: Child) -> str:
    """Give what a child that has ended left behind, "" when it died before."""
    with open(child.answer, encoding="utf-8") as file:
        file.seek(0)
        return file.read()


def end_children(pids: Iterable[int]) -> None:
    """Interrupt children, and wait for them; one that was reaped when the interruption came is gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def common_code(codes: Iterable[int]) -> int:
    """Give the exit code of all: that of the failures when they agree, else 1; 0 when there is none."""
    failures = {code for code in codes if code}
    return failures.pop() if len(failures) == 1 else int(bool(failures))
