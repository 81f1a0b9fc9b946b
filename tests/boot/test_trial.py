"""The trial whether guests run: a kernel that prints, one that never does, a QEMU that refuses.

KVM itself is not asked: a script in the place of QEMU passes the trial's argv on, under TCG.
"""

import shutil
from pathlib import Path

import pytest

from kvmlaunch.run.trial import boot_trial
from tests.sandbox import cmdline

SHIM = """#!/bin/bash
arguments=("$@")
for index in "${!arguments[@]}"; do
    case "${arguments[$index]}" in
        kvm) arguments[$index]=tcg ;;
        host) arguments[$index]=max ;;
    esac
done
exec %s "${arguments[@]}"
"""


@pytest.fixture
def under_tcg(tmp_path: Path) -> Path:
    """Give what starts QEMU as the trial would, without KVM."""
    place = tmp_path / "qemu"
    place.write_text(SHIM % shutil.which("qemu-system-x86_64"))
    place.chmod(0o755)
    return place


@pytest.fixture
def kernel(tmp_path: Path, built: Path) -> str:
    """Give a kernel that no other test boots."""
    return str(shutil.copy(built / "web01.vmlinuz", tmp_path / "kernel"))


def started_with(word: str) -> list[int]:
    """Give the processes that have a word on their command line."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if word.encode() in cmdline(pid)]


def test_a_kernel_that_prints_its_first_line_made_progress(under_tcg: Path, kernel: str) -> None:
    trial = boot_trial(under_tcg, [kernel, "/nowhere"], seconds=120)

    assert (trial.kernel, trial.progressed) == (kernel, True), trial.words
    assert trial.words
    assert started_with(kernel) == []


def test_where_one_kernel_says_nothing_another_is_tried(under_tcg: Path, kernel: str, tmp_path: Path) -> None:
    trial = boot_trial(under_tcg, [str(tmp_path / "absent"), kernel], seconds=120)

    assert (trial.kernel, trial.progressed) == (kernel, True), trial.words


def test_a_guest_that_stays_silent_is_ended_and_is_no_progress(under_tcg: Path, kernel: str) -> None:
    trial = boot_trial(under_tcg, [kernel], seconds=0)

    assert (trial.progressed, trial.words) == (False, "")
    assert started_with(kernel) == []


def test_a_qemu_that_refuses_is_quoted(under_tcg: Path, tmp_path: Path) -> None:
    trial = boot_trial(under_tcg, [str(tmp_path / "absent")], seconds=60)

    assert trial.progressed is False
    assert "absent" in trial.words


def test_without_a_kernel_nothing_is_tried(under_tcg: Path) -> None:
    assert boot_trial(under_tcg, []).progressed is None
