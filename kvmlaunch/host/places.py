"""Where the directories of a VM lie: computed from its name and its user, in one way for every command."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from kvmlaunch.errors import PreflightFailed, Report
from kvmlaunch.model.plan import Places

ROOT_UID = 0
RUN = PurePosixPath("/run/kvmlaunch")
HUGEPAGES = RUN / "hugepages"
STATE = PurePosixPath("/var/lib/kvmlaunch")
LOGS = PurePosixPath("/var/log/kvmlaunch")
CACHE = PurePosixPath("/var/cache/kvmlaunch")
JOURNAL = STATE / "journal"


def runtime_directory(uid: int, environment: Mapping[str, str]) -> PurePosixPath:
    """Give a user's runtime directory: XDG_RUNTIME_DIR, else /run/user/UID where it is his with mode 0700.

    Raises PreflightFailed `host.runtime.missing`; never falls back to /tmp.
    """
    written = environment.get("XDG_RUNTIME_DIR", "")
    path = PurePosixPath(written) if written.startswith("/") else PurePosixPath(f"/run/user/{uid}")
    try:
        status = os.stat(path, follow_symlinks=False)
        safe = stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not status.st_mode & 0o077
        seen = f"it has mode {status.st_mode & 0o7777:04o} and belongs to uid {status.st_uid}"
        trouble = "" if safe else "it is a link" if stat.S_ISLNK(status.st_mode) else seen
    except OSError as error:
        trouble = error.strerror or str(error)
    if trouble:
        raise PreflightFailed(
            Report(
                code="host.runtime.missing",
                message="there is no safe runtime directory",
                where=str(path),
                why=trouble,
                hint=f"{'unset XDG_RUNTIME_DIR; ' if written else ''}sudo install -d -m 0700 -o {uid} /run/user/{uid}",
            )
        )
    return path


def base_directory(environment: Mapping[str, str], variable: str, beneath_home: str) -> str:
    """Give a base directory of a user; what is not absolute is ignored: XDG Base Directory Specification."""
    written = environment.get(variable, "")
    return written if written.startswith("/") else f"{environment.get('HOME', '/')}/{beneath_home}"


def user_places(uid: int, vm: str, environment: Mapping[str, str], runtime: PurePosixPath) -> Places:
    """Give the directories of a user's VM."""
    state = PurePosixPath(base_directory(environment, "XDG_STATE_HOME", ".local/state")) / "kvmlaunch"
    return Places(
        run=runtime / "kvmlaunch" / vm,
        hugepages=HUGEPAGES / str(uid) / vm / "mount",
        state=state / "vm" / vm,
        logs=state / "log" / vm,
    )


def root_places(vm: str) -> Places:
    """Give the directories of a VM of root's."""
    return Places(
        run=RUN / "vm" / vm, hugepages=HUGEPAGES / str(ROOT_UID) / vm / "mount", state=STATE / "vm" / vm, logs=LOGS / vm
    )


def places_for(uid: int, vm: str, environment: Mapping[str, str]) -> Places:
    """Give the directories of a VM of the caller's."""
    if uid == ROOT_UID:
        return root_places(vm)
    return user_places(uid, vm, environment, runtime_directory(uid, environment))


def prepared_places(uid: int, vm: str, home: str) -> Places:
    """Give the directories that a user's VM will have, as root computes them for `--user`."""
    return user_places(uid, vm, {"HOME": home}, PurePosixPath(f"/run/user/{uid}"))


def cache_directory(uid: int, environment: Mapping[str, str]) -> Path:
    """Give where QEMU's answers are kept."""
    if uid == ROOT_UID:
        return Path(CACHE)
    return Path(base_directory(environment, "XDG_CACHE_HOME", ".cache")) / "kvmlaunch"


def run_parent(uid: int, environment: Mapping[str, str]) -> PurePosixPath:
    """Give the directory that holds the run directories of all of the caller's VMs."""
    return places_for(uid, "x", environment).run.parent
