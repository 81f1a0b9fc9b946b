"""KSM: what the host merges beside what the plan allows."""

from collections.abc import Iterator

from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import MemoryPromise, Plan


def check_ksm(plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Warn where KSM is asked for and does not run, and where it runs beside hugepages, which it cannot merge."""
    wanted = any(isinstance(promise, MemoryPromise) and promise.merge for promise in plan.promises)
    run = None if host.ksm is None else host.ksm.run
    if wanted and run != 1:
        yield warning(
            code="host.ksm.off",
            message="KSM is asked for, and the host does not run it",
            key="memory.ksm",
            why="this kernel has no KSM" if run is None else f"/sys/kernel/mm/ksm/run is {run}",
            hint=host.written_by_root("1", "/sys/kernel/mm/ksm/run"),
        )
    if plan.memory.backing == "hugepages" and run == 1:
        yield warning(
            code="host.ksm.on",
            message="KSM runs on the host and cannot merge hugepages",
            key="memory.hugepages",
            why="/sys/kernel/mm/ksm/run is 1: the scan costs CPU and gains nothing here",
            hint=host.written_by_root("2", "/sys/kernel/mm/ksm/run"),
        )
