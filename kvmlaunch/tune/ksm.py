"""Kernel samepage merging: on, off, taken apart, and how it scans.

Source: Documentation/admin-guide/mm/ksm.rst.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from kvmlaunch.model.choice import Choice
from kvmlaunch.model.definition import AUTO
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.tuning import SMALL_PAGE, HostTuning, Setting
from kvmlaunch.model.wishes import HOST_FILE, HostWishes, KsmWishes
from kvmlaunch.tune.fleet import VmWish, names_text
from kvmlaunch.tune.wish import KEEP, by_hand, chosen, switch

SOURCE: Final = "Linux Documentation/admin-guide/mm/ksm.rst"
DIRECTORY: Final = "/sys/kernel/mm/ksm"
RUN: Final = {"off": "0", "on": "1", "unmerge": "2"}
# What the advisor of Linux 6.8 keeps to by default: its files advisor_target_scan_time, advisor_min_pages_to_scan and
# advisor_max_pages_to_scan.
SCAN_SECONDS: Final = 200
LEAST_PAGES, MOST_PAGES = 500, 30_000
COST: Final = {
    "1": "CPU for the scan, and what a VM holds shows in the timing of others",
    "0": "",
    "2": "memory for every page that is taken apart",
}


def plan_run(wishes: KsmWishes, vms: Sequence[VmWish]) -> Choice[str] | None:
    """Give what /sys/kernel/mm/ksm/run should hold; None where it stays as it is found."""
    if wishes.mode is not AUTO:
        return None if wishes.mode == KEEP else by_hand(RUN[str(wishes.mode)], "ksm.mode")
    asking = [vm.name for vm in vms if vm.ksm]
    return chosen("1", f"asked for by {names_text(asking)}", SOURCE, key="memory.ksm") if asking else None


def plan_scan(wishes: KsmWishes, tuning: HostTuning) -> Iterator[tuple[str, Choice[str]]]:
    """Give how the scan should run, by KSM's own file names."""
    yield from plan_pages(wishes, tuning)
    if wishes.smart_scan is AUTO:
        yield "smart_scan", chosen("1", "pages that never merged are skipped", SOURCE)
    elif wishes.smart_scan != KEEP:
        yield "smart_scan", by_hand(switch(wishes.smart_scan), "ksm.smart_scan")
    if wishes.sleep_millisecs != KEEP:
        yield "sleep_millisecs", by_hand(wishes.sleep_millisecs, "ksm.sleep_millisecs")
    if wishes.merge_across_nodes is AUTO:
        knob = tuning.ksm.get("merge_across_nodes")
        if tuning.nodes > 1 and knob and (knob.value == "0" or not shared(tuning)):
            reason = f"{tuning.nodes} NUMA nodes: a merged page is far for one of them"
            yield "merge_across_nodes", chosen("0", reason, SOURCE)
    elif wishes.merge_across_nodes != KEEP:
        yield "merge_across_nodes", by_hand(switch(wishes.merge_across_nodes), "ksm.merge_across_nodes")


def plan_pages(wishes: KsmWishes, tuning: HostTuning) -> Iterator[tuple[str, Choice[str]]]:
    """Give how many pages are looked at in a round: by the kernel's advisor, as it would choose, or by hand."""
    advisor = "advisor_mode" in tuning.ksm
    if wishes.pages_to_scan is AUTO and advisor:
        reason = "the kernel chooses the pages a round by the time a scan takes"
        yield "advisor_mode", chosen("scan-time", reason, SOURCE)
    elif wishes.pages_to_scan is AUTO:
        found = tuning.ksm.get("pages_to_scan")
        pages = advised_pages(wishes, tuning)
        if found and found.value.isdecimal() and pages:
            reason = f"all memory is looked at within {SCAN_SECONDS} s, as the advisor of Linux 6.8 does; never lowered"
            yield "pages_to_scan", chosen(max(int(found.value), pages), reason, SOURCE)
    elif wishes.pages_to_scan != KEEP:
        if advisor:
            yield "advisor_mode", by_hand("none", "ksm.pages_to_scan")
        yield "pages_to_scan", by_hand(wishes.pages_to_scan, "ksm.pages_to_scan")


def advised_pages(wishes: KsmWishes, tuning: HostTuning) -> int:
    """Give the pages a round that look at all memory in the advisor's time, within its bounds; 0 where unknown."""
    found = tuning.ksm.get("sleep_millisecs")
    sleep = found.value if found and wishes.sleep_millisecs == KEEP else str(wishes.sleep_millisecs)
    if not tuning.memory or not sleep.isdecimal():
        return 0
    pages = tuning.memory // SMALL_PAGE * int(sleep) // (SCAN_SECONDS * 1000)
    return min(max(pages, LEAST_PAGES), MOST_PAGES)


