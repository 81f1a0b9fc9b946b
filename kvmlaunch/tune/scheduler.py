"""I/O schedulers and read-ahead of the devices beneath the VMs' disks.

Under device-mapper, md or a loop device the scheduler of the bottom device counts; those above have no queue of their
own to sort.  Read-ahead is that of the device which is opened, or on which the file system lies.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from kvmlaunch.model.choice import Choice
from kvmlaunch.model.definition import AUTO
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.tuning import BlockDevice, HostTuning, Setting
from kvmlaunch.model.wishes import HostWishes
from kvmlaunch.tune.fleet import names_text
from kvmlaunch.tune.wish import KEEP, by_hand, chosen
from kvmlaunch.units import KIB, count

# The single-queue schedulers left with Linux 5.0 (commit f382fb0bcef4).
TODAY: Final[Mapping[str, str]] = {"deadline": "mq-deadline", "noop": "none", "cfq": "bfq"}
SOURCE: Final = "RHEL 10, Setting the disk scheduler; Linux block/elevator.c"
VIRTUAL: Final = ("vd", "xvd")
LOOP: Final = "loop"


def plan_scheduler(device: BlockDevice, wishes: HostWishes) -> tuple[Choice[str], str] | None:
    """Give the scheduler of a device and the key that decides it; None where it stays as it is found."""
    for key, word in (
        (f"schedulers.{device.name}", wishes.schedulers.get(device.name)),
        ("scheduler", None if wishes.scheduler is AUTO else wishes.scheduler),
        ("elevator", wishes.elevator),
    ):
        if word == KEEP:
            return None
        if word is not None:
            today = TODAY.get(str(word), str(word))
            note = f"{word} is called {today} since Linux 5.0" if today != word else ""
            return by_hand(today, key, note=note), key
    found = plan_auto(device)
    return None if found is None else (found, "scheduler")


def plan_auto(device: BlockDevice) -> Choice[str] | None:
    """Give the scheduler by the kind of device; None where there is none to choose or nothing is known."""
    kind = "rotating" if device.rotational else "SSD"
    queues = count(device.queues, "hardware queue")
    if device.name.startswith(VIRTUAL):
        return chosen("none", "a virtual disk: the host beneath sorts already", SOURCE)
    if device.name.startswith("nvme"):
        return chosen("none", f"NVMe, {queues}: sorting costs more than it gains", SOURCE)
    if device.rotational is None or device.name.startswith(LOOP):  # one that is bound counts as what lies beneath it
        return None
    if device.rotational or device.queues <= 1:
        return chosen("mq-deadline", f"{kind}, {queues}: sorting bounds how long a request waits", SOURCE)
    return chosen("none", f"{kind}, {queues}: fast enough without sorting", SOURCE)


def build_schedulers(tuning: HostTuning, wishes: HostWishes) -> Iterator[Setting]:
    """Give the scheduler of every device beneath a VM's disk that has one to choose."""
    for device in tuning.devices:
        plan = plan_scheduler(device, wishes)
        if plan is None or device.scheduler is None or plan[0].value not in device.scheduler.offered:
            continue
        cost = f"a moment's pause of all I/O, also of {names_text(device.vms)}"
        yield Setting(key=f"scheduler.{device.name}", knob=device.scheduler, wanted=plan[0], keeper="udev", cost=cost)


def build_read_ahead(tuning: HostTuning, wishes: HostWishes) -> Iterator[Setting]:
    """Give the read-ahead of the devices that are opened where host.toml says one: what lies beneath has no say."""
    if wishes.read_ahead == KEEP:
        return
    for device in tuning.opened:
        if device.read_ahead is not None:
            wanted = by_hand(int(wishes.read_ahead) // KIB, "read_ahead")
            yield Setting(key=f"read_ahead.{device.name}", knob=device.read_ahead, wanted=wanted, keeper="udev")


def check_schedulers(tuning: HostTuning, wishes: HostWishes) -> Iterator[Finding]:
    """Say which scheduler cannot be had, which device of host.toml is not there, and which words are of old kernels."""
    for device in tuning.devices:
        plan = plan_scheduler(device, wishes)
        if plan and device.scheduler and device.scheduler.offered and plan[0].value not in device.scheduler.offered:
            offered = ", ".join(device.scheduler.offered)
            yield warning(
                code="host.scheduler.unknown",
                message=f"{device.name} has no scheduler {plan[0].value}: skipped",
                key=plan[1],
                why=f"{device.scheduler.path}: the kernel offers {offered}",
                hint=f"modprobe {plan[0].value}-iosched   # where the kernel has it as a module",
            )
    known = {device.name for device in tuning.devices}
    for name in wishes.schedulers:
        if name not in known:
            yield warning(
                code="host.scheduler.unknown",
                message=f"no VM's disk lies on a device {name}: skipped",
                key=f"schedulers.{name}",
                why=f"those beneath the VMs' disks: {', '.join(sorted(known)) or 'none'}",
                hint="ls /sys/block",
            )
    yield from check_old_words(wishes)


def check_old_words(wishes: HostWishes) -> Iterator[Finding]:
    """Say how the words of old kernels are understood."""
    written = {"scheduler": wishes.scheduler, "elevator": wishes.elevator}
    written |= {f"schedulers.{name}": word for name, word in wishes.schedulers.items()}
    for key, word in written.items():
        if str(word) in TODAY:
            today = TODAY[str(word)]
            yield warning(
                code="host.scheduler.renamed",
                message=f"{word} is understood as {today}",
                key=key,
                why="the schedulers of a single queue went with Linux 5.0",
                hint=f'{key.rpartition(".")[2]} = "{today}"',
            )
    if wishes.elevator is not None:
        yield warning(
            code="host.scheduler.renamed",
            message="elevator is understood as scheduler",
            key="elevator",
            why="the boot argument elevator= went with Linux 5.4; a udev rule takes its place",
            hint=f'scheduler = "{TODAY.get(wishes.elevator, wishes.elevator)}"',
        )
