"""Processes and users: whom QEMU will run as, and who holds what we want."""

from collections.abc import Mapping
from itertools import pairwise

from kvmlaunch.model.host import Holder, UserFacts

PID1 = "/proc/1/comm"
FILES = (PID1,)


def parse_user(probe: object, memlock_hard: int | None) -> UserFacts:
    """Give the user of the probe `user`."""
    match probe:
        case {"uid": int(uid), "gid": int(gid), "name": str(name), "groups": [*groups]}:
            names = tuple(str(group) for group in groups)
            return UserFacts(uid=uid, gid=gid, name=name, groups=names, memlock_hard=memlock_hard)
        case _:
            message = "the probe user has no uid, gid, name and groups"
            raise ValueError(message)


def parse_caller(probe: object) -> int:
    """Give the caller's uid of the probe `caller`."""
    match probe:
        case {"uid": int(uid)}:
            return uid
        case _:
            message = "the probe caller has no uid"
            raise ValueError(message)


def parse_systemd(files: Mapping[str, str]) -> bool:
    """Is systemd the first process; /run/systemd can exist without it."""
    return files.get(PID1, "").strip() == "systemd"


def parse_holders(probe: object) -> tuple[Holder, ...]:
    """Give the holders of a list in a probe."""
    if not isinstance(probe, list):
        message = "holders are no list"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    return tuple(parse_holder(holder) for holder in probe)


def parse_holder(probe: object) -> Holder:
    """Give the holder of a probe."""
    match probe:
        case {"pid": int(pid), "command": str(command), "vm": str(vm), "writes": bool(writes)}:
            return Holder(pid=pid, command=command, vm=vm, writes=writes)
        case _:
            message = "a holder has no pid, command, vm and writes"
            raise ValueError(message)


def parse_vm_name(cmdline: str) -> str:
    """Give the VM's name from the arguments of a QEMU (/proc/PID/cmdline), "" when they name none.

    `-name` takes `NAME,…` or `guest=NAME,…`; a comma in the name is doubled.
    """
    words = cmdline.split("\0")
    value = next((value for word, value in pairwise(words) if word in {"-name", "--name"}), "")
    fields = value.replace(",,", "\0").split(",")
    guests = [field.removeprefix("guest=") for field in fields if field.startswith("guest=")]
    bare = [field for field in fields[:1] if "=" not in field]
    return (guests or bare or [""])[0].replace("\0", ",")
