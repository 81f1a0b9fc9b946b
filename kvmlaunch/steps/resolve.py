"""A definition meets this host and its QEMU: facts captured, the plan built, everything checked."""

import os
import stat
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kvmlaunch.builder.security import SYSTEM_USER, missing_rights
from kvmlaunch.builder.vm import build_vm, needs_io_uring, wanted_paths
from kvmlaunch.errors import DefinitionInvalid, HostFailed, PreflightFailed, PrivilegeMissing, Refused, Report
from kvmlaunch.facts.sources import Wanted, parse_captured
from kvmlaunch.host.capture import capture_host, try_io_uring
from kvmlaunch.host.holders import may_be_locked
from kvmlaunch.host.qemu_probe import load_answers, probe_qemu
from kvmlaunch.host.readers import names_in
from kvmlaunch.host.rights import capture_user
from kvmlaunch.host.rundir import read_node
from kvmlaunch.host.tree import why_unsafe
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import Finding, errors_of
from kvmlaunch.model.host import HeldByVm, HostFacts, UserFacts
from kvmlaunch.model.plan import Places, Plan
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import Subject, place_finding, place_findings
from kvmlaunch.units import parse_size

if TYPE_CHECKING:
    from kvmlaunch.model.change import Change

BINARIES = ("qemu-system-x86_64", "kvm")
QEMU_ANSWERS = "qemu"  # beneath a saved capture
NEVER = "host.privilege"


Images = tuple[tuple[object, ...], ...]


@frozen(kw_only=True)
class Resolved:
    """A VM as planned on this host; `images` is by what its files were known just before they were looked at."""

    subject: Subject
    host: HostFacts
    caps: QemuCaps
    plan: Plan
    places: Places
    images: Images = ()

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.subject.definition.name

    def findings(self) -> tuple[Finding, ...]:
        """Check the plan on this host; every finding with its place."""
        return place_findings(self.subject, self.unplaced())

    def unplaced(self) -> tuple[Finding, ...]:
        """Check the plan on this host; to look for the places takes a second reading of the definition."""
        from kvmlaunch.preflight.checks import check_plan  # noqa: PLC0415 - print-cmd checks nothing

        return (*self.subject.findings, *check_plan(self.plan, self.host, self.caps, self.places))

    def refuse(self, beside: tuple[Finding, ...] = ()) -> None:
        """Raise what the errors come to, those of some findings `beside` among them; nothing without errors."""
        found = (*self.unplaced(), *beside)
        if errors_of(found):
            refuse_errors(self.name, place_findings(self.subject, found))

    def holds(self) -> bool:
        """Rests the plan on the VM's files alone, and are they as they were.

        No pages, taps or forwarded ports, and nothing was mounted for it before.
        """
        definition, run = self.subject.definition, self.places.run
        apart = all(each.type not in {"bridge", "tap"} for each in self.plan.networks) and not (
            forwarded_ports(definition) or any(run in mount.path.parents for mount in self.host.mounts)
        )
        return apart and self.plan.memory.backing == "ordinary" and self.images == known_by(definition)

    def changes(self) -> "tuple[Change, ...]":
        """Give what of the host must change first."""
        from kvmlaunch.preflight.checks import plan_changes  # noqa: PLC0415 - print-cmd changes nothing

        return plan_changes(self.plan, self.host, self.places)


@frozen(kw_only=True)
class Sight:
    """How a host and its QEMU are looked at: anew for one VM (`sight_of_one`), once for several (steps/fleet.py).

    `host` gives the facts as a user sees them, None for the caller; `io_uring` what io_uring_setup says to a user.
    """

    caps: Callable[[Definition, Caller], QemuCaps]
    host: Callable[[Definition, Caller, UserFacts | None], HostFacts]
    io_uring: Callable[[UserFacts], str]


def known_by(definition: Definition) -> Images:
    """Give by what the files of a VM are known: each itself, and the directories in which overlays of it may lie."""
    return tuple(known_file(os.path.realpath(path)) for path in wanted_paths(definition))


def known_file(path: str) -> tuple[object, ...]:
    """Give by what one file is known: identity, size, times, whether somebody locked it; and all names around it."""
    here = os.path.dirname(path)
    around = [(place, names_in(place), times_of(place)) for place in dict.fromkeys((here, os.path.dirname(here)))]
    try:
        seen = os.stat(path)
    except OSError:
        return (path, around)
    locked = may_be_locked(path, "block" if stat.S_ISBLK(seen.st_mode) else "file")
    return (path, around, seen.st_dev, seen.st_ino, seen.st_size, times_of(path), locked)


def times_of(path: str) -> tuple[int, int]:
    """Give when a file, or its rights, were last changed, in nanoseconds; zeros where that cannot be told."""
    try:
        seen = os.stat(path)
    except OSError:
        return (0, 0)
    return (seen.st_mtime_ns, seen.st_ctime_ns)


