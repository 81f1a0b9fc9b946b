"""The host as a whole: each subject with its numbers, a judgement, its reason, and the command that mends it."""

from collections.abc import Iterator, Sequence
from typing import Final

from kvmlaunch.model.definition import AUTO
from kvmlaunch.model.diagnosis import Diagnosis, Trial
from kvmlaunch.model.host import HostFacts, HugepagePool
from kvmlaunch.model.tuning import SMALL_PAGE, BlockDevice, HostTuning, PageHolder
from kvmlaunch.model.wishes import HOST_FILE, HostWishes
from kvmlaunch.tune.cpu import HALT_POLL
from kvmlaunch.tune.daemons import check_cmdline, check_daemons
from kvmlaunch.tune.fleet import VmWish, names_text, pages_of
from kvmlaunch.tune.ksm import SOURCE as KSM_SOURCE
from kvmlaunch.tune.memory import POOL_SOURCE, THP_SOURCE, plan_pool, plan_thp
from kvmlaunch.tune.scheduler import SOURCE as SCHEDULER_SOURCE
from kvmlaunch.tune.scheduler import plan_scheduler
from kvmlaunch.units import GIB, MIB, count, render_size

APPLY: Final = "sudo kvmlaunch tune apply"
PERSIST: Final = f"{APPLY} --persist"
HUGE: Final = 2 * MIB
FEW_CONTEXTS: Final = 65536  # the kernel's default of fs.aio-max-nr; each disk with aio=native takes some hundred
SWAPPY: Final = 60
KSM_RUN: Final = "/sys/kernel/mm/ksm/run"
GOVERNORS: Final = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
LIMITS: Final = "/etc/security/limits.conf"
SOURCES: Final = {"tuned": "tuned(8), ksmtuned(8), numad(8)", "cmdline": "Linux 5.4, block/elevator.c"}
VERDICTS: Final = ("FAIL", "warn", "skip", "ok")


def diagnose(
    host: HostFacts,
    tuning: HostTuning,
    wishes: HostWishes,
    vms: Sequence[VmWish],
    starting: Sequence[VmWish],
    trial: Trial,
    *,
    broken: Sequence[str] = (),
    named: Sequence[str] = (),
) -> tuple[Diagnosis, ...]:
    """Give every subject, what is wrong first, by what a mend gains.

    `vms` are all that are defined, `starting` those that start with the host and those that were `named`, which are
    named to tune as well; `broken` definitions count for nothing.
    """
    found = (
        *check_kvm(host, trial),
        *check_definitions(broken),
        *(each for pool in host.pools for each in check_pool(host, tuning, wishes, pool, starting, named)),
        *check_free_memory(host, tuning, vms),
        *check_thp(tuning, wishes, starting, named),
        *check_merging(tuning, vms),
        *(each for device in tuning.devices for each in check_device(device, wishes, starting, named)),
        *(each for device in tuning.opened for each in tell_read_ahead(device)),
        *check_aio(host),
        *check_governor(tuning),
        *check_sysctls(tuning),
        *check_polling(tuning),
        *check_nested(tuning),
        *check_locked_memory(host, vms),
        *check_others(tuning),
    )
    return tuple(sorted(found, key=lambda each: (VERDICTS.index(each.verdict), -each.gain)))


def check_definitions(broken: Sequence[str]) -> Iterator[Diagnosis]:
    """Tell definitions with mistakes: what they ask of the host is not counted."""
    if broken:
        yield Diagnosis(
            subject="definitions", verdict="warn", found=f"{names_text(broken)} cannot be read", gain=7,
            why="what they ask of the host is not counted here, and tune refuses to count without them",
            source="kvmlaunch docs, tuning",
            fix=f"kvmlaunch validate {' '.join(broken[:4])}", numbers={"broken": list(broken)},
        )  # fmt: skip


