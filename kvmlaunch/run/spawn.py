"""Starts one lasting process, a QEMU or a tool that may take long; the only door to subprocess."""

import contextlib
import errno
import os
import resource
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from kvmlaunch.errors import PreflightFailed, QemuFailed, Report
from kvmlaunch.model.value import frozen

Child = subprocess.Popen[bytes]
KEPT: list[Child] = []  # where Python takes one apart, the exception of a signal that arrives then is lost
ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"}


@frozen(kw_only=True)
class Owner:
    """Whom a process runs as; `drop` tells whether the caller is root and gives its rights up."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    drop: bool = False


@contextlib.contextmanager
def raised_memlock(size: int, *, stays_root: bool) -> Iterator[None]:
    """Raise our own limit of locked memory around a spawn, so that the child inherits it; 0 leaves it alone."""
    if not size:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    hard = before[1]
    if hard != resource.RLIM_INFINITY and os.geteuid() == 0:
        hard = max(size, hard)  # never lowered: without CAP_SYS_RESOURCE it could not be raised again
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
    except ValueError as error:  # root without CAP_SYS_RESOURCE, as in a container
        if stays_root:  # with CAP_IPC_LOCK the limit does not count: mlock(2); without it QEMU says so
            yield
            return
        message = f"the limit of locked memory is {before[1]} bytes and cannot be raised (CAP_SYS_RESOURCE)"
        raise OSError(errno.EPERM, message) from error
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


@contextlib.contextmanager
def raised_ceilings(largest: int) -> Iterator[None]:
    """Raise our own limits of CPU time and of a file's size, in bytes, around a spawn, so that the child inherits them.

    What a shell or a cron has set would end a guest, or cut its disks off, long after its start: getrlimit(2).  Raises
    PreflightFailed `host.limit` where they cannot be raised that far.
    """
    with contextlib.ExitStack() as stack:
        for kind, option, needed in ((resource.RLIMIT_CPU, "-t", None), (resource.RLIMIT_FSIZE, "-f", largest)):
            before = resource.getrlimit(kind)
            if before[0] == resource.RLIM_INFINITY:
                continue
            top = before[1]
            with contextlib.suppress(ValueError):  # not root, or without CAP_SYS_RESOURCE
                resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)
                top = resource.RLIM_INFINITY
            if top != resource.RLIM_INFINITY:
                resource.setrlimit(kind, (top, top))
            stack.callback(resource.setrlimit, kind, before)
            if top != resource.RLIM_INFINITY and (needed is None or top < needed):
                raise PreflightFailed(
                    Report(
                        code="host.limit",
                        message=f"the limit of {'CPU time' if needed is None else 'file sizes'} would end the guest",
                        where=f"ulimit {option}",
                        why=f"it is {top} {'seconds' if needed is None else f'bytes, and a disk may need {needed}'}",
                        hint=f"ulimit -S {option} unlimited   # where that is refused, limits.conf(5) sets the limit",
                    )
                )
        yield


def spawn(
    argv: tuple[str, ...], owner: Owner, *, lock_fd: int, log_fd: int, memlock: int = 0, largest: int = 0
) -> Child:
    """Start a process in a session of its own that inherits the lock (-1 for none) and nothing else of ours.

    Its standard input is /dev/null and its output a file, as a pipe would die with us; `memlock` and `largest`, the
    size of the largest file that it writes, are in bytes.
    Raises QemuFailed `qemu.exit` when it cannot be executed, PreflightFailed `host.limit`.
    """
    try:
        with raised_memlock(memlock, stays_root=owner.uid == 0), raised_ceilings(largest):
            return spawn_child(
                argv, owner, out_fd=log_fd, err_fd=log_fd, fds=(lock_fd,) if lock_fd >= 0 else (), session=True
            )
    except OSError as error:
        raise QemuFailed(
            Report(
                code="qemu.exit",
                message=f"{argv[0]} could not be started",
                where=argv[0],
                why=error.strerror or str(error),
                hint=f"give the container --ulimit memlock={memlock}, or memory.lock = false"
                if error.errno == errno.EPERM
                else "",
            )
        ) from error


def spawn_child(
    argv: tuple[str, ...], owner: Owner, *, out_fd: int, err_fd: int, fds: Sequence[int], session: bool = False
) -> Child:
    """Start a process with its streams in files and descriptors that it keeps; raises OSError where it cannot be."""
    child = subprocess.Popen(  # noqa: S603 - argv is a tuple of words, no shell
        argv,
        stdin=subprocess.DEVNULL,
        stdout=out_fd,
        stderr=err_fd,
        pass_fds=tuple(fds),
        env=dict(ENVIRONMENT),
        cwd="/",
        umask=0o077,
        start_new_session=session,
        user=owner.uid if owner.drop else None,
        group=owner.gid if owner.drop else None,
        extra_groups=owner.groups if owner.drop else None,
    )
    KEPT[:] = [*(each for each in KEPT if each.poll() is None), child]
    return child


def has_ended(process: Child, seconds: float) -> bool:
    """Wait for a process so long, and tell whether it has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
