"""Rules for `[raw] args`: what kvmlaunch itself writes or must be sure of is not written by hand.

Ids are compared with the plan's by the builder.  No message repeats an argument that may hold a
secret.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final

from kvmlaunch.define.mistake import Mistake, shown
from kvmlaunch.define.values import is_loopback
from kvmlaunch.model.address import EVERY_ADDRESS
from kvmlaunch.model.definition import Definition

# Options that the builder writes, or that change what a VM promises, with what to write instead.
CLASHES: Final = {
    "-accel": 'accel = "…" says it',
    "-enable-kvm": 'accel = "kvm" says it',
    "-M": 'machine = "…" says it',
    "-m": 'memory = "…" says it',
    "-smp": "vcpus and cpu.topology say it",
    "-cpu": "cpu.model and cpu.features say it",
    "-name": "the VM's name is the name of its file",
    "-uuid": 'uuid = "…" says it',
    "-mem-path": "memory.hugepages says it",
    "-mem-prealloc": "memory.prealloc says it",
    "-numa": "a guest has one NUMA node; memory.numa binds it to one of the host's",
    "-kernel": "boot.kernel says it",
    "-initrd": "boot.initrd says it",
    "-append": "boot.append says it",
    "-vnc": 'display = { type = "vnc" } says it',
    "-snapshot": "`kvmlaunch clone` or `kvmlaunch disk snapshot create` keeps a disk as it is, and `revert` goes back",
    "-cdrom": 'cdrom = "PATH" says it',
    "-hda": 'disk = "PATH" says it',
    "-hdb": '[disk.NAME] path = "PATH" says it',
    "-hdc": '[disk.NAME] path = "PATH" says it',
    "-hdd": '[disk.NAME] path = "PATH" says it',
    "-fda": "-drive if=floppy,format=raw,file=PATH states the format",
    "-fdb": "-drive if=floppy,index=1,format=raw,file=PATH states the format",
    "-pflash": "-drive if=pflash,format=raw,file=PATH states the format",
    "-sandbox": "security.sandbox says it",
    "-runas": "security.user says it",
    "-chroot": "security.user and the sandbox take its place",
    "-daemonize": "QEMU is left running without it; with the sandbox it dies of it",
    "-S": "`kvmlaunch up VM --paused` starts it so, `kvmlaunch resume VM` lets it run",
    "-qmp": "kvmlaunch holds the monitor; `kvmlaunch monitor` talks to it",
    "-qmp-pretty": "kvmlaunch holds the monitor; `kvmlaunch monitor` talks to it",
    "-monitor": "kvmlaunch holds the monitor; `kvmlaunch monitor` talks to it",
    "-mon": "kvmlaunch holds the monitor; `kvmlaunch monitor` talks to it",
    "-pidfile": "kvmlaunch keeps its own record",
    "-nodefaults": "it is always there",
    "-no-user-config": "it is always there",
    "-readconfig": "what it reads could not be checked; write the options out",
}
STREAMS: Final = {"-gdb", "-serial", "-parallel", "-debugcon", "-chardev"}
# What in the value of an option clashes, with what is wrong with it and what to write instead.
CLASHING_PARTS: Final = (
    (
        "-machine",
        r"[^=,]*(?:,|$)|(?:.*,)?(?:type|accel)=",
        "with a type or an accelerator clashes with what kvmlaunch writes",
        "remove it: machine and accel say it",
    ),
    (
        "-machine",
        r"(?:.*,)?(?:kernel|initrd|append|firmware|memory|smp|mem-merge)[=.]",
        "with what a key says clashes with what kvmlaunch writes",
        "remove it: [boot], [memory], [cpu] and [firmware] say it",
    ),
    ("-global", r".*cfi\.pflash01", "of the firmware's flash clashes with [firmware]", "remove it: [firmware] says it"),
    (
        "-machine",
        r"(?:.*,)?memory-backend=",
        "memory-backend= clashes with what kvmlaunch writes",
        "remove it: [memory] says it; memory that is shared with another process is there for a [share] only",
    ),
    ("-smbios", r"(?:.*,)?uuid=", "uuid= clashes with what kvmlaunch writes", f"remove it: {CLASHES['-uuid']}"),
    ("-run-with", r"(?:.*,)?user=", "user= clashes with security.user", "remove it: security.user says it"),
    ("-display", "vnc", "vnc clashes with [display]", f"remove it: {CLASHES['-vnc']}"),
)
BOOT_ORDER: Final = r"[a-z]*(?:,|$)|(?:.*,)?(?:order|once)="
NETWORKS: Final = ("-netdev", "-nic", "-net")
NETWORK_KIND: Final = r"(?:type=)?(\w+)(?:,|$)|(?:.*,)type=(\w+)"
SECRET_IN: Final = {
    "-object": r"""(?:^|,)data=|["']data["']\s*:|tls-creds.*password=""",
    "-spice": r"(?:^|,)password=",
    "-iscsi": r"(?:^|,)password=",
}
LOGIN_IN_URL: Final = r"[a-z]://[^/@\s,]*[:%][^/@\s,]+@"
ESCAPED: Final = r"\\u([0-9a-fA-F]{4})"
HIDDEN_FORWARD: Final = r"hostfwd=(?:tcp|udp)?::|hostfwd=:"
RUNS_A_PROGRAM: Final = r"guestfwd=.*-cmd:|(?:^|,)(?:helper|smb)=|(?:^|,)(?:down)?script=(?!no(?:,|$))"
OWN_DESCRIPTORS: Final = r"(?:^|,)(?:fds?|sock)="
SOCKET_LISTENS: Final = r"(?:^|,)listen=(\[[^\]]*\]|[^:,]*):"
SERVES: Final = r"(?:^|,)server(?:=(?:on|yes|true|y))?(?:,|$)"
LISTENS: Final = r"(?:tcp|telnet|websocket):(\[[^\]]*\]|[^:,]*):[0-9]"


