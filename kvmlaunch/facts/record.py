"""The record of a run and QEMU's own event log: text that the VM's user could have changed, read with distrust."""

import contextlib
import json
import math
from collections.abc import Iterator

from kvmlaunch.model.record import Record
from kvmlaunch.model.value import asdict

SCHEMA = 1
LARGEST_PID = 1 << 22  # the kernel's own limit, PID_MAX_LIMIT
FIRST_PID_OF_OTHERS = 2  # 0 is ourselves to kill(2), 1 is init
LONGEST = 1 << 20
LONGEST_TIMEOUT = 7 * 24 * 3600  # seconds, as in a definition


def render_record(record: Record) -> str:
    """Give the JSON text of a record."""
    return json.dumps({"schema": SCHEMA, **asdict(record)}, indent=1)


def parse_record(text: str) -> Record:
    """Give the record of a JSON text; ValueError with a sentence for anything that is none of ours."""
    if len(text) > LONGEST:
        message = "the record is longer than a record can be"
        raise ValueError(message)
    try:
        document = json.loads(text)
        if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
            message = "it is no record of this version"
            raise ValueError(message)
        argv, notes = document.pop("argv"), document.pop("notes")
        record = Record(argv=tuple(argv), notes=tuple(notes), **document)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"it lacks something: {error}"
        raise ValueError(message) from error
    check_record(record)
    return record


def check_record(record: Record) -> None:
    """Refuse a record with a wrong type or a pid that must never be signalled; raises ValueError."""
    texts = (
        record.vm,
        record.uuid,
        record.state,
        record.boot_id,
        record.definition,
        record.digest,
        record.started,
        record.accelerator,
        record.memory,
        *record.argv,
        *record.notes,
    )
    numbers = (record.pid, record.start_time, record.launcher, record.launcher_start, record.uid)
    if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
        message = "a value has the wrong type"
        raise ValueError(message)
    timeout = record.stop_timeout
    if type(timeout) not in {int, float} or not math.isfinite(timeout) or not 0 <= timeout <= LONGEST_TIMEOUT:
        message = "the timeout is no number of seconds"
        raise ValueError(message)
    least = FIRST_PID_OF_OTHERS if record.state == "running" else 0
    if record.state not in {"intent", "running"} or not least <= record.pid <= LARGEST_PID:
        message = f"state {record.state!r} and pid {record.pid} are impossible"
        raise ValueError(message)


def parse_last_end(text: str) -> str:
    """Give the reason of the last SHUTDOWN event in QEMU's event log, "" when there is none.

    A guest's panic counts as one.  Lines that are no events are passed over.
    Source: QEMU docs, interop/qmp-spec (asynchronous events) and qapi/run-state.json.
    """
    for event in events_of(text):
        match event:
            case {"event": "SHUTDOWN", "data": {"reason": str(reason)}}:
                return reason
            case {"event": "GUEST_PANICKED"}:
                return "guest-panic"
    return ""


def parse_job_error(text: str, job: str) -> str:
    """Give why the last block job of an id failed, by QEMU's event log; "" where it tells of no failure.

    Source: QEMU docs, qapi/block-core.json, BLOCK_JOB_COMPLETED.
    """
    for event in events_of(text):
        match event:
            case {"event": "BLOCK_JOB_COMPLETED", "data": {"device": str(device), **rest}} if device == job:
                return str(rest.get("error", ""))
    return ""


def events_of(text: str) -> Iterator[object]:
    """Give the events of QEMU's log, the last first."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line)


def parse_state(stat: str) -> str:
    """Give the state letter of /proc/PID/stat, such as R, T or Z; "" of no such text: proc_pid_stat(5)."""
    return stat.rpartition(")")[2].strip()[:1]


def parse_start_time(stat: str) -> int:
    """Give field 22 of /proc/PID/stat; the command before it may hold blanks and parentheses: proc_pid_stat(5)."""
    fields = stat.rpartition(")")[2].split()
    try:
        return int(fields[19])
    except (IndexError, ValueError) as error:
        message = "/proc/PID/stat has another shape"
        raise ValueError(message) from error


def parse_cmdline(text: str) -> tuple[str, ...]:
    """Give the words of /proc/PID/cmdline."""
    return tuple(text.split("\0")[:-1]) if text else ()


def parse_lock_taker(locks: str, device: str, inode: int) -> int | None:
    """Give the pid that took the flock on an inode, by /proc/locks, None for no flock.

    `device` is `major:minor` in hex.  Who took it may have ended since, and left the lock to a child.
    Waiting locks (`->`) do not count.  Source: proc_locks(5).
    """
    wanted = f"{device}:{inode}"
    for line in locks.splitlines():
        words = line.split()
        if "->" not in words and "FLOCK" in words and wanted in words:
            return int(words[4])
    return None
