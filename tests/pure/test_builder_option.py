"""The form of an option: no text changes the meaning of another, and what is printed is read back as it was."""

import json
import re
import subprocess  # noqa: TID253 - shells read what is printed for them
from pathlib import PurePosixPath
from typing import Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.builder import names
from kvmlaunch.builder.option import bare, field, fixed, pairs, render_option, value
from kvmlaunch.builder.render import group_argv, plan_document, render_argv, render_comments, render_line, render_pretty
from kvmlaunch.builder.vm import build_vm
from kvmlaunch.model.choice import Choice
from kvmlaunch.model.definition import Boot, Definition, Disk
from kvmlaunch.model.plan import FieldValue, Option, Place, Places, Plan
from tests.casebook import Outcome, load_caps, run_case

PLACES: Final = Places(
    run=PurePosixPath("/run/x"),
    hugepages=PurePosixPath("/pages"),
    state=PurePosixPath("/state"),
    logs=PurePosixPath("/logs"),
)
# What a TOML string can hold, without what no path and no argument can: NUL.
TEXT: Final = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
TABLE_NAME: Final = st.from_regex(re.compile("[a-z0-9][a-z0-9-]{0,39}"), fullmatch=True)
QEMU_ID: Final = re.compile("[A-Za-z][A-Za-z0-9._-]*")


def words_of(shell: str, script: str) -> tuple[str, ...]:
    """Give the words that a script prints, each ended by a NUL."""
    ran = subprocess.run([shell, "-c", script], capture_output=True, check=True)  # noqa: S603 - sh and bash
    return tuple(ran.stdout.decode().split("\0")[:-1])


def parse_pairs(text: str, implied: str = "") -> list[tuple[str, str]]:
    """Give the fields of QEMU's key=value syntax, as util/qemu-option.c reads them."""
    found: list[tuple[str, str]] = []
    rest = text
    while rest:
        name, equals, after = rest.partition("=")
        if not equals or "," in name:
            assert implied, f"no name in {rest!r}"
            assert not found, f"a value without a name in {text!r}"
            name, after = implied, rest
        read, rest = parse_value(after)
        found.append((name, read))
    return found


def parse_value(text: str) -> tuple[str, str]:
    """Give a value up to a comma that stands alone, with doubled commas as one, and what is behind it."""
    read = ""
    index = 0
    while index < len(text):
        if text[index] == ",":
            if text[index + 1 : index + 2] != ",":
                return read, text[index + 1 :]
            index += 1
        read += text[index]
        index += 1
    return read, ""


def definition_of(name: str) -> Definition:
    definition = run_case(name).loaded.definition
    assert definition is not None
    return definition


def build(definition: Definition, outcome: Outcome) -> Plan:
    return build_vm(definition, outcome.host, outcome.caps)


def drive_of(plan: Plan) -> str:
    (drive,) = (option for option in plan.options if option.flag == "-drive")
    return render_option(drive, PLACES)[1]


def fields_of(option: Option) -> dict[str, FieldValue]:
    return {part.name: part.choice.value for part in option.fields}


@given(text=TEXT)
def test_any_text_as_a_path_is_read_back_as_that_path(text: str) -> None:
    outcome = run_case("three-lines")
    path = PurePosixPath("/srv/vm") / text.lstrip("/")
    disk = Disk(path=path, format="raw", cache="none", aio="native")

    plan = build(evolve(definition_of("three-lines"), disk={"root": disk}), outcome)

    assert parse_pairs(drive_of(plan)) == [
        ("file", str(path)),
        ("format", "raw"),
        ("if", "none"),
        ("id", "disk-root"),
        ("node-name", "fmt-root"),
        ("cache", "none"),
        ("aio", "native"),
        ("discard", "unmap"),
    ]


