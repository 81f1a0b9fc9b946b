"""`down`: ask the guest to power down, wait, and only with force end QEMU; then give everything back."""

import contextlib
import os
import time
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING

from kvmlaunch.errors import Busy, KvmlaunchError, Report, TimedOut
from kvmlaunch.host import journal as journals
from kvmlaunch.host.apply import mounts_on
from kvmlaunch.host.definitions import definition_files, is_same_file
from kvmlaunch.host.rundir import mark_stopping, unmark_stopping
from kvmlaunch.model.lifecycle import Answer, Verb, VmState, plan_transition
from kvmlaunch.model.plan import Places
from kvmlaunch.model.value import frozen
from kvmlaunch.run.process import Process, carries_uuid, held, is_of_record, read_cmdline
from kvmlaunch.steps.caller import Caller, Tell
from kvmlaunch.steps.heal import clean_up
from kvmlaunch.steps.lost import refuse_lost
from kvmlaunch.steps.names import is_file, name_of, refuse_unknown
from kvmlaunch.steps.observe import Seen, monitor_path, namesakes, observe, owner_of, who_holds
from kvmlaunch.units import render_size

if TYPE_CHECKING:
    from kvmlaunch.steps.control import Press

ASKED = {
    "told to quit": "was told to quit: its guest had powered down",
    "no answer": "does not answer on its monitor, so its guest was not asked",
}
ASK_AGAIN = 5.0  # seconds
STOP_SECONDS = 90.0  # where no definition of a VM can be read
STOP_KEY = "lifecycle.stop_timeout"
AGENT_SECONDS = 30.0  # that an agent is given to end its guest
TERM_SECONDS = 10.0  # how long QEMU may take to flush and close its images


@frozen(kw_only=True)
class Ended:
    """What `down` did.  `forced` names the signal that ended it, "" when the guest powered down by itself.

    `pages` says which huge pages stay, as they were prepared, "" for none.
    """

    name: str
    already: bool = False
    seconds: float = 0.0
    forced: str = ""
    still_prepared: bool = False
    pages: str = ""


def verified_process(seen: Seen, process: Process | None) -> Process | None:
    """Give the process when it is this VM's beyond doubt, verified after its pidfd was opened."""
    if process is None:
        return None
    if seen.record is not None and seen.record.state == "running":
        return process if is_of_record(process.pid, seen.record, seen.uuid) else None
    return process if carries_uuid(read_cmdline(process.pid), seen.uuid) else None


def ask_powerdown(seen: Seen, *, force: bool) -> "Press":
    """Press the guest's power button; a monitor that does not answer is an error unless force goes on without it."""
    from kvmlaunch.run.qmp import Target  # noqa: PLC0415 - only when something runs
    from kvmlaunch.steps.control import Press, press_power_button  # noqa: PLC0415

    try:
        return press_power_button(Target(path=monitor_path(seen), pid=seen.pid))
    except KvmlaunchError:
        if not force:
            raise
    return Press(run_state="", deed="no answer")


def end_by_force(process: Process, tell: Tell, why: str) -> str:
    """End QEMU by SIGTERM, then SIGKILL; gives the signal that did it.  Unflushed data of a qcow2 image is lost."""
    for number, name in ((SIGTERM, "SIGTERM"), (SIGKILL, "SIGKILL")):
        tell("down", f"{why}: {name} to pid {process.pid}")
        process.send(number)
        if process.wait(TERM_SECONDS):
            return name
    raise TimedOut(
        Report(
            code="vm.stop.timeout",
            message="QEMU does not end",
            where=f"pid {process.pid}",
            why=f"it survived SIGKILL for {TERM_SECONDS:g} s: it waits in the kernel",
            hint="dmesg | tail   # may tell for which device",
        )
    )


def wait_asking(seen: Seen, process: Process, deadline: float) -> bool:
    """Wait for the end, pressing the button again now and then: a guest that still boots did not see the first time."""
    while (left := deadline - time.monotonic()) > 0:
        if process.wait(min(left, ASK_AGAIN)):
            return True
        with contextlib.suppress(KvmlaunchError):
            if ask_powerdown(seen, force=True).deed == "told to quit":
                return process.wait(TERM_SECONDS)
    return process.wait(0)


