"""What is known of KVM: its device, as the VM's user found it, and its modules."""

from collections.abc import Mapping
from typing import Literal

from kvmlaunch.model.host import KvmFacts

FILES = tuple(
    f"/sys/module/{name}"
    for name in ("kvm_intel/parameters/nested", "kvm_intel/parameters/enable_apicv", "kvm_amd/parameters/avic")
)

# The outcome of opening /dev/kvm, by errno's name: no node, or a node without a driver behind it.
ABSENT = frozenset({"ENOENT", "ENODEV", "ENXIO", "ENOTDIR"})


def parse_kvm(device: object, modules: object, files: Mapping[str, str]) -> KvmFacts:
    """Give KVM from the probes `kvm` (an errno's name, "" when it opened) and `modules` (names under /sys/module).

    `files` hold the parameters of its modules: kernel-parameters.txt, kvm-intel.nested and its kin.
    """
    if not isinstance(device, str) or not isinstance(modules, list):
        message = "the probes kvm and modules are no text and list"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    return KvmFacts(
        device=parse_device(device),
        modules=tuple(sorted(str(module) for module in modules)),
        abilities=frozenset(parse_ability(path) for path in FILES if files.get(path, "").strip() in {"Y", "1"}),
    )


def parse_ability(path: str) -> str:
    """Give a parameter as `module.name` from its file in /sys/module."""
    _, _, _, module, _, name = path.split("/")
    return f"{module}.{name}"


def parse_device(refusal: str) -> Literal["usable", "denied", "missing"]:
    """Give what an errno's name says of a device; "" is usable."""
    if not refusal:
        return "usable"
    return "missing" if refusal in ABSENT else "denied"
