"""The engine of a disk's I/O, which QEMU calls aio: native, io_uring or threads.

Sources: io_submit(2) and io_uring_setup(2); Linux admin-guide/sysctl/fs.rst; measured, kvmlaunch docs, performance.
"""

from collections.abc import Iterator

from kvmlaunch.builder.option import by_hand
from kvmlaunch.model.choice import MEASURED, Choice, Origin
from kvmlaunch.model.definition import AUTO, DIRECT, Aio, Auto, Definition
from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.host import HostFacts, PathFacts
from kvmlaunch.model.qemu import QemuCaps

HEADROOM = 1024  # contexts that one busy QEMU may take
URING_AVOIDS = ("zfs", "cifs", "smb3")  # hangs were reported there: Proxmox qemu-server Drive.pm, Incus ba320b8bc6


def uring_trouble(facts: PathFacts, cache: str) -> str:
    """Give why io_uring is avoided on this store, "" when it is not."""
    if facts.filesystem in URING_AVOIDS:
        return f"hangs were reported on {facts.filesystem}"
    stores = (facts.device, facts.real.rpartition("/")[2] if facts.kind == "block" else "")
    if any(store.startswith("rbd") for store in stores):
        return "hangs were reported on krbd"
    if any(store.startswith("loop") for store in stores):
        return "hangs were reported on loop devices"
    if any(store.startswith("dm-") for store in stores) and cache == "writeback":
        return "hangs were reported on LVM with writeback"
    return ""


def native_trouble(facts: PathFacts, host: HostFacts, cache: str, format_: str) -> str:
    """Give why aio=native is not the best, "" when it is."""
    if cache not in DIRECT:
        return f"cache={cache} is not direct"
    if format_ != "raw":
        return f"{format_} allocates as it grows"
    if not facts.fully_allocated:
        return "the image is sparse: submitting would block while it allocates"
    if host.aio.used + HEADROOM > host.aio.most:
        return f"fs.aio-nr is {host.aio.used} of {host.aio.most}"
    return ""


def plan_aio(
    definition: Definition, name: str, host: HostFacts, caps: QemuCaps, facts: PathFacts, cache: str, format_: str
) -> Choice[Aio]:
    """Choose the engine: native for direct I/O on allocated storage, io_uring where it can be used, else threads."""
    key, written = f"disk.{name}.aio", definition.disk[name].aio
    if written is not AUTO:
        return by_hand(definition, key, written)
    fact = Origin(kind="host", place=f"{definition.disk[name].path}, aio limits", key=key)
    against_native = native_trouble(facts, host, cache, format_)
    if not against_native:
        what = "a block device" if facts.kind == "block" else "the image is fully allocated"
        return Choice(value="native", reason=f"cache={cache} and {what}", source=MEASURED, origin=fact)
    against_uring = (
        host.aio.io_uring_refusal
        or uring_trouble(facts, cache)
        or ("" if "io_uring" in caps.aio else "this QEMU was built without it")
    )
    if not against_uring:
        return Choice(value="io_uring", reason=against_native, source=MEASURED, origin=fact)
    return Choice(
        value="threads", reason=f"{against_native}; no io_uring: {against_uring}", source=MEASURED, origin=fact
    )


def check_aio(table: str, written: Auto | Aio, host: HostFacts, caps: QemuCaps) -> Iterator[Finding]:
    """Refuse an engine by hand that the host or this QEMU refuses (`host.aio.refused`, `qemu.capability`)."""
    key = f"{table}.aio"
    if written == "io_uring" and "io_uring" not in caps.aio:
        yield error(
            code="qemu.capability",
            message="this QEMU was built without io_uring",
            key=key,
            why=f"QEMU {caps.version_text}",
            hint='aio = "auto"',
        )
    elif written == "io_uring" and host.aio.io_uring_refusal:
        yield error(
            code="host.aio.refused",
            message=f"io_uring may not be used by {host.user.name or host.user.uid}",
            key=key,
            why=host.aio.io_uring_refusal,
            hint='sysctl kernel.io_uring_disabled=0   # or aio = "auto"',
        )
    if written == "native" and host.aio.used + HEADROOM > host.aio.most:
        yield error(
            code="host.aio.refused",
            message="the host's asynchronous I/O contexts are used up",
            key=key,
            why=f"fs.aio-nr is {host.aio.used} of fs.aio-max-nr {host.aio.most}",
            hint=f"sysctl fs.aio-max-nr={max(1 << 20, host.aio.most * 2)}",
        )
