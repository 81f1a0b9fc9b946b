"""What a start changes on the host, and the plan that holds once it is changed: all under the host-wide lock."""

from collections.abc import Callable
from datetime import UTC, datetime

from kvmlaunch.errors import PreflightFailed, Report
from kvmlaunch.host import journal as journals
from kvmlaunch.host.apply import apply_changes
from kvmlaunch.host.lock import host_lock, why_fixed
from kvmlaunch.model.change import Change, Journal, LogMountChange
from kvmlaunch.model.run_files import LOG
from kvmlaunch.run.process import read_boot_id
from kvmlaunch.steps.caller import Tell
from kvmlaunch.steps.heal import heal_host
from kvmlaunch.steps.resolve import Resolved

LOG_SIZE = 16 << 20  # bytes that a guest can fill with logs, for root's VMs
TRIES = 5  # of counting pages while others move them
SHORT = ("host.hugepages.short", "host.hugepages.partial")


def all_changes(resolved: Resolved) -> tuple[Change, ...]:
    """Give every host change of a start: the plan's, and for root's VMs the bounded place of their logs."""
    user = resolved.host.user
    mounted = any(mount.path == resolved.places.run / LOG for mount in resolved.host.mounts)
    roots = resolved.host.caller_uid == 0 and resolved.host.privileged
    bounded = roots and not mounted and not why_fixed()
    log = (
        (LogMountChange(path=str(resolved.places.run / LOG), size=LOG_SIZE, uid=user.uid, gid=user.gid),)
        if bounded
        else ()
    )
    return (*resolved.changes(), *log)


def journal_head(resolved: Resolved) -> Journal:
    """Give the VM's journal so far, or an empty one."""
    owner_uid = resolved.host.caller_uid
    found = journals.read_journal(owner_uid, resolved.name)
    boot_id = read_boot_id()
    if found is not None and found.boot_id == boot_id:
        return found
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Journal(
        vm=resolved.name,
        uid=owner_uid,
        run=str(resolved.places.run),
        boot_id=boot_id,
        time=now,
        state="done",
        entries=(),
    )


def change_host(resolved: Resolved, plan_again: Callable[[str], Resolved], tell: Tell) -> Resolved:
    """Heal, look again and change the host, all under the host-wide lock; gives the plan that holds.

    Pages, mounts, taps and images may all be others than when they were first looked at.
    `plan_again` plans by what is seen now; its word, where it is not empty, says why hugepages cannot be had.
    Free and reserved pages are two files: while another QEMU touches its memory they are read apart, and a mount
    that the kernel then refuses is counted and tried again (measured with 20 starts at once).
    When `auto` hugepages are refused by the kernel the VM gets ordinary memory, which is said.
    """
    if fixed := why_fixed():
        return leave_host(plan_again(fixed), fixed, tell)
    with host_lock():
        heal_host(tell, but=str(resolved.places.run))
        refused = ""
        for _ in range(TRIES):
            fresh = plan_again(refused)
            fresh.refuse()
            try:
                apply_changes(journal_head(fresh), all_changes(fresh), tell)
            except PreflightFailed as error:
                if error.report.code not in SHORT:
                    raise
                miscounted = error.report.where == str(fresh.places.hugepages)
                if fresh.plan.memory.asked and not miscounted:
                    raise
                refused = "" if miscounted else error.report.why.splitlines()[0]
                last = error
            else:
                return fresh
        raise last


def leave_host(fresh: Resolved, fixed: str, tell: Tell) -> Resolved:
    """Give a plan that needs no change of a host which cannot be changed; raises PreflightFailed `host.fixed`."""
    fresh.refuse()
    if fresh.changes():
        hint = "start it outside of the container, or: --set memory.hugepages=auto, and a tap that is there"
        message = f"{fresh.name} needs changes of the host, which cannot be changed from here"
        raise PreflightFailed(Report(code="host.fixed", message=message, where=fresh.name, why=fixed, hint=hint))
    tell("warn", f"the VM's logs have no bound of their own: {fixed}  [host.fixed]")
    return fresh
