"""A stage for one QEMU: namespaces of its own in which everything that a case names is there.

The argv stays as it is: each directory of the host that the case has a path in (`/srv`, `/run`, …) is covered, in a
mount namespace, by one with links to what lies there and with the case's files.  The few words that the machine that
runs the tests cannot fulfil are replaced by SUBSTITUTIONS, and by nothing else.
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from attrs import frozen

from kvmlaunch.builder.tpm import emulators
from kvmlaunch.host.command import run_tool
from kvmlaunch.model.plan import DrivePromise, Place, Plan, PlannedDisk, PlannedNetwork
from kvmlaunch.units import MIB
from tests.casebook import Outcome

RAM: Final = 64 * MIB
LEAST_CUT: Final = 200 * MIB  # a guest of as much RAM, or more, has RAM in its place
IMAGE_SIZE: Final = 8 * MIB
FLASH_SIZE: Final = 2 * MIB
HAS_VHOST: Final = Path("/dev/vhost-net").exists()


@frozen
class Substitution:
    """A word of argv that is replaced: the option, what in its value, by what, and why that is allowed."""

    flag: str
    pattern: str
    replacement: str
    why: str


SUBSTITUTIONS: Final = (
    Substitution("-accel", "^kvm$", "tcg", "the machine may have no KVM; how QEMU reads the other options is the same"),
    Substitution("-cpu", "^host", "max", "host needs KVM"),
    Substitution("-cpu", ",hv-[a-z-]+=[a-z0-9]+", "", "Hyper-V enlightenments need KVM"),
    Substitution("-cpu", "(?<=,enforce=)on", "off", "TCG cannot give what the KVM of the case's host can"),
    Substitution("-m", r"^(\d+G|\d{4,}M|[2-9]\d\dM)$", f"{RAM // MIB}M", "RAM is cut to what any machine has"),
    Substitution("-object", r"(?<=,size=)(\d{10,}|[2-9]\d{8})(?=,)", f"{RAM}", "a backend has the size of the RAM"),
    Substitution("-object", r"(?<=,host-nodes=)\d+(?=,)", "0", "the machine may have one NUMA node"),
    *(
        ()
        if HAS_VHOST
        else (Substitution("-netdev", "(?<=,vhost=)on", "off", "this machine has no /dev/vhost-net, and 7.2 aborts"),)
    ),
)


def substitute(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Give argv as this machine can start it, held before its first instruction."""
    words = list(argv)
    for index in range(1, len(words)):
        for each in SUBSTITUTIONS:
            if words[index - 1] == each.flag:
                words[index] = re.sub(each.pattern, each.replacement, words[index])
    return tuple(words) if "-S" in words else (*words, "-S")


@frozen(kw_only=True)
class Stage:
    """The files of a stage beneath `root`, which is bound to /mnt, and the directories of the host that they cover."""

    root: Path
    covered: tuple[str, ...]


# Deepest first, as a path belongs to the first that it lies beneath.
COVERS: Final = ("/usr/share", "/var/lib", "/srv", "/run", "/tmp", "/home", "/dev")  # noqa: S108 - covered, not used


def cover_of(path: PurePosixPath) -> str:
    """Give the directory of the host that is covered so that a path can be there."""
    return next(cover for cover in COVERS if path.is_relative_to(cover))


def place_on(root: Path, path: PurePosixPath) -> Path:
    """Give where a path of the stage lies while it is made; its directory is there, and is no link."""
    place = root / "farm" / str(path).lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def link_rest(root: Path, cover: str) -> None:
    """Give a covered directory links to what it has on the host and the stage has not."""
    farm = root / "farm" / cover.lstrip("/")
    (root / "real" / cover.lstrip("/")).mkdir(parents=True)
    for name in os.listdir(cover):
        if not os.path.lexists(farm / name):
            (farm / name).symlink_to(f"/mnt/real{cover}/{name}")


def disk_files(plan: Plan) -> tuple[PlannedDisk, ...]:
    """Give the disks and CD-ROMs, each file once."""
    return tuple({disk.path: disk for disk in plan.disks}.values())


def make_image(place: Path, format_: str, backing: str) -> None:
    """Make a small image of a format; a block device's stand-in is a plain file."""
    if format_ == "raw":
        with place.open("wb") as image:
            image.truncate(IMAGE_SIZE)
        return
    behind = ("-u", "-b", backing, "-F", format_of(backing)) if backing else ()
    result = run_tool(("qemu-img", "create", "-q", "-f", format_, *behind, str(place), str(IMAGE_SIZE)))
    assert result.status == 0, result.err


def format_of(backing: str) -> str:
    """Give the format of a backing file by its suffix."""
    return "qcow2" if backing.endswith(".qcow2") else "raw"