def check_raw(definition: Definition) -> Iterator[tuple[int, Mistake]]:
    """Give what is wrong with arguments by hand, each with the number of its argument."""
    arguments = definition.raw.args
    if arguments and not arguments[0].startswith("-"):
        hint = "options begin with -; a bare word would be a disk"
        yield 0, Mistake(code="def.raw.option", message=f"{shown(arguments[0])} is no option", hint=hint)
    for index, option, value in options(arguments):
        first, *rest = option.split()
        if rest:
            words = ", ".join(map(shown, (first, " ".join(rest))))
            message = f"{first} and its value are two words"
            yield index, Mistake(code="def.raw.option", message=message, hint=f"args = [{words}]")
        for mistake in (*check_option(option, value), *check_beside(option, value, definition)):
            yield index, mistake


def options(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Give every argument that looks like an option, with its number and the one behind it; `--x` is `-x`."""
    for index, argument in enumerate(arguments):
        if argument.startswith("-"):
            name = argument[1:] if argument.startswith("--") else argument
            yield index, name, arguments[index + 1] if index + 1 < len(arguments) else ""


def check_beside(option: str, value: str, definition: Definition) -> Iterator[Mistake]:
    """Give what is wrong with an option beside what else the definition says."""
    if option == "-boot" and (definition.disk or definition.cdrom) and re.match(BOOT_ORDER, value):
        message = "-boot with an order does nothing beside boot indexes, which kvmlaunch writes"
        hint = "boot = 1   # in [disk.NAME] or [cdrom.NAME]; for one start: kvmlaunch up VM --boot cdrom.NAME"
        yield Mistake(code="def.raw.option", message=message, hint=hint)
    if option not in NETWORKS:
        return
    cards = [network for network in definition.network.values() if network.type != "none"]
    if network_kind(as_pairs(value)) == "none" and (cards or not definition.network):
        message = f"{option} none does not take away the card that the VM has"
        yield Mistake(code="def.raw.option", message=message, hint='[network.net0]\ntype = "none"')
    if definition.security.sandbox and runs_program(as_pairs(value)):
        message = f"{option} runs a program, and the sandbox kills QEMU for it"
        hint = '[network.NAME]\nbridge = "br0"   # or, by hand: script=no,downscript=no, and no -cmd:, helper= or smb='
        yield Mistake(code="def.raw.option", message=message, hint=hint)


def runs_program(value: str) -> bool:
    """Does a network by hand start a helper, a script or a server beside QEMU."""
    kind = network_kind(value)
    quiet = re.search(r"(?:^|,)script=no", value) and re.search(r"(?:^|,)downscript=no", value)
    scripted = kind == "tap" and not quiet and not re.search(OWN_DESCRIPTORS, value)
    return kind == "bridge" or scripted or re.search(RUNS_A_PROGRAM, value) is not None


def check_option(option: str, value: str) -> Iterator[Mistake]:
    """Give what is wrong with one option."""
    if option in CLASHES:
        message = f"{option} clashes with what kvmlaunch writes"
        yield Mistake(code="def.raw.option", message=message, hint=f"remove it: {CLASHES[option]}")
    for name, pattern, what, hint in CLASHING_PARTS:
        if option == name and re.match(pattern, value):
            yield Mistake(code="def.raw.option", message=f"{option} {what}", hint=hint)
    if option == "-drive" and not states_format(plain(value)):
        message = "-drive does not say its format: QEMU would take it from what the guest has written"
        yield Mistake(code="def.disk.format", message=message, hint="format=raw or format=qcow2 in it")
    elif option in STREAMS and value.startswith("mon:"):
        message, hint = f"{option} mon: opens a monitor", f"remove it: {CLASHES['-monitor']}"
        yield Mistake(code="def.raw.option", message=message, hint=hint)
    elif option == "-incoming":
        yield from check_incoming(value)
    if has_secret(option, plain(value)):
        message = f"{option} has a secret in it, which anybody can read in the process list"
        hint = "put it into a file with mode 0600: -object secret,id=NAME,file=PATH"
        yield Mistake(code="def.secret", message=message, hint=hint)
    if option in NETWORKS:
        yield from check_netdev(option, as_pairs(value))
    yield from check_listener(option, value)


def states_format(drive: str) -> bool:
    """Does a drive state the format of its image; one without an image has none, and nobody writes to a CD-ROM."""
    image = option_value(drive, r"file(?:\.filename)?")
    return image is None or re.search(r"""(?:^|,)(?:format|driver)=|media=cdrom|["']driver["']""", drive) is not None


def has_secret(option: str, value: str) -> bool:
    """Does an option carry a secret itself: in a key for it, or in a URL (`https://user:password@`, iscsi with %)."""
    return any(re.search(pattern, value) for pattern in (SECRET_IN.get(option), LOGIN_IN_URL) if pattern)


def plain(value: str) -> str:
    """Give a value as a pattern can read it: JSON without its escapes, pairs without their doubled commas.

    QEMU takes JSON with either quotes, and all keys in any order (qapi/qom.json; measured with 7.2.22).
    """
    if value.startswith("{"):
        return re.sub(ESCAPED, lambda found: chr(int(found[1], 16)), value)
    return value.replace(",,", "")


def check_incoming(value: str) -> Iterator[Mistake]:
    """Give what is wrong with a migration source."""
    if re.search(r"\bexec:|\"exec\"|transport=exec", value):
        message = "-incoming exec: runs a shell, and the sandbox kills QEMU for it"
        yield Mistake(code="def.raw.option", message=message, hint="-incoming unix:PATH")
    elif (found := re.match(LISTENS, value)) and found[1].strip("[]") in EVERY_ADDRESS:
        message = "-incoming would listen on all addresses"
        hint = "-incoming tcp:127.0.0.1:PORT with ssh -L, or unix:PATH"
        yield Mistake(code="def.net.exposed", message=message, hint=hint)


def check_listener(option: str, value: str) -> Iterator[Mistake]:
    """Give a character device, a debugger's or a screen that the network reaches; none of them asks for a password."""
    serves = option == "-gdb" or re.search(SERVES, value)
    found = re.match(LISTENS, value)
    host = found[1] if found else option_value(value, "host") if value.startswith("socket,") else None
    if option == "-s":
        message, hint = "-s lets the network debug the guest", "-gdb tcp:127.0.0.1:1234"
    elif option == "-spice" and "unix" not in value and not is_loopback(option_value(value, "addr") or ""):
        message, hint = "-spice listens to the network", "-spice addr=127.0.0.1,… with ssh -L"
    elif option in STREAMS and serves and host is not None and not is_loopback(host):
        message, hint = f"{option} listens to the network", "the address 127.0.0.1 with ssh -L, or unix:PATH"
    else:
        return
    yield Mistake(code="def.net.exposed", message=message, why="whoever connects is not asked who he is", hint=hint)


def option_value(text: str, key: str) -> str | None:
    """Give the value of a key among `key=value,…`, None where it is not there."""
    found = re.search(rf"(?:^|,){key}=([^,]*)", text)
    return found[1] if found else None


def as_pairs(value: str) -> str:
    """Give JSON as QEMU would have it in pairs, `key=value,…`; other text as it is, and what is no JSON too."""
    if not value.startswith("{"):
        return value
    try:
        return ",".join(flattened("", json.loads(value)))
    except (ValueError, RecursionError):
        return value


def flattened(key: str, node: object) -> Iterator[str]:
    """Give the leaves of a document as pairs; of a list of strings every one has the list's key."""
    if isinstance(node, dict):
        for name, inner in node.items():
            yield from flattened(key if name == "str" else f"{key}.{name}".lstrip("."), inner)
    elif isinstance(node, list):
        for inner in node:
            yield from flattened(key, inner)
    else:
        switch = {True: "on", False: "off"}.get(node) if isinstance(node, bool) else node
        yield f"{key}={switch}"


def check_netdev(option: str, value: str) -> Iterator[Mistake]:
    """Give what is wrong with a network by hand."""
    if re.search(HIDDEN_FORWARD, value):
        message = f"{option} has a forward without a host address, so it would listen on all of them"
        hint = 'in a [network.NAME]: forwards = ["tcp:127.0.0.1:8080:80"]'
        yield Mistake(code="def.net.exposed", message=message, hint=hint)
    if (found := re.search(SOCKET_LISTENS, value)) and not is_loopback(found[1]):
        message, hint = f"{option} listens to the network", "listen=127.0.0.1:PORT, or type bridge"
        yield Mistake(code="def.net.exposed", message=message, hint=hint)
    local = option_value(value, "localaddr")
    if local is not None and not is_loopback(local.rpartition(":")[0] or local):
        message, hint = f"{option} listens to the network", "localaddr=127.0.0.1:PORT, or type bridge"
        yield Mistake(code="def.net.exposed", message=message, hint=hint)
    if value.startswith("{"):
        message, hint = f"the JSON of {option} cannot be read, and so not be checked", "key=value pairs, or plain JSON"
        yield Mistake(code="def.raw.option", message=message, hint=hint)
    served = option_value(value, r"addr\.host" if re.search(SERVES, value) else r"local\.host")
    if served is not None and not is_loopback(served):
        message, hint = f"{option} listens to the network", "the address 127.0.0.1, or type bridge"
        yield Mistake(code="def.net.exposed", message=message, hint=hint)


def network_kind(value: str) -> str:
    """Give the kind of a network by hand: `user` of `user,id=…`."""
    found = re.match(NETWORK_KIND, value)
    return (found[1] or found[2]) if found else ""
