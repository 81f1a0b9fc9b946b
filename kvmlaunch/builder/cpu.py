"""vCPUs: model, features, topology, Hyper-V enlightenments, pinning."""

import re
from collections.abc import Iterable, Iterator

from kvmlaunch.builder.option import BUILT_IN, Part, bare, by_hand, field, fixed, pairs
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, Definition, Topology
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Field
from kvmlaunch.model.qemu import EVERY_FEATURE, QemuCaps
from kvmlaunch.units import render_cpus

HYPERV = (
    *("hv-relaxed", "hv-vapic", "hv-vpindex", "hv-runtime", "hv-time", "hv-synic", "hv-stimer", "hv-stimer-direct"),
    *("hv-tlbflush", "hv-ipi", "hv-frequencies"),
)
# Those that need something of the host: the parameter of its KVM that is on, and why.
HYPERV_OF_HOST = (
    ("hv-evmcs", "kvm_intel.nested", "hypervisors nest here: Hyper-V within the guest asks KVM less often"),
    ("hv-avic", "kvm_intel.enable_apicv", "this CPU delivers interrupts to vCPUs itself, which SynIC would turn off"),
    ("hv-avic", "kvm_amd.avic", "this CPU delivers interrupts to vCPUs itself, which SynIC would turn off"),
)
MOST_APIC_ID = 254  # of an APIC; 255 is for all
FIRST_X2APIC = (9, 0, 0)  # whose TCG emulates one, in models that have every feature
ONE_NODE = "kvmlaunch: one node, and a CPU left for I/O"
WHOLE = frozenset({"host", "max", "base"})  # models that ask for no feature that the accelerator lacks
AMD = frozenset({"AuthenticAMD", "HygonGenuine"})  # vendors of /proc/cpuinfo
AMD_MODEL = r"EPYC|Opteron|Dhyana|phenom|athlon|qemu64"
OF_KVM = frozenset({"pmu", "host-cache-info", "vmware-cpuid-freq"})  # properties that are no CPUID bits
OF_KVM_PREFIXES = ("hv-", "hv_", "kvm-", "kvm_")
ENFORCE, TOPOEXT = "enforce", "topoext"
HYPERV_SOURCE = "QEMU docs, system/i386/hyperv"


def plan_model(definition: Definition, accelerator: str) -> Choice[str]:
    """Choose the CPU model: host with KVM, max with TCG."""
    if definition.cpu.model is not AUTO:
        return by_hand(definition, "cpu.model", definition.cpu.model)
    origin = Origin(kind="host", place=f"accelerator {accelerator}", key="cpu.model")
    if accelerator == "kvm":
        return Choice(
            value="host",
            reason="with KVM the guest gets every feature of this host's CPU",
            source="QEMU docs, system/i386/cpu",
            origin=origin,
        )
    return Choice(
        value="max",
        reason="TCG emulates every feature that it can; host needs KVM",
        source="QEMU docs, system/i386/cpu",
        origin=origin,
    )


def check_model(definition: Definition, caps: QemuCaps, accelerator: str) -> Iterator[Finding]:
    """Check a model by hand: known to this QEMU, and `host` only with KVM (`qemu.capability`)."""
    written = definition.cpu.model
    if written is AUTO:
        return
    if caps.cpu_models and written not in caps.cpu_models and written not in WHOLE:
        yield error(
            code="qemu.capability",
            message=f"this QEMU knows no CPU model {written!r}",
            key="cpu.model",
            why=f"QEMU {caps.version_text} has {len(caps.cpu_models)} models",
            hint=f"{caps.binary} -cpu help{did_you_mean(written, caps.cpu_models)}",
        )
    if written == "host" and accelerator != "kvm":
        yield error(
            code="qemu.capability",
            message='cpu.model = "host" needs KVM',
            key="cpu.model",
            why=f"the accelerator is {accelerator}",
            hint='cpu.model = "max"',
        )