def check_kvm(host: HostFacts, trial: Trial) -> Iterator[Diagnosis]:
    """Tell whether KVM runs guests: its device, its modules, and a guest that makes progress."""
    modules = ", ".join(host.kvm.modules) or "no module"
    numbers = {"device": host.kvm.device, "modules": list(host.kvm.modules), "booted": trial.progressed}
    source = "Linux Documentation/virt/kvm/api.rst; a boot of our own"
    if host.kvm.device != "usable":
        user = host.user.name or str(host.user.uid)
        give = f"sudo setfacl -m u:{user}:rw /dev/kvm   # until a reboot; lasting: the group that ls -l /dev/kvm shows"
        fix = "modprobe kvm_intel || modprobe kvm_amd" if host.kvm.device == "missing" else give
        yield Diagnosis(
            subject="kvm", verdict="FAIL", found=f"/dev/kvm is {host.kvm.device} ({modules})", fix=fix, gain=9,
            why="without KVM a guest is emulated: slow, and no security boundary", source=source, numbers=numbers,
        )  # fmt: skip
    elif trial.progressed is False or not host.kvm.runs_ordinary_kernels:
        tried = trial_text(trial) if trial.progressed is False else ""
        pvm = "" if host.kvm.runs_ordinary_kernels else "kvm_pvm alone runs PVM-aware kernels only"
        yield Diagnosis(
            subject="kvm", verdict="FAIL", found=f"/dev/kvm opens ({modules}), and runs no ordinary guest", gain=9,
            why="; ".join(part for part in (pvm, tried) if part), source=source, numbers=numbers,
            fix='accel = "any" in the definitions, or a host with kvm_intel or kvm_amd',
        )  # fmt: skip
    elif trial.progressed is None:
        yield Diagnosis(
            subject="kvm", verdict="skip", found=f"/dev/kvm opens ({modules}); no guest was booted", gain=8,
            why=trial.words or "no kernel to boot was found", source=source, numbers=numbers,
            fix="kvmlaunch doctor   # as root, with a kernel in /boot or a definition with boot.kernel",
        )  # fmt: skip
    else:
        found = f"runs guests ({modules}); {trial.kernel} booted in {trial.seconds:.1f} s"
        yield Diagnosis(subject="kvm", verdict="ok", found=found, source=source, numbers=numbers)


def trial_text(trial: Trial) -> str:
    """Give how a trial failed: QEMU's own last words, or that nothing came."""
    words = trial.words.splitlines()
    return f"{trial.kernel}: {words[-1] if words else f'nothing was printed in {trial.seconds:.0f} s'}"


def check_pool(
    host: HostFacts,
    tuning: HostTuning,
    wishes: HostWishes,
    pool: HugepagePool,
    vms: Sequence[VmWish],
    named: Sequence[str],
) -> Iterator[Diagnosis]:
    """Tell a pool of huge pages: how many, who holds them, and what the VMs that start with the host need."""
    need, size = pages_of(vms, pool.page_size), render_size(pool.page_size)
    its = [holder for holder in tuning.holders if holder.page_size in {0, pool.page_size}]
    holders = [f"{holder.command} (pid {holder.pid}) {render_size(holder.bytes)}" for holder in its]
    held = f"; held by {names_text(holders)}" if holders and pool.total > pool.free else ""
    surplus = f", {pool.surplus} surplus" if pool.surplus else ""
    found = f"{pool.total} in all, {pool.free} free, {pool.reserved or 0} of them reserved{surplus}{held}"
    numbers = {
        "page_size": pool.page_size, "total": pool.total, "free": pool.free, "reserved": pool.reserved or 0,
        "surplus": pool.surplus, "needed": need,
        "holders": [{"pid": each.pid, "command": each.command, "bytes": each.bytes} for each in its],
    }  # fmt: skip
    subject = f"hugepages {size}"
    who = f"the VMs that start with the host{' and those named' if named else ''} need {need}"
    foreign = foreign_pages(pool, its) if plan_pool(pool.page_size, wishes, vms) is not None else 0
    if pool.total - foreign < need <= pool.total:
        yield Diagnosis(
            subject=subject, verdict="warn", found=found, source=POOL_SOURCE, numbers=numbers, gain=6,
            why=f"{who}, and other programs hold {foreign}",
            fix=f'hugepage_pools = {{ "{size}" = {need + foreign} }}   # in {HOST_FILE}: enough for both',
        )  # fmt: skip
        return
    if need <= pool.total or plan_pool(pool.page_size, wishes, vms) is None:
        yield Diagnosis(subject=subject, verdict="ok", found=found, source=POOL_SOURCE, numbers=numbers)
        return
    lacking = need - pool.total
    blocks = tuning.free_in_blocks(pool.page_size) if pool.page_size == HUGE else 0
    room = host.memory.available - lacking * pool.page_size >= host.kept_memory
    fragmented = pool.page_size == HUGE and blocks < lacking * pool.page_size
    why = f"{who}, {lacking} are lacking"
    why += "" if room else f"; only {render_size(host.memory.available // MIB * MIB)} are available"
    why += f"; memory is fragmented: {render_size(blocks)} free in whole pages" if room and fragmented else ""
    yield Diagnosis(
        subject=subject, verdict="warn", found=found, why=why, source=POOL_SOURCE, numbers=numbers, gain=6,
        fix=" ".join((PERSIST, *named)) if room else "kvmlaunch validate --together   # names the VMs that do not fit",
    )  # fmt: skip


