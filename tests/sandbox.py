"""A machine of its own for a test: mount and network namespaces in which kvmlaunch's directories are empty.

Two runs of the tests, or a run beside a VM of this host, do not meet: /run/kvmlaunch, /run/user, the state and
the logs are tmpfs of the namespace's own, and a machine id of its own gives its VMs UUIDs of their own.  Page
pools are the kernel's and global: tests/root/conftest.py cares for those.
"""

import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess  # noqa: TID253 - tests start kvmlaunch, by itself and in ways that kvmlaunch would not
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import pytest
from attrs import define, field, frozen

ROOT: Final = Path(__file__).resolve().parent.parent
FAKES: Final = ROOT / "tests" / "fakes"
KVMLAUNCH: Final = Path(sys.executable).parent / "kvmlaunch"
OWN: Final = ("/run/kvmlaunch", "/var/lib/kvmlaunch", "/var/log/kvmlaunch", "/run/user", "/run/virtiofsd")
CACHE: Final = "/var/cache/kvmlaunch"
SECONDS: Final = 60.0  # for whatever must happen: generous, as the machine may be busy
RUN: Final = "/run/kvmlaunch/vm"
PATH: Final = f"{KVMLAUNCH.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ALICE: Final = 61234  # a uid that nobody has on this host; her name exists in the namespace only
HER_NAME: Final = "kl-alice"

Process = subprocess.Popen[str]

# The smallest VM: nothing of it depends on the host, and nothing of the host is changed for it but its console's tmpfs.
TINY: Final = """
vcpus = 1
accel = "tcg"
[memory]
size = "32MiB"
hugepages = "off"
[network.lan]
type = "none"
"""