def check_features(definition: Definition, caps: QemuCaps, accelerator: str) -> Iterator[Finding]:
    """Check that this QEMU and its accelerator know every CPU feature and property (`qemu.capability`)."""
    for table, name, value in by_table(definition):
        if not caps.has_feature(name):
            yield error(
                code="qemu.capability",
                message=f"this QEMU knows no CPU feature {name!r}",
                key=f"cpu.{table}.{name}",
                why=f"QEMU {caps.version_text} has no property of that name",
                hint=f"{caps.binary} -cpu help{did_you_mean(name, caps.devices[EVERY_FEATURE])}",
            )
        elif caps.is_switch(name) == (table == "properties"):
            other = f'properties = {{ {name} = "…" }}' if table == "features" else f'features = {{ {name} = "off" }}'
            yield error(
                code="qemu.capability",
                message=f"the CPU feature {name!r} is {'a value' if table == 'features' else 'on or off'}",
                key=f"cpu.{table}.{name}",
                why=f"so QEMU {caps.version_text} says",
                hint=f"{other}   # in [cpu]",
            )
        elif accelerator == "tcg" and value != "off" and (name in OF_KVM or name.startswith(OF_KVM_PREFIXES)):
            yield error(
                code="qemu.capability",
                message=f"the CPU feature {name!r} needs KVM",
                key=f"cpu.{table}.{name}",
                why="TCG takes the word, and the guest sees nothing of it",
                hint=f'{name} = "off"   # or leave it out' if table == "features" else "leave it out",
            )


def by_table(definition: Definition) -> Iterator[tuple[str, str, str]]:
    """Give the CPU features and properties by hand: their table, name and value."""
    for table in ("features", "properties"):
        for name, value in getattr(definition.cpu, table).items():
            yield table, name, value


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Give the nearest name as the end of a hint, "" when none is near."""
    import difflib

    near = difflib.get_close_matches(word, sorted(names), n=1)
    return f"   # did you mean {near[0]!r}?" if near else ""


def thread_fields(definition: Definition, host: HostFacts, model: Choice[str], accelerator: str) -> Iterator[Field]:
    """Give what tells a guest on an AMD CPU of the threads of a core; `host` leaves it out unless it is asked for."""
    topology = plan_topology(definition)
    wanted = topology.value.threads > 1 and model.value in WHOLE and TOPOEXT not in definition.cpu.features
    if wanted and accelerator == "kvm" and host.cpus.vendor in AMD and TOPOEXT in host.cpus.flags:
        told: Choice[bool] = Choice(
            value=True,
            reason="an AMD CPU tells the threads of a core by it, and model host has it when asked for only",
            source="QEMU commit: i386: Disable TOPOEXT by default on -cpu host",
            origin=topology.origin,
        )
        yield field(TOPOEXT, "cpu.topology.topoext", told)


def check_threads(definition: Definition, host: HostFacts, model: Choice[str], accelerator: str) -> Iterator[Finding]:
    """Warn where a guest will take the threads of a core for cores (`qemu.cpu.threads`)."""
    lacks = host.cpus.vendor in AMD and TOPOEXT not in host.cpus.flags and model.value in WHOLE
    emulated = accelerator == "tcg" and (model.value in WHOLE or re.match(AMD_MODEL, model.value) is not None)
    if (emulated or lacks) and plan_topology(definition).value.threads > 1:
        lacking = "TCG emulates an AMD CPU without" if accelerator == "tcg" else "this is an AMD CPU without"
        yield warning(
            code="qemu.cpu.threads",
            message="the guest takes the threads of a core for cores",
            key="cpu.topology.threads",
            why=f"{lacking} the topoext by which one tells its threads",
            hint="threads = 1   # with more cores; or KVM",
        )


def enforced(definition: Definition, *, wished: bool) -> Iterator[Field]:
    """Give the switch that makes QEMU refuse what it cannot give: left alone it drops such features with a warning.

    Where a feature is wished for; what a model by name lacks is shown, as QEMU prints it.  Who switches `enforce` or
    `check` by hand is left to it.
    """
    if wished and not definition.cpu.features.keys() & {ENFORCE, "check"}:
        refuse: Choice[bool] = Choice(
            value=True,
            reason="a feature that the accelerator cannot give ends the start, instead of being left out",
            source="QEMU commit 15e41345906d, on check and enforce",
            origin=BUILT_IN,
        )
        yield field(ENFORCE, f"cpu.{ENFORCE}", refuse)


def hyperv_fields(definition: Definition, host: HostFacts, accelerator: str) -> Iterator[Field]:
    """Give the enlightenments of a Windows guest; they are KVM's, so TCG has none."""
    if definition.os != "windows" or accelerator != "kvm":
        return
    origin = definition.origin("os")
    for name in HYPERV:
        choice: Choice[bool] = Choice(
            value=True, reason="a Windows guest runs with less emulation", source=HYPERV_SOURCE, origin=origin
        )
        yield field(name, f"cpu.{name}", choice)
    for name, ability, reason in HYPERV_OF_HOST:
        nests = definition.cpu.model in {AUTO, "host"} and definition.cpu.features.get("vmx") != "off"
        if ability in host.kvm.abilities and (nests or name != "hv-evmcs"):
            place = Origin(kind="host", place=f"/sys/module/{ability.replace('.', '/parameters/')}", key=name)
            given: Choice[bool] = Choice(value=True, reason=reason, source=HYPERV_SOURCE, origin=place)
            yield field(name, f"cpu.{name}", given)
    if definition.cpu.vcpus > len(host.cpus.online):
        overcommitted: Choice[str] = Choice(
            value="0xfff",
            reason="more vCPUs than host CPUs: a spinning vCPU gives way",
            source=HYPERV_SOURCE,
            origin=origin,
        )
        yield field("hv-spinlocks", "cpu.hv-spinlocks", overcommitted)


