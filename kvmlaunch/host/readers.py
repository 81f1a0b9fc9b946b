"""Read /proc and /sys: a text or a list of names, and nothing where there is nothing.

Paths are strings: they belong to the kernel, and Path takes ten times as long.
"""

import os
from collections.abc import Iterator

CHUNK = 1 << 16


def names_in(directory: str) -> list[str]:
    """Give the names in a directory; none when it cannot be read."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def read_text(path: str, most: int | None = None) -> str | None:
    """Give the text of a file of /proc or /sys, at most `most` bytes; None when it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.fsdecode(b"".join(read_chunks(handle, most)))
    except OSError:
        return None
    finally:
        os.close(handle)


def read_chunks(handle: int, most: int | None) -> Iterator[bytes]:
    """Give what can be read, once when a bound is given."""
    while chunk := os.read(handle, most or CHUNK):
        yield chunk
        if most:
            return


def link_target(path: str) -> str:
    """Give what a symbolic link says, "" when it is none or gone."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def device_number(number: int) -> str:
    """Give `major:minor`."""
    return f"{os.major(number)}:{os.minor(number)}"


def inode_of(path: str) -> str:
    """Give `major:minor:inode` of a file, through links; "" when it is none or gone."""
    try:
        seen = os.stat(path)
    except OSError:
        return ""
    return f"{device_number(seen.st_dev)}:{seen.st_ino}"
