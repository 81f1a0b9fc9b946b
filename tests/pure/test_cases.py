"""Every case gives what it expects, and the cases together leave no key, word, code or law of a plan untried."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs
import pytest
from attrs import evolve

import kvmlaunch
from kvmlaunch.builder.option import render_option
from kvmlaunch.builder.render import render_argv, render_line
from kvmlaunch.builder.vm import build_vm
from kvmlaunch.model.choice import Choice
from kvmlaunch.model.codes import CODES
from kvmlaunch.model.definition import AUTO, LOADING_KEYS, SHORTHANDS, Auto, Definition, Disk
from kvmlaunch.model.plan import DrivePromise, Field, FieldValue
from tests.casebook import (
    ARGV,
    CASES,
    FINDINGS,
    accepted_cases,
    case_names,
    load_case,
    plan_of,
    planned_cases,
    read_golden,
    render_golden_argv,
    render_golden_findings,
    run_case,
    write_golden,
)

BY_HAND: Final = {"file", "set", "profile"}


@pytest.mark.parametrize("name", case_names())
def test_the_case(name: str, pytestconfig: pytest.Config) -> None:
    outcome = run_case(name)
    argv, findings = render_golden_argv(outcome), render_golden_findings(outcome)

    if pytestconfig.getoption("--regenerate"):
        write_golden(name, ARGV, argv)
        write_golden(name, FINDINGS, findings)

    assert findings == read_golden(name, FINDINGS)
    assert argv == read_golden(name, ARGV)


def test_every_case_says_in_a_sentence_why_it_is_there() -> None:
    whys = [load_case(name).why for name in case_names()]

    assert all(why.endswith(".") for why in whys)
    assert len(set(whys)) == len(whys)


def test_a_case_directory_holds_nothing_that_no_case_reads() -> None:
    for name in case_names():
        words = tomllib.loads((CASES / name / "case.toml").read_text(encoding="utf-8"))
        own = {
            "case.toml",
            ARGV,
            FINDINGS,
            *words.get("texts", {}).values(),
            *([] if "definition" in words else ["vm.toml"]),
        }
        assert {path.name for path in (CASES / name).iterdir()} <= own, name


def test_no_golden_holds_a_path_of_this_machine() -> None:
    for name in case_names():
        assert str(CASES.parents[1]) not in read_golden(name, ARGV) + read_golden(name, FINDINGS)


def definitions() -> Iterator[Definition]:
    """Give the definitions of all cases that load."""
    return (loaded for name in case_names() if (loaded := run_case(name).loaded.definition) is not None)


def is_table(form: object) -> bool:
    return isinstance(form, type) and attrs.has(form)


def keys_of(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Give every leaf key beneath a class of the model with its type; `*` stands for a name that the user chooses."""
    for each in attrs.fields(kind):
        if "doc" not in each.metadata:
            continue
        here = (*path, each.name)
        named = get_args(each.type)[1] if get_origin(each.type) is Mapping else None
        tables = [form for form in (each.type, *get_args(each.type)) if is_table(form) and form is not Auto]
        if named is not None:
            yield from keys_of(named, (*here, "*")) if is_table(named) else [(".".join((*here, "*")), named)]
        elif tables and any("doc" in inner.metadata for inner in attrs.fields(tables[0])):
            yield from keys_of(tables[0], here)
        else:
            yield ".".join(here), each.type


def pattern_of(path: str) -> str:
    """Give a written key path as keys_of names it."""
    return re.sub(r"^(disk|cdrom|network|share|labels|cpu\.features|cpu\.properties)\.[^.]+", r"\1.*", path)


def test_every_key_of_the_definition_is_written_by_some_case() -> None:
    wanted = {key for key, _ in keys_of(Definition)}

    written = {
        pattern_of(path)
        for definition in definitions()
        for path, origin in definition.origins.items()
        if origin.kind in {"file", "set"}
    }

    assert wanted, "no keys were found"
    assert wanted - written == set()


def test_every_shorthand_and_loading_key_is_written_by_some_case() -> None:
    texts = [tomllib.loads(load_case(name).text) for name in case_names()]

    for key in LOADING_KEYS:
        assert any(key in text for text in texts), key
    for key in SHORTHANDS:
        assert any(key in text and not isinstance(text[key], dict) for text in texts), key


def words_of(form: Any) -> Iterator[str]:  # noqa: ANN401 - any annotation
    """Give the words that a key takes."""
    if get_origin(form) is Literal:
        yield from get_args(form)
    elif get_origin(form) in {Union, UnionType}:
        for member in get_args(form):
            yield from words_of(member)


def values_at(definition: Definition, key: str) -> Iterator[object]:
    """Give the values of a key, one a named table."""
    values: list[Any] = [definition]
    for step in key.split("."):
        values = [
            inner
            for value in values
            if value is not AUTO
            for inner in (value.values() if step == "*" else [getattr(value, step)])
        ]
    return iter(values)