def plan_topology(definition: Definition) -> Choice[Topology]:
    """Choose sockets, cores and threads: one socket, a core a vCPU."""
    if definition.cpu.topology is not AUTO:
        return by_hand(definition, "cpu.topology.cores", definition.cpu.topology)
    topology = Topology(sockets=1, cores=definition.cpu.vcpus, threads=1)
    return Choice(
        value=topology,
        reason="one socket with a core a vCPU; threads would promise siblings that only pinning gives",
        source="QEMU man page, -smp",
        origin=BUILT_IN,
    )


def topology_fields(definition: Definition) -> tuple[Field, ...]:
    """Give the fields of `-smp`; the product always equals the number of vCPUs."""
    topology = plan_topology(definition)
    vcpus: Choice[int] = Choice(
        value=definition.cpu.vcpus,
        reason="" if "cpu.vcpus" in definition.origins else "the built-in default",
        source="" if "cpu.vcpus" in definition.origins else "kvmlaunch: defaults",
        origin=definition.origin("cpu.vcpus"),
    )
    counts = {"sockets": topology.value.sockets, "cores": topology.value.cores, "threads": topology.value.threads}
    return (
        field("", "cpu.vcpus", vcpus),
        *(
            field(
                name,
                f"cpu.topology.{name}",
                Choice(value=count, reason=topology.reason, source=topology.source, origin=topology.origin),
            )
            for name, count in counts.items()
        ),
    )


def last_apic_id(definition: Definition) -> int:
    """Give the APIC ID of the last vCPU: sockets, cores and threads have bits of their own, so numbers are left out.

    Source: QEMU include/hw/i386/topology.h.
    """
    topology = plan_topology(definition).value
    threads, cores = ((number - 1).bit_length() for number in (topology.threads, topology.cores))
    return (topology.sockets - 1) << (cores + threads) | (topology.cores - 1) << threads | (topology.threads - 1)


