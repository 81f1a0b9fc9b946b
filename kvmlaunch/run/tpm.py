"""The emulator of a guest's TPM: started before QEMU, gone with it."""

import os
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from signal import SIGKILL, SIGTERM

from kvmlaunch.errors import HostFailed, Report
from kvmlaunch.run.process import held, read_cmdline
from kvmlaunch.run.spawn import Owner, spawn

LOOK_AGAIN = 0.01  # seconds
SECONDS = 5.0


def launch_emulator(argv: tuple[str, ...], owner: Owner, socket: PurePosixPath, log: PurePosixPath, log_fd: int) -> int:
    """Start swtpm, wait until it listens, and give its pid; raises HostFailed `host.tpm.failed`."""
    child = spawn(argv, owner, lock_fd=-1, log_fd=log_fd)
    deadline = time.monotonic() + SECONDS
    while not os.path.exists(socket):
        ended = child.poll() is not None
        if ended or time.monotonic() > deadline:
            child.kill()
            child.wait()
            raise HostFailed(
                Report(
                    code="host.tpm.failed",
                    message="the emulator of the TPM ended" if ended else "the emulator of the TPM does not listen",
                    where=str(log),
                    why=f"its last words are there; it was {' '.join(argv[:3])}",
                )
            )
        time.sleep(LOOK_AGAIN)
    return child.pid


def emulator_pid(pid_file: PurePosixPath, socket: PurePosixPath) -> int | None:
    """Give the pid of the emulator that serves a socket, None when it is gone; its file is input, and checked."""
    with suppress(OSError, ValueError):
        pid = int(Path(pid_file).read_text(encoding="ascii"))
        if any(f"path={socket}" in word for word in read_cmdline(pid)):
            return pid
    return None


def end_emulator(pid_file: PurePosixPath, socket: PurePosixPath) -> None:
    """End an emulator whose QEMU is gone, or never came."""
    pid = emulator_pid(pid_file, socket)
    if pid is None:
        return
    with held(pid) as process:
        for number in (SIGTERM, SIGKILL):
            if process is None or emulator_pid(pid_file, socket) != pid:
                return
            process.send(number)
            if process.wait(SECONDS):
                return