@given(st.lists(TEXT, min_size=1, max_size=6))
def test_any_values_are_read_back_as_they_were(texts: list[str]) -> None:
    names_of = [f"key{index}" for index in range(len(texts))]
    option = pairs(
        "-device",
        "x",
        *(field(name, name, fixed(text, "why", "where")) for name, text in zip(names_of, texts, strict=True)),
    )

    (_, rendered) = render_option(option, PLACES)

    assert parse_pairs(rendered) == list(zip(names_of, texts, strict=True))


@pytest.mark.parametrize(
    ("word", "rendered"),
    [
        (True, "on"),
        (False, "off"),
        (0, "0"),
        (1 << 40, "1099511627776"),
        ("a,b", "a,,b"),
        ("a,,b", "a,,,,b"),
        (PurePosixPath("/a,b=c d"), "/a,,b=c d"),
        (Place(root="run", tail="qmp.sock"), "/run/x/qmp.sock"),
        (Place(root="hugepages"), "/pages"),
        (Place(root="state", tail="a/b"), "/state/a/b"),
        (Place(root="run", tail="vnc.sock", prefix="unix:"), "unix:/run/x/vnc.sock"),
    ],
)
def test_a_value_is_spelled_as_qemu_reads_it(word: FieldValue, rendered: str) -> None:
    option = pairs("-device", "x", field("key", "x.key", fixed(word, "why", "where")))

    assert render_option(option, PLACES) == ("-device", f"key={rendered}")


def test_a_raw_value_is_not_escaped() -> None:
    choice: Choice[FieldValue] = fixed("/x/m,share=on", "why", "where")

    assert render_option(value("-mem-path", "memory", "memory.hugepages", choice), PLACES) == (
        "-mem-path",
        "/x/m,share=on",
    )


def test_a_bare_option_is_one_word() -> None:
    assert render_option(bare("-nodefaults", "machine", "why", "where"), PLACES) == ("-nodefaults",)


def test_a_place_that_holds_a_comma_is_escaped_too() -> None:
    places = evolve(PLACES, run=PurePosixPath("/run/a,b"))
    socket = field("path", "x", fixed(Place(root="run", tail="qmp.sock"), "why", "where"))

    assert render_option(pairs("-chardev", "x", socket), places)[1] == "path=/run/a,,b/qmp.sock"


@given(serial=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), path=TEXT)
def test_the_json_form_is_read_back_as_it_was(serial: str, path: str) -> None:
    definition = definition_of("vq-mapping-10")
    disk = evolve(definition.disk["root"], serial=serial, path=definition.disk["root"].path, queues=4)
    outcome = run_case("vq-mapping-10")

    plan = build(evolve(definition, disk={"root": disk}, description=path), outcome)

    (device,) = (option for option in plan.options if option.form == "json")
    document = json.loads(render_option(device, PLACES)[1])
    expected = fields_of(device)
    assert document.pop("driver") == expected.pop("")
    assert [each["iothread"] for each in document.pop("iothread-vq-mapping")] == list(plan.iothreads)
    assert document == {name: word for name, word in expected.items() if name != "iothread-vq-mapping"}
    assert document["serial"] == serial
    assert isinstance(document["num-queues"], int)


@given(append=TEXT, path=TEXT)
def test_a_shell_reads_every_printed_form_back(append: str, path: str) -> None:
    outcome = run_case("boot-kernel")
    boot = Boot(kernel=PurePosixPath("/srv") / path.lstrip("/"), append=append)

    plan = build(evolve(definition_of("boot-kernel"), boot=boot), outcome)

    argv = render_argv(plan, outcome.places)
    assert append in argv
    assert words_of("sh", f"printf '%s\\0' {render_line(plan, outcome.places)}") == argv
    assert words_of("sh", f"printf '%s\\0' {render_pretty(plan, outcome.places)}") == argv


@given(path=TEXT)
def test_no_reason_leaves_its_comment(path: str) -> None:
    outcome = run_case("three-lines")
    disk = Disk(path=PurePosixPath("/srv") / path.lstrip("/"), format="raw")

    plan = build(evolve(definition_of("three-lines"), disk={"root": disk}), outcome)

    array, newline, call = render_comments(plan, outcome.places).rpartition("\n")
    assert call == '"${argv[@]}"'
    assert words_of("bash", f"{array}{newline}printf '%s\\0' {call}") == render_argv(plan, outcome.places)


