"""The seed for cloud-init, as a read-only disk, and what of the guest's own tuning it carries.

Source: cloud-init's documentation, datasources/nocloud: a file system labelled cidata.
"""

from collections.abc import Iterator

from kvmlaunch.builder.option import BUILT_IN, Part, by_hand, field, fixed, pairs, wiring
from kvmlaunch.model.choice import Choice
from kvmlaunch.model.definition import AUTO, CloudInit, Definition
from kvmlaunch.model.plan import DrivePromise, Field, Place
from kvmlaunch.model.tweak import Tweak

SEED = "seed.iso"
DRIVE = "seed-drive"
SOURCE = "cloud-init docs, datasources/nocloud"
SCHEDULER_RULE = "/etc/udev/rules.d/60-kvmlaunch-scheduler.rules"
HALTPOLL_LOAD = "/etc/modules-load.d/kvmlaunch-haltpoll.conf"
HALTPOLL_OPTIONS = "/etc/modprobe.d/kvmlaunch-haltpoll.conf"
RULE = 'SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", KERNEL=="vd*|sd*", ATTR{queue/scheduler}="none"\n'
SCHEDULER_WHY = "the host sorts already; a guest with one vCPU would take mq-deadline"
TRIM_WHY = "blocks that the guest frees go back to the host, once a week"
AGENT_WHY = "exec, shutdown, addresses and snapshots at rest need it"
TABLE = "cloud_init"


def plan_seed(definition: Definition) -> Choice[bool]:
    """Choose whether there is a seed: as written, and wherever anything of it is."""
    key = f"{TABLE}.enabled"
    if definition.cloud_init.enabled is not AUTO:
        return by_hand(definition, key, definition.cloud_init.enabled)
    written = sorted(each for each in definition.origins if each.startswith(f"{TABLE}.") and each != key)
    reason = f"{written[0]} is written" if written else "nothing of it is written"
    origin = definition.origin(written[0]) if written else BUILT_IN
    return Choice(value=bool(written), reason=reason, source=SOURCE, origin=origin)


def wanted(definition: Definition, name: str, value: bool, reason: str, source: str) -> Choice[bool]:  # noqa: FBT001 - as written
    """Give whether a tweak is wanted: its switch, with the reason for it."""
    origin = definition.origin(f"{TABLE}.{name}")
    return Choice(value=value, reason=reason if value else "switched off", source=source, origin=origin)


def plan_haltpoll(definition: Definition, tuning: CloudInit) -> Choice[bool]:
    """Choose whether a guest polls before it sleeps: with host CPUs of its own."""
    key = f"{TABLE}.haltpoll"
    if tuning.haltpoll is not AUTO:
        return by_hand(definition, key, tuning.haltpoll)
    pinned = definition.cpu.pin != "none"
    reason = (
        "its vCPUs have host CPUs of their own" if pinned else "its vCPUs share host CPUs, which polling would burn"
    )
    source = "Linux, guest halt polling (2cffe9f6b96f)"
    return Choice(value=pinned, reason=reason, source=source, origin=definition.origin("cpu.pin"))


def plan_agent(definition: Definition, tuning: CloudInit) -> Choice[bool]:
    """Choose whether an agent is installed: not where it would have no channel to be reached by."""
    source = "QEMU docs, interop/qemu-ga"
    if definition.guest_agent.enabled is False:
        reason = "guest_agent.enabled is false: it would have no channel"
        return Choice(value=False, reason=reason, source=source, origin=definition.origin("guest_agent.enabled"))
    return wanted(definition, "agent", tuning.agent, AGENT_WHY, source)


def plan_tweaks(definition: Definition) -> tuple[Tweak, ...]:
    """Give what is to be set within a guest, and what is not, each with its reason."""
    tuning = definition.cloud_init
    return (
        Tweak(
            name="scheduler",
            wanted=wanted(definition, "scheduler", tuning.scheduler, SCHEDULER_WHY, "Linux, bf348f9b78d4"),
            files=((SCHEDULER_RULE, RULE),),
            command="udevadm control --reload && udevadm trigger --subsystem-match=block --action=change",
            undo="udevadm control --reload",
        ),
        Tweak(
            name="trim",
            wanted=wanted(definition, "trim", tuning.trim, TRIM_WHY, "fstrim(8)"),
            unit="fstrim.timer",
        ),
        Tweak(
            name="agent",
            wanted=plan_agent(definition, tuning),
            package="qemu-guest-agent",
            unit="qemu-guest-agent.service",
        ),
        Tweak(
            name="haltpoll",
            wanted=plan_haltpoll(definition, tuning),
            files=(
                (HALTPOLL_LOAD, "cpuidle_haltpoll\n"),
                (HALTPOLL_OPTIONS, "options cpuidle_haltpoll force=Y\n"),  # without a hint of the host's it would not
            ),
            command="modprobe cpuidle_haltpoll force=Y",
            undo="modprobe -r cpuidle_haltpoll",
        ),
    )


def seed_rows(definition: Definition) -> Iterator[Field]:
    """Give the decisions for `explain`."""
    seed = plan_seed(definition)
    yield field("", f"{TABLE}.enabled", seed)
    if seed.value:
        for tweak in plan_tweaks(definition):
            yield field("", f"{TABLE}.{tweak.name}", tweak.wanted)


def installs_agent(definition: Definition) -> bool:
    """Does the seed have an agent installed in the guest."""
    return plan_seed(definition).value and plan_agent(definition, definition.cloud_init).value


def build_seed(definition: Definition) -> Part:
    """Give the disk with the seed, nothing where there is none."""
    if not plan_seed(definition).value:
        return Part()
    place = Place(root="state", tail=SEED)
    promise = DrivePromise(
        table=TABLE,
        id=DRIVE,
        path=place,
        format="raw",
        readonly=True,
        direct=False,
        no_flush=False,
        writeback=True,
        detect_zeroes="off",
    )
    return Part(
        promises=(promise,),
        options=(
            pairs(
                "-drive",
                TABLE,
                field("file", f"{TABLE}.seed", fixed(place, "written anew when what it says changes", SOURCE)),
                field("format", f"{TABLE}.format", fixed("raw", "an ISO 9660 image", SOURCE)),
                wiring("if", TABLE, "none", "the device below is attached by hand"),
                wiring("id", TABLE, DRIVE),
                wiring("node-name", TABLE, "seed-node"),
                field("cache", f"{TABLE}.cache", fixed("writeback", "read once, at boot", SOURCE)),
                field(
                    "readonly", f"{TABLE}.readonly", fixed(value=True, reason="the guest only reads it", source=SOURCE)
                ),
            ),
            pairs(
                "-device",
                TABLE,
                field(
                    "",
                    f"{TABLE}.device",
                    fixed("virtio-blk-pci", "cloud images have its driver", SOURCE),
                ),
                wiring("drive", TABLE, DRIVE),
                wiring("id", f"{TABLE}.device", "seed-device"),
                field("serial", f"{TABLE}.serial", fixed("cloud-init", "/dev/disk/by-id in the guest", SOURCE)),
            ),
        ),
    )
