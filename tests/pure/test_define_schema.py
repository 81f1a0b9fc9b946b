"""The JSON Schema: it has every key, with its sentence, and a checker of TOML agrees with `validate`."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from kvmlaunch.define.keys import fields_of, form_at, is_named, is_table, members
from kvmlaunch.define.schema import EXAMPLES, PATTERNS, render_schema
from kvmlaunch.define.values import PARSERS, RENDERERS, WANTED
from kvmlaunch.model.definition import LOADING_KEYS, SHORTHANDS, Definition

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parents[2]
TOMBI = Path(sys.executable).with_name("tombi")
CONFIG = '[[schemas]]\npath = "vm.schema.json"\ninclude = ["vm/*.toml"]\n'


def all_keys(table: type = Definition, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every key of the model with its attribute; `NAME` stands for a name."""
    for name, field in fields_of(table).items():
        yield (*path, name), field
        for member in members(field.type):
            inner = get_args(member)[1] if is_named(member) else member
            if is_table(inner):
                yield from all_keys(inner, (*path, name, *(("NAME",) if is_named(member) else ())))


KEYS = dict(all_keys())


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_every_key_has_a_sentence_and_a_place_in_the_schema(path: tuple[str, ...]) -> None:
    sentence = KEYS[path].metadata["doc"]

    assert sentence.endswith(".")
    assert form_at(path) is not None
    assert json.dumps(sentence, ensure_ascii=False) in render_schema()


def test_shorthands_and_the_keys_of_loading_are_in_the_schema() -> None:
    properties = json.loads(render_schema())["properties"]

    assert {*SHORTHANDS, *LOADING_KEYS} <= properties.keys()
    assert all(form_at(tuple(dotted.split("."))) is not None for dotted in SHORTHANDS.values())


def test_every_kind_of_value_can_be_read_written_named_and_described() -> None:
    assert PARSERS.keys() == WANTED.keys()
    assert PATTERNS.keys() == EXAMPLES.keys() <= RENDERERS.keys() <= PARSERS.keys()


def test_every_example_of_the_schema_is_read() -> None:
    for kind, example in EXAMPLES.items():
        assert PARSERS[kind](example) is not None


def lint(directory: Path, *texts: tuple[str, str]) -> str:
    """Give what tombi says about texts by name, "" when nothing."""
    import subprocess

    (directory / "vm").mkdir()
    (directory / "tombi.toml").write_text(CONFIG)
    (directory / "vm.schema.json").write_text(render_schema())
    for name, text in texts:
        (directory / "vm" / name).write_text(text)
    command = [str(TOMBI), "lint", "--offline", *(f"vm/{name}" for name, _ in texts)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)  # noqa: S603
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which(TOMBI), reason="tombi is not installed")
def test_a_checker_of_toml_takes_every_example(tmp_path: Path) -> None:
    examples = [(path.name, path.read_text()) for path in sorted((ROOT / "vmdefs").glob("*.toml"))]

    assert lint(tmp_path, *examples) == ""


@pytest.mark.skipif(not shutil.which(TOMBI), reason="tombi is not installed")
def test_a_checker_of_toml_takes_shorthands_variables_and_notes(tmp_path: Path) -> None:
    text = (
        'extends = ["a.toml"]\nunset = ["disk.x"]\nvcpus = 4\nmemory = "${m}"\ndisk = "a.img"\nnetwork = "br0"\n'
        'cdrom = "x.iso"\nos = "${os}"\nx-note = 1\n[vars]\nm = "8GiB"\n[iothreads]\ncount = "auto"\nx-why = "none"\n'
    )

    assert lint(tmp_path, ("a.toml", text)) == ""


@pytest.mark.skipif(not shutil.which(TOMBI), reason="tombi is not installed")
@pytest.mark.parametrize(
    "text",
    [
        'vcpus = "4"',
        "vcpus = 0",
        'memroy = "8GiB"',
        'memory = "8GB"',
        'os = "linus"',
        "memory = { size = 8 }",
        'disk.a.cache = "none"',
        'disk.A.path = "a.img"',
        'network.a.forwards = ["tcp::80:80"]',
        "network.a.mtu = 5",
        "lifecycle.stop_timeout = 90",
        'guest_agent = "x"',
        "vars.a = 3",
    ],
)
def test_a_checker_of_toml_refuses_what_we_refuse(tmp_path: Path, text: str) -> None:
    assert "a.toml:1:" in lint(tmp_path, ("a.toml", text + "\n"))
