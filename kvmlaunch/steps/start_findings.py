"""What a start finds beyond its plan: the seed for cloud-init, UEFI variables, a runtime directory that goes away."""

import os
import shlex
from pathlib import PurePosixPath

from kvmlaunch.builder.boot import VARIABLES
from kvmlaunch.builder.cloud_init import plan_seed
from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.plan import PlannedDisk
from kvmlaunch.steps.resolve import Resolved

PLATFORM_KEY = "PK\0".encode("utf-16-le")
LARGEST_STORE = 16 << 20  # bytes
CORRUPT = 2  # by which qemu-img check ends, qemu-img(1)
LINGER = PurePosixPath("/var/lib/systemd/linger")  # of logind: a file for each user who lingers


def seeded(resolved: Resolved) -> bool:
    """Has a VM a seed for cloud-init."""
    return plan_seed(resolved.subject.definition).value


def seed_findings(resolved: Resolved) -> tuple[Finding, ...]:
    """Give what is wrong with a VM's seed for cloud-init, where it has one."""
    if not seeded(resolved):
        return ()
    from kvmlaunch.steps.seed import check_seed  # noqa: PLC0415 - with cloud_init only

    return check_seed(resolved)


def variable_findings(resolved: Resolved) -> tuple[Finding, ...]:
    """Refuse a variable store of another size than its firmware's, and secure boot with one that has no keys.

    A store is made once, of a template with keys where secure boot is asked for then; without them nothing would be
    checked.  Source: UEFI, 32.3, the platform key `PK`.
    """
    store, template = resolved.places.state / VARIABLES, resolved.plan.variables
    if template is None:
        return ()
    try:
        fd = os.open(store, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    except OSError as failure:
        why = failure.strerror or str(failure)
        return (refused_variables(store, "the UEFI variables of this VM cannot be read", why),)
    with os.fdopen(fd, "rb") as file:
        size, needed = os.fstat(fd).st_size, size_of(template)
        if needed and size != needed:
            why = f"{size} bytes, and the firmware needs {needed}: cut off, or made for another firmware"
            return (refused_variables(store, "the UEFI variables of this VM do not fit its firmware", why),)
        if not resolved.subject.definition.firmware.secure_boot or PLATFORM_KEY in file.read(LARGEST_STORE):
            return ()
    message = "secure boot would check nothing with the variables that this VM has"
    why = "they have no platform key: made by a start without secure_boot"
    return (refused_variables(store, message, why, "firmware.secure_boot"),)


def size_of(path: PurePosixPath) -> int:
    """Give the size of a file in bytes, 0 where it cannot be told: that is refused elsewhere."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def refused_variables(store: PurePosixPath, message: str, why: str, key: str = "boot.firmware") -> Finding:
    """Give the refusal of a variable store (`firmware.variables`)."""
    place = shlex.quote(str(store))
    return error(
        code="firmware.variables",
        message=message,
        key=key,
        where=str(store),
        why=why,
        hint=f"mv {place} {place}.before   # the next start makes a new one; boot entries of the guest are lost",
    )


def cut_findings(resolved: Resolved) -> tuple[Finding, ...]:
    """Refuse images of which the tables lead behind their end (`disk.corrupt`): QEMU reads zeros there, in silence.

    Only those are checked that end before a cluster which they count as used.  A crash leaves such counts too, and they
    harm nothing: qemu-img calls them leaks.
    """
    if resolved.host.held.running:  # whose images grow meanwhile
        return ()
    paths = resolved.host.paths
    short = {
        PurePosixPath(each): disk
        for disk in resolved.plan.disks
        if (facts := paths.get(disk.path))
        for each in facts.short
        if disk.format == "qcow2" or each != facts.real
    }
    return tuple(cut_off(path, disk, resolved.name) for path, disk in short.items() if is_corrupt(path))


def is_corrupt(path: PurePosixPath) -> bool:
    """Does qemu-img find an image corrupt, or cannot open it though it can be read."""
    from kvmlaunch.steps.disks import qemu_img  # noqa: PLC0415 - of a doubtful image only

    done = qemu_img("check", "-q", "-f", "qcow2", str(path), paths=(path,))
    return done.status == CORRUPT or (done.status == 1 and "Could not open" in done.err and "lock" not in done.err)


def cut_off(path: PurePosixPath, disk: PlannedDisk, vm: str) -> Finding:
    """Give the refusal of an image that was cut off."""
    word = f"{vm}:{disk.table.removeprefix('disk.')}"
    return error(
        code="disk.corrupt",
        message=f"{path} is cut off",
        key=f"{disk.table}.path",
        why="its tables lead behind its end, where QEMU would read zeros",
        hint=f"kvmlaunch disk check {word}   # tells how much is lost; then take a whole copy",
    )


def own_findings(resolved: Resolved) -> tuple[Finding, ...]:
    """Give what a start finds that its plan does not tell: of the seed, the UEFI variables, images that are cut off."""
    return (*seed_findings(resolved), *variable_findings(resolved), *cut_findings(resolved))


def lacks_seed(resolved: Resolved) -> bool:
    """Does a VM whose definition has a seed lack it, or have one that says something else."""
    if not seeded(resolved):
        return False
    from kvmlaunch.steps.seed import is_new_seed  # noqa: PLC0415 - with cloud_init only

    try:
        return is_new_seed(resolved)
    except KvmlaunchError:
        return True


def linger_findings(resolved: Resolved) -> tuple[Finding, ...]:
    """Warn where logind would remove the user's runtime directory at his last logout (`host.user.linger`)."""
    user = resolved.host.user
    if resolved.host.caller_uid == 0 or not resolved.host.systemd or os.path.exists(LINGER / user.name):
        return ()
    return (
        warning(
            code="host.user.linger",
            message=f"{user.name} does not linger",
            why=f"/run/user/{user.uid} goes away with the last login",
            hint=f"loginctl enable-linger {user.name}",
        ),
    )
