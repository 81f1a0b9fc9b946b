"""Rules across keys: what no single value shows.

Every `check_` takes the definition and gives what is wrong with it; a value that is `auto` or comes
from a profile is left to the builder, which may choose otherwise.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvmlaunch.define.broken import Broke, Broken, by_hand, choice
from kvmlaunch.define.device_rules import (
    check_append,
    check_cards,
    check_memory_wishes,
    check_queues,
    check_secure_boot,
    check_serials,
    check_tags,
)
from kvmlaunch.define.mistake import Mistake, shown
from kvmlaunch.define.tree import quote
from kvmlaunch.define.values import is_loopback, parse_host_port, render_forward
from kvmlaunch.model.address import EVERY_ADDRESS, collide
from kvmlaunch.model.definition import AUTO, DIRECT, NAMED_TABLES, Definition, Disk, Network, Topology
from kvmlaunch.model.image import RAW_SUFFIXES, SUFFIXES, overlay_directories
from kvmlaunch.model.volume import parse_volume_name
from kvmlaunch.units import GIB, MIB, count, render_size

TABLE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
NAME_HINT: Final = "lower-case letters, digits and -, at most 40, the first no -"
WORD: Final = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}"
PROPERTY: Final = r"[^,\x00-\x1f\x7f]{1,64}"  # -cpu has no escape for a comma
OF_ONE_CPU: Final = frozenset({"apic-id", "node-id", "socket-id", "die-id", "module-id", "core-id", "thread-id"})
INTERFACE: Final = r"[^\s/:,=\x00-\x1f]{1,15}"
# Labels of a host name, RFC 1123; as long as Linux takes one, gethostname(2).
HOST_NAME: Final = r"(?=.{1,64}\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*"
NO_BRIDGES: Final = {"nat": "user", "slirp": "user", "default": "user", "user": "user", "none": "none", "tap": "tap"}
FOREIGN_SUFFIXES: Final = frozenset({".vmdk", ".vdi", ".vhd", ".vhdx", ".qed"})
USER: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?"
BLOCK: Final = 4096  # bytes; QEMU opens no image past the page cache that ends within one
FIRST_VNC_PORT: Final = 5900
LAST_DISPLAY: Final = 100  # below it a number is taken for that of a display


def check_rules(definition: Definition) -> Broke:
    """Give every broken rule."""
    for rule in RULES:
        yield from rule(definition)


def check_vm_name(name: str) -> Mistake | None:
    """Give what is wrong with a VM's name."""
    if TABLE_NAME.fullmatch(name):
        return None
    message = f"{shown(name)} is no name for a VM"
    return Mistake(code="def.name", message=message, hint=NAME_HINT)


def check_names(definition: Definition) -> Broke:
    """Give names of tables that could be no id and no part of a file's name."""
    for table in NAMED_TABLES:
        for name in getattr(definition, table):
            if not TABLE_NAME.fullmatch(name):
                message = f"{shown(name)} is no name for a {table}"
                yield Broken((table, name), Mistake(code="def.name", message=message, hint=NAME_HINT))
    for table in ("features", "properties"):
        for name in getattr(definition.cpu, table):
            if not re.fullmatch(WORD, name):
                hint = "`-cpu help` of the QEMU binary lists them"
                mistake = Mistake(code="def.name", message=f"{shown(name)} is no name for a CPU feature", hint=hint)
                yield Broken(("cpu", table, name), mistake)


def check_words(definition: Definition) -> Broke:
    """Give names of QEMU's or the host's with a character that could mean more than a name."""
    cpu, machine, user = definition.cpu.model, definition.machine, definition.security.user
    if isinstance(cpu, str) and not re.fullmatch(WORD, cpu):
        hint = "one name of `-cpu help`; features go to cpu.features"
        yield Broken(("cpu", "model"), choice(f"{shown(cpu)} is no name of a CPU model", hint=hint))
    if isinstance(machine, str) and not re.fullmatch(WORD, machine):
        hint = "one name of `-machine help`"
        yield Broken(("machine",), choice(f"{shown(machine)} is no name of a machine type", hint=hint))
    if isinstance(user, str) and not re.fullmatch(USER, user):
        yield Broken(("security", "user"), choice(f"{shown(user)} is no name of a user"))
    host = definition.cloud_init.hostname
    if isinstance(host, str) and not re.fullmatch(HOST_NAME, host):
        hint = "letters, digits and -, in labels with dots between them, at most 64"
        yield Broken(("cloud_init", "hostname"), choice(f"{shown(host)} is no host name", hint=hint))


