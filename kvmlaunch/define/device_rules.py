"""Rules of what would be dropped in silence: by QEMU, by a device, or by the guest's own driver.

Each was seen: QEMU starts and says nothing, and the guest has something else than the definition says.
"""

from kvmlaunch.define.broken import Broke, Broken, by_hand, choice
from kvmlaunch.define.mistake import Mistake
from kvmlaunch.define.tree import quote
from kvmlaunch.model.definition import AUTO, Definition

LONGEST_SERIAL = 20  # bytes, of virtio-blk, SATA and NVMe; of SCSI's page 83 too, by which udev names a disk
LONGEST_SCSI_SERIAL = 36  # what SCSI's page 80 has room for in QEMU
LONGEST_TAG = 36  # bytes, of virtiofs; virtio 1.3, section 5.11.4
MOST_QUEUES = {
    "virtio-scsi": 1022,  # of virtio's 1024 two are for control and events
    "nvme": 64,  # of the 65 interrupts of QEMU's device one is the admin queue's
}
USER_MTU = 1500  # bytes
LONGEST_APPEND = 2047  # bytes: COMMAND_LINE_SIZE of Linux on x86 without the NUL


def too_long(what: str, text: str, most: int) -> Mistake:
    """Give the mistake of a text of which a guest sees the beginning only."""
    message = f"the {what} has {len(text.encode())} bytes, the guest sees {most}"
    right = quote(text.encode()[:most].decode(errors="ignore"))
    return Mistake(code="def.value.range", message=message, right=right)


def check_serials(definition: Definition) -> Broke:
    """Give serial numbers that are cut off, and disks with one: a guest finds one of them, a second NVMe not at all."""
    taken: dict[bytes, str] = {}
    for name, disk in definition.disk.items():
        serial = disk.serial if isinstance(disk.serial, str) else name
        if not serial:
            continue
        most = LONGEST_SCSI_SERIAL if disk.bus == "virtio-scsi" else LONGEST_SERIAL
        if disk.serial is not AUTO and len(serial.encode()) > most:
            yield Broken(("disk", name, "serial"), too_long("serial number", serial, most))
        told = serial.encode() if disk.serial is AUTO else serial.encode()[:LONGEST_SERIAL]  # a long name is hashed
        first = taken.setdefault(told, name)
        if first != name:
            message = f"disk.{first} and disk.{name} have one serial number in its first {LONGEST_SERIAL} bytes"
            why = f"{quote(serial)}: the guest could not tell them apart; a disk without one has its name for it"
            key = ("disk", name if disk.serial is not AUTO else first, "serial")
            yield Broken(key, choice(message, why=why, hint="give each disk a serial number of its own"))


def check_queues(definition: Definition) -> Broke:
    """Give more queues than a bus has."""
    for name, disk in definition.disk.items():
        most = MOST_QUEUES.get(str(disk.bus))
        if most is not None and isinstance(disk.queues, int) and disk.queues > most:
            message = f"{disk.bus} has at most {most} queues, {disk.queues} are asked for"
            mistake = Mistake(code="def.value.range", message=message, right=str(most))
            yield Broken(("disk", name, "queues"), mistake)


def check_tags(definition: Definition) -> Broke:
    """Give tags that are cut off, and shares with one tag: a guest reaches the first of them alone."""
    taken: dict[str, str] = {}
    for name, share in definition.share.items():
        tag = name if share.tag is AUTO else str(share.tag)
        if len(tag.encode()) > LONGEST_TAG:
            yield Broken(("share", name, "tag"), too_long("tag", tag, LONGEST_TAG))
        first = taken.setdefault(tag, name)
        if first != name:
            key = ("share", name if share.tag is not AUTO else first, "tag")
            message = f"share.{first} and share.{name} have one tag, {quote(tag)}"
            yield Broken(key, choice(message, hint="give each share a tag of its own"))


def check_cards(definition: Definition) -> Broke:
    """Give an MTU that nobody is told of, or that the network does not have."""
    for name, network in definition.network.items():
        key, mtu = ("network", name, "mtu"), network.mtu or 0
        if network.type in {"none", "bridge"} or network.bridge or not mtu:
            continue
        if network.type == "tap" or network.ifname:
            if network.model != "virtio-net":
                why = "the tap is used as it is, and virtio-net alone tells a guest"
                mistake = choice("mtu goes with virtio-net on a tap", why=why, hint='model = "virtio-net"')
                yield Broken(key, mistake, needs=(("network", name, "model"), ("network", name, "type")))
        elif mtu > USER_MTU or network.model != "virtio-net":
            why = f"packets there have {USER_MTU} bytes, and virtio-net alone tells a guest of fewer"
            mistake = choice(f"user networking does not have an mtu of {mtu}", why=why, hint='bridge = "br0"')
            yield Broken(key, mistake, needs=(("network", name, "model"), ("network", name, "type")))


def check_memory_wishes(definition: Definition) -> Broke:
    """Give wishes for the memory that undo each other."""
    memory = definition.memory
    if memory.lock and memory.balloon == "on" and by_hand(definition, "memory.balloon"):
        mistake = choice('lock = true and balloon = "on" exclude each other', hint='balloon = "off"')
        yield Broken(("memory", "balloon"), mistake, needs=(("memory", "lock"),))
    shared = [name for name, share in definition.share.items() if share.type == "virtiofs"]
    if shared and memory.ksm == "on" and by_hand(definition, "memory.ksm"):
        why = f"virtiofs of share.{shared[0]} shares the guest's memory, and shared memory is not merged"
        mistake = choice('ksm = "on" and virtiofs exclude each other', why=why, hint='type = "9p"   # in the [share]')
        yield Broken(("memory", "ksm"), mistake, needs=(("share", shared[0], "type"),))


def check_secure_boot(definition: Definition) -> Broke:
    """Give what secure boot does not hold against."""
    machine, key = definition.machine, ("firmware", "secure_boot")
    if not definition.firmware.secure_boot:
        return
    if definition.boot.kernel is not None:
        why = "the firmware starts a kernel that QEMU hands it whether it is signed or not"
        mistake = choice("secure_boot does not go with boot.kernel", why=why, hint="let the guest boot from its disk")
        yield Broken(key, mistake, needs=(("boot", "kernel"),))
    if isinstance(machine, str) and (machine == "pc" or machine.startswith("pc-i440fx")):
        mistake = choice("secure boot needs a q35", why="its firmware needs SMM as q35 has it", hint='machine = "auto"')
        yield Broken(key, mistake, needs=(("machine",),))


def check_append(definition: Definition) -> Broke:
    """Give a kernel command line that is longer than a kernel takes: it would start, and never say a word."""
    append = definition.boot.append
    if append is not None and len(append.encode()) > LONGEST_APPEND:
        message = f"append has {len(append.encode())} bytes, Linux takes {LONGEST_APPEND}"
        yield Broken(("boot", "append"), Mistake(code="def.value.range", message=message))
