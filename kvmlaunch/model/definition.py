"""The VM as written.  Every key of a definition stands here once: type, default, one sentence.

Parser, JSON Schema, `--set`, completion and the reference page are derived from these classes.
A field's metadata holds `doc`, and where they apply `least` and `most` (both included) and
`example`, the TOML that stands for the key in the reference.  Sizes are bytes, times seconds.
"""

from collections.abc import Mapping
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, Final, Literal, NewType

from kvmlaunch.model.choice import Origin
from kvmlaunch.model.value import NOTHING, Factory, field, frozen


class Auto(Enum):
    """The value `auto`: kvmlaunch decides, and says why."""

    AUTO = "auto"


AUTO: Final = Auto.AUTO

Size = NewType("Size", int)  # bytes, written "8GiB"
Bandwidth = NewType("Bandwidth", int)  # bytes a second, written "200MiB/s"
ReadAhead = NewType("ReadAhead", int)  # bytes, written "128KiB"
Duration = NewType("Duration", float)  # seconds, written "90s"
CpuList = NewType("CpuList", tuple[int, ...])  # in the order written, "2-9,34-41"
HostNumaNode = NewType("HostNumaNode", int)  # written "0"
Uuid = NewType("Uuid", str)  # lower case, RFC 9562
MacAddress = NewType("MacAddress", str)  # lower case, six pairs with colons, unicast

Profile = Literal["server", "database", "desktop", "density", "scratch"]
THIN_PROFILES: Final[tuple[Profile, ...]] = ("density", "scratch")  # their disks take blocks as they are written
Os = Literal["linux", "windows", "other"]
Accel = Literal["any", "kvm", "tcg"]
Hugepages = Literal["off", "2MiB", "1GiB"]
DiskFormat = Literal["raw", "qcow2"]
Bus = Literal["virtio-blk", "virtio-scsi", "nvme", "sata", "ide"]
CacheMode = Literal["none", "writeback", "writethrough", "directsync", "unsafe"]
Aio = Literal["native", "io_uring", "threads"]
DIRECT: Final = ("none", "directsync")  # the cache modes past the page cache: O_DIRECT
Preallocation = Literal["off", "metadata", "falloc", "full"]
NetworkType = Literal["user", "bridge", "tap", "none"]


def key(doc: str, default: object = NOTHING, *, least: int | None = None, most: int | None = None) -> Any:  # noqa: ANN401 - as attrs.field
    """Declare a key: its sentence, its default, and the smallest and largest number allowed."""
    return field(default=default, metadata={"doc": doc, "least": least, "most": most})


def table(kind: type, doc: str) -> Any:  # noqa: ANN401 - as attrs.field
    """Declare a table that is there with its defaults when it is not written."""
    return field(default=Factory(kind), metadata={"doc": doc, "least": None, "most": None})


def tables(doc: str) -> Any:  # noqa: ANN401 - as attrs.field
    """Declare named tables, `[disk.NAME]`; none when nothing is written."""
    return field(default=Factory(dict), metadata={"doc": doc, "least": None, "most": None})


@frozen(kw_only=True)
class Forward:
    """A port of the host that leads into the guest, written `tcp:127.0.0.1:8080:80`."""

    protocol: Literal["tcp", "udp"]
    address: str
    host_port: int
    guest_port: int


@frozen(kw_only=True)
class Ready:
    """What `up --wait ready` waits for; `target` is a URL, a regular expression, or `ADDRESS:PORT`."""

    kind: Literal["http", "console", "tcp"]
    target: str

    @property
    def text(self) -> str:
        """What is waited for, as it is written."""
        return self.target if self.kind == "http" else f"{self.kind}:{self.target}"


@frozen(kw_only=True)
class Topology:
    """The guest's CPU topology; the product is the number of vCPUs."""

    sockets: int = key("Sockets.", 1, least=1, most=4096)
    cores: int = key("Cores in a socket.", 1, least=1, most=4096)
    threads: int = key("Threads in a core.", 1, least=1, most=8)


