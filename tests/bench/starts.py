"""`up --paused`, verified, until it returns, against the same argv started by a shell script until its monitor answers.

Every start is ended again before the next; only what is compared is timed.
"""

import os
import shutil
import signal
import subprocess  # noqa: TID253 - the bench asks print-cmd for its words
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import evolve, frozen

from tests.bench.measure import HERE, KVMLAUNCH, Row, compare, environment, in_turn, run, skipped

GROUP: Final = "b"
PAIRS: Final = 11
AIM: Final = 3.5
AIM_MORE: Final = 0.350  # seconds over the script, hugepages mounted, reserved and given back
SCRIPT: Final = "a shell script with the same argv"
PAGES: Final = 128
RUN: Final = Path("/run/kvmlaunch")

DEFINITION: Final = """\
vcpus = 2
accel = "any"
[memory]
size = "256MiB"
hugepages = "{hugepages}"
[disk.root]
path = "{name}.img"
"""


@frozen(kw_only=True)
class Vm:
    """A VM of the bench, where its definition lies, and the directories that its argv names."""

    name: str
    home: Path
    run: Path
    pages: int

    @property
    def mount(self) -> Path:
        """Where its hugepages are mounted."""
        return RUN / "hugepages" / str(os.getuid()) / self.name / "mount"

    def define(self) -> None:
        """Write the definition and an image with all its blocks."""
        place = self.home / "vmdefs"
        place.mkdir(exist_ok=True)
        text = DEFINITION.format(hugepages="2MiB" if self.pages else "off", name=self.name)
        (place / f"{self.name}.toml").write_text(text)
        (place / f"{self.name}.img").write_bytes(bytes(1 << 20))

    def argv(self) -> list[str]:
        """Give what `print-cmd` prints, with the `-S` of `up --paused`."""
        done = subprocess.run(  # noqa: S603 - our own command
            [KVMLAUNCH, "print-cmd", "-0", self.name], env=environment(), cwd=self.home, capture_output=True, check=True
        )
        return [*done.stdout.decode().split("\0")[:-1], "-S"]


def end(pid: int) -> None:
    """End a QEMU of ours by SIGTERM and wait until it is gone."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        import select  # noqa: PLC0415 - one use

        select.select([handle], [], [], 30)
    finally:
        os.close(handle)


def up(vm: Vm, *options: str, whole: bool = False) -> float:
    """Start a VM by `up`; gives the seconds until it returned, and with `whole` those of giving back too."""
    seconds = run((KVMLAUNCH, "up", vm.name, "--quiet", *options), at=vm.home)
    end(int(record_pid(vm)))
    back = run((KVMLAUNCH, "down", vm.name, "--quiet"), at=vm.home)
    return seconds + back if whole else seconds


def record_pid(vm: Vm) -> str:
    """Give the pid that the record names."""
    text = (vm.run / "record.json").read_text()
    return text.partition('"pid":')[2].partition(",")[0].strip()


def script(vm: Vm, argv: list[str], *, whole: bool) -> float:
    """Start the same argv by the script; gives the seconds until the monitor answered, `whole`: and to give back."""
    seconds = run((str(HERE / "raw.sh"), str(vm.run), str(vm.pages), str(vm.mount), *argv))
    with suppress(ProcessLookupError):
        end(int((vm.run / "pid").read_text()))
    back = run((str(HERE / "undo.sh"), str(vm.pages), str(vm.mount))) if vm.pages else 0.0
    shutil.rmtree(vm.run)
    return seconds + back if whole else seconds


def sweep(vm: Vm) -> None:
    """End what a start that failed has left, and give back its pages."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if f"guest={vm.name},".encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                end(int(name))
    if (vm.run / "pid").exists() and os.path.ismount(vm.mount):
        run((str(HERE / "undo.sh"), str(vm.pages), str(vm.mount)))
    run((KVMLAUNCH, "down", vm.name, "--quiet"), at=vm.home)


def measure_start(vm: Vm, what: str, *, whole: bool = False, aim: float | None = None) -> Row:
    """Give the row of one kind of start."""
    vm.define()
    argv = vm.argv()
    try:
        measured = in_turn(lambda: up(vm, "--paused", whole=whole), lambda: script(vm, argv, whole=whole), PAIRS)
    except BaseException:
        sweep(vm)
        raise
    return compare(GROUP, what, SCRIPT, measured, aim=aim)


def over(row: Row, most: float) -> Row:
    """Give a row whose aim is a difference."""
    return evolve(row, aim=f"≤ {most * 1000:.0f} ms over it", kept=row.ours - row.theirs <= most)


def measure_starts(plain: Vm) -> Iterator[Row]:
    """Give the rows of starts; those with hugepages need root."""
    if not shutil.which("socat"):
        yield skipped(GROUP, "up --paused", SCRIPT, "socat is not installed")
        return
    yield measure_start(plain, "up --paused, ordinary memory", aim=AIM)
    if os.geteuid() != 0:
        yield skipped(GROUP, "up --paused, 256 MiB of hugepages", SCRIPT, "mounting needs root")
    else:
        name = f"{plain.name}-huge"
        huge = evolve(plain, name=name, run=plain.run.with_name(name), pages=PAGES)
        yield measure_start(huge, "up --paused, 256 MiB of hugepages mounted and reserved")
        yield over(measure_start(huge, "the same, and given back by down", whole=True), AIM_MORE)
