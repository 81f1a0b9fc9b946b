"""What was probably meant: a word of QEMU's, libvirt's or a compose file's, or a value where a table stands."""

from collections.abc import Callable, Mapping
from typing import Final

from kvmlaunch.define.mistake import shown
from kvmlaunch.define.tree import Path, join_path
from kvmlaunch.model.definition import NAMED_TABLES

FORWARDS: Final = 'forwards = ["tcp:127.0.0.1:8080:80"]   # here port 80 of the guest at 8080 of the host'
# What to write for a key that is none, by table and key; of a table that holds others by name, by the outer one.
MEANT: Final[Mapping[str, str]] = {
    **dict.fromkeys(("cpus", "cores", "smp", "cpu.count", "cpu.cpus", "cpu.smp"), "vcpus = 4"),
    **dict.fromkeys(("cpu.cores", "cpu.threads", "cpu.sockets"), "topology = { sockets = 1, cores = 4, threads = 1 }"),
    **dict.fromkeys(("ram", "mem"), 'memory = "4GiB"'),
    **dict.fromkeys(("memory.ram", "memory.amount"), 'size = "4GiB"'),
    **dict.fromkeys(
        ("net", "nic", "bridge", "netdev"), 'network = "br0"   # a bridge; or a [network.NAME] with its keys'
    ),
    **dict.fromkeys(("hostfwd", "ports", "port"), f"{FORWARDS}, in a [network.NAME]"),
    **dict.fromkeys(("network.hostfwd", "network.ports", "network.port", "network.forward"), FORWARDS),
    **dict.fromkeys(("network.macaddr", "network.macaddress"), 'mac = "52:54:00:12:34:56"'),
    **dict.fromkeys(("bios", "uefi", "ovmf"), 'boot.firmware = "uefi"   # or "bios"'),
    **dict.fromkeys(("image", "img", "drive", "hda", "hdd"), 'disk = "PATH"'),
    **dict.fromkeys(("disk.file", "disk.image", "disk.source", "disk.device"), 'path = "PATH"'),
    **dict.fromkeys(("disk.if", "disk.interface", "disk.driver"), 'bus = "virtio-blk"'),
    **dict.fromkeys(("iso", "cd", "dvd"), 'cdrom = "PATH"'),
    **dict.fromkeys(("vnc", "vga", "graphics"), 'display = { type = "vnc" }'),
    **dict.fromkeys(("args", "extra_args", "qemu_args"), 'raw.args = ["-device", "…"]'),
    "arch": "a guest is x86-64",
    "disk.snapshot": "kvmlaunch disk snapshot create VM NAME   # and revert; or kvmlaunch clone NEW --from VM",
}
# The key that a value is meant for which stands where a table does.
MAIN_KEYS: Final[Mapping[str, str]] = {
    "disk": "path",
    "cdrom": "path",
    "share": "path",
    "network": "bridge",
    "display": "type",
    "cloud_init": "user_data",
    "memory": "size",
}


def meant_key(path: Path, name: str) -> str:
    """Give the line to write for a key that a table does not have, "" where it is no word that is known elsewhere."""
    table = str(path[0]) if path else ""
    return MEANT.get(f"{table}.{name}".lower().lstrip("."), "")


def meant_table(path: Path, value: object) -> str:
    """Give the line to write for a value that stands where a table is wanted, "" where nobody can tell."""
    table = str(path[0]) if path else ""
    if isinstance(value, list):
        many = [f"[{table}.name{number}]\npath = {shown(each)}" for number, each in enumerate(value, 1)]
        return "\n".join(many) if table in {"disk", "cdrom"} and all(isinstance(each, str) for each in value) else ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    named = table in NAMED_TABLES
    if len(path) > 1 + named:
        return ""
    if table in MEANT_TABLES:
        return MEANT_TABLES[table](value)
    if named and len(path) == 1:
        return f"[{table}.NAME]\n{MAIN_KEYS[table]} = {shown(value)}"
    return f"{join_path(path)}.{MAIN_KEYS[table]} = {shown(value)}" if table in MAIN_KEYS else ""


def meant_cpu(value: str | int) -> str:
    """Give what a value for [cpu] says: a number of vCPUs, or a model."""
    return f"vcpus = {value}" if isinstance(value, int) else f"cpu.model = {shown(value)}"


def meant_boot(value: str | int) -> str:
    """Give what a value for [boot] says: the firmware, or what a start boots from."""
    if value in {"uefi", "bios"}:
        return f"boot.firmware = {shown(value)}"
    return "kvmlaunch up VM --boot cdrom.NAME   # once; always: boot = 1 in [disk.NAME] or [cdrom.NAME]"


def meant_firmware(value: str | int) -> str:
    """Give what a value for [firmware] says: which kind of firmware."""
    return f"boot.firmware = {shown('bios' if value == 'bios' else 'uefi')}   # as the distribution installs it"


MEANT_TABLES: Final[Mapping[str, Callable[[str | int], str]]] = {
    "cpu": meant_cpu,
    "boot": meant_boot,
    "firmware": meant_firmware,
}
