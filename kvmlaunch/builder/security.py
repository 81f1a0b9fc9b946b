"""Least privilege: the seccomp filter, and whom QEMU runs as."""

from collections.abc import Iterator

from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Field, Option, SandboxPromise

SYSTEM_USER = "kvmlaunch"
SOURCE = "QEMU man page, -sandbox; QEMU security page"
DENIED = {
    "obsolete": "system calls that no QEMU of today makes",
    "elevateprivileges": "no set-uid program raises its rights",
    "spawn": "QEMU starts no other program",
    "resourcecontrol": "QEMU changes no priority or affinity",
}


def missing_rights(definition: Definition, host: HostFacts) -> str:
    """Give what the user that the host was seen as cannot reach of a VM, "" when he reaches everything.

    /dev/kvm counts only where KVM would run the guest for root.
    """
    writable = {disk.path for disk in definition.disk.values() if not disk.readonly}
    shares = {share.path for share in definition.share.values()}
    for path, facts in host.paths.items():
        there = facts.kind in {"file", "block"} or (facts.kind == "directory" and path in shares)
        if facts.kind == "denied" or (there and not facts.readable):
            return f"{host.user.name} may not read {path}"
        if there and path in writable and not facts.writable:
            return f"{host.user.name} may not write {path}"
    needs_kvm = definition.accel != "tcg" and host.kvm.runs_ordinary_kernels
    return f"{host.user.name} may not open /dev/kvm" if needs_kvm and host.kvm.device == "denied" else ""


def plan_user(definition: Definition, host: HostFacts) -> Choice[str]:
    """Choose whom QEMU runs as: the caller; for root the system user `kvmlaunch` where it reaches every file."""
    name = host.user.name or str(host.user.uid)
    if definition.security.user is not AUTO:
        return by_hand(definition, "security.user", name)
    fact = Origin(kind="host", place="users", key="security.user")
    if host.caller_uid != 0:
        return Choice(value=name, reason="whoever starts a VM runs it", source="kvmlaunch docs, security", origin=fact)
    reaches = (
        f"the system user {SYSTEM_USER} reaches every file of this VM" if name == SYSTEM_USER else "root starts it"
    )
    reason = host.user_missing or reaches
    return Choice(value=name, reason=reason, source="kvmlaunch docs, security", origin=fact)


def check_user(definition: Definition, host: HostFacts) -> Iterator[Finding]:
    """Warn as long as QEMU runs as root (`host.user.root`); refuse another user without root (`host.privilege`)."""
    written = definition.security.user
    if host.user.uid == 0:
        hint = (
            f"useradd --system --no-create-home {SYSTEM_USER}   # then give it the VM's files, and /dev/kvm"
            if written is AUTO
            else 'security.user = "auto"'
        )
        yield warning(
            code="host.user.root",
            message="QEMU runs as root",
            key="security.user",
            why=host.user_missing or ("root starts it" if written is AUTO else "written in the definition"),
            hint=hint,
        )
    if written is not AUTO and host.caller_uid != 0 and written != host.user.name:
        yield error(
            code="host.privilege",
            message=f"only root can run QEMU as {written}",
            key="security.user",
            why=f"the caller is {host.user.name or host.user.uid}",
            hint='security.user = "auto"',
        )


def user_choice(definition: Definition, host: HostFacts) -> Field:
    """Give the decision on the user for `explain`: it is no argument of QEMU's."""
    return field("", "security.user", plan_user(definition, host))


def sandbox_option(definition: Definition) -> Option:
    """Give `-sandbox`; a forbidden call kills QEMU."""
    on: Choice[bool] = Choice(
        value=True,
        reason="a seccomp filter: a forbidden call ends QEMU",
        source=SOURCE,
        origin=definition.origin("security.sandbox"),
    )
    return pairs(
        "-sandbox",
        "security",
        field("", "security.sandbox", on),
        *(field(name, f"security.sandbox.{name}", fixed("deny", reason, SOURCE)) for name, reason in DENIED.items()),
    )


def build_security(definition: Definition, host: HostFacts) -> Part:
    """Give the sandbox with its promise, and what is to be said of the user."""
    findings = tuple(check_user(definition, host))
    if not definition.security.sandbox:
        return Part(promises=(SandboxPromise(seccomp=False),), findings=findings)
    return Part(options=(sandbox_option(definition),), promises=(SandboxPromise(seccomp=True),), findings=findings)
