"""`pause`, `resume`, `reset`, `monitor`: one question to a live VM."""

import contextlib
import json
import re
import time
from collections.abc import Collection, Mapping
from typing import Final, Literal

from kvmlaunch.errors import Busy, DefinitionInvalid, KvmlaunchError, NotRunning, Report, TimedOut
from kvmlaunch.facts.qmp import Query
from kvmlaunch.model.lifecycle import Answer, Verb, VmState, plan_transition
from kvmlaunch.model.value import frozen
from kvmlaunch.run.qmp import Target, ask
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.names import name_of, refuse_unknown
from kvmlaunch.steps.observe import LEFT, Seen, monitor_path, namesakes, observe, who_holds

# In a URI, in a channel, or in a command of the human monitor.
RUNS_A_PROGRAM: Final = r'\bexec:|"transport": "exec"'
Deed = Literal["asked", "let run", "woken", "told to quit", "in vain", "no answer"]
PAUSES: Final = frozenset({"paused", "prelaunch"})  # QEMU's run states of a guest that somebody stopped
SLEEPS: Final = "suspended"  # of one that put itself to sleep, by ACPI S3: `stop` and `cont` do nothing to it
WAITS: Final = "io-error"  # of one that waits for its storage
STANDS_AGAIN: Final = 1.0  # seconds within which a request that fails again has come back
COMES_SECONDS: Final = 5.0  # within which QEMU has done what its main loop does after the answer
COMMANDS: Mapping[Verb, str] = {Verb.PAUSE: "stop", Verb.RESUME: "cont", Verb.RESET: "system_reset"}
WAKE: Final[Query] = ("system_wakeup", {})


@frozen(kw_only=True)
class Press:
    """What pressing the power button came to: the run state that the guest was met in, and what was done.

    A guest that stands still for another reason than a pause hears no button: in vain.
    """

    run_state: str
    deed: Deed


def live(caller: Caller, word: str) -> Seen:
    """Give a VM that runs; raises NotRunning `vm.stopped`, UnknownVm, Busy `vm.state` while it starts."""
    name = name_of(word)
    seen = observe(caller, name)
    if seen.state in {VmState.STARTING, VmState.BUSY}:
        raise Busy(
            Report(
                code="vm.state",
                message=f"{name} is {seen.state.value}",
                where=str(seen.places.run),
                why=f"held by {who_holds(seen)}",
                hint=f"kvmlaunch status {name}",
            )
        )
    if not seen.lives:
        refuse_unknown(caller, word)
        others = namesakes(name) if seen.state is VmState.STOPPED else ()
        raise NotRunning(
            Report(
                code="vm.stopped",
                message=f"{name} is not running",
                where=str(seen.places.run),
                why="\n".join((seen.state.value, *others)),
                hint="the same command as that user" if others else f"kvmlaunch up {name}",
            )
        )
    return seen


def query(seen: Seen, *queries: Query, seconds: float = 5.0) -> list[object]:
    """Ask a live VM's monitor."""
    return ask(Target(path=monitor_path(seen), pid=seen.pid), queries, seconds=seconds)


def press_power_button(target: Target) -> Press:
    """Ask a guest to power down; tells what that came to.

    A guest that is paused is let run to hear it, one that sleeps is woken.  A QEMU that its guest has left, as under
    -no-shutdown, is told to quit: nobody else would end it.  A guest that stands still otherwise is not pressed: it
    would hear that once it runs again, when nobody wants it any more.
    """
    status = ask(target, (("query-status", {}),))[0]
    run_state = str(status.get("status", "")) if isinstance(status, dict) else ""
    if run_state in PAUSES:
        ask(target, (("cont", {}), ("system_powerdown", {})))
        return Press(run_state=run_state, deed="let run")
    if run_state == SLEEPS:
        ask(target, (WAKE, ("system_powerdown", {})))
        return Press(run_state=run_state, deed="woken")
    if run_state == LEFT:
        with contextlib.suppress(KvmlaunchError):  # it may be gone before it has answered
            ask(target, (("quit", {}),))
        return Press(run_state=run_state, deed="told to quit")
    if isinstance(status, dict) and not status.get("running", True):
        return Press(run_state=run_state, deed="in vain")
    ask(target, (("system_powerdown", {}),))
    return Press(run_state=run_state, deed="asked")


def by_force(name: str) -> str:
    """Give the command that ends a VM whose guest does not, and what that costs."""
    return f"kvmlaunch down {name} --force --timeout 0   # at once: TERM, then KILL; what it has not flushed is lost"


def unheard(seen: Seen, press: Press) -> Busy:
    """Give the error of a power button that a guest does not hear, as it stands still."""
    first = f"kvmlaunch reset {seen.name}   # starts it anew"
    if press.run_state == WAITS:
        first = f"kvmlaunch resume {seen.name}   # says what is wrong, if it still is"
    return Busy(
        Report(
            code="vm.state",
            message=f"{seen.name} stands still ({press.run_state}) and hears no power button",
            where=f"pid {seen.pid}",
            why="nothing was asked of it, and it is left as it is",
            hint=f"{first}; or\n{by_force(seen.name)}",
        )
    )


