"""Taps of ours: made with `ip`, joined to their bridge, removed."""

import os

from kvmlaunch.errors import HostFailed, Report
from kvmlaunch.host.command import run_tool
from kvmlaunch.host.readers import read_text
from kvmlaunch.model.change import TapChange

MULTI_QUEUE = 0x0100  # IFF_MULTI_QUEUE of linux/if_tun.h


def tap_exists(ifname: str) -> bool:
    """Is there a network device of this name."""
    return os.path.exists(f"/sys/class/net/{ifname}")


def is_made_otherwise(change: TapChange) -> bool:
    """Is there a tap of this name with other queues, or another owner."""
    place = f"/sys/class/net/{change.ifname}"
    flags, owner = read_text(f"{place}/tun_flags"), read_text(f"{place}/owner")
    if flags is None or owner is None:
        return False
    multi_queue = bool(int(flags, 16) & MULTI_QUEUE)
    return (multi_queue, int(owner)) != (change.multi_queue, change.uid)


def delete_tap(ifname: str) -> None:
    """Delete a tap as it was made; the kernel refuses one that a process has open, and what is no tap."""
    flags = int(read_text(f"/sys/class/net/{ifname}/tun_flags") or "0", 16)
    run_ip("tuntap", "del", "dev", ifname, "mode", "tap", *(("multi_queue",) if flags & MULTI_QUEUE else ()))


def run_ip(*arguments: str) -> None:
    """Run `ip`; raises HostFailed with its own text."""
    result = run_tool(("ip", *arguments))
    if result.status:
        raise HostFailed(
            Report(
                code="host.failed",
                message=f"ip {' '.join(arguments)} failed",
                where=arguments[0],
                why=result.err.strip(),
            )
        )


def make_tap(change: TapChange) -> None:
    """Make a persistent tap owned by the VM's user, joined to its bridge and up; removed when a step fails.

    One of ours that is there with other queues or another owner, which cannot be changed, is made anew.
    """
    if is_made_otherwise(change):
        delete_tap(change.ifname)
    if not tap_exists(change.ifname):
        queues = ("multi_queue",) if change.multi_queue else ()
        run_ip("tuntap", "add", "dev", change.ifname, "mode", "tap", "user", str(change.uid), *queues)
    try:
        mtu = ("mtu", str(change.mtu)) if change.mtu else ()
        run_ip("link", "set", "dev", change.ifname, "master", change.bridge, *mtu, "up")
    except HostFailed:
        remove_tap(change)
        raise


def remove_tap(change: TapChange) -> None:
    """Remove a tap of ours; gone already is fine, one that is joined elsewhere is somebody else's now."""
    if not tap_exists(change.ifname):
        return
    master = os.path.realpath(f"/sys/class/net/{change.ifname}/master").rpartition("/")[2]
    joined_elsewhere = os.path.exists(f"/sys/class/net/{change.ifname}/master") and master != change.bridge
    if not joined_elsewhere:
        delete_tap(change.ifname)