def shared(tuning: HostTuning) -> int:
    """Give how many pages are merged now."""
    knob = tuning.ksm.get("pages_shared")
    return int(knob.value) if knob and knob.value.isdecimal() else 0


def will_run(run: Choice[str] | None, tuning: HostTuning) -> bool:
    """Will KSM scan: as it is planned, else as it is found."""
    found = tuning.ksm.get("run")
    return run.value == "1" if run else found is not None and found.value == "1"


def is_by_hand(wanted: Choice[str]) -> bool:
    """Was it written in host.toml."""
    return wanted.origin.kind == "file"


def check_scan(tuning: HostTuning, wishes: HostWishes, vms: Sequence[VmWish]) -> Iterator[Finding]:
    """Say which wishes of `[ksm]` are not made: this kernel lacks the knob, or nothing scans."""
    run = plan_run(wishes.ksm, vms)
    for name, wanted in plan_scan(wishes.ksm, tuning) if tuning.ksm else ():
        why = "" if will_run(run, tuning) else "KSM does not run: it is neither switched on here nor asked for by a VM"
        why = why if name in tuning.ksm else f"{DIRECTORY}/{name} is not there: this kernel has none"
        if why and is_by_hand(wanted):
            yield warning(
                code="host.setting.refused",
                message=f"{name} is not set: skipped",
                key=wanted.origin.key,
                why=why,
                hint=f'mode = "on"   # in [ksm] of {HOST_FILE}, or take the key out',
            )


def check_nodes(tuning: HostTuning, wishes: HostWishes, vms: Sequence[VmWish]) -> Iterator[Finding]:
    """Say that pages of different NUMA nodes are merged: that can be changed only while nothing is."""
    knob, run = tuning.ksm.get("merge_across_nodes"), plan_run(wishes.ksm, vms)
    far = tuning.nodes > 1 and knob is not None and knob.value == "1" and shared(tuning) > 0
    if wishes.ksm.merge_across_nodes is AUTO and far and run is not None and will_run(run, tuning):
        yield warning(
            code="host.setting.busy",
            message="pages of different NUMA nodes stay merged",
            key="ksm.merge_across_nodes",
            why="a merged page is far for one of them, and it is changed only when there are no merged pages: ksm.rst",
            hint=f"echo 2 > {DIRECTORY}/run && echo 0 > {DIRECTORY}/merge_across_nodes && echo 1 > {DIRECTORY}/run",
        )


def build_ksm(tuning: HostTuning, wishes: HostWishes, vms: Sequence[VmWish]) -> Iterator[Setting]:
    """Give the settings of KSM: how it scans before it is switched on."""
    run = plan_run(wishes.ksm, vms)
    scan = plan_scan(wishes.ksm, tuning) if will_run(run, tuning) else iter(())
    if run is None:  # it runs as it was found: only what is wished by hand is changed
        scan = ((name, wanted) for name, wanted in scan if is_by_hand(wanted))
    by_file = [*scan, *([("run", run)] if run else [])]
    for name, wanted in by_file:
        if name in tuning.ksm:
            cost = COST[wanted.value] if name == "run" else ""
            yield Setting(key=f"ksm.{name}", knob=tuning.ksm[name], wanted=wanted, keeper="tmpfiles", cost=cost)


def check_ksm(tuning: HostTuning, wishes: HostWishes, vms: Sequence[VmWish]) -> Iterator[Finding]:
    """Say where KSM is wanted in vain: no kernel support, nothing to merge, or guests that should not share."""
    yield from check_scan(tuning, wishes, vms)
    yield from check_nodes(tuning, wishes, vms)
    run = plan_run(wishes.ksm, vms)
    if run is None or run.value != "1":
        return
    if not tuning.ksm:
        yield warning(
            code="host.ksm.missing",
            message="this kernel has no KSM: skipped",
            key="ksm.mode",
            why="/sys/kernel/mm/ksm is not there",
            hint="zgrep CONFIG_KSM /proc/config.gz",
        )
    if vms and not any(vm.ksm for vm in vms):
        yield warning(
            code="host.ksm.on",
            message="KSM will merge nothing of these VMs",
            key="ksm.mode",
            why=f'none of {names_text([vm.name for vm in vms])} says memory.ksm = "on", and hugepages never merge',
            hint='memory.ksm = "on"   # in the definitions that may share',
        )
    trusts = sorted({vm.trust for vm in vms if vm.ksm})
    if len(trusts) > 1:
        names = names_text([f"{vm.name} ({vm.trust or 'no label'})" for vm in vms if vm.ksm])
        yield warning(
            code="host.ksm.trust",
            message="VMs of different trust would share pages",
            key="ksm.mode",
            why=f"their label trust differs: {names}; timing tells one what another holds",
            hint='memory.ksm = "off"   # in the definitions of one kind',
        )
