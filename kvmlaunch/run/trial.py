"""Boots a kernel under KVM to see whether a guest makes progress: a device that opens is no proof."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.model.diagnosis import Trial
from kvmlaunch.run.process import held
from kvmlaunch.run.spawn import Owner, spawn

LONGEST: Final = 20.0  # seconds; a kernel prints its first line within one
LOOK_AGAIN: Final = 0.05
MOST_TRIED: Final = 2
SIGN: Final = b"Linux version "
MOST_WORDS: Final = 1 << 16


def trial_argv(binary: Path, kernel: str) -> tuple[str, ...]:
    """Give the command of the trial: a small machine with nothing but a serial port, on standard output."""
    return (
        str(binary), "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "kvm",
        "-cpu", "host", "-m", "256M", "-kernel", kernel, "-append", "console=ttyS0 panic=-1", "-no-reboot",
        "-monitor", "none", "-serial", "stdio",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    )  # fmt: skip


def boot_trial(binary: Path, kernels: Sequence[str], *, seconds: float = LONGEST) -> Trial:
    """Boot a kernel, and where it prints nothing another one, each for at most some seconds; tells how the last did."""
    tried = Trial(words="no kernel to boot was found")
    for kernel in kernels[:MOST_TRIED]:
        tried = boot_kernel(binary, kernel, seconds)
        if tried.progressed is not False:
            break
    return tried


def boot_kernel(binary: Path, kernel: str, seconds: float) -> Trial:
    """Boot one kernel, and tell whether it printed its first line."""
    argv = trial_argv(binary, kernel)
    output, nothing = os.memfd_create("kvmlaunch-trial"), os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    begun = time.monotonic()
    try:
        child = spawn(argv, Owner(uid=os.geteuid(), gid=os.getegid()), lock_fd=nothing, log_fd=output)
        try:
            progressed = wait_for_sign(child.pid, output, begun + seconds)
        finally:
            child.kill()
            child.wait()
        words = os.pread(output, MOST_WORDS, 0).decode(errors="replace")
    except KvmlaunchError as error:
        return Trial(words=f"{error.report.message}: {error.report.why}")
    finally:
        os.close(output)
        os.close(nothing)
    return Trial(kernel=kernel, progressed=progressed, seconds=time.monotonic() - begun, words=words.strip()[-200:])


def wait_for_sign(pid: int, output: int, deadline: float) -> bool:
    """Wait until a kernel has printed its first line; tells whether it has before QEMU ended or the deadline came."""
    with held(pid) as process:
        while time.monotonic() < deadline:
            ended = process is None or process.wait(LOOK_AGAIN)
            if SIGN in os.pread(output, MOST_WORDS, 0):
                return True
            if ended:
                return False
    return False
