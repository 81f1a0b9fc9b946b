"""The answers of a QEMU binary, and the capabilities that they tell of.

An answer is a text by the name of its query: QMP's return value as JSON, `help` what `-help` prints,
`binary` the path.  Queries that are asked once for each of several types have one answer, an object
by type; a type that this QEMU lacks is absent.  Source: QEMU docs/interop/qemu-qmp-ref;
docs/devel/qapi-code-gen, "Client JSON Protocol introspection".
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from kvmlaunch.model.qemu import EVERY_FEATURE, MachineType, QemuCaps

BINARY = "binary"
HELP = "help"
VERSION, MACHINES, MODELS = "query-version", "query-machines", "query-cpu-definitions"
OPTIONS, SCHEMA = "query-command-line-options", "query-qmp-schema"
DEVICES, TYPES = "device-list-properties", "qom-list-properties"
QUIT = "quit"
QUERIES = (VERSION, MACHINES, MODELS, OPTIONS, SCHEMA)
# What kvmlaunch emits, and what people write by hand.
DEVICE_NAMES = (
    *("virtio-blk-pci", "virtio-scsi-pci", "scsi-hd", "scsi-cd", "nvme", "ide-hd", "ide-cd", "ich9-ahci"),
    *("virtio-net-pci", "e1000e", "e1000", "rtl8139", "virtio-rng-pci", "virtio-balloon-pci", "virtio-serial-pci"),
    *("virtserialport", "virtconsole", "vhost-vsock-pci", "vhost-user-fs-pci", "vmgenid", "pcie-root-port"),
    *("pvpanic-pci", "i6300esb", "isa-serial", "pci-serial", "isa-debugcon", "tpm-crb", "tpm-tis", "vfio-pci"),
    *("VGA", "qxl-vga", "virtio-vga", "bochs-display", "usb-tablet", "usb-kbd", "usb-storage", "qemu-xhci"),
    *("virtio-tablet-pci", "virtio-keyboard-pci", EVERY_FEATURE),
)
SWITCHES = ("bool", "OnOffAuto", "OnOffSplit")
ACCELERATORS = ("kvm", "tcg", "xen")
# Abstract, but there under whatever name a distribution gives its machine types.
COMMON_MACHINE = "generic-pc-machine"

HELP_LINE = r"(?m)^-{1,2}[A-Za-z][A-Za-z0-9-]*(?:(?: or |/)-{1,2}[A-Za-z][A-Za-z0-9-]*)*"
HELP_WORD = r"-{1,2}([A-Za-z][A-Za-z0-9-]*)"
HELP_VERSION = r"(?a)QEMU emulator version ([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})"

Table = Mapping[str, object]


def parse_help_version(text: str) -> tuple[int, int, int]:
    """Give the version that `-help` opens with; ValueError when it is not QEMU's."""
    match = re.match(HELP_VERSION, text)
    if match is None:
        message = f"it calls itself {text.strip().partition(chr(10))[0][:80]!r}, not a QEMU emulator"
        raise ValueError(message)
    return int(match[1]), int(match[2]), int(match[3])


def render_queries(version: tuple[int, int, int]) -> str:
    """Give the commands for a QMP monitor, a line each; every one carries its name as id, and quit is the last.

    The blank lines after it keep the end of the input away from it: QEMU reads a byte at a time and
    drops what waits when the input ends.
    """
    machine = f"pc-q35-{version[0]}.{version[1]}-machine"
    types = (COMMON_MACHINE, machine, *(f"{name}-accel" for name in ACCELERATORS))
    commands: list[Table] = [
        {"execute": "qmp_capabilities"},
        *({"execute": query, "id": query} for query in QUERIES),
        *(render_query(DEVICES, name) for name in DEVICE_NAMES),
        *(render_query(TYPES, name) for name in types),
        {"execute": QUIT, "id": QUIT},
    ]
    return "".join(f"{json.dumps(command)}\n" for command in commands) + "\n" * 64


def render_query(query: str, typename: str) -> Table:
    """Give the command that asks for the properties of one type."""
    return {"execute": query, "arguments": {"typename": typename}, "id": f"{query} {typename}"}


def parse_replies(text: str) -> Mapping[str, str]:
    """Give the answers of a monitor's output; ValueError when one that every QEMU gives is missing, or the end."""
    replies = [reply for line in text.splitlines() if (reply := parse_reply(line))]
    by_id = {str(reply["id"]): reply["return"] for reply in replies if "id" in reply and "return" in reply}
    if missing := [query for query in (*QUERIES, QUIT) if query not in by_id]:
        message = f"it gave no answer to {', '.join(missing)}"
        raise ValueError(message)
    plural = {
        query: {name.partition(" ")[2]: value for name, value in by_id.items() if name.startswith(f"{query} ")}
        for query in (DEVICES, TYPES)
    }
    answers = {**{query: by_id[query] for query in QUERIES}, **plural}
    return {name: json.dumps(answer) for name, answer in answers.items()}


