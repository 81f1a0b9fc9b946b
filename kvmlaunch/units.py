"""Sizes, durations and CPU lists: text at the edges, numbers inside.

Every `parse_` raises ValueError with a sentence that shows the right spelling; whoever knows the
key makes it a finding.  `parse_` and `render_` are pairs: parsing what was rendered gives the
same value.
"""

import re

KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))

SIZE_UNITS = {
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": TIB,
    "K": KIB,
    "M": MIB,
    "G": GIB,
    "T": TIB,
}
DECIMAL_UNITS = {"KB": "KiB", "kB": "KiB", "MB": "MiB", "GB": "GiB", "TB": "TiB"}
DURATION_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}  # milliseconds
LARGEST_SIZE = (1 << 63) - 1
LARGEST_CPU = 8191
LONGEST_NUMBER = 20

NUMBER_AND_UNIT = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([A-Za-z]*)")
CPU_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class DecimalUnitError(ValueError):
    """A size in powers of ten, such as `8GB`, where powers of two are meant."""


def parse_size(text: str) -> int:
    """Give bytes for `8GiB`, `512M`, `1.5G`: binary units, spelled ours or QEMU's way.

    Raises DecimalUnitError for `GB` and ValueError for a bare number, a fraction of a byte, zero,
    and anything from 8 EiB on (QEMU counts in signed 64 bits).
    """
    match = NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        message = f'{text!r} is no size; write a number and a binary unit, such as "8GiB"'
        raise ValueError(message)
    number, unit = match.groups()
    if unit in DECIMAL_UNITS:
        message = f'{unit} means powers of ten; write "{number}{DECIMAL_UNITS[unit]}"'
        raise DecimalUnitError(message)
    if unit not in SIZE_UNITS:
        what = f"unit {unit!r} is unknown" if unit else "the unit is missing"
        nearest = f"{unit[0].upper()}iB" if unit and f"{unit[0].upper()}iB" in SIZE_UNITS else "MiB"
        example = "; 1024TiB are a PiB" if unit[:1].upper() in {"P", "E"} else f', such as "{number}{nearest}"'
        message = f"{what}; write KiB, MiB, GiB or TiB{example}"
        raise ValueError(message)
    numerator, denominator = parse_decimal(number)
    size, rest = divmod(numerator * SIZE_UNITS[unit], denominator)
    if rest:
        message = f"{text!r} is no whole number of bytes"
        raise ValueError(message)
    if not 0 < size <= LARGEST_SIZE:
        message = f"{text!r} is out of range; a size is above 0 and below 8388608TiB"
        raise ValueError(message)
    return size


def parse_decimal(number: str) -> tuple[int, int]:
    """Give `1.5` exactly, as numerator and denominator: fractions would be one more import of every start."""
    whole, _, part = number.partition(".")
    return int(whole + part), 10 ** len(part)


def render_size(size: int) -> str:
    """Give the shortest exact text of a size in bytes: `8GiB`, `1536MiB`; bytes without a unit as `5 bytes`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return f"{size} bytes"


def render_rounded(size: int) -> str:
    """Give a size for people: whole MiB from one on."""
    return render_size(size >> 20 << 20 if size >> 20 else size)


def parse_bandwidth(text: str) -> int:
    """Give bytes a second for `200MiB/s`."""
    size, slash, second = text.partition("/")
    if not slash or second != "s":
        message = f'{text!r} is no bandwidth; write a size and /s, such as "200MiB/s"'
        raise ValueError(message)
    return parse_size(size)


def render_bandwidth(rate: int) -> str:
    """Give the text of bytes a second: `200MiB/s`."""
    return f"{render_size(rate)}/s"


def parse_duration(text: str) -> float:
    """Give seconds for `500ms`, `30s`, `2m`, `1h`; above 0, at most a week."""
    match = NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in DURATION_UNITS:
        example = f"{text}s" if match and not match[2] and text.strip("0.") else "90s"
        message = f'{text!r} is no duration; write a number and ms, s, m or h, such as "{example}"'
        raise ValueError(message)
    numerator, denominator = parse_decimal(match[1])
    seconds = numerator * DURATION_UNITS[match[2]] / (denominator * 1000)
    if not 0 < seconds <= 7 * 24 * 3600:
        message = f"{text!r} is out of range; a duration is above 0 and at most a week"
        raise ValueError(message)
    return seconds


def render_duration(seconds: float) -> str:
    """Give the shortest exact text of a duration, to the millisecond: `500ms`, `90s`, `2m`."""
    milliseconds = round(seconds * 1000)
    for unit in ("h", "m", "s"):
        length = DURATION_UNITS[unit]
        if milliseconds and milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"


def parse_cpus(text: str) -> tuple[int, ...]:
    """Give the sorted CPU numbers of a kernel list such as `2-9,34-41`; an empty text is an empty list.

    Source: cpuset(7), "List format".
    """
    return tuple(sorted(set(parse_cpu_order(text))))


def parse_cpu_order(text: str) -> tuple[int, ...]:
    """Give the CPU numbers of a list as they stand there: `4,0-1` is 4, 0, 1."""
    found: list[int] = []
    for part in text.strip().split(",") if text.strip() else ():
        match = CPU_RANGE.fullmatch(part.strip())
        if match is None:
            message = f'{text!r} is no CPU list; write numbers and ranges, such as "2-5,8"'
            raise ValueError(message)
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last > LARGEST_CPU:
            message = f"{part!r} is no range of CPUs; the first is the smaller, the largest {LARGEST_CPU}"
            raise ValueError(message)
        found.extend(range(first, last + 1))
    return tuple(found)


def render_cpus(cpus: tuple[int, ...]) -> str:
    """Give the kernel's list format for CPU numbers, in their order: `2-9,34-41`."""
    parts: list[str] = []
    start = previous = None
    for cpu in (*cpus, None):
        if start is not None and previous is not None and cpu != previous + 1:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = None
        start = cpu if start is None else start
        previous = cpu
    return ",".join(parts)


def count(number: int, singular: str, plural: str = "") -> str:
    """Give a number with its noun: `1 page`, `256 pages`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