def emulates_x2apic(definition: Definition, caps: QemuCaps) -> bool:
    """Has a CPU under TCG an x2APIC."""
    return caps.version >= FIRST_X2APIC and plan_model(definition, "tcg").value in WHOLE


def check_vcpus(
    definition: Definition, host: HostFacts, caps: QemuCaps, machine: str, accelerator: str
) -> Iterator[Finding]:
    """Check the number of vCPUs against machine and accelerator (`qemu.capability`), and the host (a warning)."""
    vcpus, online = definition.cpu.vcpus, len(host.cpus.online)
    found = caps.machine(machine)
    if found and vcpus > found.cpu_max:
        yield error(
            code="qemu.capability",
            message=f"machine {machine} has at most {found.cpu_max} vCPUs",
            key="cpu.vcpus",
            why=f"asked for: {vcpus}",
            hint=f"vcpus = {found.cpu_max}",
        )
    elif accelerator == "tcg" and last_apic_id(definition) > MOST_APIC_ID and not emulates_x2apic(definition, caps):
        yield error(
            code="qemu.capability",
            message=f"{vcpus} vCPUs in this topology need KVM",
            key="cpu.vcpus",
            why=f"the last one's APIC ID is {last_apic_id(definition)}; beyond {MOST_APIC_ID} a guest needs x2APIC",
            hint="a topology whose cores and threads are powers of two, and no more than 255 vCPUs",
        )
    if vcpus > online:
        yield warning(
            code="host.cpu.overcommitted",
            message=f"{vcpus} vCPUs on {online} host CPUs",
            key="cpu.vcpus",
            why="vCPUs wait for each other's time slices",
            hint=f"vcpus = {online}",
        )


def plan_pins(definition: Definition, host: HostFacts) -> Choice[tuple[int, ...]]:
    """Choose host CPUs for the vCPUs, one each; empty when nothing is pinned.

    Auto takes the last CPUs of the first NUMA node that has enough of them and leaves one for the rest; `host.nodes`
    begins with the one that the memory is on.
    """
    written, vcpus = definition.cpu.pin, definition.cpu.vcpus
    if written == "none":
        return by_hand(definition, "cpu.pin", ())
    if written is not AUTO:
        return by_hand(definition, "cpu.pin", tuple(written))
    for node in host.nodes:
        if len(node.cpus) > vcpus:
            pins = node.cpus[-vcpus:]
            return Choice(
                value=pins,
                reason=f"CPUs {render_cpus(pins)} of NUMA node {node.number}; {len(node.cpus) - vcpus} of it stay free",
                source=ONE_NODE,
                origin=Origin(kind="host", place="NUMA nodes", key="cpu.pin"),
            )
    return Choice(
        value=(),
        reason=f"no NUMA node has more than {vcpus} CPUs, so nothing is pinned",
        source=ONE_NODE,
        origin=Origin(kind="host", place="NUMA nodes", key="cpu.pin"),
    )


def check_pins(definition: Definition, host: HostFacts) -> Iterator[Finding]:
    """Check pinning: every CPU online (`def.value.range`); auto that could not pin is a warning."""
    pins = plan_pins(definition, host)
    for key, wanted in (("cpu.pin", pins.value), ("iothreads.pin", plan_iothread_pins(definition, host).value)):
        absent = tuple(cpu for cpu in wanted if cpu not in host.cpus.online)
        enough = host.cpus.online[: len(wanted)]
        if absent:
            yield error(
                code="def.value.range",
                message=f"host CPU {render_cpus(absent)} is not online",
                key=key,
                why=f"online: {render_cpus(host.cpus.online)}",
                hint=f'pin = "{render_cpus(enough) if len(enough) == len(wanted) else "none"}"',
            )
    if definition.cpu.pin is AUTO and not pins.value:
        yield warning(
            code="host.cpu.overcommitted",
            message="vCPUs are not pinned",
            key="cpu.pin",
            why=pins.reason,
            hint='cpu.pin = "none"',
        )