def parse_reply(line: str) -> Table:
    """Give the object of a line, empty when it is none: QEMU's modules print warnings between."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return table(reply) if isinstance(reply, dict) else {}


def parse_answers(answers: Mapping[str, str]) -> QemuCaps:
    """Give the capabilities; ValueError with a sentence for answers that are missing or of another shape."""
    version = table(parse_json(answers, VERSION))
    types = {name: parse_names(value) for name, value in table(parse_json(answers, TYPES)).items()}
    schema = {str(entry.get("name")): entry for entry in tables(parse_json(answers, SCHEMA))}
    machines = (parse_machine(entry) for entry in tables(parse_json(answers, MACHINES)))
    models = (text(entry, "name") for entry in tables(parse_json(answers, MODELS)))
    return QemuCaps(
        binary=PurePosixPath(answers.get(BINARY, "qemu-system-x86_64").strip()),
        version=parse_version(table(version.get("qemu"))),
        package=text(version, "package"),
        machines=tuple(sorted(machines, key=lambda machine: machine.name)),
        cpu_models=tuple(sorted(models)),
        devices={name: parse_names(value) for name, value in table(parse_json(answers, DEVICES)).items()},
        objects=frozenset(parse_cases(schema, "object-add")),
        aio=parse_enum(schema, "file", "aio"),
        qcow2=frozenset(text(member, "name") for member in parse_members(schema, "qcow2")),
        options=parse_options(tables(parse_json(answers, OPTIONS))),
        bare_options=parse_help(answers.get(HELP, "")),
        machine_properties=frozenset().union(*(types[name] for name in types if name.endswith("-machine"))),
        switches=parse_switches(table(parse_json(answers, DEVICES)).get(EVERY_FEATURE)),
        accelerators=frozenset(name for name in ACCELERATORS if f"{name}-accel" in types),
    )


def parse_json(answers: Mapping[str, str], name: str) -> object:
    """Give the value of an answer."""
    if name not in answers:
        message = f"the answer to {name} is missing"
        raise ValueError(message)
    try:
        return json.loads(answers[name])
    except (ValueError, RecursionError) as error:
        message = f"the answer to {name} is no JSON: {error}"
        raise ValueError(message) from error


def table(value: object) -> Table:
    """Give an object of JSON, ValueError for anything else."""
    if not isinstance(value, dict):
        message = f"an object was expected, not {str(value)[:40]!r}"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    return value


def tables(value: object) -> list[Table]:
    """Give a list of objects of JSON, ValueError for anything else."""
    if not isinstance(value, list):
        message = f"a list was expected, not {str(value)[:40]!r}"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    return [table(item) for item in value]


def text(entry: Table, name: str) -> str:
    """Give a text of an object, "" when it is not there."""
    value = entry.get(name, "")
    if not isinstance(value, str):
        message = f"{name} is {str(value)[:40]!r}, no text"
        raise ValueError(message)  # noqa: TRY004 - a parser has one error: ValueError
    return value


def parse_version(entry: Table) -> tuple[int, int, int]:
    """Give the three numbers of a version."""
    match entry:
        case {"major": int(major), "minor": int(minor), "micro": int(micro)}:
            return major, minor, micro
        case _:
            message = "the version has no major, minor and micro number"
            raise ValueError(message)


def parse_machine(entry: Table) -> MachineType:
    """Give a row of query-machines."""
    match entry.get("cpu-max", 1):
        case int(cpu_max):
            return MachineType(
                name=text(entry, "name"),
                alias=text(entry, "alias"),
                cpu_max=cpu_max,
                deprecated=entry.get("deprecated") is True,
                default=entry.get("is-default") is True,
            )
        case other:
            message = f"cpu-max is {str(other)[:40]!r}, no number"
            raise ValueError(message)


def parse_names(properties: object) -> frozenset[str]:
    """Give the names of properties, which may stand as objects or, after pruning, as bare names."""
    if isinstance(properties, list) and all(isinstance(item, str) for item in properties):
        return frozenset(properties)
    return frozenset(text(item, "name") for item in tables(properties))


def parse_switches(properties: object) -> frozenset[str]:
    """Give the names of the properties that are on or off; none after pruning, which leaves bare names."""
    if not isinstance(properties, list) or not all(isinstance(item, dict) for item in properties):
        return frozenset()
    return frozenset(text(item, "name") for item in tables(properties) if text(item, "type") in SWITCHES)


def parse_options(groups: Sequence[Table]) -> Mapping[str, Mapping[str, str]]:
    """Give the parameters and their types of each group of options."""
    return {
        text(group, "option"): {text(item, "name"): text(item, "type") for item in tables(group.get("parameters", []))}
        for group in groups
    }


def parse_help(text_of_help: str) -> frozenset[str]:
    """Give the options that `-help` lists, without the dash."""
    lines = re.findall(HELP_LINE, text_of_help)
    return frozenset(word for line in lines for word in re.findall(HELP_WORD, line))


def parse_cases(schema: Mapping[str, Table], command: str) -> Mapping[str, str]:
    """Give the variants of a command's argument: the type by its case."""
    argument = schema.get(text(schema.get(command, {}), "arg-type"), {})
    return {text(item, "case"): text(item, "type") for item in tables(argument.get("variants", []))}


