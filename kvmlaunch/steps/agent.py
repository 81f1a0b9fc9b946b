"""The agent in a guest: a command run there, its addresses, its file systems held still, its end."""

import base64
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define

from kvmlaunch.builder.guest_agent import CHANNEL
from kvmlaunch.errors import Busy, HostFailed, KvmlaunchError, NotRunning, Report, TimedOut
from kvmlaunch.facts.agent import (
    Execution,
    Interface,
    NoAgent,
    Query,
    is_open,
    parse_execution,
    parse_frozen,
    parse_interfaces,
)
from kvmlaunch.facts.console import plain_text
from kvmlaunch.model.run_files import AGENT
from kvmlaunch.run.agent import ask_agent
from kvmlaunch.run.guardian import guarded
from kvmlaunch.run.qmp import Target
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.control import PAUSES, SLEEPS, WAITS, live, query, run_state_of
from kvmlaunch.steps.observe import Seen

SECONDS = 5.0  # for a question that an agent answers at once
THAW_SECONDS, THAW_TRIES = 10.0, 3
UNFROZEN = "the same command with --no-freeze   # as after a power cut"
FREEZE_SECONDS = 60.0  # a guest writes out what it has first
SHUTDOWN_SECONDS = 1.0  # for a refusal
LOOK_EVERY = 0.05  # seconds
SLOWEST_LOOK = 0.5
SLOWEST_INPUT = 1 << 16  # bytes a second that a guest is allowed to take
LONGEST_NAME = 100


def channel(seen: Seen) -> Target:
    """Give the channel to a VM's agent; raises NotRunning `agent.missing` where it has none."""
    path = seen.places.run / AGENT
    if not os.path.exists(path):
        raise NotRunning(
            Report(
                code="agent.missing",
                message=f"{seen.name} has no channel to an agent",
                where=str(path),
                why="guest_agent.enabled is not true, or the VM was started before it was",
                hint=f"[guest_agent]\nenabled = true   # then: kvmlaunch restart {seen.name}",
            )
        )
    return Target(path=path, pid=seen.pid, kind="agent")


def listens(seen: Seen) -> bool:
    """Has the guest opened the channel, so that somebody may answer; raises what the monitor does."""
    there = os.path.exists(seen.places.run / AGENT)
    return there and is_open(query(seen, ("query-chardev", {}))[0], CHANNEL)


def need_agent(seen: Seen) -> Target:
    """Give the channel to an agent that listens; raises NotRunning `agent.missing`."""
    target = channel(seen)
    if not listens(seen):
        raise NotRunning(
            Report(
                code="agent.missing",
                message=f"no agent listens in {seen.name}",
                where=str(target.path),
                why="the guest has not opened the channel: qemu-guest-agent is not installed, or not started yet",
                hint="apt install qemu-guest-agent   # in the guest",
            )
        )
    return target


def execute(caller: Caller, word: str, argv: Sequence[str], *, given: bytes | None, seconds: float) -> Execution:
    """Run a command in a guest, as its agent's user, and give how it ended.

    `given` is its standard input, None for none.  Raises TimedOut `agent.timeout` when it has not ended in time; it
    runs on then.
    """
    seen = live(caller, word)
    target = need_agent(seen)
    need_running(seen)
    wanted: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    if given is not None:
        wanted["input-data"] = base64.b64encode(given).decode()
    patience = min(SECONDS, seconds) + len(given or b"") / SLOWEST_INPUT
    begun = ask_agent(target, (("guest-exec", wanted),), seconds=patience, stay=LOOK_EVERY)
    pid = begun[0].get("pid") if begun and isinstance(begun[0], dict) else None
    if type(pid) is not int:
        raise HostFailed(Report(code="agent.error", message="the guest's agent told no pid", where=str(target.path)))
    return follow(target, pid, argv[0], time.monotonic() + seconds)


def need_running(seen: Seen) -> None:
    """Refuse to ask the agent of a guest that stands still (`vm.state`): it would not answer."""
    run_state = ""
    with contextlib.suppress(TimedOut):  # the agent may answer where the monitor does not
        run_state = run_state_of(seen)
    if run_state in {"running", "prelaunch", ""}:  # before it ever ran nobody has opened the channel
        return
    goes_on = run_state in {*PAUSES, SLEEPS, WAITS}
    raise Busy(
        Report(
            code="vm.state",
            message=f"{seen.name} stands still: {run_state}",
            where=f"pid {seen.pid}",
            why="its vCPUs do not run, so its agent does not answer",
            hint=f"kvmlaunch resume {seen.name}" if goes_on else f"kvmlaunch reset {seen.name}   # starts it anew",
        )
    )


def follow(target: Target, pid: int, command: str, deadline: float) -> Execution:
    """Ask for a command in a guest until it has ended."""
    pause = LOOK_EVERY
    while True:
        question = ("guest-exec-status", {"pid": pid})
        longest = deadline - time.monotonic()
        answers = ask_agent(target, (question,), seconds=SECONDS, stay=pause, longest=longest)
        if not answers:
            raise HostFailed(Report(code="agent.error", message="the guest's agent went away", where=str(target.path)))
        try:
            found = parse_execution(answers[0])
        except NoAgent as error:
            message = f"the guest's agent: {error}"
            raise HostFailed(Report(code="agent.error", message=message, where=str(target.path))) from error
        if found.exited:
            return found
        if time.monotonic() > deadline:
            raise TimedOut(
                Report(
                    code="agent.timeout",
                    message=f"{command} has not ended in the guest",
                    where=f"pid {pid} in the guest",
                    why="it runs on there",
                    hint="--timeout 10m   # waits longer",
                )
            )
        pause = min(SLOWEST_LOOK, pause * 2)