def find_binary(definition: Definition, caller: Caller) -> Path:
    """Give the QEMU to use; raises PreflightFailed `qemu.missing`."""
    if definition.qemu.binary is not AUTO:
        return Path(definition.qemu.binary)
    for directory in caller.environment.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").split(":"):
        for name in BINARIES:
            path = f"{directory}/{name}"
            if directory.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
                return Path(path)
    raise PreflightFailed(
        Report(
            code="qemu.missing",
            message="QEMU is not installed",
            where="qemu.binary",
            why=f"neither {' nor '.join(BINARIES)} is on PATH",
            hint="apt install qemu-system-x86   # or: dnf install qemu-kvm",
        )
    )


def read_caps(definition: Definition, caller: Caller) -> QemuCaps:
    """Give what QEMU can do: asked once a binary, or from a saved capture that holds its answers."""
    if caller.facts and (caller.facts / QEMU_ANSWERS).is_dir():
        from kvmlaunch.facts.qemu import parse_answers  # noqa: PLC0415 - of a saved capture

        return parse_answers(load_answers(caller.facts / QEMU_ANSWERS))
    return probe_qemu(find_binary(definition, caller), cache=caller.cache)


def at_binary(caller: Caller, subject: Subject, failure: PreflightFailed) -> PreflightFailed:
    """Give the refusal of a QEMU at the key that names it, where it is chosen by hand."""
    report, hint = failure.report, f"{caller.line} --set qemu.binary=auto   # takes the one on PATH"
    if subject.definition.qemu.binary is AUTO:
        return failure
    named = report._replace(why=f"{report.where}: {report.why}", hint=hint)
    return at_key(subject, named, "qemu.binary")


def at_key(subject: Subject, report: Report, key: str) -> PreflightFailed:
    """Give a refusal at the place where its key is written."""
    found = Finding(severity="error", report=report._replace(where=""), key=key)
    return PreflightFailed(place_finding(subject, found).report)


def mount_held(host: HostFacts, places: Places) -> HeldByVm:
    """Give the hugetlbfs mount that a VM has already."""
    found = [mount for mount in host.mounts if mount.path == places.hugepages and mount.type == "hugetlbfs"]
    if not found:
        return HeldByVm()
    mount = found[-1]
    size, page = mount.option("min_size") or "0", mount.option("pagesize")
    return HeldByVm(
        mount_size=int(size) if size.isdecimal() else 0,
        mount_page_size=parse_size(page) if page else None,
        mount_uid=int(mount.option("uid") or 0),
    )


def owner_at(path: PurePosixPath) -> int | None:
    """Give the uid that a directory belongs to now, None where that cannot be seen."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def is_covered(host: HostFacts, places: Places) -> bool:
    """Is a VM's mount hidden beneath another one, so that QEMU would not reach it."""
    found = [mount for mount in host.mounts if mount.path == places.hugepages]
    try:
        device = os.stat(places.hugepages).st_dev
    except OSError:
        return bool(found)
    return bool(found) and found[-1].device != f"{os.major(device)}:{os.minor(device)}"


def sight_of_one(*, everything: bool) -> Sight:
    """Give the sight of one VM: all is looked at when it is asked for; `everything` adds ports and network devices."""
    return Sight(caps=read_caps, host=partial(read_host, everything=everything), io_uring=try_io_uring)


def read_host(definition: Definition, caller: Caller, user: UserFacts | None, *, everything: bool) -> HostFacts:
    """Give the host's facts for one VM, seen with the rights of a user."""
    return look_at_host(caller, wanted_for((definition,), everything=everything), user)


def wanted_for(definitions: Iterable[Definition], *, everything: bool) -> Wanted:
    """Give what has to be looked at for some VMs; `everything` looks at ports and network devices too."""
    those = tuple(definitions)
    return Wanted(
        paths=tuple(dict.fromkeys(path for definition in those for path in wanted_paths(definition))),
        ports=tuple(port for definition in those for port in forwarded_ports(definition)) if everything else (),
        listeners=everything,
        network_devices=everything,
        locks=everything,
        overlays=True,
    )


def look_at_host(caller: Caller, wanted: Wanted, user: UserFacts | None) -> HostFacts:
    """Give the host's facts, seen with the rights of a user; those of a saved capture where the caller names one."""
    if caller.facts:
        from kvmlaunch.host.saved import load_capture  # noqa: PLC0415 - of a saved capture

        facts = parse_captured(load_capture(caller.facts))
        return evolve(facts, privileged=facts.caller_uid == 0)
    facts = parse_captured(capture_host(wanted, user=user))
    return evolve(facts, caller_uid=caller.owner_uid, privileged=caller.uid == 0)


