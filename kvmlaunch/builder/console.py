"""Serial console, the two QMP monitors, the random number source, the generation id."""

from kvmlaunch.builder.option import BUILT_IN, Part, by_hand, field, fixed, pairs, value, wiring
from kvmlaunch.model.choice import Choice
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.plan import Field, Option, Place
from kvmlaunch.model.qemu import machine_version
from kvmlaunch.model.run_files import CONSOLE, CONSOLE_LOG, EVENTS, EVENTS_LOG, LOG, QMP

QMP_SOURCE = "QEMU docs, interop/qmp-spec"

# Up to 2.4 machine types have no writable fw_cfg, by which the guest is told; on 2.5 QEMU warns of its file.
FIRST_GENERATION_ID = (2, 6)


def socket_fields(id_: str, socket: str, log: str, why: str, log_choice: Choice[bool]) -> tuple[Field, ...]:
    """Give a chardev on a socket in the run directory, which keeps a log where one is named."""
    table = f"monitor.{id_}" if id_ in {"qmp", "events"} else id_
    fields = [
        field("", table, fixed("socket", why, QMP_SOURCE)),
        wiring("id", table, id_),
        field(
            "path",
            f"{table}.path",
            fixed(Place(root="run", tail=socket), "in the run directory, mode 0700", "QEMU security page"),
        ),
        field(
            "server",
            f"{table}.server",
            fixed(value=True, reason="QEMU listens", source="QEMU man page, -chardev socket"),
        ),
        field(
            "wait",
            f"{table}.wait",
            fixed(value=False, reason="the guest starts without a client", source="QEMU man page, -chardev socket"),
        ),
    ]
    if log:
        fields.append(
            field(
                "logfile",
                f"{table}.log",
                Choice(
                    value=Place(root="run", tail=log),
                    reason=log_choice.reason,
                    source=log_choice.source,
                    origin=log_choice.origin,
                ),
            )
        )
        fields.append(
            field(
                "logappend",
                f"{table}.logappend",
                fixed(
                    value=True,
                    reason="rotated by copy and truncate: QEMU keeps the inode",
                    source="QEMU man page, -chardev logappend",
                ),
            )
        )
    return tuple(fields)


def build_console(definition: Definition) -> Part:
    """Give the serial port, reached through a socket and kept in a log."""
    if not definition.console.serial:
        none: Choice[str] = by_hand(definition, "console.serial", "none")
        return Part(options=(value("-serial", "console", "console.serial", none),))
    kept = Choice(
        value=True,
        reason="QEMU itself keeps what the guest prints, with no process of ours resident",
        source="QEMU man page, -chardev logfile",
        origin=definition.origin("console.log"),
    )
    log = f"{LOG}/{CONSOLE_LOG}" if definition.console.log else ""
    chardev = pairs(
        "-chardev", "console", *socket_fields("console", CONSOLE, log, "kvmlaunch console connects here", kept)
    )
    port = fixed("chardev:console", "the first serial port, ttyS0 or COM1", "QEMU man page, -serial")
    return Part(options=(chardev, value("-serial", "console", "console.serial", port)))


def monitor_options(id_: str, socket: str, log: str, why: str) -> tuple[Option, Option]:
    """Give a QMP monitor on a socket."""
    kept = Choice(
        value=True,
        reason="QEMU records its own last event, such as why it ended",
        source="QEMU man page, -chardev logfile",
        origin=BUILT_IN,
    )
    return (
        pairs("-chardev", "monitor", *socket_fields(id_, socket, log, why, kept)),
        pairs(
            "-mon",
            "monitor",
            wiring("chardev", f"monitor.{id_}", id_),
            field("mode", f"monitor.{id_}.mode", fixed("control", "QMP, not the human monitor", QMP_SOURCE)),
        ),
    )


def build_monitors() -> Part:
    """Give the monitor for commands and the one whose events QEMU writes down."""
    return Part(
        options=(
            *monitor_options("qmp", QMP, "", "status, down and the read-back ask here"),
            *monitor_options(
                "events", EVENTS, f"{LOG}/{EVENTS_LOG}", "negotiated once by up, then QEMU writes its events to the log"
            ),
        )
    )


def build_small_devices(machine: str) -> Part:
    """Give the random number source, and the generation id where the machine type has room for it."""
    rng = (
        pairs(
            "-object",
            "rng",
            field("", "rng", fixed("rng-random", "the guest's random pool is filled at boot", "QEMU docs, virtio-rng")),
            wiring("id", "rng", "rng0"),
            field("filename", "rng.filename", fixed("/dev/urandom", "never blocks once it is seeded", "random(4)")),
        ),
        pairs(
            "-device",
            "rng",
            field(
                "",
                "rng.device",
                fixed("virtio-rng-pci", "the guest's random pool is filled at boot", "QEMU docs, virtio-rng"),
            ),
            wiring("rng", "rng", "rng0"),
            field("id", "rng.id", fixed("rng-dev0", "an id computed from the name", "kvmlaunch: names, not numbers")),
        ),
    )
    generation = pairs(
        "-device",
        "vmgenid",
        field(
            "",
            "vmgenid",
            fixed("vmgenid", "the guest reseeds when a snapshot of it is started", "QEMU docs, specs/vmgenid"),
        ),
        field("guid", "vmgenid.guid", fixed("auto", "new at each start", "QEMU docs, specs/vmgenid")),
        wiring("id", "vmgenid", "vmgenid0"),
    )
    version = machine_version(machine)
    return Part(options=rng if version is not None and version < FIRST_GENERATION_ID else (*rng, generation))