@frozen(kw_only=True)
class Cpu:
    """`[cpu]`."""

    vcpus: int = key("Number of vCPUs; the shorthand `vcpus = 4` says the same.", 1, least=1, most=4096)
    model: Auto | str = key("A name of `-cpu help`; auto is `host` with KVM and `max` with TCG.", AUTO)
    topology: Auto | Topology = key("Sockets, cores and threads; auto is one socket with a core a vCPU.", AUTO)
    pin: Auto | Literal["none"] | CpuList = key("Host CPUs, one a vCPU; auto chooses them.", "none")
    features: Mapping[str, Literal["on", "off"]] = key(
        'CPU features switched by hand: `{ pmu = "off" }`. What cannot be given ends the start, unless enforce is off.',
        Factory(dict),
    )
    properties: Mapping[str, str] = key(
        'CPU properties that are numbers or texts: `{ phys-bits = "40", hv-vendor-id = "none" }`.', Factory(dict)
    )


@frozen(kw_only=True)
class Memory:
    """`[memory]`."""

    size: Size = key('The guest\'s RAM; the shorthand `memory = "8GiB"` says the same.', Size(1 << 30))
    hugepages: Auto | Hugepages = key("Page size of the backing; auto takes 2 MiB pages when they can be had.", AUTO)
    prealloc: Auto | bool = key("Touch all memory at the start; auto does so with hugepages.", AUTO)
    numa: Auto | Literal["none"] | HostNumaNode = key("Bind the memory to this host NUMA node.", AUTO)
    ksm: Literal["off", "on"] = key("May the host merge equal pages of this guest (never with hugepages).", "off")
    lock: bool = key("Lock the guest's memory and QEMU's own into RAM.", default=False)
    balloon: Auto | Literal["off", "on"] = key(
        "Memory balloon; auto has one with ordinary memory, none with hugepages.", AUTO
    )


@frozen(kw_only=True)
class Boot:
    """`[boot]`."""

    firmware: Auto | Literal["bios", "uefi"] = key("What starts the guest; auto is bios.", AUTO)
    kernel: PurePosixPath | None = key("Kernel image, booted without a boot loader.", None)
    initrd: PurePosixPath | None = key("Initial RAM disk for `kernel`.", None)
    append: str | None = key("Kernel command line for `kernel`.", None)


@frozen(kw_only=True)
class FirmwareKeys:
    """`[firmware]`."""

    tpm: bool = key("A TPM 2.0, emulated by swtpm, its state kept.", default=False)
    secure_boot: bool = key(
        "UEFI that starts what is signed only; the keys of the distribution's firmware.", default=False
    )


@frozen(kw_only=True)
class Iothreads:
    """`[iothreads]`."""

    count: Auto | int = key(
        "Number of I/O threads; auto is one a disk that profits, while host CPUs can be spared.", AUTO, least=0, most=64
    )
    pin: Auto | Literal["none"] | CpuList = key("Host CPUs, one an I/O thread.", "none")


@frozen(kw_only=True)
class Limits:
    """`limits` of a disk."""

    iops: int | None = key("At most so many requests a second.", None, least=1, most=1_000_000_000)
    bandwidth: Bandwidth | None = key("At most so many bytes a second.", None)


@frozen(kw_only=True)
class Disk:
    """`[disk.NAME]`."""

    path: PurePosixPath = key("Image file, block device, or `lvm:GROUP/VOLUME`.")
    format: Auto | DiskFormat = key(
        "auto is raw for a block device, *.img and *.raw, qcow2 for *.qcow2; content is never probed.", AUTO
    )
    bus: Auto | Bus = key("What the guest sees; auto is virtio-blk, for Windows sata.", AUTO)
    cache: Auto | CacheMode = key("QEMU's cache mode; auto is none where O_DIRECT works, else writeback.", AUTO)
    aio: Auto | Aio = key("How QEMU reads and writes; auto decides by where the image lies.", AUTO)
    iothread: Auto | bool = key("Give this disk an I/O thread.", AUTO)
    queues: Auto | int = key("Request queues; auto is QEMU's default, one a vCPU.", AUTO, least=1, most=1024)
    discard: Auto | Literal["unmap", "ignore"] = key(
        "What a guest's trim does; auto is unmap, ignore on a device that takes none.", AUTO
    )
    detect_zeroes: Literal["off", "on", "unmap"] = key("Turn written zeros into holes.", "off")
    readonly: bool = key("The guest may not write.", default=False)
    boot: Auto | int = key(
        "Boot index, the smallest first; auto is the smallest free one for the first disk when no disk has one.",
        AUTO,
        least=1,
        most=1_000_000,
    )
    serial: Auto | str = key("Serial number that the guest sees; auto is the disk's name.", AUTO)
    on_error: Auto | Literal["report", "stop", "enospc"] = key(
        "What an I/O error does; auto is QEMU's own: ENOSPC pauses, others are reported.", AUTO
    )
    limits: Limits = table(Limits, "Ceilings for requests and bytes a second.")
    size: Size | None = key("What `disk create` makes and `disk resize` grows to; never shrunk.", None)
    preallocation: Auto | Preallocation = key(
        "Blocks that a new image gets at once; auto is falloc for raw, metadata for qcow2, off for an overlay.", AUTO
    )
    backing: PurePosixPath | None = key("Image that a new qcow2 image is an overlay of.", None)
    thin_pool: str | None = key("Thin pool of the volume group in which a new volume is made.", None)


