"""The QEMU binary, and the directories and sockets that it is given."""

from collections.abc import Iterator

from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Places, Plan
from kvmlaunch.model.qemu import OLDEST_VERSION, QemuCaps
from kvmlaunch.model.run_files import CONSOLE, EVENTS, QMP_OWN

LONGEST_SOCKET_PATH = 107  # sun_path is 108 bytes with its final NUL: unix(7)
SOCKETS = (CONSOLE, EVENTS, QMP_OWN)


def check_version(caps: QemuCaps) -> Iterator[Finding]:
    """Refuse a QEMU older than the tests know (`qemu.version`)."""
    if caps.version[:2] < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        yield error(
            code="qemu.version",
            message=f"QEMU {caps.version_text} is too old",
            key="qemu.binary",
            where=str(caps.binary),
            why=f"the oldest that kvmlaunch is tested with is {oldest}",
            hint="install a newer QEMU, and name it in qemu.binary",
        )


def check_directories(_plan: Plan, host: HostFacts) -> Iterator[Finding]:
    """Refuse a directory of the VM's that somebody else could change under us (`host.dir.unsafe`)."""
    if host.unsafe:
        yield Finding(severity="error", report=host.unsafe)


def check_socket_paths(_plan: Plan, _host: HostFacts, places: Places) -> Iterator[Finding]:
    """Refuse a run directory whose sockets' paths do not fit (`host.path.long`)."""
    longest = max(len(str(places.run / name).encode()) for name in SOCKETS)
    if longest > LONGEST_SOCKET_PATH:
        yield error(
            code="host.path.long",
            message="the path of the run directory is too long for a socket",
            where=str(places.run),
            why=f"{longest} bytes, a socket's path has at most {LONGEST_SOCKET_PATH}",
            hint="export XDG_RUNTIME_DIR=/run/user/$(id -u)",
        )
