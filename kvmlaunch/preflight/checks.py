"""Runs every check of a plan, and says what of the host must change for it."""

from collections.abc import Callable, Iterator
from typing import Final

from kvmlaunch.model.change import Change
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Places, Plan
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.preflight import disk, ksm, memory, network, qemu

CHECKS: Final[tuple[Callable[[Plan, HostFacts], Iterator[Finding]], ...]] = (
    memory.check_hugepages,
    memory.check_ordinary,
    memory.check_lock,
    ksm.check_ksm,
    disk.check_disks,
    disk.check_same,
    disk.check_files,
    network.check_networks,
    network.check_ports,
    qemu.check_directories,
)
PLACE_CHECKS: Final[tuple[Callable[[Plan, HostFacts, Places], Iterator[Finding]], ...]] = (
    memory.check_stacked,
    qemu.check_socket_paths,
)
CHECK_COUNT: Final = len(CHECKS) + len(PLACE_CHECKS) + 1  # and the version of QEMU


def check_plan(plan: Plan, host: HostFacts, caps: QemuCaps, places: Places) -> tuple[Finding, ...]:
    """Give every finding about a plan on this host, the builder's own first."""
    return (
        *plan.findings,
        *(finding for check in CHECKS for finding in check(plan, host)),
        *(finding for check in PLACE_CHECKS for finding in check(plan, host, places)),
        *qemu.check_version(caps),
    )


def plan_changes(plan: Plan, host: HostFacts, places: Places) -> tuple[Change, ...]:
    """Give what of the host must change before the plan can run, in the order in which it is made."""
    return (*memory.plan_memory_changes(plan, host, places), *network.plan_network_changes(plan, host))