def parse_members(schema: Mapping[str, Table], driver: str) -> list[Table]:
    """Give the members of a block driver's options."""
    entry = schema.get(parse_cases(schema, "blockdev-add").get(driver, ""), {})
    return tables(entry.get("members", []))


def parse_enum(schema: Mapping[str, Table], driver: str, member: str) -> frozenset[str]:
    """Give the words that a member of a block driver's options takes; those that this build lacks are absent."""
    types = {text(item, "name"): text(item, "type") for item in parse_members(schema, driver)}
    values = schema.get(types.get(member, ""), {}).get("values", [])
    return frozenset(str(value) for value in values) if isinstance(values, list) else frozenset()


def prune_answers(answers: Mapping[str, str]) -> Mapping[str, str]:
    """Give answers cut down to what `parse_answers` reads, which gives the same from both.

    Of 400 KB 60 KB stay: of properties the names, of the schema the types of objects and of the two
    block drivers asked about, of the help the options.
    """
    pruned = {
        MODELS: [pick(entry, ("name", "deprecated")) for entry in tables(parse_json(answers, MODELS))],
        MACHINES: prune_machines(tables(parse_json(answers, MACHINES))),
        OPTIONS: prune_options(tables(parse_json(answers, OPTIONS))),
        SCHEMA: prune_schema(tables(parse_json(answers, SCHEMA))),
        **{query: prune_properties(table(parse_json(answers, query))) for query in (DEVICES, TYPES)},
    }
    rendered = {name: render_answer(value) for name, value in pruned.items()}
    return {**answers, **rendered, HELP: prune_help(answers.get(HELP, ""))}


def prune_machines(machines: Iterable[Table]) -> list[Table]:
    """Give what is read of machine types, by name."""
    kept = (pick(machine, ("name", "alias", "cpu-max", "deprecated", "is-default")) for machine in machines)
    return sorted(kept, key=lambda machine: str(machine.get("name")))


def prune_options(groups: Sequence[Table]) -> list[Table]:
    """Give the groups of options with names and types alone."""
    return [
        {"option": group, "parameters": [{"name": name, "type": kind} for name, kind in parameters.items()]}
        for group, parameters in parse_options(groups).items()
    ]


def prune_schema(entries: Iterable[Table]) -> list[Table]:
    """Give the entries of the schema that `parse_answers` follows."""
    schema = {str(entry.get("name")): entry for entry in entries}
    return [schema[name] for name in wanted_of_schema(schema)]


def prune_properties(types: Table) -> Mapping[str, list[str]]:
    """Give the names of the properties of each type."""
    return {name: sorted(parse_names(value)) for name, value in sorted(types.items())}


def prune_help(text_of_help: str) -> str:
    """Give the first line, which has the version, and those that begin with an option."""
    first, *lines = text_of_help.split("\n")
    return "\n".join([first, *(line for line in lines if re.match(HELP_LINE, line))]) + "\n"


def pick(entry: Table, names: Iterable[str]) -> Table:
    """Give some fields of an object."""
    return {name: entry[name] for name in names if name in entry}


def wanted_of_schema(schema: Mapping[str, Table]) -> list[str]:
    """Give the names of the entries that `parse_answers` follows."""
    drivers = parse_cases(schema, "blockdev-add")
    members = {text(item, "name"): text(item, "type") for item in parse_members(schema, "file")}
    commands = ["object-add", "blockdev-add"]
    arguments = [text(schema.get(command, {}), "arg-type") for command in commands]
    wanted = [*commands, *arguments, drivers.get("file", ""), drivers.get("qcow2", ""), members.get("aio", "")]
    return [name for name in dict.fromkeys(wanted) if name in schema]


def render_answer(value: object) -> str:
    """Give JSON with a line for each item of the outermost list or object, so that a diff can be read."""
    if isinstance(value, dict):
        rows = [f"{json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n}\n"
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]\n"
    return json.dumps(value) + "\n"
