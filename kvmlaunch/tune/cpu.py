"""The CPUs' governor and KVM's polling: never forced, set where host.toml says so."""

from collections.abc import Iterator

from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.tuning import HostTuning, Setting
from kvmlaunch.model.wishes import HostWishes
from kvmlaunch.tune.wish import KEEP, by_hand
from kvmlaunch.units import render_cpus

HALT_POLL = "kvm.halt_poll_ns"


def build_cpu(tuning: HostTuning, wishes: HostWishes) -> Iterator[Setting]:
    """Give the governor of every CPU, and KVM's polling."""
    if wishes.governor != KEEP:
        for number, knob in tuning.governors.items():
            if wishes.governor in knob.offered:
                yield Setting(
                    key=f"governor.cpu{number}",
                    knob=knob,
                    wanted=by_hand(wishes.governor, "governor"),
                    keeper="tmpfiles",
                    cost="power and heat" if wishes.governor == "performance" else "",
                )
    if wishes.halt_poll_ns != KEEP and HALT_POLL in tuning.parameters:
        wanted = by_hand(wishes.halt_poll_ns, "halt_poll_ns")
        yield Setting(key=HALT_POLL, knob=tuning.parameters[HALT_POLL], wanted=wanted, keeper="udev")


def check_cpu(tuning: HostTuning, wishes: HostWishes) -> Iterator[Finding]:
    """Say where a governor or KVM's parameter is wished for and is not there."""
    lacking = {number: knob for number, knob in tuning.governors.items() if wishes.governor not in knob.offered}
    if wishes.governor != KEEP and (lacking or not tuning.governors):
        offered = sorted({word for knob in lacking.values() for word in knob.offered})
        some = f" of CPU {render_cpus(tuple(lacking))}" if 0 < len(lacking) < len(tuning.governors) else ""
        why = f"the driver offers {', '.join(offered)}" if offered else "this host has no cpufreq"
        yield warning(
            code="host.governor.unknown",
            message=f"there is no governor {wishes.governor}{some}: skipped",
            key="governor",
            why=why,
            hint='governor = "keep"',
        )
    if wishes.halt_poll_ns != KEEP and HALT_POLL not in tuning.parameters:
        yield warning(
            code="host.kvm.missing",
            message="halt_poll_ns cannot be set: skipped",
            key="halt_poll_ns",
            why="the module kvm is not loaded",
            hint="modprobe kvm_intel || modprobe kvm_amd",
        )
