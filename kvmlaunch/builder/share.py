"""Directories of the host that the guest mounts: virtiofs where its daemon can be used, else 9p.

virtiofs needs the guest's memory to be shared with the daemon, which builder/memory.py sees to.
Sources: QEMU docs, tools/virtiofsd; QEMU man page, -fsdev.
"""

from collections.abc import Iterator
from shlex import quote

from kvmlaunch.builder import names
from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs, wiring
from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.finding import Finding, error, warning
from kvmlaunch.model.host import HostFacts
from kvmlaunch.model.plan import Option, Place, Places
from kvmlaunch.model.run_files import SHARE, SOCKET

TOOL = "virtiofsd"
SOURCE = "QEMU docs, tools/virtiofsd"
LONGEST_NINE_TAG = 31  # bytes, of QEMU's virtio-9p
NINE = "QEMU man page, -fsdev local"


def obstacle(definition: Definition, name: str, host: HostFacts) -> str:
    """Give why virtiofs cannot be had, "" where it can."""
    if TOOL not in host.tools:
        return "virtiofsd is not installed"
    if host.user.uid != 0:
        return f"virtiofsd needs root to confine itself, and QEMU runs as {host.user.name or host.user.uid}"
    if definition.memory.ksm == "on" and definition.origin("memory.ksm").kind != "profile":
        return "memory.ksm is on, and memory that is shared with virtiofsd is not merged"
    if definition.share[name].readonly:
        return "virtiofsd of QEMU 7.2 shares nothing read-only"
    return ""


def plan_type(definition: Definition, name: str, host: HostFacts) -> Choice[str]:
    """Choose how a directory is shared."""
    key, written = f"share.{name}.type", definition.share[name].type
    if written is not AUTO:
        return by_hand(definition, key, written)
    why = obstacle(definition, name, host)
    fact = Origin(kind="host", place="virtiofsd, and QEMU's user", key=key)
    if why:
        return Choice(value="9p", reason=f"no virtiofs: {why}", source=NINE, origin=fact)
    return Choice(value="virtiofs", reason="several times as fast as 9p, and it is mapped", source=SOURCE, origin=fact)


def is_shared(definition: Definition, host: HostFacts) -> bool:
    """Must the guest's memory be shared with a daemon."""
    return any(plan_type(definition, name, host).value == "virtiofs" for name in definition.share)


def tag_of(definition: Definition, name: str) -> Choice[str]:
    """Choose the word by which the guest mounts it: `mount -t virtiofs TAG DIR`."""
    key, written = f"share.{name}.tag", definition.share[name].tag
    if written is not AUTO:
        return by_hand(definition, key, written)
    return Choice(value=name, reason="the share's name", source=SOURCE, origin=definition.origin(f"share.{name}.path"))


def socket_name(name: str) -> str:
    """Give the socket of a share's daemon in the run directory."""
    return f"{SHARE}{names.stem(name)}{SOCKET}"


def virtiofs_options(definition: Definition, name: str, kind: Choice[str]) -> tuple[Option, ...]:
    """Give the socket of the daemon and the device behind it."""
    table, id_ = f"share.{name}", names.share_id(name)
    place = fixed(Place(root="run", tail=socket_name(name)), "virtiofsd listens in the run directory", SOURCE)
    device: Choice[str] = Choice(value="vhost-user-fs-pci", reason=kind.reason, source=kind.source, origin=kind.origin)
    return (
        pairs(
            "-chardev",
            table,
            field("", f"{table}.chardev", fixed("socket", "the daemon is a process of its own", SOURCE)),
            wiring("id", table, id_),
            field("path", f"{table}.socket", place),
        ),
        pairs(
            "-device",
            table,
            field("", f"{table}.type", device),
            wiring("id", f"{table}.device", names.share_device_id(name)),
            wiring("chardev", table, id_),
            field("tag", f"{table}.tag", tag_of(definition, name)),
        ),
    )


