"""The host as seen once: frozen facts, sizes in bytes.

A fact that could not be read is None, or says so in words; no default is invented for it.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

from kvmlaunch.errors import Report
from kvmlaunch.model.value import Factory, frozen
from kvmlaunch.units import GIB


@frozen(kw_only=True)
class HostCpus:
    """The host's CPUs; `siblings` maps a CPU to the SMT siblings of its core, itself included."""

    online: tuple[int, ...]
    vendor: str = ""
    model: str = ""
    flags: frozenset[str] = frozenset()
    siblings: Mapping[int, tuple[int, ...]] = Factory(dict)
    governor: str | None = None


@frozen(kw_only=True)
class HugepagePool:
    """A pool of one page size, of the whole host (`host_numa_node` None) or of one node.

    Counts are pages.  `reserved` exists for the whole host only; a node's is None.
    Source: Documentation/admin-guide/mm/hugetlbpage.rst.
    """

    page_size: int
    total: int
    free: int
    surplus: int
    reserved: int | None = None
    overcommit: int = 0
    host_numa_node: int | None = None

    @property
    def available(self) -> int:
        """Pages that nobody holds or has been promised; never `free` alone."""
        return max(0, self.free - (self.reserved or 0))


@frozen(kw_only=True)
class HostNode:
    """A host NUMA node; memory in bytes."""

    number: int
    cpus: tuple[int, ...]
    memory_total: int
    memory_free: int
    pools: tuple[HugepagePool, ...] = ()


@frozen(kw_only=True)
class HostMemory:
    """/proc/meminfo, in bytes."""

    total: int
    available: int
    free: int = 0
    swap_total: int = 0


@frozen(kw_only=True)
class Mount:
    """A line of /proc/self/mountinfo; `options` are the mount's and the file system's."""

    path: PurePosixPath
    type: str
    source: str
    device: str
    options: tuple[str, ...] = ()

    def option(self, name: str) -> str | None:
        """Give the value of `name=value`, "" for a bare `name`, None when it is not there."""
        for option in self.options:
            key, _, value = option.partition("=")
            if key == name:
                return value
        return None


@frozen(kw_only=True)
class Ksm:
    """/sys/kernel/mm/ksm; `run` is 0, 1 or 2."""

    run: int
    pages_shared: int = 0
    pages_sharing: int = 0


@frozen(kw_only=True)
class KvmFacts:
    """What is known of KVM; `device` tells whether the VM's user can open /dev/kvm.

    `abilities` are the parameters of its modules that are on, each as `module.name`.
    """

    device: Literal["usable", "denied", "missing"]
    modules: tuple[str, ...] = ()
    abilities: frozenset[str] = frozenset()

    @property
    def runs_ordinary_kernels(self) -> bool:
        """Is this KVM for ordinary guests: PVM alone runs PVM-aware kernels only."""
        return "kvm_pvm" not in self.modules or bool({"kvm_intel", "kvm_amd"} & set(self.modules))

    @property
    def runs_guests(self) -> bool:
        """Does KVM run ordinary guests for the VM's user."""
        return self.device == "usable" and self.runs_ordinary_kernels


@frozen(kw_only=True)
class AioFacts:
    """Asynchronous I/O: contexts in use and allowed, and what io_uring_setup said to the VM's user ("" is usable).

    `io_uring_switch` is kernel.io_uring_disabled: 1 lets root and a group alone, 2 nobody.
    """

    used: int
    most: int
    io_uring_refusal: str = ""
    io_uring_switch: int = 0


@frozen(kw_only=True)
class UserFacts:
    """Whom QEMU will run as, and with which groups."""

    uid: int
    gid: int
    name: str = ""
    groups: tuple[str, ...] = ()
    memlock_hard: int | None = None


@frozen(kw_only=True)
class Holder:
    """A process that holds a lock or a port; `command` is its comm, `pid` 0 when we may not see whose it is.

    `writes` tells of an image lock that writing was taken: readers share an image with each other.
    """

    pid: int
    command: str = ""
    vm: str = ""
    writes: bool = False


