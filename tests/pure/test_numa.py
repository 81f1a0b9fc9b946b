"""A VM's memory stays on the NUMA node on which it was prepared or started, and its vCPUs are pinned beside it."""

import os
from pathlib import Path, PurePosixPath

import pytest

from kvmlaunch.host.rundir import mark_prepared, read_node
from tests.casebook import run_case


def test_vcpus_are_pinned_where_the_memory_is() -> None:
    outcome = run_case("cpu-pin-held")
    node = outcome.host.node(1)

    assert outcome.plan
    assert node
    assert set() < set(outcome.plan.vcpu_pins) < set(node.cpus)


@pytest.mark.parametrize("node", [None, 0, 3])
def test_the_node_that_was_prepared_is_read_again(tmp_path: Path, node: int | None) -> None:
    tmp_path.chmod(0o700)
    mark_prepared(PurePosixPath(tmp_path), os.geteuid(), node)

    assert read_node(PurePosixPath(tmp_path), os.geteuid()) == node


def test_a_directory_that_is_not_there_tells_no_node(tmp_path: Path) -> None:
    assert read_node(PurePosixPath(tmp_path / "none"), os.geteuid()) is None


def test_the_order_of_a_list_by_hand_is_that_of_the_vcpus() -> None:
    outcome = run_case("cpu-pin-order")

    assert outcome.plan
    assert outcome.plan.vcpu_pins == (5, 2, 3)


def test_io_threads_stay_on_the_node_of_their_vcpus() -> None:
    outcome = run_case("iothreads-pin-two-nodes")
    node = outcome.host.node(1)

    assert outcome.plan
    assert node
    assert set() < set(outcome.plan.iothread_pins) < set(node.cpus)
    assert set(outcome.plan.thread_pins.values()) <= set(node.cpus)
