"""mount(2) and umount2(2), named by descriptor and last component; the only door to ctypes here."""

import os
from pathlib import PurePosixPath

from kvmlaunch.host.tree import entered

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


def call(name: str, *arguments: bytes | int) -> None:
    """Call a function of the C library; raises OSError with its errno."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount_at(path: PurePosixPath, type_: str, options: str, *, uid: int = 0) -> None:
    """Mount a file system on a directory of root's, or of `uid`'s within root's tree; raises OSError.

    The directory is opened first and mounted on by descriptor, so nobody can put another one in its place.
    """
    with entered(path, uid) as target:
        kind = type_.encode()
        call(
            "mount", kind, f"/proc/self/fd/{target}".encode(), kind, MS_NOSUID | MS_NODEV | MS_NOEXEC, options.encode()
        )


def unmount_at(path: PurePosixPath, *, uid: int = 0, detach: bool = False) -> None:
    """Unmount what is mounted on a directory; raises OSError, EBUSY when it is in use, unless it is to `detach`."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)
    with entered(path.parent, uid) as parent:
        call("umount2", f"/proc/self/fd/{parent}/{path.name}".encode(), flags)
