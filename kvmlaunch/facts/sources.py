"""What is captured of a host, and the host that the capture tells of.

The only module of `facts` that knows the others.  `FILES` are read as they stand; what is no file
is a probe, a JSON value by name:

    caller     {"uid": 0}
    user       {"uid", "gid", "name", "groups"}: whom QEMU will run as
    kvm        the name of the errno of opening /dev/kvm as that user, "" when it opened
    vhost      the same of /dev/vhost-net
    io_uring   what io_uring_setup said to that user, "" when it worked, null when it was not tried
    modules    the names under /sys/module that begin with kvm
    tools      {name: absolute path}
    masters    {network device: its bridge}
    sockets    {inode: holder} of the ports that were asked for
    path:/…    one a file that a definition names, by the path that it was named by: `real` without links,
               `kind`, `size`, …, `disks`, `holders` (facts/block.py)
"""

from collections.abc import Mapping
from pathlib import PurePosixPath

from kvmlaunch.facts import block, cpu, hugepages, kvm, limits, memory, mounts, network, numa, process
from kvmlaunch.model.host import Holder, HostFacts, Mount, PathFacts
from kvmlaunch.model.value import Factory, evolve, frozen

MACHINE_ID = "/etc/machine-id"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
KERNEL = "/proc/sys/kernel/osrelease"
FILES = (
    *(MACHINE_ID, BOOT_ID, KERNEL),
    *cpu.FILES,
    *memory.FILES,
    *hugepages.FILES,
    *numa.FILES,
    *mounts.FILES,
    *limits.FILES,
    *process.FILES,
    *kvm.FILES,
)
TOOLS = (
    *("qemu-system-x86_64", "kvm", "qemu-img", "qemu-io", "virtiofsd", "swtpm"),
    *("ip", "findmnt", "mount", "lvs", "lsblk", "setpriv", "strace", "systemctl", "loginctl"),
)
PATH = "path:"


@frozen(kw_only=True)
class Wanted:
    """What one VM needs looked at beside the files that every VM needs.

    `paths` are absolute; of `ports` (host ports that it forwards) the holders are looked for.
    `listeners`, `network_devices`, `io_uring`, `locks` (who has locked the paths: the kernel takes
    6 ms to say of one that is locked) and `overlays` (which images have one of the paths as their
    backing file) cost time, so they are asked for.
    """

    paths: tuple[PurePosixPath, ...] = ()
    ports: tuple[int, ...] = ()
    listeners: bool = False
    network_devices: bool = False
    io_uring: bool = False
    locks: bool = True
    overlays: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The patterns of the files to read: `*` stands within one component, as in a shell."""
        devices = network.DEVICE_FILES if self.network_devices else ()
        return (*FILES, *devices)

    @property
    def sockets(self) -> tuple[str, ...]:
        """The tables of sockets to read."""
        return network.SOCKET_FILES if self.listeners or self.ports else ()


@frozen(kw_only=True)
class Captured:
    """What was read: text by absolute path, and the probes."""

    files: Mapping[str, str] = Factory(dict)
    probes: Mapping[str, object] = Factory(dict)


def parse_captured(captured: Captured) -> HostFacts:
    """Give the host of a capture; ValueError with a sentence when it is not one.

    What this VM holds already (`held`) is not in it.
    """
    files, probes = captured.files, captured.probes
    user = process.parse_user(probes.get("user"), limits.parse_memlock(files))
    found = mounts.parse_mounts(files)
    return HostFacts(
        machine_id=files.get(MACHINE_ID, "").strip(),
        boot_id=files.get(BOOT_ID, "").strip(),
        kernel=files.get(KERNEL, "").strip(),
        cpus=cpu.parse_host_cpus(files),
        memory=memory.parse_memory(files),
        nodes=numa.parse_nodes(files, hugepages.parse_node_pools(files)),
        pools=hugepages.parse_pools(files),
        mounts=found,
        thp=memory.parse_thp(files),
        ksm=memory.parse_ksm(files),
        kvm=kvm.parse_kvm(probes.get("kvm"), probes.get("modules", []), files),
        aio=limits.parse_aio(files, probes.get("io_uring"), user),
        user=user,
        caller_uid=process.parse_caller(probes.get("caller")),
        vhost_net=probes.get("vhost") == "",
        systemd=process.parse_systemd(files),
        tools=parse_tools(probes.get("tools", {})),
        paths=parse_paths(probes, found),
        network_devices=network.parse_network_devices(files, probes.get("masters", {})),
        listeners=network.parse_listeners(files, parse_sockets(probes.get("sockets", {}))),
        hugetlb_cgroup=limits.parse_hugetlb_cgroup(files),
    )


def parse_tools(probe: object) -> Mapping[str, str]:
    """Give the tools that were found, by name."""
    match probe:
        case Mapping():
            return {str(name): str(path) for name, path in probe.items()}
        case _:
            message = "the probe tools is no table"
            raise ValueError(message)


def parse_sockets(probe: object) -> Mapping[str, Holder]:
    """Give the holders of sockets, by inode."""
    match probe:
        case Mapping():
            return {str(inode): process.parse_holder(holder) for inode, holder in probe.items()}
        case _:
            message = "the probe sockets is no table"
            raise ValueError(message)


def parse_paths(probes: Mapping[str, object], found: tuple[Mount, ...]) -> Mapping[PurePosixPath, PathFacts]:
    """Give the paths that were looked at, by the name that they were asked for."""
    named = {PurePosixPath(name.removeprefix(PATH)): probe for name, probe in probes.items() if name.startswith(PATH)}
    return {path: parse_path(path, probe, found) for path, probe in named.items()}


def parse_path(path: PurePosixPath, probe: object, found: tuple[Mount, ...]) -> PathFacts:
    """Give one path with the file system that it lies on; a device node's own says nothing, so it has none."""
    table: Mapping[object, object] = probe if isinstance(probe, Mapping) else {}
    on_files = table.get("kind") in {"file", "directory"}
    mount = mounts.find_mount(found, PurePosixPath(str(table.get("real", path)))) if on_files else None
    facts = block.parse_path(
        path,
        probe,
        filesystem=mount.type if mount else "",
        holders=process.parse_holders(table.get("holders", [])),
    )
    return evolve(facts, real=str(table.get("real", path)))
