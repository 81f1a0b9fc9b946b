"""A hugetlb cgroup whose limit is too low: refused before QEMU would die of SIGBUS."""

from pathlib import Path

import pytest

from tests.root.conftest import Pool
from tests.root.test_hugepages import HUGE
from tests.sandbox import KVMLAUNCH, Machine


@pytest.fixture
def limited(machine: Machine) -> str:
    """Make a cgroup (version 1) that allows 8 MiB of 2 MiB pages; gives its directory as the machine sees it."""
    if not any(line.split()[0] == "hugetlb" for line in Path("/proc/cgroups").read_text().splitlines()[1:]):
        pytest.skip("this kernel has no hugetlb controller")
    machine.execute("mkdir", "-p", "/run/user/cgroup")
    mounted = machine.execute("mount", "-t", "cgroup", "-o", "hugetlb", "none", "/run/user/cgroup")
    if mounted.code:
        pytest.skip("the hugetlb controller is not to be had as version 1")
    machine.execute("mkdir", "-p", "/run/user/cgroup/kl-test")
    machine.execute("sh", "-c", "echo 8M > /run/user/cgroup/kl-test/hugetlb.2MB.limit_in_bytes")
    return "/run/user/cgroup/kl-test"


def test_a_limit_below_need_is_refused_before_qemu(machine: Machine, pool: Pool, limited: str) -> None:
    machine.define("web", HUGE)

    result = machine.execute("sh", "-c", f"echo $$ > {limited}/cgroup.procs && exec {KVMLAUNCH} up web --paused")
    machine.execute("sh", "-c", f"rmdir {limited}")

    assert result.code == 6, result.err
    assert result.codes >= {"host.hugepages.cgroup"}
    assert pool.gained() == 0
