"""Composes the plan of a host: settings, files, and what cannot be had; the order is that in which they are made."""

from collections.abc import Sequence

from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.tuning import HostTuning, KeptFile, Setting, TunePlan
from kvmlaunch.model.wishes import HostWishes
from kvmlaunch.tune.cpu import build_cpu, check_cpu
from kvmlaunch.tune.daemons import check_cmdline, check_daemons
from kvmlaunch.tune.fleet import VmWish
from kvmlaunch.tune.keep import build_boot, build_files, check_boot
from kvmlaunch.tune.ksm import build_ksm, check_ksm
from kvmlaunch.tune.memory import build_memory, build_pools, check_memory, check_pools
from kvmlaunch.tune.scheduler import build_read_ahead, build_schedulers, check_schedulers


def plan_tuning(
    host: HostFacts, tuning: HostTuning, wishes: HostWishes, vms: Sequence[VmWish], *, boot: bool = False
) -> TunePlan:
    """Give what the host should be for these VMs; `boot` adds the drop-in for the boot loader."""
    settings = (
        *build_ksm(tuning, wishes, vms),
        *build_memory(tuning, wishes, vms),
        *build_pools(host, wishes, vms),
        *build_schedulers(tuning, wishes),
        *build_read_ahead(tuning, wishes),
        *build_cpu(tuning, wishes),
    )
    findings = (
        *check_ksm(tuning, wishes, vms),
        *check_memory(tuning, wishes),
        *check_pools(host, tuning, wishes, vms),
        *check_schedulers(tuning, wishes),
        *check_cpu(tuning, wishes),
        *check_daemons(tuning),
        *check_cmdline(tuning),
        *(check_boot(settings, tuning) if boot else ()),
    )
    return TunePlan(settings=settings, files=plan_files(settings, tuning, wishes, boot=boot), findings=findings)


def plan_files(
    settings: Sequence[Setting], tuning: HostTuning, wishes: HostWishes, *, boot: bool
) -> tuple[KeptFile, ...]:
    """Give the files that make these settings last; `boot` adds the drop-in for the boot loader."""
    return (*build_files(settings, tuning, wishes), *(build_boot(settings, tuning) if boot else ()))
