"""Identities, computed from names: never drawn, never counted, so they stay when something else changes."""

import hashlib

DEFAULT_NETWORK = "net0"  # of a definition without any
LONGEST_STEM = 26  # QEMU refuses a node name of 32 characters, and `fmt-` takes 4 of 31


def digest(*words: str) -> str:
    """Give 64 hex digits that depend on the words and on nothing else."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def stem(name: str) -> str:
    """Give the part of an id that stands for a name: the name itself, or its start and a hash where it is too long.

    A name as it is has at most 25 characters, one with a hash has 26, so that no two names meet.
    """
    return name if len(name) < LONGEST_STEM else f"{name[:17]}-{digest(name)[:8]}"


def drive_id(name: str) -> str:
    """Give the id of a disk's drive; it differs from the node name, which shares its name space with it."""
    return f"disk-{stem(name)}"


def cdrom_id(name: str) -> str:
    """Give the id of a CD-ROM's drive; a disk called `cd-x` cannot meet it."""
    return f"cdrom-{stem(name)}"


def node_name(name: str) -> str:
    """Give the name of a disk's format node, at most 31 characters."""
    return f"fmt-{stem(name)}"


def cdrom_node_name(name: str) -> str:
    """Give the name of a CD-ROM's format node, at most 31 characters."""
    return f"iso-{stem(name)}"


def device_id(name: str) -> str:
    """Give the id of a disk's device."""
    return f"dev-{stem(name)}"


def cdrom_device_id(name: str) -> str:
    """Give the id of a CD drive; a disk's, whatever its name, begins otherwise."""
    return f"cd-{stem(name)}"


def share_id(name: str) -> str:
    """Give the id of what is behind a share: its daemon's socket, or its directory."""
    return f"share-{stem(name)}"


def share_device_id(name: str) -> str:
    """Give the id of a share's device."""
    return f"mount-{stem(name)}"


def netdev_id(name: str) -> str:
    """Give the id of a network's backend."""
    return f"net-{stem(name)}"


def nic_id(name: str) -> str:
    """Give the id of a network's device."""
    return f"nic-{stem(name)}"


def mac_address(machine_id: str, uid: int, vm: str, network: str) -> str:
    """Give a stable MAC in QEMU's own range, 52:54:00; VMs of one name of two users differ."""
    tail = digest("mac", machine_id, str(uid), vm, network)
    return f"52:54:00:{tail[0:2]}:{tail[2:4]}:{tail[4:6]}"


def vm_uuid(machine_id: str, uid: int, vm: str) -> str:
    """Give a stable UUID of a VM of a user on a host (RFC 9562, version 8: the bits are ours)."""
    tail = digest("uuid", machine_id, str(uid), vm)
    return f"{tail[0:8]}-{tail[8:12]}-8{tail[13:16]}-8{tail[17:20]}-{tail[20:32]}"


def tap_name(uid: int, vm: str, network: str) -> str:
    """Give the name of our tap, 12 characters: a network device may have 15."""
    return f"kv{digest('tap', str(uid), vm, network)[:10]}"
