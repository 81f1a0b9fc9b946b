"""`pause`, `resume`, `reset`, `monitor`: one question to a live VM."""

import contextlib
import json
import re
import time
from collections.abc import Mapping
from typing import Final, Literal

from kvmlaunch.errors import Busy, DefinitionInvalid, KvmlaunchError, NotRunning, Report
from kvmlaunch.facts.qmp import Query
from kvmlaunch.model.lifecycle import Answer, Verb, VmState, plan_transition
from kvmlaunch.model.value import frozen
from kvmlaunch.run.qmp import Target, ask
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.names import name_of, refuse_unknown
from kvmlaunch.steps.observe import LEFT, Seen, monitor_path, observe, who_holds

# In a URI, in a channel, or in a command of the human monitor.
RUNS_A_PROGRAM: Final = r'\bexec:|"transport": "exec"'
Deed = Literal["asked", "let run", "told to quit", "in vain", "no answer"]
WAITS: Final = "io-error"  # QEMU's run state of a guest that waits for its storage
STANDS_AGAIN: Final = 1.0  # seconds within which a request that fails again has come back
COMMANDS: Mapping[Verb, str] = {Verb.PAUSE: "stop", Verb.RESUME: "cont", Verb.RESET: "system_reset"}


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
        raise NotRunning(
            Report(
                code="vm.stopped",
                message=f"{name} is not running",
                where=str(seen.places.run),
                why=seen.state.value,
                hint=f"kvmlaunch up {name}",
            )
        )
    return seen


def query(seen: Seen, *queries: Query, seconds: float = 5.0) -> list[object]:
    """Ask a live VM's monitor."""
    return ask(Target(path=monitor_path(seen), pid=seen.pid), queries, seconds=seconds)


def press_power_button(target: Target) -> Press:
    """Ask a guest to power down; tells what that came to.

    A guest that is paused is let run to hear it.  A QEMU that its guest has left, as under -no-shutdown, is told to
    quit: nobody else would end it.
    """
    status, _ = ask(target, (("query-status", {}), ("system_powerdown", {})))
    run_state = str(status.get("status", "")) if isinstance(status, dict) else ""
    if run_state in {"paused", "prelaunch"}:
        ask(target, (("cont", {}), ("system_powerdown", {})))
        return Press(run_state=run_state, deed="let run")
    if run_state == LEFT:
        with contextlib.suppress(KvmlaunchError):  # it may be gone before it has answered
            ask(target, (("quit", {}),))
        return Press(run_state=run_state, deed="told to quit")
    stands = isinstance(status, dict) and not status.get("running", True)
    return Press(run_state=run_state, deed="in vain" if stands else "asked")


def control(caller: Caller, word: str, verb: Verb, *, dry_run: bool = False) -> bool:
    """Pause, resume or reset a VM; tells whether anything changed, or with a dry run would.

    Raises NotRunning, UnknownVm, Busy, TimedOut.
    """
    seen = live(caller, word)
    status = query(seen, ("query-status", {}))[0]
    paused = isinstance(status, dict) and not status.get("running")
    state = VmState.PAUSED if paused else VmState.RUNNING
    if plan_transition(state, verb) is Answer.ALREADY:
        return False
    if not dry_run:
        query(seen, (COMMANDS[verb], {}))
    if not dry_run and verb is Verb.RESUME and isinstance(status, dict) and status.get("status") == WAITS:
        refuse_standing(seen)
    return True


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
