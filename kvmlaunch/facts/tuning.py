"""The host's knobs: I/O schedulers, KSM, transparent huge pages, sysctls, governors, KVM's parameters.

Sources: Documentation/block/queue-sysfs.rst, admin-guide/mm/ksm.rst, admin-guide/mm/transhuge.rst,
admin-guide/sysctl/vm.rst, admin-guide/pm/cpufreq.rst; proc_buddyinfo(5).
"""

import re
from collections.abc import Iterator, Mapping

from kvmlaunch.model.tuning import BlockDevice, HostTuning, Knob, PageHolder

KSM = "/sys/kernel/mm/ksm"
UKSM = "/sys/kernel/mm/uksm/run"
THP = "/sys/kernel/mm/transparent_hugepage"
CPUS = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq"
MODULES = ("kvm/parameters/halt_poll_ns", "kvm_intel/parameters/nested", "kvm_amd/parameters/nested")
SYSCTLS = ("vm.swappiness", "kernel.numa_balancing", "vm.nr_overcommit_hugepages", "vm.overcommit_memory")
CMDLINE, BUDDYINFO, MEMINFO = "/proc/cmdline", "/proc/buddyinfo", "/proc/meminfo"
GRUB_DROP_IN = "/etc/default/grub.d/kvmlaunch.cfg"
RC_LOCAL, PROCPS, INIT = "/etc/rc.local", "/etc/init.d/procps", "/proc/1/comm"
FILES = (
    *(f"{KSM}/*", UKSM, f"{THP}/enabled", f"{THP}/defrag", CMDLINE, BUDDYINFO, MEMINFO),
    *(RC_LOCAL, PROCPS, INIT, GRUB_DROP_IN, "/sys/block/*/serial"),
    *(f"{CPUS}/scaling_governor", f"{CPUS}/scaling_available_governors"),
    *(f"/sys/module/{name}" for name in MODULES),
    *(f"/proc/sys/{name.replace('.', '/')}" for name in SYSCTLS),
)
SERIAL = "serial"
IDENTITIES = ("wwid", "device/wwid", SERIAL)  # of NVMe, of SCSI and SATA, of virtio
DEVICE_FILES = ("queue/scheduler", "queue/read_ahead_kb", "queue/rotational", *IDENTITIES)
# What a rule of udev and a line of a shell script take as it is.
PLAIN_IDENTITY = r"[A-Za-z0-9_.:+=/-](?:[A-Za-z0-9_.:+=/ -]{0,198}[A-Za-z0-9_.:+=/-])?"

CHOSEN = r"\[([^\[\]\s]+)\]"
CPU_NUMBER = r"/sys/devices/system/cpu/cpu([0-9]{1,5})/cpufreq/scaling_governor"
BUDDY_LINE = r"(?m)^Node +([0-9]{1,5}), zone +\S+((?: +[0-9]{1,18})+) *$"


def sysctl_path(name: str) -> str:
    """Give the file of a sysctl: `vm.swappiness` is /proc/sys/vm/swappiness."""
    return f"/proc/sys/{name.replace('.', '/')}"


def device_file(device: str, name: str) -> str:
    """Give a file of a block device; a slash in a device's name is written `!` there."""
    return f"/sys/block/{device.replace('/', '!')}/{name}"


def parse_knob(files: Mapping[str, str], path: str) -> Knob | None:
    """Give a control file; of one that lists words, `[none] mq-deadline`, the word in brackets is the value."""
    text = files.get(path)
    if text is None:
        return None
    chosen = re.search(CHOSEN, text)
    words = text.replace("[", "").replace("]", "").split()
    return Knob(path=path, value=chosen[1] if chosen else text.strip(), offered=tuple(words) if chosen else ())