def foreign_pages(pool: HugepagePool, holders: Sequence[PageHolder]) -> int:
    """Give the pages that programs other than VMs hold, at most what is in use: several may have mapped the same."""
    pages = {True: 0, False: 0}
    for each in holders:
        pages[each.command.startswith("VM ")] += -(-each.bytes // pool.page_size)
    return max(0, min(pages[False], pool.total - pool.free - pages[True]))


def check_free_memory(host: HostFacts, tuning: HostTuning, vms: Sequence[VmWish]) -> Iterator[Diagnosis]:
    """Tell free memory and how whole it is: the largest free block, and what lies in blocks of a huge page.

    It is in pieces where neither a quarter of it, nor what the VMs want and at least 1 GiB, can be had as huge pages.
    """
    memory, largest, blocks = host.memory, tuning.largest_block, tuning.free_in_blocks(HUGE)
    whole, rest = (render_size(size // MIB * MIB) for size in (memory.total, memory.available))
    huge, largest_text = render_size(blocks), render_size(largest)
    found = f"{rest} of {whole} available, {huge} in blocks of a huge page or more, largest block {largest_text}"
    numbers = {
        "total": memory.total, "available": memory.available, "free": memory.free, "largest_free_block": largest,
        "free_in_huge_pages": blocks,
    }  # fmt: skip
    wanted = max(GIB, sum(vm.pages * vm.page_size for vm in vms))
    broken = memory.free > GIB and blocks < min(memory.free // 4, wanted)
    yield Diagnosis(
        subject="memory", verdict="warn" if broken else "ok", found=found, gain=3, numbers=numbers,
        why="free memory is fragmented: huge pages can hardly be made while the host runs" if broken else "",
        fix="echo 1 > /proc/sys/vm/compact_memory" if broken else "", source="proc_buddyinfo(5)",
    )  # fmt: skip


def check_thp(
    tuning: HostTuning, wishes: HostWishes, vms: Sequence[VmWish], named: Sequence[str]
) -> Iterator[Diagnosis]:
    """Tell transparent huge pages."""
    if tuning.thp is None:
        yield Diagnosis(subject="thp", verdict="skip", found="this kernel has none", source=THP_SOURCE)
        return
    never = tuning.thp.value == "never" and plan_thp(wishes, tuning, vms) is not None
    ordinary = [vm.name for vm in vms if not vm.pages]
    defrag = f", defrag {tuning.thp_defrag.value}" if tuning.thp_defrag else ""
    yield Diagnosis(
        subject="thp", verdict="warn" if never and ordinary else "ok", found=f"{tuning.thp.value}{defrag}", gain=5,
        why=f"{names_text(ordinary)} has ordinary memory, in pages of 4 KiB" if never and ordinary else "",
        fix=" ".join((APPLY, *named)) if never and ordinary and wishes.thp is AUTO else "", source=THP_SOURCE,
        numbers={"enabled": tuning.thp.value},
    )  # fmt: skip


def check_merging(tuning: HostTuning, vms: Sequence[VmWish]) -> Iterator[Diagnosis]:
    """Tell KSM: its switch, what it saves, and whether it does so in vain."""
    if tuning.uksm:
        yield Diagnosis(
            subject="uksm", verdict="warn", found="this kernel has UKSM, which merges without being asked", gain=2,
            why="it is no part of Linux, and memory.ksm does not reach it", fix="echo 0 > /sys/kernel/mm/uksm/run",
            source="UKSM's own patch, mm/uksm.c",
        )  # fmt: skip
    if not tuning.ksm:
        yield Diagnosis(subject="ksm", verdict="skip", found="this kernel has none", source=KSM_SOURCE)
        return
    counters = {name: int(knob.value) for name, knob in tuning.ksm.items() if knob.value.lstrip("-").isdecimal()}
    saved = counters.get("pages_sharing", 0) * SMALL_PAGE
    run, asking = counters.get("run", 0), [vm.name for vm in vms if vm.ksm]
    word = {0: "off", 1: "on", 2: "off, taken apart"}.get(run, str(run))
    profit = f", profit {render_profit(counters['general_profit'])}" if "general_profit" in counters else ""
    pages = f" ({counters.get('pages_shared', 0)} pages stand for {counters['pages_sharing']} more)" if saved else ""
    scans = f"{counters.get('full_scans', 0)} scans"
    found = f"{word}, saves {render_size(saved) if saved else 'nothing'}{pages}{profit}, {scans}"
    vain = run == 1 and bool(vms) and not asking
    lacking = run != 1 and bool(asking)
    yield Diagnosis(
        subject="ksm", verdict="warn" if vain or lacking else "ok", found=found, gain=2, source=KSM_SOURCE,
        why="no VM here may be merged, and hugepages never are: the scan only costs" if vain
        else f"asked for by {names_text(asking)}" if lacking else "",
        fix=f'echo 2 > {KSM_RUN}   # to last: mode = "unmerge" in [ksm] of {HOST_FILE}' if vain
        else f"{APPLY} {' '.join(asking[:4])}" if lacking else "",
        numbers={**{name: knob.value for name, knob in tuning.ksm.items()}, **counters, "saved": saved},
    )  # fmt: skip


def render_profit(size: int) -> str:
    """Give bytes that may be fewer than none."""
    rounded = abs(size) // MIB * MIB if abs(size) >= MIB else abs(size)
    return f"{'-' if size < 0 else ''}{render_size(rounded)}"


def check_device(
    device: BlockDevice, wishes: HostWishes, starting: Sequence[VmWish], named: Sequence[str]
) -> Iterator[Diagnosis]:
    """Tell the scheduler and the read-ahead of a device beneath the VMs' disks."""
    scheduler = device.scheduler.value if device.scheduler else "none to choose"
    kind = {True: "rotating", False: "SSD", None: "unknown"}[device.rotational]
    found = f"{scheduler}, {kind}, {count(device.queues, 'hardware queue')}, beneath {names_text(device.vms)}"
    plan = plan_scheduler(device, wishes)
    knob = device.scheduler  # a device without words to choose from has none
    differs = bool(plan and knob and plan[0].value in knob.offered and plan[0].value != knob.value)
    numbers = {
        "scheduler": scheduler,
        "queues": device.queues, "rotational": device.rotational, "vms": list(device.vms),
        "expected": plan[0].value if plan else None,
    }  # fmt: skip
    # A VM that starts with the host counts by itself; of others one is enough, as each brings its huge pages too.
    asked = named if any(vm.name in device.vms for vm in starting) else device.vms[:1]
    fix = f"{' '.join((APPLY, *asked))}   # with all else that tune plan shows"
    yield Diagnosis(
        subject=f"scheduler {device.name}", verdict="warn" if differs else "ok", found=found, gain=4,
        why=f"{plan[0].value} is expected: {plan[0].reason or 'host.toml'}" if differs and plan else "",
        fix=fix if differs else "", source=SCHEDULER_SOURCE, numbers=numbers,
    )  # fmt: skip


def tell_read_ahead(device: BlockDevice) -> Iterator[Diagnosis]:
    """Tell the read-ahead of a device that is opened for VMs' disks: that of what lies beneath it does not count."""
    if device.read_ahead is not None:
        yield Diagnosis(
            subject=f"read-ahead {device.name}", verdict="ok", source="Linux Documentation/block/queue-sysfs.rst",
            found=f"{device.read_ahead.value} KiB, of cached reads, for {names_text(device.vms)}",
            numbers={"read_ahead_kb": device.read_ahead.value, "vms": list(device.vms)},
        )  # fmt: skip


def check_aio(host: HostFacts) -> Iterator[Diagnosis]:
    """Tell asynchronous I/O: contexts of native aio, and io_uring."""
    used, most = host.aio.used, host.aio.most
    tight = most - used <= most // 4
    yield Diagnosis(
        subject="native aio", verdict="warn" if tight else "ok", found=f"{used} of {most} contexts used", gain=4,
        why="disks with aio=native will be refused soon" if tight else "",
        fix=f"sysctl -w fs.aio-max-nr={max(most * 4, FEW_CONTEXTS * 16)}" if tight else "",
        source="Linux Documentation/admin-guide/sysctl/fs.rst", numbers={"used": used, "most": most},
    )  # fmt: skip
    refusal, switch = host.aio.io_uring_refusal, host.aio.io_uring_switch
    some = "usable by root and the group of kernel.io_uring_group alone" if switch == 1 else ""
    yield Diagnosis(
        subject="io_uring", verdict="warn" if refusal else "ok", found=refusal or some or "usable", gain=3,
        why="images that are not fully allocated get aio=threads" if refusal else "",
        fix="" if not refusal else "sysctl -w kernel.io_uring_disabled=0" if switch
        else 'aio = "threads"   # says that it is meant; or let a newer kernel, or the container, have it',
        source="Linux Documentation/admin-guide/sysctl/kernel.rst", numbers={"refusal": refusal},
    )  # fmt: skip


def check_governor(tuning: HostTuning) -> Iterator[Diagnosis]:
    """Tell the CPU frequency governor; it is reported and never forced."""
    words = sorted({knob.value for knob in tuning.governors.values()})
    found = ", ".join(words) or "this host has no cpufreq"
    slow = words == ["powersave"] and all("schedutil" in knob.offered for knob in tuning.governors.values())
    yield Diagnosis(
        subject="governor", verdict="warn" if slow else "ok" if words else "skip", found=found, gain=3,
        why="this driver's powersave stays at the lowest frequency" if slow else "",
        fix=f'echo schedutil | tee {GOVERNORS}   # to last: governor = "schedutil" in {HOST_FILE}' if slow else "",
        source="Linux Documentation/admin-guide/pm/cpufreq.rst", numbers={"governors": words},
    )  # fmt: skip


def check_sysctls(tuning: HostTuning) -> Iterator[Diagnosis]:
    """Tell swapping and NUMA balancing; they are reported and never forced."""
    for name, knob in tuning.sysctls.items():
        high = name == "vm.swappiness" and knob.value.isdecimal() and int(knob.value) > SWAPPY
        yield Diagnosis(
            subject=name, verdict="warn" if high else "ok", found=knob.value, gain=1,
            why="guests' memory is swapped out early; hugepages never are" if high else "",
            fix=f"sysctl -w vm.swappiness=10   # to last: swappiness = 10 in {HOST_FILE}" if high else "",
            source="Linux Documentation/admin-guide/sysctl", numbers={"value": knob.value},
        )  # fmt: skip


def check_polling(tuning: HostTuning) -> Iterator[Diagnosis]:
    """Tell KVM's polling."""
    knob = tuning.parameters.get(HALT_POLL)
    if knob:
        yield Diagnosis(
            subject=HALT_POLL, verdict="ok", found=f"{knob.value} ns", numbers={"value": knob.value},
            source="Linux Documentation/virt/kvm/halt-polling.rst",
        )  # fmt: skip


def check_nested(tuning: HostTuning) -> Iterator[Diagnosis]:
    """Tell whether guests can run guests."""
    for name, knob in tuning.parameters.items():
        if name.endswith(".nested"):
            yield Diagnosis(
                subject="nested", verdict="ok", found=f"{knob.value} ({name})", numbers={"value": knob.value},
                source="Linux Documentation/virt/kvm/x86/running-nested-guests.rst",
            )  # fmt: skip


def check_locked_memory(host: HostFacts, vms: Sequence[VmWish]) -> Iterator[Diagnosis]:
    """Tell how much memory the caller may lock, and which VMs want more; root raises his own limit."""
    hard, user = host.user.memlock_hard, host.user.name or host.user.uid
    if hard is not None:
        found = "without limit" if hard >= 1 << 62 else render_size(hard)
        short = [vm for vm in vms if vm.locked > hard] if host.caller_uid else []
        most = max((vm.locked for vm in short), default=0)
        yield Diagnosis(
            subject="locked memory", verdict="warn" if short else "ok", found=f"{user} may lock {found}", gain=2,
            why=f"{names_text([vm.name for vm in short])} wants {render_size(most)}" if short else "",
            fix=f"echo '{user} - memlock {most >> 10}' >> {LIMITS}   # as root; then log in again" if short else "",
            source="setrlimit(2), RLIMIT_MEMLOCK", numbers={"hard": hard},
        )  # fmt: skip


def check_others(tuning: HostTuning) -> Iterator[Diagnosis]:
    """Tell what works against all of this: other programs that tune, and words that the kernel no longer reads."""
    for finding in (*check_daemons(tuning), *check_cmdline(tuning)):
        report = finding.report
        subject = report.code.rpartition(".")[0].removeprefix("host.")
        yield Diagnosis(
            subject=subject, verdict="warn", found=report.message, gain=3, source=SOURCES[subject],
            why=report.why, fix=report.hint, numbers={"where": report.where, "code": report.code},
        )  # fmt: skip
