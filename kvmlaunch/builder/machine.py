"""The machine: name, UUID, type, accelerator, clock, and the options that every VM has."""

import re
from typing import Literal, assert_never

from kvmlaunch.builder import names
from kvmlaunch.builder.option import Part, bare, by_hand, field, fixed, pairs, value, wiring
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import AcceleratorPromise, Field, Option
from kvmlaunch.model.qemu import QemuCaps

Q35 = r"pc-q35-(\d+)\.(\d+)(?:\.(\d+))?"
I440FX = r"pc-i440fx-(\d+)\.(\d+)(?:\.(\d+))?"
PC = r"(?:pc-)?(?:q35|i440fx)(?:-.+)?|pc"
Accelerator = Literal["kvm", "tcg"]


def newest_q35(caps: QemuCaps) -> str:
    """Give the newest versioned q35 machine, "" when this QEMU has none."""
    return newest(Q35, caps)


def newest(kind: str, caps: QemuCaps) -> str:
    """Give the newest versioned machine of a kind, "" when this QEMU has none."""
    found = [
        (tuple(int(part or 0) for part in match.groups()), match[0])
        for machine in caps.machines
        if (match := re.fullmatch(kind, machine.name))
    ]
    return max(found)[1] if found else ""


def newest_like(name: str, caps: QemuCaps) -> str:
    """Give the newest machine with the chipset of another: a guest of i440fx finds other devices on a q35."""
    return (newest(I440FX, caps) if re.match(I440FX, name) or name == "pc" else "") or newest_q35(caps)


def plan_machine(definition: Definition, caps: QemuCaps) -> Choice[str]:
    """Choose the machine type: the newest q35 by its versioned name, so that guest hardware never changes unasked."""
    if definition.machine is not AUTO:
        return by_hand(definition, "machine", definition.machine)
    return Choice(
        value=newest_q35(caps),
        reason=f"the newest q35 of QEMU {caps.version_text}, pinned by its versioned name",
        source="QEMU docs, system/target-i386 (machine versions)",
        origin=Origin(kind="qemu", place="query-machines", key="machine"),
    )


def real_name(name: str, caps: QemuCaps) -> str:
    """Give the versioned name behind an alias such as q35."""
    found = caps.machine(name)
    return found.name if found else name


def check_machine(definition: Definition, caps: QemuCaps) -> tuple[Finding, ...]:
    """Check a machine type: known to this QEMU (`qemu.machine.unknown`), not deprecated (a warning)."""
    name = plan_machine(definition, caps).value
    machine = caps.machine(name)
    if machine is None:
        instead = newest_like(name, caps)
        what = f"this QEMU has no machine {name!r}" if name else "this QEMU has no q35 machine"
        hint = f'machine = "{instead}"' if instead else "install qemu-system-x86"
        return (
            error(
                code="qemu.machine.unknown",
                message=what,
                key="machine",
                why=f"QEMU {caps.version_text} ({caps.binary}) has {len(caps.machines)} machine types",
                hint=hint,
            ),
        )
    if not re.fullmatch(PC, name):
        return (
            error(
                code="qemu.machine.unknown",
                message=f"machine {name} is no PC with PCI",
                key="machine",
                why="kvmlaunch writes the devices of a q35 or i440fx machine",
                hint=f'machine = "{newest_q35(caps)}"',
            ),
        )
    if machine.deprecated:
        return (
            warning(
                code="qemu.machine.deprecated",
                message=f"machine {name} is deprecated in QEMU {caps.version_text}",
                key="machine",
                why="a later QEMU will refuse it",
                hint=f'machine = "{newest_like(name, caps)}"',
            ),
        )
    return ()


def kvm_problem(host: HostFacts) -> tuple[str, str, str]:
    """Give code, reason and fix for a KVM that runs no guests; three empty texts when it does."""
    modules = ", ".join(host.kvm.modules) or "none"
    if host.kvm.device == "missing":
        return (
            "host.kvm.missing",
            f"/dev/kvm does not exist (modules: {modules})",
            "modprobe kvm_intel || modprobe kvm_amd   # in a VM, nested virtualization must be allowed by its host",
        )
    if host.kvm.device == "denied":
        return (
            "host.kvm.permission",
            f"/dev/kvm may not be opened by {host.user.name or host.user.uid}",
            host.by_root(f"setfacl -m u:{host.user.name or host.user.uid}:rw /dev/kvm")
            + "   # until a reboot; lasting: its group",
        )
    if not host.kvm.runs_guests:
        return (
            "host.kvm.dead",
            "this KVM is PVM (module kvm_pvm alone), which runs PVM-aware kernels only",
            "# or a host with kvm_intel or kvm_amd",
        )
    return ("", "", "")


