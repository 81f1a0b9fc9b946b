"""The rights of the VM's user: who that is, and having them for a while."""

import grp
import os
import pwd
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from kvmlaunch.errors import HostFailed, Report
from kvmlaunch.model.host import UserFacts

LONGEST_UID = 10  # digits


def capture_user(name: str | None = None) -> UserFacts:
    """Give the user of a name, or the caller with the groups that it has now; HostFailed for no such user."""
    if name is None:
        groups = {os.getegid(), *os.getgroups()}
        return UserFacts(uid=os.geteuid(), gid=os.getegid(), name=user_name(os.geteuid()), groups=group_names(groups))
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        known = user_name(int(name)) if name.isdecimal() and len(name) <= LONGEST_UID else name
        make = "" if name.isdecimal() else f"useradd --system --no-create-home {shlex.quote(name)}"
        hint = f"{known}   # is the name of uid {name}" if known != name else make
        raise HostFailed(
            Report(
                code="host.user.unknown",
                message=f"there is no user {name}",
                where="security.user",
                why="the host's user database does not know it",
                hint=hint,
            )
        ) from error
    groups = set(os.getgrouplist(name, entry.pw_gid))
    return UserFacts(uid=entry.pw_uid, gid=entry.pw_gid, name=name, groups=group_names(groups))


def user_name(uid: int) -> str:
    """Give the name of a uid, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_names(gids: set[int]) -> tuple[str, ...]:
    """Give the names of groups, or their numbers, in the order of the numbers."""
    return tuple(group_name(gid) for gid in sorted(gids))


def group_name(gid: int) -> str:
    """Give the name of a group, or its number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def group_numbers(names: Iterable[str]) -> set[int]:
    """Give the numbers of groups by name or number; a name that the host does not know gives no right."""
    numbers = {int(name) for name in names if name.isdecimal()}
    for name in names:
        with suppress(KeyError):
            numbers.add(grp.getgrnam(name).gr_gid)
    return numbers


@contextmanager
def rights_of(user: UserFacts) -> Iterator[None]:
    """Have the user's effective rights for a while; only root can, for anybody else nothing changes."""
    if os.geteuid() != 0 or user.uid == 0:
        yield
        return
    gid, groups = os.getegid(), os.getgroups()
    wanted = sorted({user.gid, *group_numbers(user.groups)})
    try:
        os.setgroups(wanted)
        os.setegid(user.gid)
        os.seteuid(user.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