def check_properties(definition: Definition) -> Broke:
    """Give values of CPU properties that QEMU would take apart, or that are another key's."""
    cpu = definition.cpu
    for name, value in cpu.properties.items():
        key = ("cpu", "properties", name)
        if value in {"on", "off"} or name in cpu.features:
            hint = f'features = {{ {name} = "{cpu.features.get(name, value)}" }}'
            yield Broken(key, choice(f"the CPU feature {name} is on or off: it stands in cpu.features", hint=hint))
        elif name.replace("_", "-") in OF_ONE_CPU:
            yield Broken(key, choice(f"{name} is another for each vCPU", hint="cpu.topology says where each is"))
        elif not re.fullmatch(PROPERTY, value):
            yield Broken(
                key, choice(f"{shown(value)} is no value of a CPU property", hint="at most 64 characters, no comma")
            )


def check_cpu(definition: Definition) -> Broke:
    """Give a topology and pins that do not fit the number of vCPUs."""
    cpu = definition.cpu
    if isinstance(cpu.topology, Topology):
        sockets, cores, threads = cpu.topology.sockets, cpu.topology.cores, cpu.topology.threads
        product = sockets * cores * threads
        if product != cpu.vcpus:
            message = f"the topology has {count(product, 'CPU')}, cpu.vcpus says {cpu.vcpus}"
            why = f"sockets {sockets}, cores {cores}, threads {threads}: {product} in all"
            mistake = Mistake(code="def.value.range", message=message, why=why, hint=f"vcpus = {product}")
            yield Broken(("cpu", "topology"), mistake, needs=(("cpu", "vcpus"),))
    yield from check_pin(("cpu", "pin"), cpu.pin, cpu.vcpus, "vCPU")
    yield from check_pin(("iothreads", "pin"), definition.iothreads.pin, definition.iothreads.count, "I/O thread")


def check_pin(key: tuple[str, ...], pin: object, wanted: object, what: str) -> Broke:
    """Give a written list of CPUs that has not one for each thread."""
    if isinstance(pin, tuple) and isinstance(wanted, int) and len(pin) != wanted:
        message = f"{count(len(pin), 'host CPU')} for {count(wanted, what)}"
        hint = f"name {wanted}, one for each" if wanted else f"without I/O threads, remove {key[-1]}"
        yield Broken(key, Mistake(code="def.value.range", message=message, hint=hint), needs=(("cpu", "vcpus"),))