def plan_accelerator(definition: Definition, host: HostFacts) -> Choice[Accelerator]:
    """Choose kvm or tcg; tcg by itself only for `any`, which says why."""
    origin = definition.origin("accel")
    _, problem, _ = kvm_problem(host)
    kvm_origin = Origin(kind="host", place="/dev/kvm and the kvm modules", key="accel")
    match definition.accel:
        case "kvm" | "tcg" as written:
            return Choice(value=written, reason="", source="", origin=origin)
        case "any" if problem:
            return Choice(
                value="tcg",
                reason=f"{problem}; slow, and no security boundary",
                source="QEMU docs, system/security",
                origin=kvm_origin,
            )
        case "any" | _ as wanted:
            refused = f"nothing else unless the definition says so, and it does not start: {problem}"
            reason = refused if problem else "/dev/kvm opens and its module runs guests"
            assert wanted == "any" or wanted is AUTO
            return Choice(
                value="kvm", reason=reason, source="QEMU docs, system/introduction (accelerators)", origin=kvm_origin
            )


def check_accelerator(definition: Definition, host: HostFacts) -> tuple[Finding, ...]:
    """Check that the chosen accelerator runs guests: `host.kvm.*`; `any` that fell back is the same as a warning."""
    code, problem, fix = kvm_problem(host)
    if not problem or definition.accel == "tcg":
        return ()
    if definition.accel == "any":
        return (
            warning(
                code=code,
                message="runs without KVM, under TCG: slow, and no security boundary",
                key="accel",
                why=problem,
                hint=fix,
            ),
        )
    hint = f"the same command with --set accel=any   # slow where there is no KVM; to last: in the definition\n{fix}"
    return (error(code=code, message="KVM cannot be used", key="accel", why=problem, hint=hint),)


def machine_fields(definition: Definition, caps: QemuCaps, *, hugepages: bool, shared: bool) -> tuple[Field, ...]:
    """Give the fields of `-machine`: the type, and what a server does not need switched off."""
    machine = plan_machine(definition, caps)
    merge = definition.memory.ksm == "on" and not hugepages
    merge_reason = {
        (True, True): "KSM may merge this guest's pages",
        (True, False): "KSM may merge this guest's pages",
        (False, True): "hugepages cannot be merged",
        (False, False): "merging opens a timing channel between guests",
    }[merge, hugepages]
    ksm = Choice(
        value=merge,
        reason="" if merge else merge_reason,
        source="" if merge else "kernel docs, admin-guide/mm/ksm.rst",
        origin=definition.origin("memory.ksm"),
    )
    fields = [field("", "machine", machine)]
    if shared:
        fields.append(wiring("memory-backend", "machine", "mem0", "the backend that is shared with virtiofsd"))
    if definition.firmware.secure_boot:
        smm: Choice[bool] = Choice(
            value=True,
            reason="firmware guards its variables in SMM",
            source="OVMF README, SMM support",
            origin=definition.origin("firmware.secure_boot"),
        )
        fields.append(field("smm", "machine.smm", smm))
    if "hpet" in caps.machine_properties:
        fields.append(
            field(
                "hpet",
                "machine.hpet",
                fixed(
                    value=False,
                    reason="guests keep time by kvm-clock, TSC or hv-time",
                    source="QEMU docs, system/i386/hyperv",
                ),
            )
        )
    if "vmport" in caps.machine_properties:
        fields.append(
            field(
                "vmport",
                "machine.vmport",
                fixed(value=False, reason="nothing of VMware's is needed", source="QEMU man page, -machine vmport"),
            )
        )
    fields.append(field("mem-merge", "memory.ksm", ksm))
    fields.append(
        field(
            "dump-guest-core",
            "machine.dump-guest-core",
            fixed(
                value=False,
                reason="a core dump of QEMU leaves the guest's memory out",
                source="QEMU man page, -machine",
            ),
        )
    )
    return tuple(fields)


