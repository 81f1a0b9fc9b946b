"""Secure boot with Microsoft's keys and a TPM, as the setup of Windows 11 asks for, seen by a guest that is signed so.

Firmware, shim, GRUB and kernel each check the signature of the next; the kernel tells what it was started by.
"""

import base64
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.boot.conftest import build_guest
from tests.sandbox import Machine

GUEST: Final = """
vcpus = 2
accel = "tcg"
[memory]
size = "512MiB"
hugepages = "off"
[boot]
firmware = "uefi"
[firmware]
secure_boot = true
tpm = true
[disk.root]
path = "web.img"
[network.lan]
type = "none"
[lifecycle]
ready = "console:{ready}"
"""
SCRIPT: Final = """
dmesg | grep -o 'Secure boot [a-z]*'
mount -t securityfs securityfs /sys/kernel/security
echo "lockdown: $(cat /sys/kernel/security/lockdown)"
tpm=/sys/class/tpm/tpm0
echo "tpm: version $(cat $tpm/tpm_version_major) by $(basename $(readlink $tpm/device/driver))"
"""


@pytest.fixture(scope="module")
def built() -> Path:
    """Give the directory with the guest and the signed loaders."""
    return build_guest("secure-boot")


def make_disk(machine: Machine, built: Path, kernel: Path) -> None:
    """Make the disk that the firmware boots from: a FAT file system with the loaders, a kernel and the initramfs."""
    image, configuration = machine.directory / "vmdefs" / "web.img", machine.directory / "grub.cfg"
    run = base64.b64encode(SCRIPT.encode()).decode()
    configuration.write_text(
        f"set timeout=0\nlinux /vmlinuz console=ttyS0 quiet kvmlaunch.run={run}\ninitrd /initrd\nboot\n"
    )
    image.parent.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(kernel.stat().st_size + (16 << 20))
    for words in (
        ("mformat", "::"),
        ("mmd", "::/EFI", "::/EFI/BOOT", "::/EFI/debian"),
        ("mcopy", built / "secure-boot" / "BOOTX64.EFI", built / "secure-boot" / "grubx64.efi", "::/EFI/BOOT"),
        ("mcopy", configuration, "::/EFI/debian"),
        ("mcopy", kernel, "::/vmlinuz"),
        ("mcopy", built / "web01.initrd", "::/initrd"),
    ):
        program, *operands = words
        result = machine.execute(program, "-i", image, *operands)
        assert result.code == 0, result.err


def test_a_signed_guest_sees_secure_boot_and_a_tpm_2_and_locks_itself_down(machine: Machine, built: Path) -> None:
    make_disk(machine, built, built / "web01.vmlinuz")
    machine.define("web", GUEST.format(ready="guest: ready"))

    machine.ok("up", "web", "--wait", "ready", "--timeout", "5m")
    said = machine.ok("logs", "web").out
    machine.end("web")

    assert "Secure boot enabled" in said
    assert "lockdown: none [integrity] confidentiality" in said
    assert "tpm: version 2 by tpm_crb" in said
    assert machine.leftovers() == []


def test_a_kernel_that_was_changed_is_not_started(machine: Machine, built: Path) -> None:
    changed = machine.directory / "changed"
    shutil.copyfile(built / "web01.vmlinuz", changed)
    with changed.open("r+b") as file:
        file.seek(changed.stat().st_size // 2)
        octet = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([octet ^ 1]))
    make_disk(machine, built, changed)
    machine.define("web", GUEST.format(ready="bad shim signature"))

    machine.ok("up", "web", "--wait", "ready", "--timeout", "5m")
    said = machine.ok("logs", "web").out
    machine.end("web")

    assert "bad shim signature" in said
    assert "guest:" not in said