def test_every_word_of_every_key_is_used_by_some_case() -> None:
    used = {
        (key, value)
        for definition in definitions()
        for key, _ in keys_of(Definition)
        for value in values_at(definition, key)
        if isinstance(value, str)
    }

    missing = {(key, word) for key, form in keys_of(Definition) for word in words_of(form)} - used

    assert missing == set()


def test_every_auto_is_left_to_be_resolved_by_some_case() -> None:
    used = {
        key
        for definition in definitions()
        for key, _ in keys_of(Definition)
        for value in values_at(definition, key)
        if value is AUTO
    }

    assert {key for key, form in keys_of(Definition) if Auto in get_args(form)} - used == set()


CODE: Final = re.compile("(?:" + "|".join(re.escape(code) for code in CODES) + ")")
# Codes that no case can have, and the tests that have them.
MET_ELSEWHERE: Final = {
    "qemu.version": "test_preflight_checks.py",
    "host.hugetlbfs.pagesize": "test_preflight_checks.py",
    "host.hugetlbfs.stacked": "test_preflight_checks.py",
    **dict.fromkeys(("qemu.promise", "qemu.said"), "test_preflight_promises.py"),
    **dict.fromkeys(
        ("qemu.exit", "qemu.tpm", "qemu.signal.bus", "qemu.signal.sys", "qemu.signal.abrt", "qemu.signal.kill"),
        "test_preflight_death.py",
    ),
    **dict.fromkeys(("host.hugepages.short", "host.cpu.features"), "test_preflight_death.py"),
    **dict.fromkeys(("disk.corrupt", "disk.room"), "test_backing.py"),
    **dict.fromkeys(("fleet.pin", "fleet.mac", "fleet.tap", "fleet.uuid"), "test_preflight_fleet.py"),
}


