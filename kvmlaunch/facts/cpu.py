"""The host's CPUs, from /proc/cpuinfo and /sys/devices/system/cpu."""

import re
from collections.abc import Mapping

from kvmlaunch.model.host import HostCpus
from kvmlaunch.units import parse_cpus

CPUINFO = "/proc/cpuinfo"
ONLINE = "/sys/devices/system/cpu/online"
GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
SIBLINGS = "/sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list"
FILES = (CPUINFO, ONLINE, GOVERNOR, SIBLINGS)

SIBLINGS_OF = re.compile(r"/sys/devices/system/cpu/cpu([0-9]{1,5})/topology/thread_siblings_list")


def parse_host_cpus(files: Mapping[str, str]) -> HostCpus:
    """Give the CPUs; ValueError when the list of those online is missing.

    Vendor, model and flags are those of the first CPU: the kernel refuses to mix them.
    """
    if not (online := parse_cpus(files.get(ONLINE, ""))):
        message = f"{ONLINE} names no CPU"
        raise ValueError(message)
    first = parse_first_cpu(files.get(CPUINFO, ""))
    return HostCpus(
        online=online,
        vendor=first.get("vendor_id", ""),
        model=first.get("model name", ""),
        flags=frozenset(first.get("flags", "").split()),
        siblings=parse_siblings(files),
        governor=files.get(GOVERNOR, "").strip() or None,
    )


def parse_first_cpu(text: str) -> Mapping[str, str]:
    """Give the fields of the first paragraph of /proc/cpuinfo."""
    fields = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def parse_siblings(files: Mapping[str, str]) -> Mapping[int, tuple[int, ...]]:
    """Give for every CPU the threads of its core, itself included."""
    found = ((SIBLINGS_OF.fullmatch(path), text) for path, text in files.items())
    siblings = {int(match[1]): parse_cpus(text) for match, text in found if match}
    return dict(sorted(siblings.items()))
