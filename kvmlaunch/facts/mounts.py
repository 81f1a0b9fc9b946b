"""The mounts of our own namespace, from /proc/self/mountinfo.

Source: proc_pid_mountinfo(5).
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath

from kvmlaunch.model.host import Mount

MOUNTINFO = "/proc/self/mountinfo"
FILES = (MOUNTINFO,)

OCTAL = re.compile(r"\\([0-3][0-7]{2})")
FIELDS_BEFORE_DASH = 6
FIELDS_AFTER_DASH = 3


def parse_mounts(files: Mapping[str, str]) -> tuple[Mount, ...]:
    """Give the mounts in the kernel's order: of two on one directory the later covers the earlier."""
    return parse_table(files.get(MOUNTINFO, ""))


@lru_cache(maxsize=4)
def parse_table(text: str) -> tuple[Mount, ...]:
    """Give the mounts of a table, which a start reads four times and seldom finds changed."""
    return tuple(parse_mount(line) for line in text.split("\n") if line.strip())


def parse_mount(line: str) -> Mount:
    """Give the mount of one line; ValueError for a line of another shape."""
    before, _, after = line.partition(" - ")
    front, back = before.split(" "), after.split(" ")
    if len(front) < FIELDS_BEFORE_DASH or len(back) < FIELDS_AFTER_DASH:
        message = f"{MOUNTINFO} has a line of another shape: {line[:80]!r}"
        raise ValueError(message)
    return Mount(
        path=PurePosixPath(parse_escapes(front[4])),
        type=back[0],
        source=parse_escapes(back[1]),
        device=front[2],
        options=tuple(dict.fromkeys(parse_escapes(option) for option in (front[5] + "," + back[2]).split(","))),
    )


def parse_escapes(text: str) -> str:
    r"""Give the text with `\040` and its like replaced: the kernel escapes blank, tab, newline and backslash."""
    return OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def find_mount(mounts: tuple[Mount, ...], path: PurePosixPath) -> Mount | None:
    """Give the mount that a path without symbolic links lies on."""
    above = {path, *path.parents}
    holding = [mount for mount in mounts if mount.path in above]
    deepest = max((len(mount.path.parts) for mount in holding), default=0)
    return next((mount for mount in reversed(holding) if len(mount.path.parts) == deepest), None)


def escape_octal(path: str) -> str:
    """Give a path as mountinfo has it: space, tab, newline and backslash in octal, as parse_mount reads them."""
    return "".join(f"\\{ord(character):03o}" if character in " \t\n\\" else character for character in path)