PathKind = Literal["file", "block", "directory", "fifo", "character", "socket", "missing", "denied"]


@frozen(kw_only=True)
class PathFacts:
    """A file that a definition names, seen with the rights of the VM's user.

    `o_direct` is the outcome of an aligned O_DIRECT read of this very file, `refusal` what the system said when it was
    None or False; `dangling` is a link to nothing, whose goal `real` names;
    `moved` is where a disk went that was converted, and removed here.  `header` names a known image format found
    at the start, "" when none; `backing` is the name that a qcow2 file gives for its backing file, `chain` where the
    files of that chain really lie, `broken` which of them cannot be opened and why, `spoilt` which of them QEMU has
    marked as damaged, `external_data` whether one keeps
    its data in another file; `overlays` are the images that have this one as their backing file.
    `qcow2_version` of its header, `virtual_size` and `cluster_size` in bytes, `extended_l2` (are there subclusters)
    and `damaged` (did QEMU mark it so) are those of a qcow2 file, 0 and false for others; `least` are the bytes that
    its header and first table take, `short` those of its chain that end before the last cluster which they count as
    used.  `since` are the overlays
    of its snapshots, the newest last, which is what QEMU opens; `stray` those that do not lie in a line, `unread`
    those that cannot be read; `committing` tells of a commit at its last step, `taking` of a snapshot that is being
    taken, or was cut off.  `volume_id` is the name of an ISO
    9660 image.
    `inode` is `major:minor:number` of the file itself, for identity.  `real` is the path without links, `device` the
    bottom block device, with its scheduler's bracketed word, whether it rotates, its hardware queues and its physical
    block in bytes, 0 where none is told.  `no_discard` tells of a block device that frees nothing, `claimed` of one
    that the kernel itself holds, `mounted_readonly` of a file on a file system that is mounted so.
    """

    path: PurePosixPath
    kind: PathKind
    size: int = 0
    allocated: int = 0
    readable: bool = False
    writable: bool = False
    o_direct: bool | None = None
    refusal: str = ""
    dangling: bool = False
    filesystem: str = ""
    inode: str = ""
    header: str = ""
    volume_id: str = ""
    backing: str = ""
    chain: tuple[str, ...] = ()
    broken: str = ""
    moved: str = ""
    spoilt: str = ""
    external_data: bool = False
    overlays: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    since: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    committing: bool = False
    taking: bool = False
    claimed: bool = False
    mounted_readonly: bool = False
    no_discard: bool = False
    qcow2_version: int = 0
    virtual_size: int = 0
    cluster_size: int = 0
    extended_l2: bool = False
    damaged: bool = False
    least: int = 0
    device: str = ""
    real: str = ""
    scheduler: str = ""
    rotational: bool | None = None
    queues: int | None = None
    physical_block: int = 0
    lock_holders: tuple[Holder, ...] = ()
    owner: str = ""
    mode: int = 0

    @property
    def ends_within_block(self) -> bool:
        """Is a file's size no multiple of 4096: QEMU writes to no such raw image past the page cache (7.2.22)."""
        return self.kind == "file" and self.size % 4096 != 0

    @property
    def fully_allocated(self) -> bool:
        """Does every block of a regular file have its place on the store; true for a block device."""
        return self.kind == "block" or (self.kind == "file" and self.size > 0 and self.allocated >= self.size)


@frozen(kw_only=True)
class NetworkDevice:
    """An entry of /sys/class/net; `master` is the bridge that it belongs to."""

    name: str
    kind: Literal["bridge", "tap", "other"]
    mtu: int = 1500
    up: bool = False
    master: str = ""
    owner_uid: int | None = None
    multi_queue: bool = False


@frozen(kw_only=True)
class Listener:
    """A bound TCP or UDP port."""

    protocol: Literal["tcp", "udp"]
    address: str
    port: int
    holder: Holder | None = None


