"""How each kind of value is written: text → value, and value → text, as pairs.

Every `parse_` takes what TOML gave and raises Mistake; nothing is coerced.
"""

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any, Final

from kvmlaunch.define.mistake import Mistake, shown, wrong_type
from kvmlaunch.define.tree import quote
from kvmlaunch.model.definition import (
    Bandwidth,
    CpuList,
    Duration,
    Forward,
    HostNumaNode,
    MacAddress,
    ReadAhead,
    Ready,
    Size,
    Uuid,
)
from kvmlaunch.units import (
    KIB,
    MIB,
    NUMBER_AND_UNIT,
    SIZE_UNITS,
    DecimalUnitError,
    parse_bandwidth,
    parse_cpu_order,
    parse_duration,
    parse_size,
    render_bandwidth,
    render_cpus,
    render_duration,
    render_size,
)

LARGEST_PORT: Final = 65535
MOST_BANDWIDTH: Final = 900 << 40  # bytes a second; QEMU's include/qemu/throttle.h has 10^15
MOST_READ_AHEAD: Final = 64 * MIB
LARGEST_INTEGER: Final = (1 << 63) - 1
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MAC = r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"
IPV4 = r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}"
IPV6 = r"[0-9a-fA-F:]*:[0-9a-fA-F:]*(?:\d+(?:\.\d+){3})?(?:%[A-Za-z0-9]+)?"
FORWARD = r"([a-z]+):(?:(\[[^\]]*\]|[^:\[\]]*):)?([0-9]{1,6})(?::|-:|-)([0-9]{1,6})"
HOST_PORT = r"(\[[^\]]*\]|[^:\[\]]*):([0-9]{1,6})"
HTTP = r"http://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,6}))?(?:[/?][!-~]*)?"


def parse_str(value: object) -> str:
    """Give text; a number is refused with the text that it would be."""
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) <= LARGEST_INTEGER):
        raise wrong_type(value, "text", right="" if type(value) is bool else quote(shown(value)))
    return parse_text(value, "text")


def parse_text(value: object, wanted: str) -> str:
    """Give the text of a kind; NUL and what is not Unicode cannot reach a command line."""
    if type(value) is not str:
        raise wrong_type(value, wanted)
    for character in value:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            what = "NUL" if character == "\0" else "a byte that is not UTF-8"
            message = f"{shown(value)} contains {what}"
            raise Mistake(code="def.value.type", message=message)
    return value


def parse_int(value: object) -> int:
    """Give a whole number of at most 64 bits."""
    if type(value) is not int:
        digits = isinstance(value, str) and value.strip().isdecimal()
        whole = isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_INTEGER
        right = value.strip() if isinstance(value, str) and digits else ""
        raise wrong_type(
            value, "a whole number", right=str(int(value)) if whole and isinstance(value, float) else right
        )
    if abs(value) > LARGEST_INTEGER:
        message = f"{shown(value)} does not fit into 64 bits"
        raise Mistake(code="def.value.range", message=message)
    return value


def parse_float(value: object) -> float:
    """Give a number with a fraction."""
    if type(value) is not float:
        raise wrong_type(value, "a number with a fraction")
    return value


def parse_bool(value: object) -> bool:
    """Give true or false."""
    if type(value) is not bool:
        words = {"true": "true", "yes": "true", "on": "true", "1": "true"}
        words |= {"false": "false", "no": "false", "off": "false", "0": "false"}
        raise wrong_type(value, "true or false", right=words.get(str(value).lower(), ""))
    return value


LARGEST_GUESS_IN_GIB = 64


def guessed_size(number: int) -> str:
    """Give how a bare number was probably meant: MiB, as `-m` takes it, unless it is small; "" for no guess."""
    if not 0 < number < 1 << 30:
        return ""
    return f'"{number}GiB"' if number <= LARGEST_GUESS_IN_GIB else f'"{number}MiB"'


def parse_size_value(value: object) -> Size:
    """Give bytes for `"8GiB"`."""
    if type(value) in {int, str} and str(value) == "0":
        raise Mistake(code="def.value.range", message=f"{shown(value)} is no size", hint='above 0, such as "1GiB"')
    if type(value) is int:
        message = f"{shown(value)} has no unit"
        raise Mistake(code="def.size.unit", message=message, right=guessed_size(abs(value)))
    return Size(in_size_words(parse_size, parse_text(value, WANTED[Size]), suffix=""))


