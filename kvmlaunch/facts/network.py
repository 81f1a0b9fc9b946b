"""Network devices from /sys/class/net, bound ports from /proc/net.

Sources: Documentation/networking/tuntap.rst and proc_net_tcp.rst; include/uapi/linux/if_tun.h,
if.h.
"""

import re
from collections.abc import Mapping
from typing import Literal

from kvmlaunch.model.host import Holder, Listener, NetworkDevice

DEVICES = "/sys/class/net/*"
ATTRIBUTES = ("mtu", "flags", "tun_flags", "owner", "bridge/stp_state")
DEVICE_FILES = tuple(f"{DEVICES}/{name}" for name in ATTRIBUTES)
SOCKET_FILES = ("/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6")

MTU = re.compile(r"/sys/class/net/([^/]+)/mtu")
SOCKET = re.compile(
    r" *[0-9]+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} ([0-9A-F]{2})"
    r"(?: \S+){3} +(?:[0-9]+ +){2}([0-9]{1,20})\b.*",
    re.ASCII,
)
ZEROS = r"(?:^|:)0(?::0)+(?::|$)"
HEXADECIMAL = re.compile(r"(?:0x)?[0-9a-fA-F]{1,8}", re.ASCII)
DECIMAL = re.compile(r"-?[0-9]{1,10}", re.ASCII)
IFF_UP = 0x1
TUN_TAP = 0x2
TUN_MULTI_QUEUE = 0x100
TCP_LISTEN = "0A"
UDP_UNCONNECTED = "07"


def parse_network_devices(files: Mapping[str, str], masters: object) -> Mapping[str, NetworkDevice]:
    """Give the devices by name; `masters` is the probe that maps a device to its bridge."""
    if not isinstance(masters, Mapping):
        message = "the probe masters is no table"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    names = sorted(match[1] for path in files if (match := MTU.fullmatch(path)))
    return {name: parse_network_device(files, name, str(masters.get(name, ""))) for name in names}


def parse_network_device(files: Mapping[str, str], name: str, master: str) -> NetworkDevice:
    """Give one device."""
    place = f"/sys/class/net/{name}"
    tun = parse_number(files.get(f"{place}/tun_flags", "0"), 16)
    owner = parse_number(files.get(f"{place}/owner", "-1"), 10)
    bridge = f"{place}/bridge/stp_state" in files
    return NetworkDevice(
        name=name,
        kind="bridge" if bridge else "tap" if tun & TUN_TAP else "other",
        mtu=parse_number(files[f"{place}/mtu"], 10),
        up=bool(parse_number(files.get(f"{place}/flags", "0"), 16) & IFF_UP),
        master=master,
        owner_uid=owner if owner >= 0 else None,
        multi_queue=bool(tun & TUN_MULTI_QUEUE),
    )


def parse_number(text: str, base: Literal[10, 16]) -> int:
    """Give the number that an attribute holds."""
    if (HEXADECIMAL if base == 16 else DECIMAL).fullmatch(text.strip()) is None:  # noqa: PLR2004 - said in words
        message = f"{text.strip()[:40]!r} is no number of a network device"
        raise ValueError(message)
    return int(text, base)


def parse_bound(text: str) -> str:
    """Give the lines of a /proc/net table that are bound and not connected: peers' addresses are nobody's business."""
    lines = text.splitlines()
    matches = (SOCKET.fullmatch(line) for line in lines[1:])
    bound = (match[0] for match in matches if match and match[3] in {TCP_LISTEN, UDP_UNCONNECTED})
    return "".join(f"{line}\n" for line in [*lines[:1], *bound])


def parse_listeners(files: Mapping[str, str], holders: Mapping[str, Holder]) -> tuple[Listener, ...]:
    """Give the bound ports; `holders` maps a socket's inode to the process that was looked for."""
    return tuple(
        listener
        for path in SOCKET_FILES
        for listener in parse_table(files.get(path, ""), "tcp" if "tcp" in path else "udp", holders)
    )


def parse_table(text: str, protocol: Literal["tcp", "udp"], holders: Mapping[str, Holder]) -> list[Listener]:
    """Give the bound ports of one table."""
    wanted = TCP_LISTEN if protocol == "tcp" else UDP_UNCONNECTED
    return [
        Listener(protocol=protocol, address=parse_address(address), port=int(port, 16), holder=holders.get(inode))
        for address, port, status, inode in parse_sockets(text)
        if status == wanted
    ]


def parse_sockets(text: str) -> list[tuple[str, str, str, str]]:
    """Give address, port, status and inode of the sockets of a table, as written there."""
    found = (SOCKET.fullmatch(line) for line in text.splitlines()[1:])
    return [(match[1], match[2], match[3], match[4]) for match in found if match]


def parse_address(text: str) -> str:
    """Give an address that /proc/net writes as 32-bit words in the byte order of the host, here little-endian."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    if len(words) == 1:
        return ".".join(str(byte) for byte in words[0])
    packed = b"".join(words)
    groups = ":".join(f"{packed[place] << 8 | packed[place + 1]:x}" for place in range(0, len(packed), 2))
    return re.sub(ZEROS, "::", groups, count=1)