def build_rtc(definition: Definition) -> Option:
    """Give `-rtc`: UTC, and for Windows local time with lost ticks made up for."""
    match definition.os:
        case "windows":
            origin = definition.origin("os")
            local: Choice[str] = Choice(
                value="localtime",
                reason="Windows keeps local time in its clock",
                source="QEMU man page, -rtc",
                origin=origin,
            )
            slew: Choice[str] = Choice(
                value="slew", reason="lost ticks are made up for", source="QEMU man page, -rtc driftfix", origin=origin
            )
            return pairs(
                "-rtc", "machine", field("base", "machine.rtc", local), field("driftfix", "machine.rtc.driftfix", slew)
            )
        case "linux" | "other":
            return pairs(
                "-rtc",
                "machine",
                field("base", "machine.rtc", fixed("utc", "Linux keeps UTC in its clock", "QEMU man page, -rtc")),
            )
        case _:
            assert_never(definition.os)


def build_identity(definition: Definition, uuid: str) -> tuple[Option, ...]:
    """Give `-name` and `-uuid`, by which a process is known to be this VM, and the UUID by hand that its guest sees."""
    name: Choice[str] = Choice(
        value=definition.name,
        reason="the definition's file name",
        source="kvmlaunch: one file a VM",
        origin=Origin(kind="file", place=str(definition.file)),
    )
    computed, given = (
        fixed(uuid, "computed from machine-id, user and name: stable", names.__name__),
        system_uuid(definition),
    )
    return (
        pairs(
            "-name",
            "machine",
            field("guest", "name", name),
            field(
                "debug-threads",
                "name.debug-threads",
                fixed(value=True, reason="threads are told apart by name in ps and top", source="QEMU man page, -name"),
            ),
        ),
        value("-uuid", "machine", "name.uuid" if given.value else "uuid", computed),
        *(
            [pairs("-smbios", "machine", wiring("type", "uuid", "1"), field("uuid", "uuid", given))]
            if given.value
            else []
        ),
    )


def system_uuid(definition: Definition) -> Choice[str]:
    """Give the UUID by hand that the guest sees, "" for the computed one: `-smbios` overrides `-uuid`."""
    return by_hand(definition, "uuid", "" if definition.uuid is AUTO else str(definition.uuid))


def build_machine(
    definition: Definition, host: HostFacts, caps: QemuCaps, *, uuid: str, hugepages: bool, shared: bool
) -> Part:
    """Give the head of argv; with `shared` the machine uses the explicit backend of its memory."""
    accelerator = plan_accelerator(definition, host)
    return Part(
        options=(
            *build_identity(definition, uuid),
            bare("-nodefaults", "machine", "no implicit floppy, NIC, VGA or serial port", "QEMU man page, -nodefaults"),
            bare(
                "-no-user-config",
                "machine",
                "no file of the user's changes the machine",
                "QEMU man page, -no-user-config",
            ),
            pairs("-machine", "machine", *machine_fields(definition, caps, hugepages=hugepages, shared=shared)),
            value("-accel", "machine", "accel", accelerator),
            build_rtc(definition),
        ),
        promises=(AcceleratorPromise(kvm=accelerator.value == "kvm"),),
        findings=(*check_accelerator(definition, host), *check_machine(definition, caps)),
    )


def build_panic(definition: Definition) -> Part:
    """Give what a guest panic does, where that is written: the guest tells of it through a device."""
    written = definition.lifecycle.on_crash
    if "lifecycle.on_crash" not in definition.origins:
        return Part()
    does: Choice[str] = by_hand(definition, "lifecycle.on_crash", {"report": "none", "pause": "pause"}[written])
    return Part(
        options=(
            pairs(
                "-device",
                "lifecycle",
                field(
                    "",
                    "lifecycle.pvpanic",
                    fixed("pvpanic-pci", "the guest's driver tells of a panic through it", "QEMU docs, specs/pvpanic"),
                ),
                wiring("id", "lifecycle.pvpanic", "pvpanic0"),
            ),
            pairs("-action", "lifecycle", field("panic", "lifecycle.on_crash", does)),
        )
    )