def control(caller: Caller, word: str, verb: Verb, *, dry_run: bool = False) -> bool:
    """Pause, resume or reset a VM; tells whether anything changed, or with a dry run would.

    A guest that slept is woken, and one that stood still for another reason than a pause runs on after its reset.
    Raises NotRunning, UnknownVm, Busy, TimedOut.
    """
    seen = live(caller, word)
    run_state = run_state_of(seen)
    awake = run_state == "running" or (verb is Verb.PAUSE and run_state == SLEEPS)
    state = VmState.RUNNING if awake else VmState.PAUSED
    if plan_transition(state, verb) is Answer.ALREADY:
        return False
    if verb is Verb.RESUME and run_state == LEFT:
        raise has_left(seen)
    if dry_run:
        return True
    wakes = verb is Verb.RESUME and run_state == SLEEPS
    query(seen, WAKE if wakes else (COMMANDS[verb], {}))
    if wakes:
        await_state(seen, {"running"})
    if verb is Verb.PAUSE and run_state_of(seen) == SLEEPS:
        raise sleeping(seen)
    if verb is Verb.RESUME and run_state == WAITS:
        refuse_standing(seen)
    if verb is Verb.RESET and run_state not in {"running", *PAUSES}:
        await_state(seen, PAUSES)
        query(seen, ("cont", {}))
    return True


def has_left(seen: Seen) -> Busy:
    """Give the refusal to let a guest run on that has powered down, and whose QEMU was told to stay."""
    return Busy(
        Report(
            code="vm.state",
            message=f"the guest of {seen.name} has powered down",
            where=f"pid {seen.pid}",
            why="QEMU was told to stay all the same (-no-shutdown): there is nothing to run on",
            hint=f"kvmlaunch restart {seen.name}",
        )
    )


def run_state_of(seen: Seen) -> str:
    """Give QEMU's own word for how a guest is."""
    status = query(seen, ("query-status", {}))[0]
    return str(status.get("status", "")) if isinstance(status, dict) else ""


def await_state(seen: Seen, wanted: Collection[str]) -> None:
    """Wait until a guest is in one of these run states; raises TimedOut `qmp.timeout`."""
    deadline = time.monotonic() + COMES_SECONDS
    while (run_state := run_state_of(seen)) not in wanted:
        if time.monotonic() > deadline:
            raise TimedOut(
                Report(
                    code="qmp.timeout",
                    message=f"{seen.name} is still {run_state}",
                    where=f"pid {seen.pid}",
                    why=f"within {COMES_SECONDS:g} s it was to be {' or '.join(sorted(wanted))}",
                    hint=f"kvmlaunch status {seen.name}",
                )
            )
        time.sleep(COMES_SECONDS / 100)


def sleeping(seen: Seen) -> Busy:
    """Give the error of a pause of a guest that sleeps: an event of its own wakes it, and QEMU cannot hold it."""
    return Busy(
        Report(
            code="vm.state",
            message=f"{seen.name} sleeps (ACPI S3), and cannot be paused",
            where=f"pid {seen.pid}",
            why="this QEMU stops a guest that runs only",
            hint=f"kvmlaunch resume {seen.name} && kvmlaunch pause {seen.name}   # wakes it first",
        )
    )


def refuse_standing(seen: Seen) -> None:
    """Raise Busy `vm.state` for a guest that stands again at once, as what stopped it is still there."""
    deadline = time.monotonic() + STANDS_AGAIN
    while time.monotonic() < deadline:
        status, blocks = query(seen, ("query-status", {}), ("query-block", {}))
        if isinstance(status, dict) and status.get("status") == WAITS:
            raise standing(seen, blocks)
        time.sleep(STANDS_AGAIN / 10)


def standing(seen: Seen, blocks: object) -> Busy:
    """Give the error of a guest that waits for its storage, with what QEMU says of each disk that does."""
    rows = [row for row in blocks if isinstance(row, dict)] if isinstance(blocks, list) else []
    stuck = {str(row.get("device", "")).removeprefix("disk-"): row.get("io-status") for row in rows}
    said = {"nospace": "there is no space for what it writes", "failed": "its store refused what it wrote or read"}
    why = "\n".join(f"disk {name}: {said[word]}" for name, word in stuck.items() if word in said)
    return Busy(
        Report(
            code="vm.state",
            message=f"{seen.name} stands still again: an I/O error",
            where=f"pid {seen.pid}",
            why=why or "QEMU does not say of which disk",
            hint=f"kvmlaunch disk info {seen.name}   # where they lie; mend that, then: kvmlaunch resume {seen.name}",
        )
    )


def send_command(caller: Caller, word: str, command: str, arguments: Mapping[str, object]) -> object:
    """Send one QMP command to a VM and give its answer; one that runs a program is refused (`def.raw.option`)."""
    if re.search(RUNS_A_PROGRAM, json.dumps(arguments)):
        why = "exec: runs a shell, and the sandbox answers that by ending QEMU"
        raise DefinitionInvalid(
            Report(code="def.raw.option", message=f"{command} exec: is not sent", where=name_of(word), why=why)
        )
    return query(live(caller, word), (command, arguments), seconds=30.0)[0]