def plan_iothread_pins(definition: Definition, host: HostFacts) -> Choice[tuple[int, ...]]:
    """Choose host CPUs for the I/O threads; auto takes those that pinned vCPUs leave free, of their own nodes first."""
    written, key = definition.iothreads.pin, "iothreads.pin"
    if written == "none":
        return Choice(value=(), reason="", source="", origin=definition.origin(key))
    if written is not AUTO:
        return Choice(value=tuple(written), reason="", source="", origin=definition.origin(key))
    vcpu_pins = plan_pins(definition, host).value
    near = {cpu for node in host.nodes if not set(node.cpus).isdisjoint(vcpu_pins) for cpu in node.cpus}
    left = tuple(cpu for cpu in host.cpus.online if cpu not in vcpu_pins)
    free = tuple(cpu for cpu in left if cpu in near) or left
    fact = Origin(kind="host", place="CPUs", key=key)
    if not vcpu_pins or not free:
        reason = "no vCPU is pinned" if not vcpu_pins else "the vCPUs leave no host CPU free"
        return Choice(value=(), reason=reason, source=ONE_NODE, origin=fact)
    return Choice(value=free, reason=f"CPUs {render_cpus(free)} are left by the vCPUs", source=ONE_NODE, origin=fact)


def build_cpu(
    definition: Definition, host: HostFacts, caps: QemuCaps, *, accelerator: str, machine: str, paused: bool
) -> Part:
    """Give `-cpu`, `-smp` and `-S`: for a start that is to stay paused, or until threads are pinned."""
    features = tuple(
        field(name, f"cpu.{table}.{name}", by_hand(definition, f"cpu.{table}.{name}", value))
        for table, name, value in by_table(definition)
    )
    model = plan_model(definition, accelerator)
    threads = tuple(thread_fields(definition, host, model, accelerator))
    wished = bool(threads) or "on" in definition.cpu.features.values()
    options = [
        pairs(
            "-cpu",
            "cpu",
            field("", "cpu.model", model),
            *hyperv_fields(definition, host, accelerator),
            *threads,
            *features,
            *enforced(definition, wished=wished),
        ),
        pairs("-smp", "cpu", *topology_fields(definition)),
    ]
    if paused:
        options.append(bare("-S", "cpu", "held before its first instruction, until `kvmlaunch resume`", "up --paused"))
    elif plan_pins(definition, host).value or plan_iothread_pins(definition, host).value:
        options.append(
            bare(
                "-S", "cpu", "held until its threads are pinned; a pasted command waits for `cont`", "QEMU man page, -S"
            )
        )
    findings = (
        *check_model(definition, caps, accelerator),
        *check_features(definition, caps, accelerator),
        *check_threads(definition, host, model, accelerator),
        *check_vcpus(definition, host, caps, machine, accelerator),
        *check_pins(definition, host),
    )
    return Part(options=tuple(options), findings=findings)


def pin_choice(definition: Definition, host: HostFacts) -> Field:
    """Give the decision on pinning for `explain`: it is no argument of QEMU's."""
    pins = plan_pins(definition, host)
    text: Choice[str] = Choice(
        value=render_cpus(pins.value) or "none", reason=pins.reason, source=pins.source, origin=pins.origin
    )
    return field(
        "",
        "cpu.pin",
        text
        if pins.value or pins.reason or "cpu.pin" in definition.origins
        else fixed("none", "the scheduler places vCPUs well", "kvmlaunch: pin by hand where latency counts"),
    )


def iothread_pin_choice(definition: Definition, host: HostFacts) -> tuple[Field, ...]:
    """Give the decision on pinning I/O threads for `explain`, where one was asked for."""
    if definition.iothreads.pin == "none":
        return ()
    pins = plan_iothread_pins(definition, host)
    text = Choice(value=render_cpus(pins.value) or "none", reason=pins.reason, source=pins.source, origin=pins.origin)
    return (field("", "iothreads.pin", text),)