def parse_bandwidth_value(value: object) -> Bandwidth:
    """Give bytes a second for `"200MiB/s"`."""
    if type(value) is int:
        message = f"{shown(value)} has no unit"
        raise Mistake(
            code="def.size.unit", message=message, right=f'"{abs(value)}MiB/s"' if 0 < abs(value) < 1 << 20 else ""
        )
    rate = Bandwidth(in_size_words(parse_bandwidth, parse_text(value, WANTED[Bandwidth]), suffix="/s"))
    if rate > MOST_BANDWIDTH:
        message = f"{shown(value)} is more than QEMU takes, {render_bandwidth(MOST_BANDWIDTH)}"
        raise Mistake(code="def.value.range", message=message)
    return rate


def parse_read_ahead(value: object) -> ReadAhead:
    """Give bytes for `"128KiB"`; a bare number was meant as the kernel's read_ahead_kb has it."""
    if type(value) is int and value:
        message = f"{shown(value)} has no unit"
        raise Mistake(code="def.size.unit", message=message, right=f'"{abs(value)}KiB"')
    ahead = parse_size_value(value)
    if ahead % (4 * KIB) or ahead > MOST_READ_AHEAD:
        hint = f"a multiple of 4KiB, at most {render_size(MOST_READ_AHEAD)}"
        raise Mistake(code="def.value.range", message="the kernel takes no such read-ahead", hint=hint)
    return ReadAhead(ahead)


def in_size_words(parse: Callable[[str], int], text: str, suffix: str) -> int:
    """Give what `parse` reads; its refusal becomes the mistake with the code that fits."""
    try:
        return parse(text)
    except DecimalUnitError as error:
        right = str(error).partition('write "')[2].rstrip('"')
        message = f"{shown(text)} counts in powers of ten; sizes are binary"
        raise Mistake(code="def.size.decimal", message=message, right=f'"{right}{suffix}"' if right else "") from error
    except ValueError as error:
        match = NUMBER_AND_UNIT.fullmatch(text.removesuffix(suffix).removeprefix("-"))
        code = "def.value.range" if match and match[2] in SIZE_UNITS else "def.size.unit"
        code = code if text.endswith(suffix) else "def.size.unit"
        what, _, hint = str(error).partition("; ")
        if text.startswith("-"):
            what, hint = f"{shown(text)} is negative", ""
        raise Mistake(
            code=code, message=what, right=right_size(text.removesuffix(suffix), suffix), hint=hint
        ) from error


def right_size(text: str, suffix: str) -> str:
    """Give the size that was probably meant, with a unit that is known; "" when there is no telling."""
    if text.isdecimal() and not suffix:
        return guessed_size(int(text))
    match = NUMBER_AND_UNIT.fullmatch(text.strip())
    units = {unit.lower(): unit for unit in SIZE_UNITS} | {"": "GiB", "b": "", "mb": "MiB", "gb": "GiB"}
    unit = units.get(match[2].lower(), "") if match else ""
    return (
        f'"{match[1]}{unit}{suffix}"' if match and unit and float(match[1]) > 0 and match[2] not in SIZE_UNITS else ""
    )


def parse_duration_value(value: object) -> Duration:
    """Give seconds for `"90s"`."""
    if type(value) is int:
        message = f"{shown(value)} has no unit"
        raise Mistake(code="def.size.unit", message=message, right=f'"{value}s"' if 0 < value < 1 << 20 else "")
    text = parse_text(value, WANTED[Duration])
    try:
        return Duration(parse_duration(text))
    except ValueError as error:
        what, _, hint = str(error).partition("; ")
        code = "def.value.range" if "out of range" in what else "def.size.unit"
        raise Mistake(code=code, message=what, hint=hint) from error


def parse_cpu_list(value: object) -> CpuList:
    """Give the numbers of `"2-9,34-41"` in their order: the first is for the first vCPU."""
    if type(value) is int:
        raise wrong_type(value, "a list of CPUs, as text,", right=f'"{value}"')
    text = parse_text(value, WANTED[CpuList])
    try:
        cpus = parse_cpu_order(text)
    except ValueError as error:
        what, _, hint = str(error).partition("; ")
        raise Mistake(code="def.value.range", message=what, hint=hint) from error
    if not cpus:
        raise Mistake(code="def.value.range", message="the list of CPUs is empty", right='"none"')
    twice = next((cpu for cpu in cpus if cpus.count(cpu) > 1), None)
    if twice is not None:
        message = f"CPU {twice} stands twice in the list"
        raise Mistake(code="def.value.range", message=message, hint="each thread has a host CPU of its own")
    return CpuList(cpus)