def emitted(package: str) -> set[str]:
    """Give every code that stands as a literal in the modules of a package."""
    places = (Path(kvmlaunch.__file__).parent / package).glob("*.py")
    trees = [ast.parse(place.read_text(encoding="utf-8")) for place in places]
    literals = {
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {literal for literal in literals if CODE.fullmatch(literal)}


def test_every_finding_of_builder_and_preflight_is_met_by_some_test() -> None:
    met = {found.report.code for name in case_names() for found in run_case(name).findings}

    missing = (emitted("builder") | emitted("preflight")) - met

    assert missing == set(MET_ELSEWHERE)
    for code, file in MET_ELSEWHERE.items():
        assert f'"{code}"' in (Path(__file__).parent / file).read_text(encoding="utf-8"), code


def test_every_code_that_is_emitted_is_registered() -> None:
    keywords = {
        keyword.value.value
        for package in ("builder", "preflight")
        for place in (Path(kvmlaunch.__file__).parent / package).glob("*.py")
        for node in ast.walk(ast.parse(place.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }

    assert keywords - CODES.keys() == set()


def test_an_error_has_a_message_a_code_and_most_have_a_fix() -> None:
    for name in case_names():
        for found in run_case(name).findings:
            assert found.report.code in CODES
            assert found.report.message
            assert not found.report.message.endswith(".")
            assert not found.report.where or found.report.where.strip()


def fields_of(name: str) -> Iterator[Field]:
    """Give every field of a case's plan, those that leave no argument included."""
    plan = plan_of(name)
    yield from (part for option in plan.options for part in option.fields)
    yield from plan.choices


@pytest.mark.parametrize("name", planned_cases())
def test_every_field_has_a_label_and_an_origin_and_its_reason_or_was_written(name: str) -> None:
    for part in fields_of(name):
        choice: Choice[FieldValue] = part.choice
        assert part.key, part
        assert choice.origin.kind, part
        assert bool(choice.reason) == bool(choice.source), part
        assert choice.reason or choice.origin.kind in BY_HAND, part


@pytest.mark.parametrize("name", planned_cases())
def test_what_was_written_is_what_qemu_is_given(name: str) -> None:
    definition = run_case(name).loaded.definition
    assert definition is not None
    for key in ("cache", "aio", "discard"):
        for disk_name, disk in definition.disk.items():
            written = getattr(disk, key)
            given = {part.choice.value for part in fields_of(name) if part.key == f"disk.{disk_name}.{key}"}
            assert written is AUTO or given == {written}


@pytest.mark.parametrize("name", planned_cases())
def test_every_drive_has_a_promise(name: str) -> None:
    plan = plan_of(name)

    drives = {
        part.choice.value: option
        for option in plan.options
        for part in option.fields
        if option.flag == "-drive" and part.name == "id"
    }

    promised = {promise.id: promise.path for promise in plan.promises if isinstance(promise, DrivePromise)}
    assert drives.keys() == promised.keys()
    assert [disk.path for disk in plan.disks] == [path for path in promised.values() if isinstance(path, PurePosixPath)]


@pytest.mark.parametrize("name", planned_cases())
def test_every_kind_of_promise_is_made_once(name: str) -> None:
    kinds = [type(promise).__name__ for promise in plan_of(name).promises if not isinstance(promise, DrivePromise)]

    assert sorted(kinds) == ["AcceleratorPromise", "IdentityPromise", "MemoryPromise", "SandboxPromise"]


@pytest.mark.parametrize("name", planned_cases())
def test_no_id_is_used_twice(name: str) -> None:
    named = [
        str(part.choice.value)
        for option in plan_of(name).options
        for part in option.fields
        if part.name in {"id", "node-name"}
    ]

    assert len(named) == len(set(named))


@pytest.mark.parametrize("name", planned_cases())
def test_a_shell_reads_the_printed_line_back_word_by_word(name: str) -> None:
    plan, places = plan_of(name), run_case(name).places

    assert tuple(shlex.split(render_line(plan, places))) == render_argv(plan, places)


@pytest.mark.parametrize("name", accepted_cases())
def test_the_laws_of_argv(name: str) -> None:
    options = [
        render_option(option, run_case(name).places) for option in plan_of(name).options if option.table != "raw"
    ]
    flags = [option[0] for option in options]
    values = {flag: [option[1] for option in options if option[0] == flag and len(option) > 1] for flag in flags}

    assert flags.count("-accel") == flags.count("-machine") == flags.count("-nodefaults") == 1
    assert "-no-user-config" in flags
    assert "accel=" not in values["-machine"][0]
    assert not any("write-cache=" in value for value in values.get("-device", []))
    assert all(("format=" in value and "cache=" in value) or "if=pflash" in value for value in values.get("-drive", []))
    assert not any(
        "aio=native" in value and not re.search("cache=(none|directsync)", value) for value in values.get("-drive", [])
    )
    assert not any(
        "detect-zeroes=unmap" in value and "discard=unmap" not in value for value in values.get("-drive", [])
    )
    assert all("script=no,downscript=no" in value for value in values.get("-netdev", []) if value.startswith("tap"))
    assert all(re.search(r"hostfwd=\w+:[^:]+:", value) for value in values.get("-netdev", []) if "hostfwd" in value)
    assert not ("-mem-path" in flags and "-numa" in flags)


@pytest.mark.parametrize("name", planned_cases())
def test_a_plan_is_the_same_when_it_is_built_again(name: str) -> None:
    outcome = run_case(name)
    definition = outcome.loaded.definition
    assert definition is not None

    again = build_vm(
        definition, outcome.host, outcome.caps, boot_from=outcome.case.boot_from, paused=outcome.case.paused
    )

    assert again == outcome.plan


@pytest.mark.parametrize("name", planned_cases())
def test_the_version_of_qemu_decides_no_engine_and_no_memory(name: str) -> None:
    older, newer = run_case(name, "7.2.22").plan, run_case(name, "10.0").plan

    assert older is not None
    assert newer is not None
    assert older.disks == newer.disks
    assert older.memory == newer.memory
    assert older.networks == newer.networks


def test_another_name_of_a_disk_changes_only_what_is_named_after_it() -> None:
    outcome = run_case("three-lines")
    definition = outcome.loaded.definition
    assert definition is not None
    renamed = evolve(definition, disk={"boot": definition.disk["root"]})

    plan = build_vm(renamed, outcome.host, outcome.caps)

    words = [
        word.replace("disk-boot", "disk-root").replace("fmt-boot", "fmt-root")
        for word in render_argv(plan, outcome.places)
    ]
    words = [word.replace("dev-boot", "dev-root").replace("serial=boot", "serial=root") for word in words]
    assert tuple(words) == render_argv(plan_of("three-lines"), outcome.places)


def test_a_second_disk_leaves_the_ids_of_the_first_alone() -> None:
    outcome = run_case("three-lines")
    definition = outcome.loaded.definition
    assert definition is not None
    more = evolve(definition, disk={"data": Disk(path=PurePosixPath("/srv/vm/data.img")), **definition.disk})

    def drive(of: Definition) -> set[str]:
        plan = build_vm(of, outcome.host, outcome.caps)
        argv = render_argv(plan, outcome.places)
        return {word for word in argv if "web01.img" in word or "nic-net0" in word}

    assert drive(more) == drive(definition)


def test_no_table_of_the_model_hides_a_key_from_these_tests() -> None:
    keys = [key for key, _ in keys_of(Definition)]

    assert len(keys) > 60
    assert {"disk.*.limits.iops", "cpu.topology.cores", "cpu.features.*", "network.*.forwards"} <= set(keys)