def ask_agent(seen: Seen, process: Process, timeout: float, tell: Tell) -> bool:
    """Ask the agent in a guest to power it down, where one listens; tells whether that ended it.

    An agent that says yes and does nothing has a part of the time only: the power button is pressed then.
    """
    from kvmlaunch.steps.agent import ask_shutdown  # noqa: PLC0415 - only when something runs

    try:
        if not ask_shutdown(seen):
            return False
    except KvmlaunchError as error:
        tell("powerdown", f"{error.report.message}; now the power button")
        return False
    seconds = min(AGENT_SECONDS, timeout / 2)
    tell("powerdown", f"pid {process.pid}: the agent in the guest was asked, waiting {seconds:g} s")
    if process.wait(seconds):
        return True
    tell("powerdown", "the agent did not end it; now the power button")
    return False


def end_process(seen: Seen, process: Process, timeout: float, tell: Tell, *, force: bool) -> str:
    """Ask, wait, and with force end; gives the signal that ended it, "" for none.  Raises TimedOut, Busy.

    What is forced at once is not asked: a guest that is paused would run for a moment.
    """
    if force and timeout <= 0:
        return end_by_force(process, tell, "the guest is not asked")
    deadline = time.monotonic() + timeout
    if timeout > 0 and ask_agent(seen, process, timeout, tell):
        return ""
    met = ask_powerdown(seen, force=force)
    if met.deed == "let run":
        tell("resumed", "it was paused, and a paused guest hears no power button")
    if met.deed == "woken":
        tell("resumed", "it slept (ACPI S3), and a sleeping guest hears no power button")
    if met.deed != "in vain":
        asked = ASKED.get(met.deed, "was asked")
        word = "down" if met.deed == "no answer" else "powerdown"
        tell(word, f"pid {process.pid} {asked}, waiting {timeout:g} s")
        if wait_asking(seen, process, deadline):
            return ""
    if force:
        return end_by_force(process, tell, "the guest did not power down")
    from kvmlaunch.steps.control import by_force, query, unheard  # noqa: PLC0415 - on this path only

    unmark_stopping(seen.places.run, owner_of(seen.places.run))
    stays = "it runs on" if met.deed in {"let run", "woken"} else "it runs on, untouched"
    if met.deed == "let run" and timeout > 0:  # else it has not heard the button yet, and would at its next resume
        with contextlib.suppress(KvmlaunchError):
            query(seen, ("stop", {}))
            tell("paused", "as it was before")
            stays = "it is paused again"
    if met.deed == "in vain":
        raise unheard(seen, met)
    raise TimedOut(
        Report(
            code="vm.stop.timeout",
            message=f"{seen.name} did not power down",
            where=f"pid {process.pid}",
            why=why_up(met, timeout, stays),
            hint=by_force(seen.name),
        )
    )


def why_up(met: "Press", timeout: float, stays: str) -> str:
    """Give why a guest that was asked to power down has not, by how it was met and how it stays."""
    if met.deed == "told to quit":
        return f"its guest had powered down, and QEMU did not quit within {timeout:g} s"
    if timeout == 0:
        return f"it was asked to, and was not waited for; {stays}"
    return f"the guest ignored the power button for {timeout:g} s; {stays}"


def never_ran(seen: Seen, *, force: bool) -> bool:
    """Did the guest of a half started QEMU never run; by `force` one that cannot be asked is ended like any other."""
    from kvmlaunch.steps.adopt import guest_has_run  # noqa: PLC0415 - only when something runs

    try:
        return not guest_has_run(seen)
    except Busy:
        if force:
            return False
        raise


