"""The plan of a VM: options with their reasons, and what must be seen once it runs.

Argument and explanation are the same objects: render reads the values of an Option, `explain` and
`print-cmd --comments` read the rest.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

from kvmlaunch.model.choice import Choice
from kvmlaunch.model.finding import Finding
from kvmlaunch.model.value import frozen

PlaceRoot = Literal["run", "hugepages", "state"]


@frozen(kw_only=True)
class Place:
    """A path that is known only at launch: a directory of the VM and what lies in it.

    `prefix` is what QEMU wants before the path, such as `unix:`.
    """

    root: PlaceRoot
    tail: str = ""
    prefix: str = ""


@frozen(kw_only=True)
class Places:
    """The directories of one VM, computed from its name and its owner alone.

    `run` is the run directory, `hugepages` the mount point, `state` what outlives a run (UEFI
    variables), `logs` the kept logs.
    """

    run: PurePosixPath
    hugepages: PurePosixPath
    state: PurePosixPath
    logs: PurePosixPath

    def resolve(self, place: Place) -> PurePosixPath:
        """Give the path of a place."""
        root: PurePosixPath = getattr(self, place.root)
        return root / place.tail if place.tail else root


# A tuple of strings is a list of iothread ids, for the one JSON value that key=value cannot say.
FieldValue = str | int | bool | PurePosixPath | Place | tuple[str, ...]


@frozen(kw_only=True)
class Field:
    """One part of an option: `name=value`, or a value alone where `name` is "".

    `key` is the label under which `explain` shows it: the dotted key of the definition it came from,
    or one of the same shape where the format has no key (`machine.hpet`).
    """

    name: str
    key: str
    choice: Choice[FieldValue]


@frozen(kw_only=True)
class Option:
    """One QEMU option.

    `form` says how the fields become one argument: `bare` none at all; `value` the single value as it is;
    `pairs` with commas between and commas inside doubled; `json` an object.  `table` is the
    definition's table, `disk.root`.
    """

    flag: str
    form: Literal["bare", "value", "pairs", "json"]
    table: str
    fields: tuple[Field, ...]


@frozen(kw_only=True)
class AcceleratorPromise:
    """query-kvm must answer so."""

    kvm: bool


@frozen(kw_only=True)
class MemoryPromise:
    """The RAM mapping in smaps: its size in bytes, its page size, whether it may be merged.

    `page_size` 4096 stands for ordinary memory, transparent huge pages included.
    """

    size: int
    page_size: int
    merge: bool
    prealloc: bool
    lock: bool


@frozen(kw_only=True)
class DrivePromise:
    """What query-block and fdinfo must say of a drive.

    `table` is the definition's, `disk.root`; `writeback` tells whether the guest has a volatile cache; `path` is a
    place where it is known only at launch.
    """

    table: str
    id: str
    path: PurePosixPath | Place
    format: str
    readonly: bool
    direct: bool
    no_flush: bool
    writeback: bool
    detect_zeroes: str
    iops: int = 0
    bandwidth: int = 0

    def is_at(self, path: str) -> bool:
        """Is this the file that was promised."""
        return path.endswith(f"/{self.path.tail}") if isinstance(self.path, Place) else path == str(self.path)


@frozen(kw_only=True)
class SandboxPromise:
    """/proc/PID/status: Seccomp 2 and NoNewPrivs 1."""

    seccomp: bool


@frozen(kw_only=True)
class IdentityPromise:
    """query-name, query-uuid and `-machine`, and the uid without capabilities when it is not root's."""

    name: str
    uuid: str
    machine: str
    vcpus: int
    uid: int


Promise = AcceleratorPromise | MemoryPromise | DrivePromise | SandboxPromise | IdentityPromise


@frozen(kw_only=True)
class MemoryPlan:
    """What backs the guest's RAM.  `pages` are pages of `page_size`, 0 with ordinary memory.

    `asked` tells whether the backing was written by hand, `node_asked` the same of the host NUMA node.
    """

    size: int
    backing: Literal["hugepages", "ordinary"]
    page_size: int
    pages: int
    host_numa_node: int | None = None
    asked: bool = False
    node_asked: bool = False
    lock: bool = False

    @property
    def reserved(self) -> int:
        """Bytes of huge pages: pages × page size, never less than the guest's RAM."""
        return self.pages * self.page_size


@frozen(kw_only=True)
class PlannedDisk:
    """A disk or CD-ROM as planned, for the checks; `table` is `disk.root`.

    `made` tells whether `disk create` would make it: it has a size, or a backing file.  `image` is what the definition
    names, where `path` is the overlay of a snapshot of it.
    """

    table: str
    path: PurePosixPath
    format: str
    format_written: bool
    readonly: bool
    cache: str
    made: bool = False
    image: PurePosixPath | None = None


@frozen(kw_only=True)
class PlannedNetwork:
    """A network as planned; `ifname` is the tap, ours when `owned`; `mac` is "" where there is no NIC."""

    table: str
    type: str
    mac: str = ""
    bridge: str = ""
    ifname: str = ""
    owned: bool = False
    queues: int = 1
    mtu: int | None = None
    vhost: bool = False


@frozen(kw_only=True)
class PlannedListener:
    """A port of the host that QEMU will bind; `guest_port` is where a forward of it leads."""

    key: str
    protocol: Literal["tcp", "udp"]
    address: str
    port: int
    guest_port: int | None = None


@frozen(kw_only=True)
class PlannedFile:
    """Another file that QEMU reads: kernel, initrd, firmware code; `key` names where it was asked for."""

    key: str
    path: PurePosixPath


@frozen(kw_only=True)
class Plan:
    """Everything decided about one VM.

    `options` stand in argv's order.  `promises` are read back from the live QEMU.  `findings` are the
    fallbacks and clashes seen while building.  `choices` are decisions that are no part of argv (whom
    QEMU runs as, pinning), by key.  `variables` is the template of the UEFI variable store, None with BIOS.
    `uuid` is computed, and QEMU is known by it; `system_uuid` is the one by hand that the guest sees, or "".
    `vcpu_pins` and `iothread_pins` give host CPUs in order, empty when nothing is pinned.
    """

    name: str
    digest: str
    binary: PurePosixPath
    uuid: str
    user: str
    options: tuple[Option, ...]
    promises: tuple[Promise, ...]
    findings: tuple[Finding, ...]
    choices: tuple[Field, ...]
    memory: MemoryPlan
    vcpus: int
    accelerator: Literal["kvm", "tcg"]
    disks: tuple[PlannedDisk, ...] = ()
    networks: tuple[PlannedNetwork, ...] = ()
    listeners: tuple[PlannedListener, ...] = ()
    files: tuple[PlannedFile, ...] = ()
    variables: PurePosixPath | None = None
    vcpu_pins: tuple[int, ...] = ()
    iothread_pins: tuple[int, ...] = ()
    iothreads: tuple[str, ...] = ()
    serial: bool = True
    system_uuid: str = ""

    @property
    def thread_pins(self) -> Mapping[str, int]:
        """The host CPU of each I/O thread, by its id; fewer CPUs than threads are shared in turn."""
        pins = self.iothread_pins
        return {id_: pins[index % len(pins)] for index, id_ in enumerate(self.iothreads)} if pins else {}
