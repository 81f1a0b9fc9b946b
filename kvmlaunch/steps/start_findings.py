"""What a start finds beyond its plan: the seed for cloud-init, a user whose runtime directory goes away."""

import os
from pathlib import PurePosixPath

from kvmlaunch.builder.cloud_init import plan_seed
from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.steps.resolve import Resolved

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