def make_kernel(place: Path) -> None:
    """Make what QEMU takes for a Linux kernel: the header of the boot protocol, and zeros."""
    image = bytearray(64 * 1024)
    image[0x1F1] = 4  # setup sectors
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x20C).to_bytes(2, "little")
    image[0x211] = 1  # loaded high
    image[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")  # the highest address of an initrd
    place.write_bytes(image)


def make_files(root: Path, outcome: Outcome, plan: Plan) -> Iterator[PurePosixPath]:
    """Make every file that the case names; give their paths."""
    for disk in disk_files(plan):
        backing = outcome.host.paths[disk.path].backing
        make_image(place_on(root, disk.path), disk.format, backing)
        yield disk.path
        if backing:
            make_image(place_on(root, disk.path.parent / backing), format_of(backing), "")
    for file in plan.files:
        place = place_on(root, file.path)
        make_kernel(place) if file.key == "boot.kernel" else place.write_bytes(bytes(4096))
        yield file.path
    for option in plan.options:
        for part in option.fields:
            if part.key == "boot.firmware" and isinstance(part.choice.value, PurePosixPath):
                place_on(root, part.choice.value).write_bytes(bytes(FLASH_SIZE))
                yield part.choice.value
    if plan.variables:
        variables = outcome.places.state / "uefi-variables.fd"
        place_on(root, variables).write_bytes(bytes(FLASH_SIZE))
        yield variables
    for promise in plan.promises:
        if isinstance(promise, DrivePromise) and isinstance(promise.path, Place):
            seed = outcome.places.resolve(promise.path)
            place_on(root, seed).write_bytes(bytes(IMAGE_SIZE))
            yield seed


def make_stage(root: Path, outcome: Outcome) -> Stage:
    """Make the files of a stage; `root` is empty."""
    plan, places = outcome.plan, outcome.places
    assert plan is not None
    paths = [*make_files(root, outcome, plan), places.run, places.hugepages]
    for directory in (places.run / "log", places.hugepages):
        place_on(root, directory).mkdir(parents=True, exist_ok=True)
    covered = tuple(dict.fromkeys(cover_of(path) for path in paths))
    for cover in covered:
        link_rest(root, cover)
    return Stage(root=root, covered=covered)


def mount_lines(stage: Stage, outcome: Outcome) -> Iterator[str]:
    """Give the commands that put the stage over the host, for this mount namespace only."""
    yield shlex.join(("mount", "--bind", str(stage.root), "/mnt"))
    for cover in stage.covered:
        yield f"mount --rbind {cover} /mnt/real{cover}"
        yield f"mount --bind /mnt/farm{cover} {cover}"
    if pages := pages_on_stage(outcome):
        options = f"pagesize=2M,size={pages * 2 * MIB},min_size={pages * 2 * MIB}"
        yield shlex.join(("mount", "-t", "hugetlbfs", "-o", options, "none", str(outcome.places.hugepages)))


def pages_on_stage(outcome: Outcome) -> int:
    """Give the 2 MiB pages that a case needs once its RAM is cut, 0 with ordinary memory; 1 GiB pages are left out."""
    plan = outcome.plan
    assert plan is not None
    if plan.memory.backing != "hugepages":
        return 0
    return -(-(plan.memory.size if plan.memory.size < LEAST_CUT else RAM) // (2 * MIB))


def network_lines(networks: tuple[PlannedNetwork, ...]) -> Iterator[str]:
    """Give the commands that make the case's bridges and taps in this network namespace."""
    yield "ip link set lo up"
    for bridge in dict.fromkeys(network.bridge for network in networks if network.bridge):
        yield shlex.join(("ip", "link", "add", bridge, "type", "bridge"))
    for network in networks:
        if network.ifname:
            queues = ("multi_queue",) if network.queues > 1 else ()
            yield shlex.join(("ip", "tuntap", "add", "dev", network.ifname, "mode", "tap", *queues))
            yield shlex.join(
                ("ip", "link", "set", network.ifname, *(("mtu", str(network.mtu)) if network.mtu else ()), "up")
            )
        if network.bridge:
            yield shlex.join(("ip", "link", "set", network.ifname, "master", network.bridge))


def render_script(stage: Stage, outcome: Outcome, binary: Path, argv: tuple[str, ...]) -> str:
    """Give the script that is run in the namespaces and becomes QEMU."""
    assert outcome.plan is not None
    return "\n".join(
        (
            *mount_lines(stage, outcome),
            *network_lines(outcome.plan.networks),
            *tpm_lines(outcome),
            f"touch {MARKER}",
            f"exec {shlex.join((str(binary), *argv))}",
        )
    )


def tpm_lines(outcome: Outcome) -> Iterator[str]:
    """Give the lines that start the emulator of a TPM, where the case has one; it is the one of this machine."""
    assert outcome.loaded.definition is not None
    for socket, words in emulators(outcome.loaded.definition, outcome.host, outcome.places).items():
        yield f"mkdir -p {outcome.places.state / 'tpm'}"
        yield f"{shlex.join(('swtpm', *words[1:]))} &"
        yield f"until [ -S {outcome.places.run / socket} ]; do sleep 0.01; done"


MARKER: Final = "/run/stage"


def seen_from_outside(pid: int, path: PurePosixPath | str) -> Path:
    """Give the path by which a file of a process's namespace is reached from ours."""
    return Path(f"/proc/{pid}/root{path}")


def missing_tools() -> tuple[str, ...]:
    """Give the tools that a stage needs and this machine has not."""
    return tuple(tool for tool in ("unshare", "mount", "ip", "qemu-img") if shutil.which(tool) is None)
