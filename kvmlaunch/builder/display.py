"""The screen, or none."""

from kvmlaunch.builder.option import Part, by_hand, field, fixed, pairs, value, wiring
from kvmlaunch.model.choice import Choice
from kvmlaunch.model.definition import Definition
from kvmlaunch.model.plan import FieldValue, Place, PlannedListener
from kvmlaunch.model.run_files import VNC

FIRST_VNC_PORT = 5900
SOURCE = "QEMU docs, system/vnc-security"


def vnc_target(definition: Definition) -> Choice[FieldValue]:
    """Give where VNC listens: a socket in the run directory, or the address written out."""
    written = definition.display.address
    if written is None:
        return Choice(
            value=Place(root="run", tail=VNC, prefix="unix:"),
            reason="a socket in the run directory: no port is open",
            source=SOURCE,
            origin=definition.origin("display.type"),
        )
    address, _, port = written.rpartition(":")
    return by_hand(definition, "display.address", f"{address}:{int(port) - FIRST_VNC_PORT}")


def build_display(definition: Definition) -> Part:
    """Give `-display none`, or VNC with a graphics card and an absolute pointer."""
    if definition.display.type == "none":
        written = "display.type" in definition.origins
        none: Choice[str] = Choice(
            value="none",
            reason="" if written else "a server needs no screen",
            source="" if written else "QEMU man page, -display",
            origin=definition.origin("display.type"),
        )
        return Part(options=(value("-display", "display", "display.type", none),))
    card: Choice[str] = Choice(
        value="VGA",
        reason="every guest has a driver for it",
        source="QEMU docs, devices",
        origin=definition.origin("display.type"),
    )
    return Part(
        options=(
            pairs("-vnc", "display", field("", "display.address", vnc_target(definition))),
            pairs("-device", "display", field("", "display.card", card), wiring("id", "display.card", "video0")),
            pairs(
                "-device",
                "display",
                field(
                    "", "display.usb", fixed("qemu-xhci", "a USB controller for the pointer", "QEMU docs, devices/usb")
                ),
                wiring("id", "display.usb", "usb"),
            ),
            pairs(
                "-device",
                "display",
                field(
                    "",
                    "display.pointer",
                    fixed("usb-tablet", "an absolute pointer follows the viewer's", "QEMU docs, devices/usb"),
                ),
                wiring("bus", "display.pointer", "usb.0"),
                wiring("id", "display.pointer", "tablet0"),
            ),
        )
    )


def listeners(definition: Definition) -> tuple[PlannedListener, ...]:
    """Give the port that VNC binds, if any."""
    written = definition.display.address
    if definition.display.type != "vnc" or written is None:
        return ()
    address, _, port = written.rpartition(":")
    return (PlannedListener(key="display.address", protocol="tcp", address=address.strip("[]"), port=int(port)),)