def check_memory(definition: Definition) -> Broke:
    """Give a size that does not fit the pages, and pages that do not fit what else is asked by hand."""
    memory = definition.memory
    page = GIB if memory.hugepages == "1GiB" else MIB
    if memory.size % page:
        least = -(-memory.size // page) * page
        message = f"the guest's memory is no multiple of {render_size(page)}"
        why = "every page of the backing has that size" if page == GIB else "QEMU would round it"
        right = quote(render_size(least))
        yield Broken(("memory", "size"), Mistake(code="def.value.range", message=message, why=why, right=right))
    if memory.hugepages not in {"2MiB", "1GiB"} or not by_hand(definition, "memory.hugepages"):
        return
    for other in ("ksm", "balloon"):
        if getattr(memory, other) == "on" and by_hand(definition, f"memory.{other}"):
            message = f'hugepages = "{memory.hugepages}" and {other} = "on" exclude each other'
            why = (
                "the host cannot merge hugepages"
                if other == "ksm"
                else "a balloon gives back 4 KiB pages, no hugepages"
            )
            hint = f'{other} = "off"   # or hugepages = "off"'
            yield Broken(("memory", other), choice(message, why=why, hint=hint))


def check_boot(definition: Definition) -> Broke:
    """Give what belongs to a kernel and has none, and two devices with one boot index."""
    for name in ("initrd", "append"):
        if getattr(definition.boot, name) is not None and definition.boot.kernel is None:
            mistake = choice(f"boot.{name} needs boot.kernel", hint='kernel = "vmlinuz"')
            yield Broken(("boot", name), mistake, needs=(("boot", "kernel"),))
    taken: dict[int, str] = {}
    drives = [(table, *item) for table in ("disk", "cdrom") for item in getattr(definition, table).items()]
    used = {drive.boot for _, _, drive in drives}
    for table, name, drive in drives:
        first = taken.setdefault(drive.boot, f"{table}.{name}") if isinstance(drive.boot, int) else ""
        if first not in {"", f"{table}.{name}"}:
            message = f"{first} and {table}.{name} both have boot index {drive.boot}"
            free = next(number for number in range(1, 9999) if number not in used)
            used.add(free)
            mistake = Mistake(code="def.disk.boot", message=message, hint=f"boot = {free}")
            yield Broken((table, name, "boot"), mistake)


def check_firmware(definition: Definition) -> Broke:
    """Give secure boot without UEFI."""
    if definition.firmware.secure_boot and definition.boot.firmware != "uefi":
        mistake = choice("secure boot is UEFI's", hint='firmware = "uefi"   # in [boot]')
        yield Broken(("firmware", "secure_boot"), mistake, needs=(("boot", "firmware"),))


def check_disks(definition: Definition) -> Broke:
    """Give what is wrong with each disk, and two that are one file."""
    taken: dict[object, str] = {}
    for name, disk in definition.disk.items():
        first = taken.setdefault(disk.path, name)
        if first != name:
            message = f"disk.{first} and disk.{name} are one file"
            mistake = Mistake(
                code="def.disk.same", message=message, why=str(disk.path), hint="give each disk a file of its own"
            )
            yield Broken(("disk", name, "path"), mistake)
        yield from check_disk(name, disk, os=definition.os)


def check_disk(name: str, disk: Disk, *, os: str) -> Broke:
    """Give the keys of one disk that do not go together."""
    bus = disk.bus if disk.bus != AUTO else "sata" if os == "windows" else "virtio-blk"
    if disk.aio == "native" and isinstance(disk.cache, str) and disk.cache not in DIRECT:
        message = f'aio = "native" does not go with cache = {quote(disk.cache)}'
        why = "native aio needs O_DIRECT, which cache none and directsync use"
        hint = f'cache = "none"\nor: aio = "{"threads" if disk.cache == "unsafe" else "io_uring"}"'
        yield Broken(("disk", name, "aio"), Mistake(code="def.disk.aio", message=message, why=why, hint=hint))
    if disk.detect_zeroes == "unmap" and disk.discard == "ignore":
        message = 'detect_zeroes = "unmap" does not go with discard = "ignore"'
        why = "QEMU accepts both, and its versions differ in what they free"
        hint = 'discard = "unmap"\nor: detect_zeroes = "on"'
        mistake = Mistake(code="def.disk.detect_zeroes", message=message, why=why, hint=hint)
        yield Broken(("disk", name, "detect_zeroes"), mistake)
    yield from check_bus(name, disk, bus)


def check_creation(definition: Definition) -> Broke:
    """Give keys for making a disk that do not fit its format or its place."""
    for name, disk in definition.disk.items():
        key, suffix = ("disk", name), disk.path.suffix
        format_ = suffix.lstrip(".") if disk.format is AUTO else disk.format
        device = disk.path.is_relative_to("/dev")
        if disk.backing is not None and format_ != "qcow2":
            message = "only a qcow2 image can be an overlay"
            yield Broken(
                (*key, "backing"),
                choice(message, why=f"{disk.path.name} is {format_}", hint=f'path = "{disk.path.stem}.qcow2"'),
                needs=((*key, "path"), (*key, "format")),
            )
        elif disk.backing is not None and suffix in RAW_SUFFIXES:
            message, why = f"an overlay is not called {suffix}", "what rests on an image is not sought among raw ones"
            right = quote(disk.path.with_suffix(".qcow2").name)
            yield Broken((*key, "path"), choice(message, why=why, right=right), needs=((*key, "backing"),))
        if disk.backing is not None and disk.path.parent not in overlay_directories(disk.backing):
            message = "the backing file lies neither beside the overlay nor in a directory there"
            why = "who can write the image can make QEMU open any file"
            hint = f"path = {quote(str(disk.backing.with_name(disk.path.name)))}   # beside it"
            mistake = Mistake(code="def.path", message=message, why=why, hint=hint)
            yield Broken((*key, "backing"), mistake, needs=((*key, "path"),))
        if disk.size is not None and disk.size % BLOCK:
            whole = render_size(-(-disk.size // BLOCK) * BLOCK)
            message = f"a disk has whole blocks of {BLOCK} bytes"
            mistake = Mistake(code="def.value.range", message=message, right=quote(whole))
            yield Broken((*key, "size"), mistake)
        if disk.preallocation == "metadata" and (format_ != "qcow2" or device):
            hint = 'preallocation = "falloc"'
            yield Broken((*key, "preallocation"), choice("only qcow2 has metadata to allocate", hint=hint))
        if disk.backing is not None and disk.preallocation not in {AUTO, "off"}:
            why = "an overlay holds what differs from its backing file only"
            yield Broken((*key, "preallocation"), choice("an overlay is not preallocated", why=why, right=quote("off")))
        if disk.thin_pool is not None and parse_volume_name(disk.path) is None:
            hint = 'path = "lvm:vg0/web01"'
            yield Broken((*key, "thin_pool"), choice("a thin pool is for an LVM volume", hint=hint))


def check_formats(definition: Definition) -> Broke:
    """Give disks whose format can be told neither from the name nor from /dev."""
    for name, disk in definition.disk.items():
        suffix = disk.path.suffix
        if disk.format != AUTO or not suffix or suffix in SUFFIXES or disk.path.parts[1] == "dev":
            continue
        message = f"the format of {disk.path.name} cannot be told from its name"
        why = "*.img and *.raw are raw, *.qcow2 is qcow2; content is never probed, as the guest can write it"
        hint = 'format = "raw"\nor: format = "qcow2"'
        if definition.origin(f"disk.{name}.path").key == "disk":
            hint = f'[disk.{name}]\npath = {quote(str(disk.path))}\nformat = "raw"   # or "qcow2"'
        if suffix in FOREIGN_SUFFIXES:
            new = disk.path.with_suffix(".qcow2")
            convert = shlex.join(("qemu-img", "convert", "-O", "qcow2", str(disk.path), str(new)))
            hint = f"{convert}   # and {new.name} in the definition"
        elif suffix == ".iso":
            hint = f"cdrom = {quote(str(disk.path))}"
        mistake = Mistake(code="def.disk.format", message=message, why=why, hint=hint)
        yield Broken(("disk", name, "path"), mistake, needs=(("disk", name, "format"),))


def check_bus(name: str, disk: Disk, bus: str) -> Broke:
    """Give what is asked of a bus that cannot do it."""
    if bus in {"sata", "ide"}:
        wrong = {"iothread": disk.iothread is True, "queues": disk.queues != AUTO, "readonly": disk.readonly}
        for key in (key for key, asked in wrong.items() if asked):
            message = f"{key} does not go with bus = {quote(bus)}"
            hint = 'bus = "virtio-blk"' if disk.bus != AUTO else 'bus = "virtio-blk" (for Windows, sata is the default)'
            needs = (("os",), ("disk", name, "bus"))
            yield Broken(("disk", name, key), choice(message, hint=hint), needs=needs)
    if bus == "nvme" and disk.on_error is not AUTO:
        message = 'on_error does not go with bus = "nvme"'
        mistake = choice(message, why="QEMU's nvme has no rerror and werror", hint='bus = "virtio-blk"')
        yield Broken(("disk", name, "on_error"), mistake, needs=(("disk", name, "bus"),))


def check_networks(definition: Definition) -> Broke:
    """Give what is wrong with each network, and with two of them."""
    for name, network in definition.network.items():
        for key, value in (("bridge", network.bridge), ("ifname", network.ifname)):
            if value is not None and not re.fullmatch(INTERFACE, value):
                hint = "at most 15 characters, no blank, /, :, comma or ="
                yield Broken(("network", name, key), choice(f"{shown(value)} is no name of an interface", hint=hint))
        if network.bridge in NO_BRIDGES and definition.origin(f"network.{name}.bridge").key == "network":
            kind = NO_BRIDGES[str(network.bridge)]
            tap = '\nifname = "tap0"' if kind == "tap" else ""
            message = f"{shown(network.bridge)} is no bridge: `network` names one"
            hint = (
                f"[network.{name}]\ntype = {quote(kind)}{tap}   # or, where it is one: bridge = {shown(network.bridge)}"
            )
            yield Broken(("network", name, "bridge"), choice(message, hint=hint))
        yield from check_network(name, network)
    yield from check_twins(definition)


def check_network(name: str, network: Network) -> Broke:
    """Give the keys of one network that do not go with its type."""
    for kind, key in (("bridge", "bridge"), ("tap", "ifname")):
        value = getattr(network, key)
        if network.type == kind and value is None:
            example = 'bridge = "br0"' if kind == "bridge" else 'ifname = "tap0"'
            mistake = choice(f'type = "{kind}" needs {key}', hint=example)
            yield Broken(("network", name, "type"), mistake, needs=(("network", name, key),))
        elif value is not None and network.type not in {AUTO, kind}:
            message = f"{key} does not go with type = {quote(str(network.type))}"
            yield Broken(("network", name, key), choice(message, hint=f'type = "{kind}"'))
    if network.type == AUTO and network.bridge is not None and network.ifname is not None:
        message = "bridge and ifname exclude each other"
        why = "with a bridge the tap is made and joined; ifname is a tap that exists"
        yield Broken(("network", name, "ifname"), choice(message, why=why, hint="remove one of them"))
    user = network.type == "user" or (network.type == AUTO and network.bridge is None and network.ifname is None)
    if network.forwards and not user:
        message = "forwards work with user networking only"
        hint = 'type = "user", or reach the guest by its own address'
        yield Broken(("network", name, "forwards"), choice(message, hint=hint), needs=(("network", name, "type"),))
    if user:
        needs = tuple(("network", name, key) for key in ("type", "bridge", "ifname"))
        for key, asked in (("vhost", network.vhost is True), ("queues", network.queues not in {AUTO, 1})):
            if asked:
                message = f"{key} needs a tap, and this is user networking"
                mistake = choice(message, hint='bridge = "br0", or remove it')
                yield Broken(("network", name, key), mistake, needs=needs)


def check_twins(definition: Definition) -> Broke:
    """Give two networks with one MAC address, one tap, or one port of the host."""
    taken: dict[Any, str] = {}
    for name, network in definition.network.items():
        held: Mapping[str, tuple[object, ...]] = {
            "mac": (network.mac,) if network.mac != AUTO else (),
            "ifname": (network.ifname,) if network.ifname is not None else (),
        }
        for key, values in held.items():
            for value in values:
                first = taken.setdefault((key, value), name)
                if first != name or values.count(value) > 1:
                    what = {"mac": "MAC address", "ifname": "tap"}[key]
                    where = f"network.{first} and network.{name}" if first != name else f"network.{name}"
                    yield Broken(("network", name, key), choice(f"{where}: one {what} is used twice"))
                    break
    yield from check_forwards(definition)


def check_forwards(definition: Definition) -> Broke:
    """Give two forwards from one port of the host: an address beside every address is one as well."""
    found = [(name, forward) for name, network in definition.network.items() for forward in network.forwards]
    for index, (name, forward) in enumerate(found):
        for first, other in found[:index]:
            same = forward.protocol == other.protocol and forward.host_port == other.host_port
            if same and collide(forward.address, other.address):
                where = f"network.{first} and network.{name}" if first != name else f"network.{name}"
                message = f"{where}: one port of the host is used twice"
                why = f"{render_forward(other)} and {render_forward(forward)}"
                yield Broken(("network", name, "forwards"), choice(message, why=why))
                break


def check_display(definition: Definition) -> Broke:
    """Give an address of the screen that others reach: VNC has no password."""
    address, key = definition.display.address, ("display", "address")
    if address is not None and definition.display.type != "vnc":
        message = "address is of a VNC screen, and this VM has none"
        yield Broken(key, choice(message, hint='type = "vnc"'), needs=(("display", "type"),))
    if address is None or definition.display.type != "vnc":
        return
    try:
        host, port = parse_host_port(address)
    except Mistake as mistake:
        yield Broken(key, mistake)
        return
    if not is_loopback(host):
        message = f"{shown(address)} opens the screen to the network, without a password"
        port = port if port >= LAST_DISPLAY else FIRST_VNC_PORT + port  # QEMU's :1 is port 5901
        right = quote(f"127.0.0.1:{port}")
        hint = f"from elsewhere: ssh -L {port}:127.0.0.1:{port} HOST"
        yield Broken(key, Mistake(code="def.net.exposed", message=message, right=right, hint=hint))
    elif port < FIRST_VNC_PORT:
        message = f"port {port} is below {FIRST_VNC_PORT}, the port of VNC's display 0"
        address = f"[{host}]" if ":" in host else host
        right = quote(f"{address}:{FIRST_VNC_PORT + port if port < LAST_DISPLAY else FIRST_VNC_PORT}")
        yield Broken(key, Mistake(code="def.value.range", message=message, right=right))


def check_ready(definition: Definition) -> Broke:
    """Give a condition that cannot come, or comes of itself: QEMU accepts on a forward before the guest listens."""
    ready, console = definition.lifecycle.ready, definition.console
    if ready is not None and ready.kind == "console" and not (console.serial and console.log):
        switch = "log" if console.serial else "serial"
        message = f"ready waits for the console, and console.{switch} is false"
        needs = (("console", switch),)
        yield Broken(("lifecycle", "ready"), choice(message, hint=f"console.{switch} = true"), needs=needs)
    if ready is None or ready.kind != "tcp":
        return
    host, port = parse_host_port(ready.target)
    for name, network in definition.network.items():
        for forward in network.forwards:
            same = forward.host_port == port and (forward.address == host or forward.address in EVERY_ADDRESS)
            if forward.protocol == "tcp" and same:
                message = f"tcp:{ready.target} is a forward of this VM, which QEMU accepts before the guest runs"
                why = f"network.{name}.forwards has {render_forward(forward)}"
                hint = f'ready = "http://{ready.target}/"\nor: ready = "console:login:"'
                yield Broken(
                    ("lifecycle", "ready"), Mistake(code="def.ready.forward", message=message, why=why, hint=hint)
                )
                return


def check_arguments(definition: Definition) -> Broke:
    """Give arguments by hand that undo or double what kvmlaunch answers for."""
    if not definition.raw.args:
        return
    from kvmlaunch.define.raw_rules import check_raw  # noqa: PLC0415 - where there are any

    for index, mistake in check_raw(definition):
        yield Broken(("raw", "args", index), mistake)


def check_keys(definition: Definition) -> Broke:
    """Give public keys that are none: nobody could log in with them."""
    if not definition.cloud_init.ssh_keys:
        return
    from kvmlaunch.define.ssh_key import check_key  # noqa: PLC0415 - where there are any

    for index, text in enumerate(definition.cloud_init.ssh_keys):
        if mistake := check_key(text):
            yield Broken(("cloud_init", "ssh_keys", index), mistake)


def check_agent(definition: Definition) -> Broke:
    """Give an agent that is to be installed, and has no channel to be reached by."""
    installed = definition.cloud_init.agent and by_hand(definition, "cloud_init.agent")
    if installed and definition.guest_agent.enabled is False:
        message = "cloud_init.agent installs an agent, and guest_agent.enabled = false gives it no channel"
        needs = (("guest_agent", "enabled"),)
        yield Broken(("cloud_init", "agent"), choice(message, hint="guest_agent.enabled = true"), needs=needs)


RULES: Final[tuple[Callable[[Definition], Broke], ...]] = (
    check_names,
    check_words,
    check_properties,
    check_cpu,
    check_memory,
    check_boot,
    check_firmware,
    check_disks,
    check_formats,
    check_creation,
    check_networks,
    check_display,
    check_ready,
    check_tags,
    check_serials,
    check_queues,
    check_cards,
    check_memory_wishes,
    check_secure_boot,
    check_append,
    check_keys,
    check_agent,
    check_arguments,
)
