"""The hugepage pools of the whole host and of its NUMA nodes.

Source: Documentation/admin-guide/mm/hugetlbpage.rst; reserved pages are counted for the whole
host only.
"""

import re
from collections.abc import Mapping

from kvmlaunch.model.host import HugepagePool
from kvmlaunch.units import KIB

HOST = "/sys/kernel/mm/hugepages/hugepages-*"
NODE = "/sys/devices/system/node/node[0-9]*/hugepages/hugepages-*"
NODE_COUNTS = ("nr_hugepages", "free_hugepages", "surplus_hugepages")
HOST_COUNTS = (*NODE_COUNTS, "resv_hugepages", "nr_overcommit_hugepages")
HOST_FILES = tuple(f"{HOST}/{name}" for name in HOST_COUNTS)
FILES = (*HOST_FILES, *(f"{NODE}/{name}" for name in NODE_COUNTS))

TOTAL = re.compile(
    r"(/sys/(?:kernel/mm|devices/system/node/node(?P<node>[0-9]{1,5}))"
    r"/hugepages/hugepages-(?P<size>[0-9]{1,12})kB)/nr_hugepages"
)
COUNT = re.compile(r"[0-9]{1,20}", re.ASCII)


def parse_pools(files: Mapping[str, str]) -> tuple[HugepagePool, ...]:
    """Give the host-wide pools, the smallest page first."""
    pools = (pool for pool in parse_all_pools(files) if pool.host_numa_node is None)
    return tuple(sorted(pools, key=lambda pool: pool.page_size))


def parse_node_pools(files: Mapping[str, str]) -> Mapping[int, tuple[HugepagePool, ...]]:
    """Give the pools of each NUMA node, the smallest page first."""
    found: dict[int, tuple[HugepagePool, ...]] = {}
    for pool in sorted(parse_all_pools(files), key=lambda pool: pool.page_size):
        if pool.host_numa_node is not None:
            found[pool.host_numa_node] = (*found.get(pool.host_numa_node, ()), pool)
    return found


def parse_all_pools(files: Mapping[str, str]) -> list[HugepagePool]:
    """Give every pool whose total was read."""
    found = (TOTAL.fullmatch(path) for path in files)
    return [parse_pool(files, match[1], match["size"], match["node"]) for match in found if match]


def parse_pool(files: Mapping[str, str], place: str, size: str, node: str | None) -> HugepagePool:
    """Give the pool of one directory."""
    total, free, surplus = (parse_count(files, f"{place}/{name}") for name in NODE_COUNTS)
    return HugepagePool(
        page_size=int(size) * KIB,
        total=total,
        free=free,
        surplus=surplus,
        reserved=parse_count(files, f"{place}/resv_hugepages") if node is None else None,
        overcommit=parse_count(files, f"{place}/nr_overcommit_hugepages") if node is None else 0,
        host_numa_node=None if node is None else int(node),
    )


def parse_count(files: Mapping[str, str], path: str) -> int:
    """Give the pages that a file counts; none when it could not be read."""
    text = files.get(path, "0").strip()
    if COUNT.fullmatch(text) is None:
        message = f"{path} holds {text[:40]!r}, no number of pages"
        raise ValueError(message)
    return int(text)
