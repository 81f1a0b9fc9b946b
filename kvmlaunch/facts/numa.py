"""The host's NUMA nodes, from /sys/devices/system/node."""

import re
from collections.abc import Mapping

from kvmlaunch.model.host import HostNode, HugepagePool
from kvmlaunch.units import KIB, parse_cpus

NODES = "/sys/devices/system/node/node[0-9]*"
FILES = (f"{NODES}/cpulist", f"{NODES}/meminfo")

CPULIST = re.compile(r"(/sys/devices/system/node/node([0-9]{1,5}))/cpulist")
MEMORY_LINE = re.compile(r"Node [0-9]+ (MemTotal|MemFree): *([0-9]{1,18}) kB", re.ASCII)


def parse_nodes(files: Mapping[str, str], pools: Mapping[int, tuple[HugepagePool, ...]]) -> tuple[HostNode, ...]:
    """Give the nodes by number, each with its pools; none on a kernel without NUMA."""
    matches = sorted((match for path in files if (match := CPULIST.fullmatch(path))), key=lambda match: int(match[2]))
    return tuple(parse_node(files, match[1], int(match[2]), pools) for match in matches)


def parse_node(
    files: Mapping[str, str], place: str, number: int, pools: Mapping[int, tuple[HugepagePool, ...]]
) -> HostNode:
    """Give one node; its memory is 0 when the node has none (CPUs alone)."""
    memory = {name: int(size) * KIB for name, size in MEMORY_LINE.findall(files.get(f"{place}/meminfo", ""))}
    return HostNode(
        number=number,
        cpus=parse_cpus(files[f"{place}/cpulist"]),
        memory_total=memory.get("MemTotal", 0),
        memory_free=memory.get("MemFree", 0),
        pools=pools.get(number, ()),
    )