@frozen(kw_only=True)
class Cdrom:
    """`[cdrom.NAME]`."""

    path: PurePosixPath = key("ISO image, always read-only.")
    boot: int | None = key(
        "Boot index, the smallest first; without it the CD-ROMs come after the disk.", None, least=1, most=1_000_000
    )


@frozen(kw_only=True)
class Network:
    """`[network.NAME]`."""

    type: Auto | NetworkType = key(
        "auto is bridge where `bridge` is written, tap where `ifname` is, else user networking.", AUTO
    )
    bridge: str | None = key("Bridge of the host; a tap of ours joins it.", None)
    ifname: str | None = key("Existing tap device of the host, for type tap.", None)
    model: Literal["virtio-net", "e1000e"] = key("What the guest sees.", "virtio-net")
    mac: Auto | MacAddress = key("auto is stable: computed from machine-id, user, VM and network.", AUTO)
    queues: Auto | int = key("Queue pairs; auto is min(vCPUs, 8) with a tap of ours, else 1.", AUTO, least=1, most=256)
    vhost: Auto | bool = key("In-kernel backend for taps; auto where /dev/vhost-net opens.", AUTO)
    mtu: int | None = key("MTU of the tap, told to the guest.", None, least=68, most=65521)
    forwards: tuple[Forward, ...] = key("User networking: `protocol:host address:host port:guest port`.", ())


@frozen(kw_only=True)
class Console:
    """`[console]`."""

    serial: bool = key("A serial port, reached by `kvmlaunch console`.", default=True)
    log: bool = key("Keep what the guest prints on it, bounded.", default=True)


@frozen(kw_only=True)
class Display:
    """`[display]`."""

    type: Literal["none", "vnc"] = key("A screen, or none.", "none")
    address: str | None = key("Where VNC listens, `127.0.0.1:5901`; without it a socket in the run directory.", None)


@frozen(kw_only=True)
class Share:
    """`[share.NAME]`."""

    path: PurePosixPath = key("Directory of the host that the guest may mount.")
    type: Auto | Literal["virtiofs", "9p"] = key("auto is virtiofs where its daemon can be used, else 9p.", AUTO)
    tag: Auto | str = key("The word by which the guest mounts it; auto is the share's name.", AUTO)
    readonly: bool = key("The guest may not write.", default=False)


@frozen(kw_only=True)
class GuestAgent:
    """`[guest_agent]`."""

    enabled: Auto | bool = key(
        "A channel to qemu-guest-agent in the guest; auto has one where cloud_init installs it.", AUTO
    )


@frozen(kw_only=True)
class CloudInit:
    """`[cloud_init]`."""

    enabled: Auto | bool = key("Attach a seed for cloud-init; auto does where anything of this table is written.", AUTO)
    user_data: PurePosixPath | None = key("File with user data: `#cloud-config`, a script, or another kind.", None)
    meta_data: PurePosixPath | None = key("File with more metadata, a YAML table; what it says comes first.", None)
    network: PurePosixPath | None = key("File with a network configuration, version 1 or 2.", None)
    hostname: Auto | str = key("The guest's host name; auto is the VM's name.", AUTO)
    ssh_keys: tuple[str, ...] = key("Public keys that may log in as the image's user.", ())
    scheduler: bool = key("Have the guest use the I/O scheduler none.", default=True)
    trim: bool = key("Have the guest trim its file systems once a week.", default=True)
    agent: bool = key("Have qemu-guest-agent installed, and give it its channel.", default=True)
    haltpoll: Auto | bool = key("Have the guest poll before it sleeps; auto does where its vCPUs are pinned.", AUTO)