def forwarded_ports(definition: Definition) -> tuple[int, ...]:
    """Give the host ports that a VM forwards, whose holders are looked for."""
    return tuple(forward.host_port for network in definition.network.values() for forward in network.forwards)


def named_user(name: str) -> UserFacts:
    """Give the user that a definition or `--user` names; raises PreflightFailed `host.user.unknown`."""
    try:
        return capture_user(name)
    except HostFailed as error:
        raise PreflightFailed(error.report) from error


def read_host_for(definition: Definition, caller: Caller, sight: Sight) -> HostFacts:
    """Give the facts as QEMU's user sees them; root gives way to `kvmlaunch` where that reaches every file."""
    written = definition.security.user
    if caller.facts or caller.uid != 0:
        return sight.host(definition, caller, None)
    if caller.for_user or written is not AUTO:
        return sight.host(definition, caller, named_user(caller.for_user or str(written)))
    try:
        user = capture_user(SYSTEM_USER)
    except HostFailed:
        missing = f"there is no system user {SYSTEM_USER}"
    else:
        facts = sight.host(definition, caller, user)
        missing = missing_rights(definition, facts)
        if not missing:
            return facts
    return evolve(sight.host(definition, caller, None), user_missing=missing)


def resolve(
    caller: Caller,
    subject: Subject,
    *,
    everything: bool,
    running: int | None = None,
    refused: str = "",
    boot_from: str = "",
    paused: bool = False,
    sight: Sight | None = None,
) -> Resolved:
    """Look at the host, ask QEMU, build the plan.

    `everything` also looks at ports and network devices; `running` is the pid of this VM's QEMU, whose ports and locks
    are its own; `refused` is what the kernel said when hugepages were tried for; `sight` what was looked at already.
    """
    definition, sight = subject.definition, sight or sight_of_one(everything=everything)
    images = known_by(definition) if everything and not caller.facts else ()
    try:
        caps = sight.caps(definition, caller)
    except PreflightFailed as failure:
        raise at_binary(caller, subject, failure) from failure
    places = None if caller.facts else caller.places(definition.name)
    try:
        host = read_host_for(definition, caller, sight)
    except PreflightFailed as failure:
        if failure.report.code != "host.user.unknown" or caller.for_user:
            raise
        raise at_key(subject, failure.report, "security.user") from failure
    places = places or facts_places(host, definition)
    if not caller.facts and needs_io_uring(definition, host, caps):
        host = evolve(host, aio=evolve(host.aio, io_uring_refusal=sight.io_uring(host.user)))
    there = HeldByVm() if not caller.facts and is_covered(host, places) else mount_held(host, places)
    if there.mount_size is not None and not caller.facts:
        owner = owner_at(places.hugepages)
        there = there if owner is None else evolve(there, mount_uid=owner)
    node = read_node(places.run, host.user.uid) if len(host.nodes) > 1 and not caller.facts else None
    held = evolve(there, running=running is not None, pid=running, host_numa_node=node)
    mine = (places.run, places.state, places.logs) if everything and not caller.facts else ()
    host = evolve(host, held=held, hugepages_refused=refused, unsafe=why_unsafe(mine, host.user.uid))
    plan = build_vm(definition, host, caps, boot_from=boot_from, paused=paused)
    return Resolved(subject=subject, host=host, caps=caps, plan=plan, places=places, images=images)


def facts_places(facts: HostFacts, definition: Definition) -> Places:
    """Give the directories as they would be on the captured host, for its user."""
    from kvmlaunch.host.places import root_places, user_places  # noqa: PLC0415 - `--facts` only

    if facts.caller_uid == 0:
        return root_places(definition.name)
    return user_places(
        facts.caller_uid,
        definition.name,
        {"HOME": f"/home/{facts.user.name}"},
        PurePosixPath(f"/run/user/{facts.caller_uid}"),
    )


def refusal_of(reports: Iterable[Report]) -> type[Refused]:
    """Give what some errors come to: a privilege is all that lacks, the definition alone is wrong, or the host too."""
    codes = {report.code for report in reports}
    if codes == {NEVER}:
        return PrivilegeMissing
    return DefinitionInvalid if all(code.startswith("def.") for code in codes) else PreflightFailed


def refuse_errors(name: str, findings: tuple[Finding, ...]) -> None:
    """Raise what errors come to: PrivilegeMissing, DefinitionInvalid or PreflightFailed; nothing without errors."""
    errors = tuple(finding.report for finding in errors_of(findings))
    if not errors:
        return
    summary = (
        errors[0]
        if len(errors) == 1
        else errors[0]._replace(message=f"{name} cannot run here: {len(errors)} problems", where="", why="", hint="")
    )
    raise refusal_of(errors)(summary, errors)
