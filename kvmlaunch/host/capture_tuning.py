"""Look at the host's knobs: text and probes for `facts/tuning.py`, under a root."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from kvmlaunch.facts import boot_files, mounts, tuning
from kvmlaunch.facts.sources import Captured
from kvmlaunch.host.capture import is_program, read_all
from kvmlaunch.host.capture_path import capture_disks, find_device
from kvmlaunch.host.readers import device_number, names_in, read_text
from kvmlaunch.model.host import Mount

HUGE_FIELDS = re.compile(r"(?m)^(KernelPageSize|Shared_Hugetlb|Private_Hugetlb): +([0-9]{1,12}) kB$")
DAEMONS = ("tuned", "ksmtuned", "numad", "power-profiles-")  # comm has at most 15 characters
UDEV = "/run/udev/control"
GRUB_DEFAULTS = "/etc/default/grub"
GRUB_TOOLS = {
    "/usr/sbin/update-grub": "update-grub",
    "/usr/sbin/grub2-mkconfig": "grub2-mkconfig -o /boot/grub2/grub.cfg",
}


def capture_tuning(
    paths: Mapping[str, Sequence[PurePosixPath]], *, root: Path = Path("/"), shared: str = ""
) -> Captured:
    """Look at the knobs of a host; `paths` are the files and devices of the disks of each VM.

    `shared` is where a shared hugetlbfs is wished.
    """
    base = str(root).rstrip("/")
    files = dict(read_all(base, (*tuning.FILES, *boot_files.FILES, *mounts.FILES)))
    mounted = mounts.parse_mounts(files)
    devices, opened = capture_devices(base, mounted, paths)
    names = dict.fromkeys((*devices, *opened))
    files |= read_all(base, (tuning.device_file(name, each) for name in names for each in tuning.DEVICE_FILES))
    processes = [pid for pid in names_in(f"{base}/proc") if pid.isdecimal()]
    return Captured(
        files=files,
        probes={
            "devices": devices,
            "opened": opened,
            "daemons": capture_daemons(base, processes),
            "page_holders": capture_page_holders(base, processes),
            "udev": os.path.exists(base + UDEV),
            "grub": capture_grub(base),
            "rc_local": os.access(f"{base}{tuning.RC_LOCAL}", os.X_OK),
            "hidden": hidden_files(base, mounted, shared),
        },
    )


def hidden_files(base: str, mounted: tuple[Mount, ...], shared: str) -> int:
    """Give how many files a shared hugetlbfs would hide at its place; none where one is mounted already."""
    there = [mount for mount in mounted if str(mount.path) == shared]
    return len(names_in(base + shared)) if shared and not (there and there[-1].type == "hugetlbfs") else 0


def capture_devices(
    base: str, mounted: tuple[Mount, ...], paths: Mapping[str, Sequence[PurePosixPath]]
) -> tuple[dict[str, dict[str, object]], dict[str, dict[str, object]]]:
    """Give by name the devices at the bottom of VMs' disks and those that are opened: hardware queues, and the VMs."""
    opened: dict[str, dict[str, None]] = {}
    bottoms: dict[str, list[dict[str, object]]] = {}
    vms: dict[str, dict[str, None]] = {}
    queues: dict[str, object] = {}
    for vm, places in paths.items():
        for place in places:
            number, opened_itself = number_of(base, mounted, str(place))
            if number not in bottoms:
                bottoms[number] = capture_disks(base, number, mounted)
            name = opened_name(base, number)
            if name and opened_itself:
                opened.setdefault(name, {})[vm] = None
            for disk in bottoms[number]:
                name = str(disk["name"])
                queues[name] = disk["queues"]
                vms.setdefault(name, {})[vm] = None
    return (
        {name: {"queues": queues[name], "vms": list(vms[name])} for name in sorted(vms)},
        {name: {"vms": list(opened[name])} for name in sorted(opened)},
    )


def opened_name(base: str, number: str) -> str:
    """Give the device of a number as /sys/block has it: of a partition its disk; "" where there is none."""
    place = os.path.realpath(f"{base}/sys/dev/block/{number}")
    if not number or not os.path.isdir(place):
        return ""
    return os.path.basename(os.path.dirname(place) if os.path.exists(f"{place}/partition") else place)


def number_of(base: str, mounted: tuple[Mount, ...], path: str) -> tuple[str, bool]:
    """Give `major:minor` of the device that a path is or lies on, and whether read-ahead is that device's own.

    btrfs and its like have one of their own.  Of a file that is missing its directory is looked at.
    """
    real = os.path.realpath(base + path)
    while True:
        try:
            seen = os.stat(real)
        except OSError:
            if real in {"/", base}:
                return "", False
            real = os.path.dirname(real)
            continue
        number = seen.st_rdev or seen.st_dev
        place = {"device": device_number(number), "real": real.removeprefix(base) or "/"}
        return find_device(base, mounted, place), os.major(number) != 0


def capture_daemons(base: str, processes: Iterable[str]) -> dict[str, int]:
    """Give the pids of programs that tune the host as well."""
    found: dict[str, int] = {}
    for pid in processes:
        name = (read_text(f"{base}/proc/{pid}/comm") or "").strip()
        if name in DAEMONS:
            found.setdefault(name, int(pid))
    return found


def capture_page_holders(base: str, processes: Iterable[str]) -> list[dict[str, object]]:
    """Give the processes that have huge pages mapped, and of which size where that can be read.

    Source: HugetlbPages of proc_pid_status(5); KernelPageSize, Shared_Hugetlb and Private_Hugetlb of proc_pid_smaps(5).
    """
    found: list[dict[str, object]] = []
    for pid in processes:
        status = read_text(f"{base}/proc/{pid}/status") or ""
        _, _, rest = status.partition("\nHugetlbPages:")
        kilobytes = rest.split(maxsplit=1)[0] if rest else "0"
        if kilobytes.isdecimal() and int(kilobytes):
            sizes = mapped_by_size(read_text(f"{base}/proc/{pid}/smaps") or "") or {0: int(kilobytes)}
            command = name_of(base, pid)
            found += [
                {"pid": int(pid), "command": command, "bytes": held * 1024, "page_size": size * 1024}
                for size, held in sizes.items()
            ]
    return found


def mapped_by_size(smaps: str) -> dict[int, int]:
    """Give the kilobytes of huge pages that a process has mapped, by the kilobytes of a page."""
    found: dict[int, int] = {}
    size = 0
    for name, kilobytes in HUGE_FIELDS.findall(smaps):
        if name == "KernelPageSize":
            size = int(kilobytes)
        elif int(kilobytes):
            found[size] = found.get(size, 0) + int(kilobytes)
    return found


def name_of(base: str, pid: str) -> str:
    """Give what a process is called: a VM by its name, anything else by its command."""
    argv = (read_text(f"{base}/proc/{pid}/cmdline") or "").split("\0")
    guest = next((word for word in argv if word.startswith("guest=")), "")
    if guest:
        return f"VM {guest.removeprefix('guest=').partition(',')[0]}"
    return (read_text(f"{base}/proc/{pid}/comm") or "").strip()


def capture_grub(base: str) -> str:
    """Give the command that renews GRUB's configuration, "" where this host boots otherwise."""
    if not os.path.exists(base + GRUB_DEFAULTS):
        return ""
    return next((command for tool, command in GRUB_TOOLS.items() if is_program(base + tool)), "")