@frozen(kw_only=True)
class Lifecycle:
    """`[lifecycle]`."""

    stop_timeout: Duration = key("How long `down` waits for the guest.", Duration(90.0))
    start_timeout: Duration = key(
        "How long `up` waits for QEMU, with `--wait ready` for the guest; by default 8 s more a preallocated GiB.",
        Duration(30.0),
    )
    autostart: bool = key("Part of `up --all`.", default=False)
    ready: Ready | None = key(
        "What `up --wait ready` waits for: an http URL, `console:REGEX` or `tcp:ADDRESS:PORT`.", None
    )
    on_crash: Literal["report", "pause"] = key("What a guest panic does: report it, or pause the guest.", "report")


@frozen(kw_only=True)
class Security:
    """`[security]`."""

    user: Auto | str = key(
        "Whom QEMU runs as when root starts it; auto is the system user `kvmlaunch` where it can.", AUTO
    )
    sandbox: bool = key("QEMU's seccomp filter.", default=True)


@frozen(kw_only=True)
class QemuBinary:
    """`[qemu]`."""

    binary: Auto | PurePosixPath = key("auto is qemu-system-x86_64, else kvm, on PATH.", AUTO)


@frozen(kw_only=True)
class Raw:
    """`[raw]`."""

    args: tuple[str, ...] = key("QEMU arguments by hand; they come last.", ())


@frozen(kw_only=True)
class Definition:
    """A VM as written, every default filled in.

    `name` is the file's; `file` and `directory` are absolute.  `origins` has one entry a leaf key that
    was written in a file, a profile or `--set`; a key without one has its built-in default.
    `digest` is the hex SHA-256 of the resolved definition.
    """

    name: str
    file: PurePosixPath
    origins: Mapping[str, Origin] = Factory(dict)
    digest: str = ""

    profile: Profile = key("Defaults for an intent; `show profile:NAME` prints them.", "server")
    os: Os = key("The guest's kind; windows adds Hyper-V enlightenments and a localtime clock.", "linux")
    description: str = key("A line for people.", "")
    labels: Mapping[str, str] = key(
        "Words of yours, shown by `ls --json`; `trust` tells `tune` which guests may share pages.", Factory(dict)
    )
    accel: Auto | Accel = key(
        "auto is kvm and an error where it does not work; any is kvm, else tcg with a warning.", AUTO
    )
    machine: Auto | str = key("A name of `-machine help`; auto is the newest q35 of this QEMU.", AUTO)
    uuid: Auto | Uuid = key("System UUID that the guest sees; auto is computed from machine-id, user and name.", AUTO)
    cpu: Cpu = table(Cpu, "Virtual CPUs.")
    memory: Memory = table(Memory, "RAM and what backs it.")
    boot: Boot = table(Boot, "Firmware, or a kernel booted directly.")
    firmware: FirmwareKeys = table(FirmwareKeys, "What an installer of today asks of a machine.")
    iothreads: Iothreads = table(Iothreads, "Threads that do the disks' work.")
    disk: Mapping[str, Disk] = tables("Disks, in the order of the file.")
    cdrom: Mapping[str, Cdrom] = tables("CD drives.")
    network: Mapping[str, Network] = tables("Networks; none written gives one with user networking.")
    share: Mapping[str, Share] = tables("Directories of the host.")
    console: Console = table(Console, "Serial console.")
    display: Display = table(Display, "Screen.")
    guest_agent: GuestAgent = table(GuestAgent, "A channel to the agent in the guest.")
    cloud_init: CloudInit = table(CloudInit, "First boot by cloud-init, and the guest's own tuning.")
    lifecycle: Lifecycle = table(Lifecycle, "Starting and ending.")
    security: Security = table(Security, "Least privilege.")
    qemu: QemuBinary = table(QemuBinary, "Which QEMU.")
    raw: Raw = table(Raw, "What kvmlaunch has no key for.")

    def origin(self, path: str) -> Origin:
        """Give where the value of a dotted key path was written; the built-in default when nowhere."""
        return self.origins.get(path) or Origin(kind="default", key=path)


# Keys that steer loading and leave no value behind, each with its sentence.
LOADING_KEYS: Final[Mapping[str, str]] = {
    "extends": "Templates merged beneath this file, left to right.",
    "unset": "Key paths of templates that this file removes.",
    "vars": "Strings for `${name}`.",
}
# Tables that hold tables by names which the user chooses.
NAMED_TABLES: Final = ("disk", "cdrom", "network", "share")
# The five scalar shorthands: what is written, and the key path that it means.
SHORTHANDS: Final[Mapping[str, str]] = {
    "vcpus": "cpu.vcpus",
    "memory": "memory.size",
    "disk": "disk.root.path",
    "network": "network.net0.bridge",
    "cdrom": "cdrom.cd0.path",
}