@frozen(kw_only=True)
class Result:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - any document
        """Give the document on standard output."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:  # noqa: ANN401 - any document
        """Give the error document on standard error, which may follow lines of talk."""
        return json.loads(next(line for line in self.err.splitlines() if line.startswith("{")))["error"]

    @property
    def codes(self) -> set[str]:
        """Give the stable codes that standard error names, `[vm.locked]`; `in [disk.root]` is a table."""
        return set(re.findall(r"(?<!in )\[([a-z_]+(?:\.[a-z_]+)+)\]", self.err))


def wait_for(what: str, condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until a condition holds; fails with what was awaited."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def cmdline(pid: int) -> bytes:
    """Give the argv of a process as the kernel has it; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def status_field(pid: int, name: str) -> str:
    """Give a field of /proc/PID/status, "" when the process is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    return ""


def is_alive(pid: int) -> bool:
    """Does a process run; a zombie does not."""
    return status_field(pid, "State")[:1] not in {"", "Z", "X"}


@define(kw_only=True)
class Machine:
    """A namespace kept alive by a process that sleeps; `directory` is where commands run, with `vmdefs` in it."""

    holder: Process
    directory: Path
    started: list[Process] = field(factory=list)

    def outside(self, path: str | Path) -> Path:
        """Give where a path of the namespace lies for us."""
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def enter(self, words: Sequence[str], *, at: str | Path | None = None) -> list[str]:
        """Give the command line that runs a command in here; the process that it starts becomes the command."""
        pid = str(self.holder.pid)
        return ["nsenter", "-t", pid, "-m", "-n", f"--wd={self.outside(at or self.directory)}", *words]

    def start(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        at: str | Path | None = None,
        umask: int = -1,
        out: int | IO[str] = subprocess.PIPE,
        stdin: int | IO[str] = subprocess.DEVNULL,
    ) -> Process:
        """Start a command in here."""
        environment = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **(env or {})}
        process = subprocess.Popen(  # noqa: S603 - a test's own command
            self.enter([str(word) for word in words], at=at),
            env=environment,
            umask=umask,
            stdin=stdin,
            stdout=out,
            stderr=subprocess.PIPE if out == subprocess.PIPE else out,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def execute(
        self, *words: str | Path, env: Mapping[str, str] | None = None, at: str | Path | None = None, umask: int = -1
    ) -> Result:
        """Run any command in here to its end."""
        return finish(self.start(*words, env=env, at=at, umask=umask))

    def run(self, *words: str | Path, env: Mapping[str, str] | None = None, umask: int = -1) -> Result:
        """Run kvmlaunch to its end."""
        return self.execute(KVMLAUNCH, *words, env=env, umask=umask)

    def ok(self, *words: str | Path) -> Result:
        """Run kvmlaunch, which has to succeed."""
        result = self.run(*words)
        assert result.code == 0, f"kvmlaunch {shlex.join(map(str, words))} → {result.code}\n{result.err}"
        return result

    def end(self, name: str) -> Result:
        """End a VM that nobody will miss, whatever it does."""
        return self.ok("down", name, "--force", "--timeout", "10ms")

    def fake(self, behaviour: str) -> Path:
        """Give a program that answers questions as QEMU does and, as a VM, behaves as tests/fakes/qemu.py says."""
        path = self.directory / f"qemu-{behaviour}"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKES / "qemu.py"} {behaviour} "$@"\n')
        path.chmod(0o755)
        return path

    def define(self, name: str, text: str = TINY, *, image: bool = False) -> Path:
        """Write a definition, with a disk image of 1 MiB beside it where that is wanted; give the definition's path."""
        place = self.directory / "vmdefs"
        place.mkdir(exist_ok=True)
        path = place / f"{name}.toml"
        disk = f'[disk.root]\npath = "{name}.img"\n' if image else ""
        path.write_text(f"{text}{disk}")
        if image:
            (place / f"{name}.img").write_bytes(bytes(1 << 20))
        return path

    def rundir(self, name: str) -> Path:
        """Give the run directory of root's VM, as it lies for us."""
        return self.outside(f"{RUN}/{name}")

    def record(self, name: str) -> Any:  # noqa: ANN401 - any document
        """Give the record of root's VM."""
        return json.loads((self.rundir(name) / "record.json").read_text())

    def pid(self, name: str) -> int:
        """Give the pid of QEMU that the record of root's VM names."""
        pid = self.record(name)["pid"]
        assert isinstance(pid, int)
        return pid

    def status(self, name: str) -> Any:  # noqa: ANN401 - any document
        """Give one VM's status."""
        return self.run("status", name, "--json").json["vms"][0]

    def processes(self) -> list[int]:
        """Give the pids of all live processes in here but the one that keeps it."""
        own = os.readlink(f"/proc/{self.holder.pid}/ns/mnt")
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/mnt") == own and int(name) != self.holder.pid:
                    found.append(int(name))
        return [pid for pid in found if is_alive(pid)]

    def qemus(self) -> list[int]:
        """Give the pids of every QEMU in here."""
        return [pid for pid in self.processes() if b"-uuid\0" in cmdline(pid) and b"strace\0" not in cmdline(pid)]

    def journals(self) -> list[str]:
        """Give the names of the journals; one that a crash left unfinished says nothing and is written over."""
        with suppress(FileNotFoundError):
            names = os.listdir(self.outside("/var/lib/kvmlaunch/journal"))
            return sorted(name for name in names if not name.startswith("."))
        return []

    def mounts(self) -> list[str]:
        """Give what is mounted for VMs: the mount points below our own tmpfs."""
        lines = Path(f"/proc/{self.holder.pid}/mountinfo").read_text().splitlines()
        return [words[4] for line in lines if (words := line.split())[4].startswith(("/run/kvmlaunch/", "/run/user/"))]

    def leftovers(self) -> list[str]:
        """Give everything that `down` should have removed: processes, run directories, mounts, journals."""
        runs = self.outside(RUN)
        left = [f"run directory {name}" for name in (os.listdir(runs) if runs.is_dir() else ())]
        pages = self.outside("/run/kvmlaunch/hugepages")
        left += [f"directory {path}" for path in (pages.rglob("*") if pages.is_dir() else ())]
        return [
            *left, *(f"process {pid}" for pid in self.qemus()), *(f"mount {path}" for path in self.mounts()),
            *(f"journal {name}" for name in self.journals()),
        ]  # fmt: skip

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process of this machine, and wait for the end of one that is killed: of all its threads."""
        assert pid in self.processes(), f"{pid} is no process of this machine"
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, number)
            if number == signal.SIGKILL:
                # A first thread that is a zombie is not enough: one that is at a file still holds its lock.
                wait_for(f"pid {pid} has ended", lambda: select.select([fd], [], [], 0)[0])
        finally:
            os.close(fd)

    def close(self) -> None:
        """End every process in here, and with the last one the namespaces; once is enough."""
        if self.holder.poll() is not None:
            return
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for("all processes of the machine have ended", lambda: not self.processes())
        for process in (*self.started, self.holder):
            process.kill()
            if process.stdout and not process.stdout.closed:
                process.communicate()
            process.wait()


def alice_words(*words: str | Path) -> tuple[str | Path, ...]:
    """Give the words that run kvmlaunch as alice."""
    ids = ("--reuid", str(ALICE), "--regid", str(ALICE), "--clear-groups")
    return ("setpriv", *ids, KVMLAUNCH, *words)


def as_alice(machine: Machine, *words: str | Path) -> Result:
    """Run kvmlaunch as an ordinary user."""
    return machine.execute(*alice_words(*words), env={"HOME": "/srv/alice"}, at="/srv/alice")


def finish(process: Process, seconds: float = SECONDS) -> Result:
    """Wait for a command; one that does not end is killed and the test fails."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} did not end:\n{out}\n{err}") from None
    return Result(code=process.returncode, out=out or "", err=err or "")


