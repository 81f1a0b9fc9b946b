"""The channel to the agent in the guest: a virtio serial port and its socket."""

from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs, wiring
from kvmlaunch.model.choice import Choice
from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.plan import Field, Place
from kvmlaunch.model.run_files import AGENT

CHANNEL = "qga"
PORT = "org.qemu.guest_agent.0"
SOURCE = "QEMU docs, interop/qemu-ga"


def plan_agent(definition: Definition, *, installed: bool) -> Choice[bool]:
    """Choose whether there is a channel: as written, and where cloud-init has an agent `installed`."""
    key = "guest_agent.enabled"
    if definition.guest_agent.enabled is not AUTO:
        return by_hand(definition, key, definition.guest_agent.enabled)
    return Choice(
        value=installed,
        reason="cloud_init installs one" if installed else "nothing says that the guest has an agent",
        source=SOURCE,
        origin=definition.origin("cloud_init.agent" if installed else key),
    )


def agent_row(definition: Definition, *, installed: bool) -> Field:
    """Give the decision for `explain`."""
    return field("", "guest_agent.enabled", plan_agent(definition, installed=installed))


def build_agent(definition: Definition, *, installed: bool) -> Part:
    """Give the channel, nothing where there is none."""
    if not plan_agent(definition, installed=installed).value:
        return Part()
    table = "guest_agent"
    return Part(
        options=(
            pairs(
                "-chardev",
                table,
                field("", table, fixed("socket", "exec, status, down and snapshots ask the agent here", SOURCE)),
                wiring("id", table, CHANNEL),
                field(
                    "path",
                    f"{table}.path",
                    fixed(Place(root="run", tail=AGENT), "in the run directory, mode 0700", SOURCE),
                ),
                field("server", f"{table}.server", fixed(value=True, reason="QEMU listens", source=SOURCE)),
                field("wait", f"{table}.wait", fixed(value=False, reason="the guest starts without us", source=SOURCE)),
            ),
            pairs(
                "-device",
                table,
                field("", f"{table}.bus", fixed("virtio-serial-pci", "the bus of the port", SOURCE)),
                wiring("id", table, "serial-agent"),
            ),
            pairs(
                "-device",
                table,
                field("", f"{table}.port", fixed("virtserialport", "the port that the agent opens", SOURCE)),
                wiring("bus", table, "serial-agent.0"),
                wiring("chardev", table, CHANNEL),
                wiring("id", f"{table}.port", "agent-port0"),
                field("name", f"{table}.name", fixed(PORT, "the name that the agent looks for", SOURCE)),
            ),
        )
    )