def nine_options(definition: Definition, name: str, kind: Choice[str]) -> tuple[Option, ...]:
    """Give the directory and the device of 9p: modes and owners of the guest's are kept in attributes."""
    table, id_, share = f"share.{name}", names.share_id(name), definition.share[name]
    device: Choice[str] = Choice(value="virtio-9p-pci", reason=kind.reason, source=kind.source, origin=kind.origin)
    model = fixed("mapped-xattr", "no file of the guest's is another user's on the host", NINE)
    remap = fixed("remap", "no two files have one inode number, also where another file system lies beneath", NINE)
    reading = [field("readonly", f"{table}.readonly", by_hand(definition, f"{table}.readonly", True))]  # noqa: FBT003
    return (
        pairs(
            "-fsdev",
            table,
            field("", f"{table}.backend", fixed("local", "a directory of this host", NINE)),
            wiring("id", table, id_),
            field("path", f"{table}.path", by_hand(definition, f"{table}.path", share.path)),
            field("security_model", f"{table}.security_model", model),
            field("multidevs", f"{table}.multidevs", remap),
            *(reading if share.readonly else []),
        ),
        pairs(
            "-device",
            table,
            field("", f"{table}.type", device),
            wiring("id", f"{table}.device", names.share_device_id(name)),
            wiring("fsdev", table, id_),
            field("mount_tag", f"{table}.tag", tag_of(definition, name)),
        ),
    )


def check_share(definition: Definition, name: str, host: HostFacts) -> Iterator[Finding]:
    """Refuse what is no directory (`share.path`) and a virtiofs by hand that cannot be; warn of 9p (`share.nine`)."""
    share, table = definition.share[name], f"share.{name}"
    facts = host.paths.get(share.path)
    if facts is None or facts.kind != "directory":
        yield error(
            code="share.path",
            message=f"{share.path} is no directory",
            key=f"{table}.path",
            why=(facts.refusal if facts else "") or f"it is of kind {facts.kind if facts else 'missing'}",
            hint=f"mkdir -p {quote(str(share.path))}"
            if facts is None or facts.kind == "missing"
            else "name a directory",
        )
    elif not facts.readable:
        yield error(
            code="share.path",
            message=f"{host.user.name or host.user.uid} may not read {share.path}",
            key=f"{table}.path",
            why=f"it belongs to {facts.owner}, mode {facts.mode & 0o7777:04o}",
            hint=f"setfacl -m u:{host.user.name or host.user.uid}:rwx {quote(str(share.path))}",
        )
    tag = tag_of(definition, name).value
    if plan_type(definition, name, host).value == "9p" and len(tag.encode()) > LONGEST_NINE_TAG:
        yield error(
            code="qemu.capability",
            message=f"the tag of share {name} is too long for 9p",
            key=f"{table}.tag",
            why=f"it has {len(tag.encode())} bytes, 9p takes {LONGEST_NINE_TAG}",
            hint=f'tag = "{tag.encode()[:LONGEST_NINE_TAG].decode(errors="ignore")}"',
        )
    why = obstacle(definition, name, host)
    if share.type == "virtiofs" and why:
        yield error(
            code="share.virtiofs",
            message=f"{share.path.name} cannot be shared by virtiofs",
            key=f"{table}.type",
            why=why,
            hint='type = "9p"' if TOOL in host.tools else 'apt install qemu-system-common   # or: type = "9p"',
        )
    elif share.type is AUTO and why:
        yield warning(
            code="share.nine",
            message=f"{share.path.name} is shared by 9p, which is slow",
            key=f"{table}.type",
            why=why,
            hint='type = "9p"   # says that it is meant',
        )


def build_shares(definition: Definition, host: HostFacts) -> Part:
    """Give every share's backend and device."""
    options: list[Option] = []
    for name in definition.share:
        kind = plan_type(definition, name, host)
        made = virtiofs_options if kind.value == "virtiofs" else nine_options
        options += made(definition, name, kind)
    findings = tuple(finding for name in definition.share for finding in check_share(definition, name, host))
    return Part(options=tuple(options), findings=findings)


def daemons(definition: Definition, host: HostFacts, places: Places) -> dict[str, tuple[str, ...]]:
    """Give the command of each share's daemon, by its socket's name; each ends when QEMU does."""
    found: dict[str, tuple[str, ...]] = {}
    for name, share in definition.share.items():
        if plan_type(definition, name, host).value == "virtiofs":
            socket = socket_name(name)
            place = str(share.path).replace(",", "\\,")  # virtiofsd's own escape
            words = (host.tools[TOOL], "-f", f"--socket-path={places.run / socket}")
            found[socket] = (*words, "-o", f"source={place}", "-o", "log_level=warn")
    return found
