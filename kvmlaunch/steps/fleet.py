"""Several VMs planned on one look at the host, and whether all of them can run at once."""

from collections.abc import Mapping, Sequence

from attrs import Factory, define

from kvmlaunch.builder.vm import wanted_paths
from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.facts.sources import Wanted
from kvmlaunch.host.capture import try_io_uring
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.host import HostFacts, UserFacts
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.model.value import evolve, frozen
from kvmlaunch.preflight.fleet import Member, check_fleet
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import Subject, load_subject, place_findings
from kvmlaunch.steps.observe import observe
from kvmlaunch.steps.prepare import Checked, check_resolved
from kvmlaunch.steps.resolve import Resolved, Sight, look_at_host, read_caps, resolve, wanted_for


@define(kw_only=True)
class Looked:
    """What was looked at already: the host once a user, a QEMU once a binary, io_uring once a user."""

    wanted: Wanted
    hosts: dict[str, HostFacts] = Factory(dict)
    caps: dict[str, QemuCaps] = Factory(dict)
    rings: dict[int, str] = Factory(dict)

    def read_host(self, definition: Definition, caller: Caller, user: UserFacts | None) -> HostFacts:
        """Give the facts for one VM: of the paths only its own, as what a user may reach is asked of these."""
        key = user.name if user else ""
        if key not in self.hosts:
            self.hosts[key] = look_at_host(caller, self.wanted, user)
        facts = self.hosts[key]
        return evolve(
            facts, paths={path: facts.paths[path] for path in wanted_paths(definition) if path in facts.paths}
        )

    def read_caps(self, definition: Definition, caller: Caller) -> QemuCaps:
        """Give what the QEMU of a VM can do."""
        key = str(definition.qemu.binary)
        if key not in self.caps:
            self.caps[key] = read_caps(definition, caller)
        return self.caps[key]

    def try_io_uring(self, user: UserFacts) -> str:
        """Give what io_uring_setup says to a user."""
        if user.uid not in self.rings:
            self.rings[user.uid] = try_io_uring(user)
        return self.rings[user.uid]


@frozen(kw_only=True)
class Together:
    """VMs by their words: the plan of each, what keeps it from running beside the others, or why it has no plan."""

    resolved: Mapping[str, Resolved]
    findings: Mapping[str, tuple[Finding, ...]]
    failures: Mapping[str, KvmlaunchError]


@frozen(kw_only=True)
class CheckedTogether:
    """What preflight found for each VM, the fleet's findings behind its own, or why it could not look."""

    checked: Mapping[str, Checked]
    failures: Mapping[str, KvmlaunchError]

    def of(self, word: str) -> Checked:
        """Give one VM's; raises what stopped it."""
        if word in self.failures:
            raise self.failures[word]
        return self.checked[word]


def resolve_together(caller: Caller, subjects: Mapping[str, Subject]) -> Together:
    """Plan VMs as they would be started now, and check whether all of them can run at once, in this order."""
    looked = Looked(wanted=wanted_for((each.definition for each in subjects.values()), everything=True))
    sight = Sight(caps=looked.read_caps, host=looked.read_host, io_uring=looked.try_io_uring)
    resolved: dict[str, Resolved] = {}
    failures: dict[str, KvmlaunchError] = {}
    for word, subject in subjects.items():
        try:
            running = None if caller.facts else observe(caller, subject.definition.name).pid
            resolved[word] = resolve(caller, subject, everything=True, running=running, sight=sight)
        except KvmlaunchError as error:
            failures[word] = error
    members = [Member(plan=each.plan, host=each.host) for each in resolved.values()]
    found = check_fleet(members, members[0].host) if members else ()
    findings = {
        word: place_findings(each.subject, its) for (word, each), its in zip(resolved.items(), found, strict=True)
    }
    return Together(resolved=resolved, findings=findings, failures=failures)


def check_together(caller: Caller, words: Sequence[str]) -> CheckedTogether:
    """Check the host for each of these VMs and for all of them at once; changes nothing, raises nothing."""
    subjects: dict[str, Subject] = {}
    failures: dict[str, KvmlaunchError] = {}
    for word in words:
        try:
            subjects[word] = load_subject(caller, word)
        except KvmlaunchError as error:
            failures[word] = error
    together = resolve_together(caller, subjects)
    checked = {
        word: beside(check_resolved(caller, resolved), together.findings[word])
        for word, resolved in together.resolved.items()
    }
    return CheckedTogether(checked=checked, failures={**failures, **together.failures})


def beside(checked: Checked, found: tuple[Finding, ...]) -> Checked:
    """Give what was found for a VM with what keeps it from running beside the others."""
    return evolve(checked, findings=(*checked.findings, *found), fits=not found)
