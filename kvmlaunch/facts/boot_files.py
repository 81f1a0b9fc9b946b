"""What the files say that set knobs at boot: sysctl.d, udev rules and tmpfiles.d.

Sources: sysctl(8), --system; sysctl.d(5); udev(7); tmpfiles.d(5), whose first file by name wins (measured with 252).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from kvmlaunch.model.tuning import BlockDevice, BootLine

# The first directory wins where two hold a file of one name; /etc/sysctl.conf is read last.
SYSCTL_DIRECTORIES = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
UDEV_DIRECTORIES = (
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
)
TMPFILES_DIRECTORIES = ("/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/local/lib/tmpfiles.d", "/usr/lib/tmpfiles.d")
SYSCTL_CONF, INIT = "/etc/sysctl.conf", "/proc/1/comm"
FILES = (
    SYSCTL_CONF,
    *(f"{directory}/*.conf" for directory in (*SYSCTL_DIRECTORIES, *TMPFILES_DIRECTORIES)),
    *(f"{directory}/*.rules" for directory in UDEV_DIRECTORIES),
)

SYSCTL_LINE = r"(?m)^[ \t]*-?([A-Za-z0-9_./*-]+)[ \t]*=[ \t]*(.*?)[ \t]*$"
TMPFILES_LINE = r'(?m)^[ \t]*w[-+!=~^]*[ \t]+("?)(/[^\s"]+)\1(?:[ \t]+\S+){4}[ \t]+(\S.*?)[ \t]*$'
MODULES = ("kvm",)  # whose parameters are set by rules of ours
READ_AHEAD = "queue/read_ahead_kb"
UDEV_TERM = r'([A-Z_]+)(?:\{([^}]*)\})?[ \t]*(==|!=|\+=|-=|:=|=)[ \t]*"([^"]*)"'


def parse_boot_lines(files: Mapping[str, str], devices: Sequence[BlockDevice]) -> Iterator[BootLine]:
    """Give every setting of the files that are read at boot, in the order of reading."""
    # systemd reads /etc/sysctl.conf by a link in sysctl.d alone, which is among the others.
    last = [SYSCTL_CONF] if SYSCTL_CONF in files and files.get(INIT, "").strip() != "systemd" else []
    for path in [*in_order(files, SYSCTL_DIRECTORIES, ".conf"), *last]:
        for name, value in re.findall(SYSCTL_LINE, files[path]):
            yield BootLine(keeper="sysctl", file=path, name=name.replace("/", "."), value=value)
    for path in in_order(files, UDEV_DIRECTORIES, ".rules"):
        for rule in re.sub(r"\\\n", "", files[path]).splitlines():
            if "ATTR{" in rule and not rule.lstrip().startswith("#"):
                yield from parse_rule(path, rule, devices)
    for path in in_order(files, TMPFILES_DIRECTORIES, ".conf"):
        for _, name, value in re.findall(TMPFILES_LINE, files[path]):
            yield BootLine(keeper="tmpfiles", file=path, name=name, value=value)


def in_order(files: Mapping[str, str], directories: Sequence[str], ending: str) -> list[str]:
    """Give the files of some directories by name; of those with one name the first directory's alone."""
    by_name: dict[str, str] = {}
    for directory in directories:
        for path in files:
            place = PurePosixPath(path)
            if str(place.parent) == directory and place.suffix == ending:
                by_name.setdefault(place.name, path)
    return [by_name[name] for name in sorted(by_name)]


def parse_rule(file: str, rule: str, devices: Sequence[BlockDevice]) -> Iterator[BootLine]:
    """Give what a udev rule sets of these devices' queues, or of KVM's parameters, where its conditions may hold."""
    terms = re.findall(UDEV_TERM, rule)
    sets = {name: value for key, name, sign, value in terms if key == "ATTR" and sign in {"=", ":="}}
    conditions = [term for term in terms if term[2] in {"==", "!="}]
    for device in devices:
        kernel = device.name.replace("!", "/")  # as udev has it
        rotational = {True: "1", False: "0", None: None}[device.rotational]
        seen = {"ACTION": "add", "SUBSYSTEM": "block", "KERNEL": kernel, "ATTR queue/rotational": rotational}
        if device.identity:
            seen[f"ATTR {device.identity[0]}"] = device.identity[1]
        for name, value in sets.items():
            queue = READ_AHEAD if name == "bdi/read_ahead_kb" else name
            if queue.startswith("queue/"):
                path = f"/sys/block/{device.name.replace('/', '!')}/{queue}"
                yield from told(file, path, value, [holds(term, seen) for term in conditions])
    for module in MODULES:
        seen = {"ACTION": "add", "SUBSYSTEM": "module", "KERNEL": module}
        for name, value in sets.items():
            if name.startswith("parameters/"):
                yield from told(file, f"/sys/module/{module}/{name}", value, [holds(each, seen) for each in conditions])


def told(file: str, path: str, value: str, answers: Sequence[bool | None]) -> Iterator[BootLine]:
    """Give a line whose conditions hold, or may."""
    if False not in answers:
        yield BootLine(keeper="udev", file=file, name=path, value=value, sure=None not in answers)


def holds(term: tuple[str, str, str, str], subject: Mapping[str, str | None]) -> bool | None:
    """Does a condition of a udev rule hold for what appears; None where that is not told here."""
    key, name, sign, pattern = term
    seen = subject.get(f"{key} {name}".rstrip())
    if seen is None:
        return None
    return any(fnmatchcase(seen, each) for each in pattern.split("|")) is (sign == "==")
