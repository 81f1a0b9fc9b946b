"""Runs every check of a plan, and says what of the host must change for it."""

from kvmlaunch.model.change import Change
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Places, Plan
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.preflight import disk, ksm, memory, network, qemu

CHECK_COUNT = 12  # what `up` says it did; the length of the tuple below plus the builder's own


def check_plan(plan: Plan, host: HostFacts, caps: QemuCaps, places: Places) -> tuple[Finding, ...]:
    """Give every finding about a plan on this host, the builder's own first."""
    return (
        *plan.findings,
        *memory.check_hugepages(plan, host),
        *memory.check_ordinary(plan, host),
        *memory.check_stacked(plan, host, places),
        *memory.check_lock(plan, host),
        *ksm.check_ksm(plan, host),
        *disk.check_disks(plan, host),
        *disk.check_same(plan, host),
        *disk.check_files(plan, host),
        *network.check_networks(plan, host),
        *network.check_ports(plan, host),
        *qemu.check_qemu(plan, caps, places),
    )


def plan_changes(plan: Plan, host: HostFacts, places: Places) -> tuple[Change, ...]:
    """Give what of the host must change before the plan can run, in the order in which it is made."""
    return (*memory.plan_memory_changes(plan, host, places), *network.plan_network_changes(plan, host))