def test_the_document_holds_argv_and_every_reason() -> None:
    outcome = run_case("three-lines")
    assert outcome.plan is not None

    document = json.loads(json.dumps(plan_document(outcome.plan, outcome.places)))

    assert tuple(document["argv"]) == render_argv(outcome.plan, outcome.places)
    assert [word for option in document["options"] for word in option["argv"]] == document["argv"][1:]
    assert all(part["origin"] for option in document["options"] for part in option["fields"])


def test_argv_is_grouped_by_option() -> None:
    argv = ("qemu", "-nodefaults", "-m", "1G", "-device", "x,id=y")

    assert group_argv(argv) == ("-nodefaults", "-m 1G", "-device x,id=y")


IDS: Final = (
    names.drive_id,
    names.cdrom_id,
    names.node_name,
    names.cdrom_node_name,
    names.device_id,
    names.cdrom_device_id,
    names.netdev_id,
    names.nic_id,
    names.share_id,
    names.share_device_id,
)
OURS: Final = (
    "scsi0", "rng0", "rng-dev0", "mem0", "balloon0", "video0", "usb", "tablet0", "pvpanic0", "vmgenid0",
    "serial-agent", "agent-port0", "tpm-socket", "tpm0", "tpm-crb0", "seed", "seed-device",
)  # fmt: skip


@given(name=TABLE_NAME, other=TABLE_NAME)
def test_ids_are_valid_and_no_two_meet(name: str, other: str) -> None:
    made = [each(word) for each in IDS for word in sorted({name, other})]

    assert len(set(made)) == len(made)
    assert set(made).isdisjoint({*OURS, "console", "qmp", "events", *(f"io{number}" for number in range(64))})
    assert all(QEMU_ID.fullmatch(identity) for identity in made)
    assert all(len(identity) <= 31 for identity in (names.node_name(name), names.cdrom_node_name(name)))


def test_a_name_that_looks_like_a_shortened_one_is_not_taken_for_it() -> None:
    long = "abcdefghijklmnopqrstuvwxyz-0123456789-xx"

    assert names.stem(names.stem(long)) != names.stem(long)


def test_identities_depend_on_names_alone() -> None:
    machine = "0123456789abcdef0123456789abcdef"

    assert names.mac_address(machine, 0, "web01", "lan") == "52:54:00:04:b1:91"
    assert names.vm_uuid(machine, 0, "web01") == "66aed98a-73f9-881e-8c9a-22bed3714e35"
    assert names.tap_name(0, "web01", "lan") == "kv07d9f0fdac"
    assert names.drive_id("root") == "disk-root"


@given(st.lists(st.tuples(TABLE_NAME, TABLE_NAME), min_size=2, max_size=2, unique=True))
def test_two_networks_never_share_a_mac_or_a_tap(pair: list[tuple[str, str]]) -> None:
    first, second = pair

    assert names.tap_name(0, *first) != names.tap_name(0, *second)
    assert names.vm_uuid("m", 0, first[0]) != names.vm_uuid("m", 1000, first[0])
    assert re.fullmatch("kv[0-9a-f]{10}", names.tap_name(0, *first))
    assert re.fullmatch("52:54:00(:[0-9a-f]{2}){3}", names.mac_address("m", 0, *first))
    assert names.mac_address("m", 0, *first) != names.mac_address("m", 1000, *first)


def test_the_pool_of_threads_on_an_older_qemu_has_one_thread_a_disk() -> None:
    outcome = run_case("vq-mapping-10")

    older = build_vm(definition_of("vq-mapping-10"), outcome.host, load_caps("7.2.22"))

    assert outcome.plan is not None
    assert outcome.plan.iothreads == ("io0", "io1", "io2", "io3")
    assert older.iothreads == ("io0",)
    assert not [option for option in older.options if option.form == "json"]
