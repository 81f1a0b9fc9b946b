"""A file system whose files pass through two caches that a power cut empties: the host's page cache and the disk's.

Called as `volatile.py STORE MOUNTPOINT`; the files of STORE are what has always been there, and are never changed.
Each is served as `live/NAME`, and read-only as what is left of it: `killed/NAME` when only the programs are gone,
`cut1/NAME` when the host went down and the disk's cache is safe, `cut2/NAME` when that is empty too.  A write through
O_DIRECT gets as far as the disk's cache, any other as far as the page cache; fsync commits both.  It models order by
fsync, not torn sectors, and not a disk that lies.

A name that begins with `bad-write` or `bad-flush` fails so, with EIO, until there is a file `mended` in STORE.
"""

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any, Final

import mfusepy

VIEWS: Final = ("live", "killed", "cut1", "cut2")
MENDED: Final = "mended"


class File:
    """What a file holds: on the disk's platters, in its cache, and in the host's page cache."""

    def __init__(self, content: bytes) -> None:
        """Begin with everything committed."""
        self.platters, self.cache, self.pages = bytearray(content), bytearray(content), bytearray(content)

    def write(self, data: bytes, offset: int, *, direct: bool) -> None:
        """Write as far as such a write gets."""
        for layer in (self.cache, self.pages) if direct else (self.pages,):
            layer.extend(bytes(max(0, offset - len(layer))))
            layer[offset : offset + len(data)] = data

    def resize(self, length: int) -> None:
        """Change the length: a change of metadata, taken as committed."""
        for layer in (self.platters, self.cache, self.pages):
            layer.extend(bytes(max(0, length - len(layer))))
            del layer[length:]

    def commit(self) -> None:
        """Empty both caches onto the platters."""
        self.cache[:] = self.platters[:] = self.pages

    def seen(self, view: str) -> bytearray:
        """Give what is left of it in a view."""
        return {"cut1": self.cache, "cut2": self.platters}.get(view, self.pages)


class VolatileFiles:
    """The callbacks of libfuse; one thread serves all."""

    use_ns = True

    def __init__(self, store: Path) -> None:
        """Begin with the files of a directory."""
        self.store = store
        self.files = {path.name: File(path.read_bytes()) for path in store.iterdir()}

    def found(self, path: str) -> tuple[str, str, File]:
        """Give the view, the name and the file of a path; raises ENOENT."""
        _, view, *rest = path.split("/")
        if view not in VIEWS or len(rest) != 1 or rest[0] not in self.files:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return view, rest[0], self.files[rest[0]]

    def check(self, name: str, what: str) -> None:
        """Fail what a file is bad at; raises EIO."""
        if name.startswith(f"bad-{what}") and not (self.store / MENDED).exists():
            raise mfusepy.FuseOSError(errno.EIO)

    def getattr(self, path: str, _handle: Any) -> dict[str, int]:  # noqa: ANN401 - of ctypes, as below
        """Describe a file; all else are directories."""
        if path == "/" or path[1:] in VIEWS:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        view, _, file = self.found(path)
        size, mode = len(file.seen(view)), 0o666 if view == "live" else 0o444
        return {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": size, "st_blocks": -(-size // 512)}

    def readdir(self, path: str, _handle: Any) -> list[str]:  # noqa: ANN401
        """List a directory."""
        return list(VIEWS if path == "/" else self.files)

    def open(self, path: str, handle: Any) -> int:  # noqa: ANN401
        """Open a file, past the kernel's own page cache."""
        view, _, _ = self.found(path)
        if view != "live" and handle.flags & os.O_ACCMODE != os.O_RDONLY:
            raise mfusepy.FuseOSError(errno.EROFS)
        handle.direct_io = 1
        return 0

    def read(self, path: str, size: int, offset: int, _handle: Any) -> bytes:  # noqa: ANN401
        """Read what is left of a file."""
        view, _, file = self.found(path)
        return bytes(file.seen(view)[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, handle: Any) -> int:  # noqa: ANN401
        """Write into a file."""
        _, name, file = self.found(path)
        self.check(name, "write")
        file.write(data, offset, direct=bool(handle.flags & os.O_DIRECT))
        return len(data)

    def truncate(self, path: str, length: int, _handle: Any) -> int:  # noqa: ANN401
        """Change the length of a file."""
        self.found(path)[2].resize(length)
        return 0

    def fsync(self, path: str, _data_only: int, _handle: Any) -> int:  # noqa: ANN401
        """Commit a file."""
        _, name, file = self.found(path)
        self.check(name, "flush")
        file.commit()
        return 0


if __name__ == "__main__":
    mfusepy.FUSE(
        VolatileFiles(Path(sys.argv[1])),
        sys.argv[2],
        raw_fi=True,
        foreground=True,
        nothreads=True,
        allow_other=True,
        fsname="volatile",
    )
