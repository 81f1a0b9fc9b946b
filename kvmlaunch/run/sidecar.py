"""Processes beside a QEMU, for its TPM and its shares: started before it, gone with it."""

import os
import time
from contextlib import suppress
from pathlib import PurePosixPath
from signal import SIGKILL, SIGTERM
from typing import Final

from kvmlaunch.errors import HostFailed, Report
from kvmlaunch.model.run_files import NOTE, SOCKET
from kvmlaunch.run.process import held, read_cmdline, read_start_time
from kvmlaunch.run.spawn import Child, Owner, has_ended, spawn

LOOK_AGAIN = 0.01  # seconds
SECONDS = 5.0
LONGEST_NOTE = 64


def launch_sidecar(argv: tuple[str, ...], owner: Owner, socket: PurePosixPath, log: PurePosixPath, log_fd: int) -> int:
    """Start a process, wait until it listens, and give its pid; raises HostFailed `host.sidecar.failed`."""
    child = spawn(argv, owner, lock_fd=-1, log_fd=log_fd)
    try:
        ended = wait_until_it_listens(child, socket)
    except BaseException:
        child.kill()
        raise
    if ended is None:
        return child.pid
    child.kill()
    child.wait()
    name = PurePosixPath(argv[0]).name
    raise HostFailed(
        Report(
            code="host.sidecar.failed",
            message=f"{name} {'ended at once' if ended else 'does not listen'}",
            where=str(log),
            why="its own words are there",
            hint=f"tail {log}",
        )
    )


def wait_until_it_listens(child: Child, socket: PurePosixPath) -> bool | None:
    """Wait for a process's socket; gives None once it is there, else whether the process ended, at the deadline."""
    deadline = time.monotonic() + SECONDS
    while not os.path.exists(socket):
        ended = has_ended(child, LOOK_AGAIN)
        if ended or time.monotonic() > deadline:
            return ended
    return None


def serves(argv: tuple[str, ...], socket: PurePosixPath) -> bool:
    """Is this the command line of a process that listens at a socket."""
    return any(word.partition("path=")[2].split(",")[0] == str(socket) for word in argv if "path=" in word)


INTENT: Final = "0 0\n"  # noted before a process is started: whoever serves the socket then is it


def render_note(pid: int) -> str:
    """Give what is noted of a process beside QEMU: its pid, and when it was started."""
    return f"{pid} {read_start_time(pid)}\n"


def noted_pid(run: PurePosixPath, socket: str) -> int | None:
    """Give the pid of the process that serves a socket, None when it is gone; the note is input, and checked."""
    with suppress(OSError, ValueError):
        fd = os.open(run / f"{socket}{NOTE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            pid, start = map(int, os.read(fd, LONGEST_NOTE).split())
        finally:
            os.close(fd)
        if pid == 0:
            return find_server(run, socket)
        if read_start_time(pid) == start and serves(read_cmdline(pid), run / socket):
            return pid
    return None


def find_server(run: PurePosixPath, socket: str) -> int | None:
    """Give the process that serves a socket, of those that the run directory's owner or root has; None for none.

    A process of a container may have the same command line: what counts is whose run directory it sees.
    """
    status = os.stat(run)
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            ours = os.stat(f"/proc/{name}").st_uid in {0, status.st_uid}
            if ours and serves(read_cmdline(int(name)), run / socket):
                seen = os.stat(f"/proc/{name}/root{run}")
                if (seen.st_dev, seen.st_ino) == (status.st_dev, status.st_ino):
                    return int(name)
    return None


def end_sidecars(run: PurePosixPath) -> None:
    """End what is left beside a QEMU that is gone, or never came."""
    for name in os.listdir(run):
        pid = noted_pid(run, name.removesuffix(NOTE)) if name.endswith(f"{SOCKET}{NOTE}") else None
        if pid is not None:
            end(pid, run, name.removesuffix(NOTE))


def end(pid: int, run: PurePosixPath, socket: str) -> None:
    """End one process, held and then looked at once more."""
    with held(pid) as process:
        if process is None or noted_pid(run, socket) != pid:
            return
        for number in (SIGTERM, SIGKILL):
            process.send(number)
            if process.wait(SECONDS):
                return
