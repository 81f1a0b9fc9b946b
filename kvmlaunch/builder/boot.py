"""Firmware, or a kernel booted directly."""

import re
from itertools import count
from pathlib import PurePosixPath

from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs, value
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import error
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Option, Place, PlannedFile
from kvmlaunch.model.value import frozen

VARIABLES = "uefi-variables.fd"


@frozen(kw_only=True)
class Firmware:
    """UEFI code and the template of its variable store, as a distribution installs them."""

    code: PurePosixPath
    variables: PurePosixPath


# Debian and Ubuntu (ovmf), Fedora and RHEL (edk2-ovmf), Arch (edk2-ovmf), openSUSE (qemu-ovmf-x86_64).
FIRMWARES = tuple(
    Firmware(code=PurePosixPath(code), variables=PurePosixPath(variables))
    for code, variables in (
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
        ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
        ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
    )
)


# With Microsoft's and the distribution's keys enrolled, and code that lets nobody but SMM write variables.
SIGNED_FIRMWARES = tuple(
    Firmware(code=PurePosixPath(code), variables=PurePosixPath(variables))
    for code, variables in (
        ("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
        ("/usr/share/OVMF/OVMF_CODE.ms.fd", "/usr/share/OVMF/OVMF_VARS.ms.fd"),
        ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"),
        ("/usr/share/qemu/ovmf-x86_64-smm-ms-code.bin", "/usr/share/qemu/ovmf-x86_64-smm-ms-vars.bin"),
    )
)


def firmwares_of(definition: Definition) -> tuple[Firmware, ...]:
    """Give the firmwares that would do."""
    return SIGNED_FIRMWARES if definition.firmware.secure_boot else FIRMWARES


def firmware_paths(definition: Definition) -> tuple[PurePosixPath, ...]:
    """Give the files to look for on the host, none with BIOS."""
    if definition.boot.firmware != "uefi":
        return ()
    return tuple(path for firmware in firmwares_of(definition) for path in (firmware.code, firmware.variables))


def plan_firmware(definition: Definition, host: HostFacts) -> Firmware | None:
    """Choose the first UEFI firmware that is installed; None with BIOS or where there is none."""
    if definition.boot.firmware != "uefi":
        return None
    there = {path for path, facts in host.paths.items() if facts.kind == "file"}
    return next(
        (firmware for firmware in firmwares_of(definition) if {firmware.code, firmware.variables} <= there), None
    )


def uefi_options(firmware: Firmware, definition: Definition) -> tuple[Option, ...]:
    """Give the two flash drives: the code read-only, and a variable store of the VM's own."""
    source = "QEMU docs, system/i386/pc (pflash); OVMF README"
    origin = definition.origin("boot.firmware")
    code: Choice[PurePosixPath] = Choice(
        value=firmware.code, reason="UEFI code as the distribution installs it", source=source, origin=origin
    )
    store: Choice[Place] = Choice(
        value=Place(root="state", tail=VARIABLES),
        reason="the VM's own variable store, kept between starts",
        source=source,
        origin=origin,
    )
    kind = fixed("pflash", "firmware is flash memory", source)
    raw = fixed("raw", "flash images are raw", source)
    return (
        pairs(
            "-drive",
            "boot",
            field("if", "boot.code.if", kind),
            field("unit", "boot.code.unit", fixed(0, "code is unit 0", source)),
            field("format", "boot.code.format", raw),
            field("readonly", "boot.code.readonly", fixed(value=True, reason="shared by all VMs", source=source)),
            field("file", "boot.firmware", code),
        ),
        pairs(
            "-drive",
            "boot",
            field("if", "boot.variables.if", kind),
            field("unit", "boot.variables.unit", fixed(1, "variables are unit 1", source)),
            field("format", "boot.variables.format", raw),
            field("file", "boot.variables", store),
        ),
        *(protection() if definition.firmware.secure_boot else ()),
    )


def protection() -> tuple[Option, ...]:
    """Give what keeps the guest's own kernel from the variables: flash that only SMM may write."""
    reason, source = "only firmware in SMM may write variables", "OVMF README, SMM support"
    return (
        pairs(
            "-global",
            "firmware",
            field("driver", "firmware.secure_boot", fixed("cfi.pflash01", reason, source)),
            field("property", "firmware.secure_boot", fixed("secure", reason, source)),
            field("value", "firmware.secure_boot", fixed(value=True, reason=reason, source=source)),
        ),
    )


def kernel_options(definition: Definition) -> tuple[Option, ...]:
    """Give `-kernel`, `-initrd` and `-append`, whose values stand as they are: QEMU does not read commas there."""
    written = {"kernel": definition.boot.kernel, "initrd": definition.boot.initrd, "append": definition.boot.append}
    return tuple(
        value(
            f"-{name}",
            "boot",
            f"boot.{name}",
            by_hand(definition, f"boot.{name}", word),
        )
        for name, word in written.items()
        if word is not None
    )


def build_boot(definition: Definition, host: HostFacts) -> Part:
    """Give what starts the guest."""
    if definition.boot.firmware != "uefi":
        return Part(options=kernel_options(definition))
    firmware = plan_firmware(definition, host)
    if firmware is None:
        missing = error(
            code="qemu.capability",
            message="no UEFI firmware is installed",
            key="boot.firmware",
            why="looked for " + ", ".join(str(each.code) for each in firmwares_of(definition)),
            hint="apt install ovmf   # or: dnf install edk2-ovmf",
        )
        return Part(options=kernel_options(definition), findings=(missing,))
    return Part(options=(*uefi_options(firmware, definition), *kernel_options(definition)))


def boot_files(definition: Definition) -> tuple[PlannedFile, ...]:
    """Give the files that QEMU reads at the start, for the checks."""
    written = (("boot.kernel", definition.boot.kernel), ("boot.initrd", definition.boot.initrd))
    return tuple(PlannedFile(key=key, path=path) for key, path in written if path is not None)


def firmware_choice(definition: Definition) -> Choice[str]:
    """Give the decision on the firmware for `explain`."""
    if definition.boot.firmware is not AUTO:
        return by_hand(definition, "boot.firmware", definition.boot.firmware)
    return Choice(
        value="bios",
        reason="SeaBIOS starts every guest that does not need UEFI",
        source="QEMU docs, system/i386/pc",
        origin=definition.origin("boot.firmware"),
    )


def plan_indexes(definition: Definition, *, instead: str) -> dict[str, Choice[int]]:
    """Choose the boot indexes, by the table of a disk or CD-ROM: as written, and of those that are left the free ones.

    They go to the first disk, where no disk has one written, then to the CD-ROMs: UEFI tries nothing without.
    `instead` is the CD-ROM that this start boots from, "" for none.
    """
    wished = {f"disk.{name}": disk.boot for name, disk in definition.disk.items()}
    wished |= {f"cdrom.{name}": AUTO if cdrom.boot is None else cdrom.boot for name, cdrom in definition.cdrom.items()}
    written = {table: index for table, index in wished.items() if isinstance(index, int)}
    chosen = {table: by_hand(definition, f"{table}.boot", index) for table, index in written.items()}
    by_disk = any(table.startswith("disk.") for table in written)
    first = [] if by_disk else [f"disk.{name}" for name in definition.disk][:1]
    left = [*first, *(table for name in definition.cdrom if (table := f"cdrom.{name}") not in written)]
    by_hand_too = " ".join(definition.raw.args)
    taken = {*written.values()}
    if by_hand_too:
        taken.update(map(int, re.findall(r"bootindex\W{1,4}([0-9]{1,7})", by_hand_too)))
    for table in left:
        disks = [each.value for name, each in chosen.items() if name.startswith("disk.")] if table not in first else []
        index = next(index for index in count(max(disks, default=0) + 1) if index not in taken)
        taken.add(index)
        reason = "the first disk" if table in first else "after the disk, where that does not boot"
        reason += f"; this start boots from {instead}" if instead else ""
        origin = definition.origin(f"{table}.boot")
        chosen[table] = Choice(value=index, reason=reason, source="QEMU docs, bootindex", origin=origin)
    if instead:
        origin = Origin(kind="set", place="--boot", key=f"{instead}.boot")
        chosen[instead] = Choice(value=0, reason="this start boots from it", source="up --boot", origin=origin)
    return chosen
