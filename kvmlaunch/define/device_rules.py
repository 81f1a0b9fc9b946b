"""Rules of what would be dropped in silence: by QEMU, by a device, or by the guest's own driver.

Each was seen: QEMU starts and says nothing, and the guest has something else than the definition says.
"""

from kvmlaunch.define.broken import Broke, Broken, by_hand, choice
from kvmlaunch.define.mistake import Mistake
from kvmlaunch.define.tree import quote
from kvmlaunch.model.definition import AUTO, Definition

LONGEST_SCSI_SERIAL = 36  # bytes: what page 80 has room for in QEMU
TOLD_SCSI_SERIAL = 20  # of them page 83 tells
MOST_NVME_QUEUES = 64  # of the 65 interrupts of QEMU's nvme one is the admin queue's
LONGEST_APPEND = 2047  # bytes: COMMAND_LINE_SIZE of Linux on x86 without the NUL


def check_serials(definition: Definition) -> Broke:
    """Give disks with one serial number: a guest finds one of them, and refuses the second NVMe."""
    taken: dict[bytes, str] = {}
    for name, disk in definition.disk.items():
        serial = disk.serial if isinstance(disk.serial, str) else name
        told = serial.encode() if disk.serial is AUTO else serial.encode()[:TOLD_SCSI_SERIAL]  # a long name is hashed
        first = taken.setdefault(told, name)
        if first != name:
            message = f"disk.{first} and disk.{name} have one serial number, {quote(serial)}"
            why = "the guest could not tell them apart; a disk without one has its name for it"
            key = ("disk", name if disk.serial is not AUTO else first, "serial")
            yield Broken(key, choice(message, why=why, hint="give each disk a serial number of its own"))
        if disk.bus == "virtio-scsi" and len(serial.encode()) > LONGEST_SCSI_SERIAL:
            message = f"the serial number has {len(serial.encode())} bytes, the guest sees {LONGEST_SCSI_SERIAL}"
            right = quote(serial.encode()[:LONGEST_SCSI_SERIAL].decode(errors="ignore"))
            yield Broken(("disk", name, "serial"), Mistake(code="def.value.range", message=message, right=right))


def check_nvme(definition: Definition) -> Broke:
    """Give what QEMU's NVMe does not keep."""
    for name, disk in definition.disk.items():
        if disk.bus != "nvme":
            continue
        if disk.readonly:
            why = "its guest is told that it can be written, and every write fails"
            mistake = choice('readonly does not go with bus = "nvme"', why=why, hint='bus = "virtio-blk"')
            yield Broken(("disk", name, "readonly"), mistake, needs=(("disk", name, "bus"),))
        if isinstance(disk.queues, int) and disk.queues > MOST_NVME_QUEUES:
            message = f"an NVMe disk has at most {MOST_NVME_QUEUES} queues, {disk.queues} are asked for"
            mistake = Mistake(code="def.value.range", message=message, right=str(MOST_NVME_QUEUES))
            yield Broken(("disk", name, "queues"), mistake)


def check_tags(definition: Definition) -> Broke:
    """Give shares with one tag: a guest reaches the first of them alone."""
    taken: dict[str, str] = {}
    for name, share in definition.share.items():
        tag = name if share.tag is AUTO else str(share.tag)
        first = taken.setdefault(tag, name)
        if first != name:
            key = ("share", name if share.tag is not AUTO else first, "tag")
            message = f"share.{first} and share.{name} have one tag, {quote(tag)}"
            yield Broken(key, choice(message, hint="give each share a tag of its own"))


def check_cards(definition: Definition) -> Broke:
    """Give keys of a network that its type or its model does not have."""
    for name, network in definition.network.items():
        if network.type == "none":
            for key in ("mac", "mtu", "model", "queues", "vhost"):
                if by_hand(definition, f"network.{name}.{key}"):
                    mistake = choice(f'{key} does not go with type = "none": there is no card', hint="remove it")
                    yield Broken(("network", name, key), mistake, needs=(("network", name, "type"),))
        elif network.mtu is not None:
            user = network.type == "user" or not (network.type is not AUTO or network.bridge or network.ifname)
            if user or network.model != "virtio-net":
                message = "mtu goes with virtio-net on a bridge or a tap"
                why = (
                    "the guest is told of it by virtio-net" if not user else "user networking has packets of 1500 bytes"
                )
                hint = 'bridge = "br0"' if user else 'model = "virtio-net"'
                needs = (("network", name, "model"), ("network", name, "type"), ("network", name, "bridge"))
                yield Broken(("network", name, "mtu"), choice(message, why=why, hint=hint), needs=needs)


def check_memory_wishes(definition: Definition) -> Broke:
    """Give wishes for the memory that undo each other."""
    memory = definition.memory
    if memory.balloon == "on" and by_hand(definition, "memory.balloon"):
        for key, asked in (("prealloc", memory.prealloc is True), ("lock", memory.lock)):
            if asked:
                why = (
                    "a balloon gives back what prealloc took"
                    if key == "prealloc"
                    else "locked pages are not given back"
                )
                mistake = choice(f'{key} = true and balloon = "on" exclude each other', why=why, hint='balloon = "off"')
                yield Broken(("memory", "balloon"), mistake, needs=(("memory", key),))
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