def parse_numa_node(value: object) -> HostNumaNode:
    """Give the number of `"0"`."""
    if type(value) is int:
        raise wrong_type(value, "a host NUMA node, as text,", right=f'"{value}"')
    text = parse_text(value, WANTED[HostNumaNode])
    if not re.fullmatch(r"[0-9]{1,4}", text):
        message = f"{shown(text)} is no host NUMA node"
        raise Mistake(
            code="def.value.choice", message=message, hint='write its number, such as "0"; `lscpu` shows them'
        )
    return HostNumaNode(int(text))


def parse_mac(value: object) -> MacAddress:
    """Give a unicast MAC address in lower case, for `52:54:00:12:34:56` or with hyphens."""
    text = parse_text(value, WANTED[MacAddress])
    mac = text.lower().replace("-", ":")
    if not re.fullmatch(MAC, mac):
        message = f"{shown(text)} is no MAC address"
        raise Mistake(code="def.value.choice", message=message, hint='write six pairs, such as "52:54:00:12:34:56"')
    if mac == "00:00:00:00:00:00":
        message = f"{shown(text)} is no address of a device"
        raise Mistake(code="def.value.choice", message=message, why="QEMU takes it for none", hint="leave mac out")
    if int(mac[:2], 16) & 1:
        why = "the lowest bit of the first byte says multicast"
        right = f'"52:54:00{mac[8:]}"'
        raise Mistake(
            code="def.value.choice", message=f"{shown(text)} is no address of one device", why=why, right=right
        )
    return MacAddress(mac)


def parse_uuid(value: object) -> Uuid:
    """Give a UUID in lower case, with hyphens."""
    text = parse_text(value, WANTED[Uuid])
    uuid = text.lower()
    if not re.fullmatch(UUID, uuid) or not uuid.strip("0-"):
        message = f"{shown(text)} is no UUID of a machine"
        hint = "write 32 hexadecimal digits with hyphens, not all zero; uuidgen makes one"
        raise Mistake(code="def.value.choice", message=message, hint=hint)
    return Uuid(uuid)


def parse_port(text: str) -> int:
    """Give a port number of 1 to 65535."""
    port = int(text)
    if not 1 <= port <= LARGEST_PORT:
        message = f"port {port} is out of range"
        raise Mistake(code="def.value.range", message=message, hint=f"a port is 1 to {LARGEST_PORT}")
    return port


def parse_address(text: str) -> str:
    """Give an IP address, without the brackets of IPv6; names are refused, as they change under a VM."""
    bracketed = text.startswith("[") and text.endswith("]")
    address = text.strip("[]") if bracketed else text
    if not re.fullmatch(IPV6 if bracketed else IPV4, address):
        right = "127.0.0.1" if text == "localhost" else ""
        hint = f'write "{right}"' if right else "write an address such as 127.0.0.1 or [::1]"
        raise Mistake(code="def.value.choice", message=f"{shown(text)} is no IP address", hint=hint)
    return address


def parse_forward(value: object) -> Forward:
    """Give the parts of `tcp:127.0.0.1:8080:80` or `tcp:[::1]:8080:80`."""
    text = parse_text(value, WANTED[Forward])
    match = re.fullmatch(FORWARD, text)
    if match is None or match[1] not in {"tcp", "udp"}:
        message = f"{shown(text)} is no forward"
        hint = 'write protocol:host address:host port:guest port, such as "tcp:127.0.0.1:8080:80"'
        raise Mistake(code="def.value.choice", message=message, hint=hint)
    protocol, address, host_port, guest_port = match.groups()
    right = f'"{protocol}:{address or "127.0.0.1"}:{host_port}:{guest_port}"'
    if not address:
        message = f"{shown(text)} has no host address, so it would listen on all of them"
        hint = "to open it to the network, write 0.0.0.0"
        raise Mistake(code="def.net.exposed", message=message, right=right, hint=hint)
    if not text.endswith(f"{host_port}:{guest_port}"):
        raise Mistake(code="def.value.choice", message=f"{shown(text)} is no forward", right=right)
    return Forward(
        protocol="tcp" if protocol == "tcp" else "udp",
        address=parse_address(address),
        host_port=parse_port(host_port),
        guest_port=parse_port(guest_port),
    )


def parse_host_port(text: str) -> tuple[str, int]:
    """Give address and port of `127.0.0.1:5901`; the address "" when it is not written."""
    match = re.fullmatch(HOST_PORT, text)
    if match is None:
        message = f"{shown(text)} is no address with a port"
        raise Mistake(code="def.value.choice", message=message, hint='write ADDRESS:PORT, such as "127.0.0.1:5901"')
    return parse_address(match[1]) if match[1] else "", parse_port(match[2])