def addresses(seen: Seen, seconds: float) -> tuple[Interface, ...]:
    """Give the addresses of a guest as it tells them, none when it does not answer in time."""
    try:
        answers = ask_agent(channel(seen), (("guest-network-get-interfaces", {}),), seconds=seconds)
    except KvmlaunchError:
        return ()
    found = parse_interfaces(answers[0] if answers else None)
    return tuple(
        Interface(name=shortened(each.name), addresses=tuple(map(shortened, each.addresses))) for each in found
    )


def shortened(text: str) -> str:
    """Give a text of the guest's as it may be shown."""
    return plain_text(text)[:LONGEST_NAME]


def stands_still(seen: Seen) -> bool:
    """Does a guest not run, so that nobody in it answers; false where QEMU cannot be asked."""
    with contextlib.suppress(KvmlaunchError):
        return run_state_of(seen) not in {"running", ""}
    return False


def hears(seen: Seen) -> bool:
    """Does an agent listen in a guest that runs."""
    try:
        status = query(seen, ("query-status", {}))[0]
        return isinstance(status, dict) and bool(status.get("running")) and listens(seen)
    except KvmlaunchError:
        return False


def ask_shutdown(seen: Seen) -> bool:
    """Ask a guest's agent to power it down; tells whether one was there to be asked, in a guest that runs.

    Raises TimedOut `agent.timeout` for one that does not answer at all, HostFailed `agent.error` when it refused.
    """
    if not hears(seen):
        return False
    ask_agent(channel(seen), (), seconds=SHUTDOWN_SECONDS)
    with contextlib.suppress(TimedOut):  # on success it does not answer
        ask_agent(channel(seen), (("guest-shutdown", {"mode": "powerdown"}),), seconds=SHUTDOWN_SECONDS)
    return True


@define(kw_only=True)
class Rest:
    """How a guest's file systems were held still: how many, None where no agent was asked, and `unasked` why.

    `stuck` is why they may still be.
    """

    count: int | None = None
    unasked: str = ""
    stuck: str = ""


@contextlib.contextmanager
def frozen_guest(seen: Seen) -> Iterator[Rest]:
    """Hold a guest's file systems still for a while, where an agent listens.

    They are let go again whatever happens, by a child where this process is killed or interrupted; where the agent does
    not, that is told in what is given, as what was done meanwhile stands, or in the error.  Raises HostFailed, TimedOut
    when it refuses to hold them.
    A guest that stands still answers nobody, and writes nothing.
    """
    rest = Rest()
    if not hears(seen):
        rest.unasked = "its vCPUs do not run" if stands_still(seen) else "no agent listens in the guest"
        yield rest
        return
    target, refused = channel(seen), False
    need_answer(target)
    try:
        with guarded(lambda: thaw(target)) as let_go:
            try:
                try:
                    answers = freeze(target)
                except HostFailed:
                    refused = True  # it answered that nothing is held
                    raise
                rest.count = frozen_count(answers, target)
                yield rest
            finally:
                rest.stuck = thaw(target)
                let_go()
    except (HostFailed, TimedOut) as error:
        if not rest.stuck or refused:
            if rest.count is not None:
                raise
            either = "\n".join(filter(None, (error.report.hint, UNFROZEN)))
            raise type(error)(error.report._replace(hint=either)) from error
        why = (error.report.why, f"the guest's file systems may still be held: {rest.stuck}")
        hint = (error.report.hint, "in the guest's console: fsfreeze --unfreeze /, and for each other one", UNFROZEN)
        words = {"why": "\n".join(filter(None, why)), "hint": "\n".join(filter(None, hint))}
        raise type(error)(error.report._replace(**words)) from error


def frozen_count(answers: Sequence[object], target: Target) -> int:
    """Give how many file systems an agent holds; raises HostFailed `agent.error` where it does not say so."""
    try:
        return parse_frozen(answers[0] if answers else None)
    except NoAgent as error:
        message = f"the guest's agent: {error}"
        raise HostFailed(Report(code="agent.error", message=message, where=str(target.path))) from error


def need_answer(target: Target) -> None:
    """Have an agent answer at once, before it is asked for what may take long; raises TimedOut `agent.timeout`."""
    try:
        ask_agent(target, (), seconds=SECONDS)
    except TimedOut as error:
        raise TimedOut(error.report._replace(hint=UNFROZEN)) from error


def freeze(target: Target) -> list[Any]:
    """Hold a guest's file systems; those that a killed command left so are let go first: such an agent refuses."""
    words: tuple[Query, ...] = (("guest-fsfreeze-freeze", {}),)
    try:
        return ask_agent(target, words, seconds=FREEZE_SECONDS)
    except HostFailed:
        thaw(target)
        return ask_agent(target, words, seconds=FREEZE_SECONDS)


def thaw(target: Target) -> str:
    """Let a guest's file systems go, trying again; gives why they may still be held, "" where they are not."""
    said = ""
    for _ in range(THAW_TRIES):
        try:
            ask_agent(target, (("guest-fsfreeze-thaw", {}),), seconds=THAW_SECONDS)
        except KvmlaunchError as error:
            said = error.report.message
        else:
            return ""
    return said