@frozen(kw_only=True)
class HeldByVm:
    """What this VM has already: it counts as available to it, so that a plan beside it stays the same.

    `mount_size` is the size in bytes of its hugetlbfs mount, None when there is none; `running` tells
    whether its QEMU lives and holds its ports, taps and image locks.  `host_numa_node` is where its memory was bound to
    when it was prepared or started.
    """

    mount_size: int | None = None
    mount_page_size: int | None = None
    mount_uid: int | None = None
    running: bool = False
    pid: int | None = None
    host_numa_node: int | None = None


@frozen(kw_only=True)
class HostFacts:
    """The host, as one value.

    `user` is whom QEMU runs as; `user_missing` says why root is not left for `kvmlaunch`, "" when it is
    or when the caller is not root.  `caller_uid` is the uid that the VM belongs to: the caller's, or the
    user's that root prepares for; `privileged` tells whether the caller himself is root.
    `hugepages_refused` is what the kernel said when pages were tried for and not granted; `unsafe` why a directory of
    the VM's may not be used, None when all that are there may.
    """

    machine_id: str
    boot_id: str
    kernel: str
    cpus: HostCpus
    memory: HostMemory
    nodes: tuple[HostNode, ...]
    pools: tuple[HugepagePool, ...]
    mounts: tuple[Mount, ...]
    thp: str | None
    ksm: Ksm | None
    kvm: KvmFacts
    aio: AioFacts
    user: UserFacts
    caller_uid: int
    vhost_net: bool
    systemd: bool
    tools: Mapping[str, str] = Factory(dict)
    paths: Mapping[PurePosixPath, PathFacts] = Factory(dict)
    network_devices: Mapping[str, NetworkDevice] = Factory(dict)
    listeners: tuple[Listener, ...] = ()
    hugetlb_cgroup: Mapping[int, int] = Factory(dict)
    held: HeldByVm = Factory(HeldByVm)
    user_missing: str = ""
    privileged: bool = False
    hugepages_refused: str = ""
    unsafe: Report | None = None

    @property
    def kept_memory(self) -> int:
        """Bytes that the host always keeps for itself: max(1 GiB, 10 % of its RAM)."""
        return max(GIB, self.memory.total // 10)

    def by_root(self, *commands: str) -> str:
        """Give commands for root as the caller pastes them."""
        return " && ".join(command if self.privileged else f"sudo {command}" for command in commands)

    def written_by_root(self, text: str, path: str) -> str:
        """Give the command that writes a text into a file of the kernel's, as the caller pastes it."""
        return f"echo {text} > {path}" if self.privileged else f"echo {text} | sudo tee {path}"

    def node(self, number: int) -> HostNode | None:
        """Give the NUMA node of a number, None where there is none."""
        return next((node for node in self.nodes if node.number == number), None)

    def pool(self, page_size: int, host_numa_node: int | None = None) -> HugepagePool | None:
        """Give the pool of a page size, of one node or of the host; None where this kernel has none."""
        node = None if host_numa_node is None else self.node(host_numa_node)
        pools = self.pools if host_numa_node is None else node.pools if node else ()
        return next((pool for pool in pools if pool.page_size == page_size), None)

    def holds_mount(self, page_size: int, pages: int) -> bool:
        """Has the VM its mount already: of this page size, for so many pages, of its user."""
        held = self.held
        return (held.mount_page_size, held.mount_size, held.mount_uid) == (page_size, page_size * pages, self.user.uid)

    def pages_short(self, page_size: int, pages: int, host_numa_node: int | None) -> int:
        """Give the pages by which the pool must be raised: need − (free − reserved) − what the VM's mount holds."""
        pool = self.pool(page_size, host_numa_node)
        if pool is None or self.holds_mount(page_size, pages):
            return 0
        own = (self.held.mount_size or 0) // page_size if self.held.mount_page_size == page_size else 0
        everywhere = self.pool(page_size)
        available = min(pool.free, everywhere.available) if everywhere else pool.available
        return max(0, pages - available - own)
