"""The record of a run: what was started, kept in the run directory.

The run directory belongs to the VM's user, so a record is input and never truth: a pid read from it is
verified before anything is done with it.
"""

from typing import Literal

from kvmlaunch.model.value import frozen


@frozen(kw_only=True)
class Record:
    """One start of a VM.

    `state` is `intent` from before the spawn (pid 0) until every promise was read back.  `start_time` and
    `launcher_start` are field 22 of /proc/PID/stat, in clock ticks since boot.  `notes` are words that
    `status` repeats, such as a disk whose cache ignores flushes.  `launcher` is the pid of the command
    that starts it.
    """

    vm: str
    uuid: str
    state: Literal["intent", "running"]
    pid: int
    start_time: int
    boot_id: str
    launcher: int
    launcher_start: int
    uid: int
    definition: str
    digest: str
    started: str
    argv: tuple[str, ...]
    accelerator: str
    memory: str
    stop_timeout: float
    notes: tuple[str, ...] = ()