def is_loopback(host: str) -> bool:
    """Does an address, with or without brackets, reach this host alone."""
    import ipaddress  # noqa: PLC0415 - where there is an address

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def parse_ready(value: object) -> Ready:
    """Give what `http://…`, `console:REGEX` or `tcp:ADDRESS:PORT` waits for."""
    text = parse_text(value, WANTED[Ready])
    kind, _, target = text.partition(":")
    match = re.fullmatch(HTTP, text)
    if match:
        parse_port(match[1] or "80")
        return Ready(kind="http", target=text)
    if kind == "console" and target:
        return Ready(kind="console", target=parse_regex(target))
    if kind == "tcp" and target:
        address, _ = parse_host_port(target)
        if not address:
            raise Mistake(
                code="def.value.choice", message=f"{shown(text)} has no address", right=quote(f"tcp:127.0.0.1{target}")
            )
        return Ready(kind="tcp", target=target)
    message = f"{shown(text)} is nothing that can be waited for"
    hint = "write http://ADDRESS:PORT/, console:REGEX or tcp:ADDRESS:PORT"
    raise Mistake(code="def.value.choice", message=message, hint=hint)


def parse_regex(text: str) -> str:
    """Give a regular expression that compiles."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        message = f"{shown(text)} is no regular expression: {error}"
        raise Mistake(code="def.value.choice", message=message) from error
    return text


def parse_path(value: object) -> PurePosixPath:
    """Give a path that was made absolute before; see paths.py."""
    return PurePosixPath(normpath(parse_text(value, WANTED[PurePosixPath])))


def render_host(address: str) -> str:
    """Give an address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def render_forward(forward: Forward) -> str:
    """Give the text of a forward."""
    return f"{forward.protocol}:{render_host(forward.address)}:{forward.host_port}:{forward.guest_port}"


def render_ready(ready: Ready) -> str:
    """Give the text of a condition."""
    return ready.text


def render_exact_size(size: int) -> str:
    """Give a size that reads back as the same bytes, a fraction of a KiB included."""
    if size % 1024 == 0:
        return render_size(size)
    fraction = f"{size % 1024 * 9765625:010d}".rstrip("0")
    return f"{size // 1024}.{fraction}KiB"


def render_exact_bandwidth(rate: int) -> str:
    """Give a bandwidth that reads back as the same bytes a second."""
    return render_bandwidth(rate) if rate % 1024 == 0 else f"{render_exact_size(rate)}/s"


PARSERS: Final[dict[Any, Callable[[object], object]]] = {
    str: parse_str,
    int: parse_int,
    bool: parse_bool,
    float: parse_float,
    Size: parse_size_value,
    Bandwidth: parse_bandwidth_value,
    ReadAhead: parse_read_ahead,
    Duration: parse_duration_value,
    CpuList: parse_cpu_list,
    HostNumaNode: parse_numa_node,
    MacAddress: parse_mac,
    Uuid: parse_uuid,
    Forward: parse_forward,
    Ready: parse_ready,
    PurePosixPath: parse_path,
}
RENDERERS: Final[dict[Any, Callable[[Any], str]]] = {
    Size: render_exact_size,
    Bandwidth: render_exact_bandwidth,
    ReadAhead: render_exact_size,
    Duration: render_duration,
    CpuList: render_cpus,
    HostNumaNode: str,
    MacAddress: str,
    Uuid: str,
    Forward: render_forward,
    Ready: render_ready,
    PurePosixPath: str,
}
# What each kind is called in a message, and how it is written.
WANTED: Final[dict[Any, str]] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    float: "a number with a fraction",
    Size: 'a size such as "8GiB"',
    Bandwidth: 'a bandwidth such as "200MiB/s"',
    ReadAhead: 'a size such as "128KiB"',
    Duration: 'a duration such as "90s"',
    CpuList: 'a list of CPUs such as "2-5"',
    HostNumaNode: 'a host NUMA node such as "0"',
    MacAddress: 'a MAC address such as "52:54:00:12:34:56"',
    Uuid: 'a UUID such as "123e4567-e89b-42d3-a456-426614174000"',
    Forward: 'a forward such as "tcp:127.0.0.1:8080:80"',
    Ready: "an http URL, console:REGEX or tcp:ADDRESS:PORT",
    PurePosixPath: "a path",
}
