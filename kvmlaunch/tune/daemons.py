"""What works against a plan: other programs that tune the host, words for the kernel that it no longer reads."""

from collections.abc import Iterator
from typing import Final

from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.tuning import HostTuning

TOUCHES: Final = {
    "tuned": "it sets schedulers, governors, read-ahead and sysctls by its own profile",
    "ksmtuned": "it switches KSM on and off by the free memory",
    "numad": "it moves processes and memory between NUMA nodes",
    "power-profiles-": "it sets governors",
}
HOW: Final = {"tuned": "tuned-adm off", "power-profiles-": "systemctl disable --now power-profiles-daemon"}


def check_daemons(tuning: HostTuning) -> Iterator[Finding]:
    """Warn of programs that undo settings (`host.tuned.conflict`)."""
    for name, pid in tuning.daemons.items():
        yield warning(
            code="host.tuned.conflict",
            message=f"{name} tunes this host as well",
            where=f"pid {pid}",
            why=TOUCHES[name],
            hint=HOW.get(name, f"systemctl disable --now {name}"),
        )


def check_cmdline(tuning: HostTuning) -> Iterator[Finding]:
    """Warn of an `elevator=` on the kernel command line, which does nothing (`host.cmdline.elevator`)."""
    for word in tuning.cmdline:
        if word.startswith("elevator="):
            yield warning(
                code="host.cmdline.elevator",
                message=f"{word} on the kernel command line has no effect",
                where="/proc/cmdline",
                why="the argument went with Linux 5.4 and only warns since 5.5",
                hint="kvmlaunch tune apply --persist   # writes a udev rule in its place; remove it there",
            )