def stop_seconds(caller: Caller, word: str, seen: Seen) -> float:
    """Give how long a guest may take to power down: as its start recorded, else as its definition has it, if it can.

    What `--set` says now comes first.
    """
    if any(each.partition("=")[0].strip() == STOP_KEY for each in caller.overrides):
        from kvmlaunch.steps.load import load_subject  # noqa: PLC0415 - seldom needed

        return float(load_subject(caller, word).definition.lifecycle.stop_timeout)
    if seen.record:
        return seen.record.stop_timeout
    from kvmlaunch.steps.load import load  # noqa: PLC0415 - for a QEMU only that kvmlaunch did not start

    with contextlib.suppress(KvmlaunchError):
        definition = load(caller, word)[1].definition
        if definition:
            return float(definition.lifecycle.stop_timeout)
    return STOP_SECONDS


def end_seen(seen: Seen, timeout: float, tell: Tell, *, force: bool) -> str:
    """End the QEMU that was seen; gone meanwhile is fine."""
    if seen.pid is None:
        return ""
    with held(seen.pid) as candidate:
        process = verified_process(seen, candidate)
        if process is None:
            return ""
        if seen.state is VmState.HALF and never_ran(seen, force=force):
            process.send(SIGKILL)
            process.wait(TERM_SECONDS)
            return "SIGKILL"
        return end_process(seen, process, timeout, tell, force=force)


def clean_up_after(caller: Caller, name: str, places: Places, tell: Tell) -> bool:
    """Clean up; another command that does so at this moment is waited for."""
    deadline = time.monotonic() + TERM_SECONDS
    while True:
        try:
            return clean_up(caller, name, places, tell)
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def pages_text(places: Places) -> str:
    """Give the huge pages that a VM's mount still holds, for people."""
    for mount in mounts_on(str(places.hugepages)):
        size = mount.option("min_size") or ""
        if mount.type == "hugetlbfs" and size.isdecimal():
            return f"{render_size(int(size))} of huge pages on {places.hugepages}"
    return ""


def tell_other_file(caller: Caller, word: str, seen: Seen, tell: Tell) -> None:
    """Say that a VM was started from another file than the one that its name means here."""
    here = caller.here / word if is_file(word) else definition_files(caller.search).get(seen.name)
    if seen.record and here and os.path.isfile(here) and not is_same_file(seen.record.definition, str(here)):
        tell("warn", f"pid {seen.pid} was started from {seen.record.definition}, and not from {here}")


def down(
    caller: Caller, word: str, tell: Tell, *, timeout: float | None = None, force: bool = False, dry_run: bool = False
) -> Ended:
    """End a VM and give back what its start took; stopped already is fine.

    `timeout` is in seconds, None for the definition's.  Raises TimedOut, Busy, UnknownVm.
    """
    begun, name = time.monotonic(), name_of(word)
    places = caller.places(name)
    seen = observe(caller, name)
    answer = plan_transition(seen.state, Verb.DOWN)
    if seen.lives and not force:
        refuse_lost(seen)
    if seen.lives and not dry_run:
        mark_stopping(places.run, owner_of(places.run))
    if answer is Answer.BUSY and not force:
        raise Busy(
            Report(
                code="vm.state",
                message=f"{name} is {seen.state.value}",
                where=str(places.run),
                why=f"held by {who_holds(seen)}",
                hint=f"kvmlaunch down {name}   # once that has ended",
            )
        )
    if answer is Answer.ALREADY:
        refuse_unknown(caller, word)
        for note in namesakes(name) if seen.state is VmState.STOPPED else ():
            tell("warn", note)
    tell_other_file(caller, word, seen, tell)
    if dry_run:
        return Ended(name=name, already=answer is Answer.ALREADY)
    seconds = stop_seconds(caller, word, seen) if seen.lives and timeout is None else timeout or 0.0
    forced = end_seen(seen, seconds, tell, force=force)
    leftovers = seen.leftovers or (caller.uid == 0 and journals.read_journal(0, name) is not None)
    prepared = clean_up_after(caller, name, places, tell) if leftovers else False
    if leftovers and not seen.lives and seen.state is not VmState.STOPPED:
        tell("healed", f"{seen.state.value} before: what it left was cleaned up")
    return Ended(
        name=name,
        already=not seen.lives,
        seconds=time.monotonic() - begun,
        forced=forced,
        still_prepared=prepared,
        pages=pages_text(places) if prepared else "",
    )