def parse_tuning(files: Mapping[str, str], probes: Mapping[str, object]) -> HostTuning:
    """Give the host's knobs of what was captured; `probes` holds devices, daemons, holders, udev and grub."""
    knobs = {path: knob for path in files if (knob := parse_knob(files, path))}
    ksm = {path.removeprefix(f"{KSM}/"): knob for path, knob in knobs.items() if path.startswith(f"{KSM}/")}
    return HostTuning(
        devices=parse_devices(files, probes.get("devices")),
        opened=parse_devices(files, probes.get("opened")),
        ksm=ksm,
        uksm=files.get(UKSM, "0").strip() != "0",
        thp=knobs.get(f"{THP}/enabled"),
        thp_defrag=knobs.get(f"{THP}/defrag"),
        sysctls={name: knob for name in SYSCTLS if (knob := knobs.get(sysctl_path(name)))},
        governors=parse_governors(files),
        parameters={
            name.replace("/parameters/", "."): knob for name in MODULES if (knob := knobs.get(f"/sys/module/{name}"))
        },
        cmdline=tuple(files.get(CMDLINE, "").split()),
        buddies=parse_buddies(files.get(BUDDYINFO, "")),
        daemons={name: pid for name, pid in table_of(probes.get("daemons")).items() if type(pid) is int},
        holders=tuple(parse_holders(probes.get("page_holders"))),
        udev=probes.get("udev") is True,
        init=files.get(INIT, "").strip(),
        local_script=files.get(RC_LOCAL),
        local_runs=probes.get("rc_local") is not False,
        own_words=files.get(GRUB_DROP_IN, ""),
        procps_script=PROCPS in files,
        grub=str(probes.get("grub") or ""),
        default_page=meminfo_bytes(files.get(MEMINFO, ""), "Hugepagesize") or 2 << 20,
        memory=meminfo_bytes(files.get(MEMINFO, ""), "MemTotal"),
        hidden=hidden if type(hidden := probes.get("hidden")) is int else 0,
    )


def meminfo_bytes(meminfo: str, name: str) -> int:
    """Give a line of /proc/meminfo, 0 where there is none: `Hugepagesize` is what vm.nr_hugepages counts."""
    match = re.search(rf"(?m)^{name}: +([0-9]{{1,15}}) kB$", meminfo)
    return int(match[1]) * 1024 if match else 0


def table_of(probe: object) -> Mapping[str, object]:
    """Give a probe that is a table, an empty one for anything else."""
    return {str(name): value for name, value in probe.items()} if isinstance(probe, Mapping) else {}


def parse_devices(files: Mapping[str, str], probe: object) -> tuple[BlockDevice, ...]:
    """Give devices beneath the VMs' disks; the probe maps their names to hardware queues and VMs."""
    return tuple(parse_device(files, name, table_of(seen)) for name, seen in table_of(probe).items())


def parse_device(files: Mapping[str, str], name: str, seen: Mapping[str, object]) -> BlockDevice:
    """Give one device."""
    rotational = files.get(device_file(name, "queue/rotational"), "").strip()
    queues, vms = seen.get("queues"), seen.get("vms")
    return BlockDevice(
        name=name,
        identity=parse_identity(files, name),
        scheduler=parse_knob(files, device_file(name, "queue/scheduler")),
        read_ahead=parse_knob(files, device_file(name, "queue/read_ahead_kb")),
        rotational=rotational != "0" if rotational else None,
        queues=queues if type(queues) is int else 0,
        vms=tuple(str(vm) for vm in vms) if isinstance(vms, list) else (),
    )


def parse_identity(files: Mapping[str, str], name: str) -> tuple[str, str] | None:
    """Give the file that tells a device from others and its text, None where there is none or an odd one.

    A serial number is whatever the maker of a virtual disk wrote: one that two disks have tells nothing.
    """
    for file in IDENTITIES:
        text = files.get(device_file(name, file), "").strip()
        same = [path for path, other in files.items() if path.endswith(f"/{SERIAL}") and other.strip() == text]
        if re.fullmatch(PLAIN_IDENTITY, text) and (file != SERIAL or len(same) == 1):
            return file, text
    return None


def parse_governors(files: Mapping[str, str]) -> Mapping[int, Knob]:
    """Give the governor of each CPU that has one, with the words that it offers."""
    found = {}
    for path, text in files.items():
        match = re.fullmatch(CPU_NUMBER, path)
        if match:
            offered = files.get(path.replace("scaling_governor", "scaling_available_governors"), "").split()
            found[int(match[1])] = Knob(path=path, value=text.strip(), offered=tuple(offered))
    return dict(sorted(found.items()))


def parse_buddies(text: str) -> Mapping[int, tuple[int, ...]]:
    """Give how many free blocks of 1, 2, 4, … pages each NUMA node has, all its zones together."""
    found: dict[int, tuple[int, ...]] = {}
    for node, counts in re.findall(BUDDY_LINE, text):
        zone = tuple(int(number) for number in counts.split())
        before = found.get(int(node), (0,) * len(zone))
        found[int(node)] = tuple(sum(pair) for pair in zip(before, zone, strict=False))
    return found


def parse_holders(probe: object) -> Iterator[PageHolder]:
    """Give the processes that have huge pages mapped."""
    for each in probe if isinstance(probe, list) else ():
        match each:
            case {"pid": int(pid), "command": str(command), "bytes": int(size)}:
                page = each.get("page_size")
                yield PageHolder(pid=pid, command=command, bytes=size, page_size=page if type(page) is int else 0)