def open_lines(path: Path) -> Iterator[str]:
    """Give the commands by which every user reaches a path: a closed directory gives way to one with nothing else."""
    closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
    if closed:
        cover = shlex.quote(str(closed[0]))
        inner = shlex.quote(str(path))
        yield f"mount --bind {inner} /mnt && mount -t tmpfs -o mode=755 tmpfs {cover}"
        yield f"mkdir -p {inner} && mount --move /mnt {inner}"


def user_lines(directory: Path) -> Iterator[str]:
    """Give the commands that make alice, who can reach Python and kvmlaunch and has a home in /srv."""
    for file, line in (
        ("passwd", f"{HER_NAME}:x:{ALICE}:{ALICE}::/srv/alice:/bin/sh"), ("group", f"{HER_NAME}:x:{ALICE}:"),
    ):  # fmt: skip
        text = Path(f"/etc/{file}").read_text()
        (directory / file).write_text(f"{text}{line}\n")
        yield f"mount --bind {shlex.quote(str(directory / file))} /etc/{file}"
    for path in dict.fromkeys((Path(sys.base_prefix), ROOT)):
        yield from open_lines(path)
    yield "mount -t tmpfs -o mode=755 tmpfs /srv"
    yield f"install -d -m 0755 -o {ALICE} -g {ALICE} /srv/alice /srv/alice/vmdefs"


GONE = """awk '$5 ~ "^/run/kvmlaunch/" { print $5 }' /proc/self/mountinfo | sort -r | while read -r place; do
    umount -l "$place" || ! mountpoint -q "$place"
done"""


def script_of(directory: Path, cache: Path, *, users: bool) -> str:
    """Give the script that lays out a machine and then keeps it alive."""
    identity = directory / "machine-id"
    identity.write_text(f"{uuid.uuid4().hex}\n")
    # A copy of a mount of this host would keep its pages while the namespace lives: it goes first, or has gone by now.
    lines = [GONE]
    lines += [f"mkdir -p {path} && mount -t tmpfs -o mode=755 tmpfs {path}" for path in OWN]
    lines += [
        f"mkdir -p {CACHE} && mount --bind {shlex.quote(str(cache))} {CACHE}",
        f"mount --bind {shlex.quote(str(identity))} /etc/machine-id",
        "ip link set lo up",
        *(user_lines(directory) if users else ()),
        "echo ready",
        "exec sleep infinity",
    ]
    return "\n".join(lines)


@contextmanager
def made_machine(directory: Path, cache: Path, *, users: bool = False) -> Iterator[Machine]:
    """Make a machine, and end all that runs in it afterwards."""
    script = script_of(directory, cache, users=users)
    holder = subprocess.Popen(  # noqa: S603 - the script is ours
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-euc", script],  # noqa: S607
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    machine = Machine(holder=holder, directory=directory)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "ready\n", "the machine could not be made"
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory that all machines share as kvmlaunch's cache: QEMU is asked once."""
    return tmp_path_factory.mktemp("cache")


def require_root() -> None:
    """Skip where namespaces cannot be made."""
    if os.geteuid() != 0 or not shutil.which("nsenter"):
        pytest.skip("namespaces need root, and nsenter of util-linux")


@pytest.fixture
def machine(tmp_path: Path, cache: Path) -> Iterator[Machine]:
    """Give a machine."""
    require_root()
    with made_machine(tmp_path, cache) as made:
        yield made
