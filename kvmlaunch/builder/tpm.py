"""A TPM 2.0 for the guest: an emulator beside QEMU, reached over a socket in the run directory.

Source: QEMU docs, specs/tpm; swtpm(8).
"""

from collections.abc import Iterator

from kvmlaunch.builder.option import Part, field, fixed, pairs, wiring
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Place, Places
from kvmlaunch.model.run_files import TPM

STATE = "tpm"
SOURCE = "QEMU docs, specs/tpm"
TABLE = "firmware"
TOOL = "swtpm"


def build_tpm(definition: Definition, host: HostFacts) -> Part:
    """Give the TPM's device and the way to its emulator, nothing where none is asked for."""
    if not definition.firmware.tpm:
        return Part()
    place = fixed(Place(root="run", tail=TPM), "swtpm listens in the run directory, mode 0700", SOURCE)
    return Part(
        options=(
            pairs(
                "-chardev",
                TABLE,
                field("", f"{TABLE}.tpm.chardev", fixed("socket", "the emulator is a process of its own", SOURCE)),
                wiring("id", f"{TABLE}.tpm", "tpm-socket"),
                field("path", f"{TABLE}.tpm.path", place),
            ),
            pairs(
                "-tpmdev",
                TABLE,
                field("", f"{TABLE}.tpm.backend", fixed("emulator", "TPM 2.0, its state kept", SOURCE)),
                wiring("id", f"{TABLE}.tpm", "tpm0"),
                wiring("chardev", f"{TABLE}.tpm", "tpm-socket"),
            ),
            pairs(
                "-device",
                TABLE,
                field("", f"{TABLE}.tpm", fixed("tpm-crb", "the interface of TPM 2.0 that Windows expects", SOURCE)),
                wiring("id", f"{TABLE}.tpm.device", "tpm-crb0"),
                wiring("tpmdev", f"{TABLE}.tpm", "tpm0"),
            ),
        ),
        findings=tuple(check_tool(host)),
    )


def check_tool(host: HostFacts) -> Iterator[Finding]:
    """Refuse a TPM where its emulator is not installed (`host.tpm.missing`)."""
    if TOOL not in host.tools:
        yield error(
            code="host.tpm.missing",
            message="swtpm is not installed",
            key=f"{TABLE}.tpm",
            why="the guest's TPM is emulated by it",
            hint="apt install swtpm   # or: dnf install swtpm",
        )


def emulators(definition: Definition, host: HostFacts, places: Places) -> dict[str, tuple[str, ...]]:
    """Give the command that emulates a VM's TPM, by its socket's name; it ends when QEMU does."""
    if not definition.firmware.tpm or TOOL not in host.tools:
        return {}
    argv = (
        *(host.tools[TOOL], "socket", "--tpm2"),
        *("--tpmstate", f"dir={places.state / STATE},mode=0600"),
        *("--ctrl", f"type=unixio,path={places.run / TPM},mode=0600"),
        "--terminate",
    )
    return {TPM: argv}
