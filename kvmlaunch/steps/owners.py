"""Whom the processes run as that are started here: QEMU, what is beside it, and the tools."""

import os

from kvmlaunch.host.rights import group_numbers
from kvmlaunch.model.host import UserFacts
from kvmlaunch.run.spawn import Owner


def process_owner(user: UserFacts) -> Owner:
    """Give a user's rights for a process; root's are given up for another user's, his groups included."""
    drop = os.geteuid() == 0 and user.uid != 0
    groups = tuple(sorted(group_numbers(user.groups))) if drop else ()
    return Owner(uid=user.uid, gid=user.gid, groups=groups, drop=drop)
