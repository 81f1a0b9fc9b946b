"""Line and column of a key, in all the ways that TOML has to write it."""

import sys

import pytest

from kvmlaunch.define.positions import locate

pytestmark = pytest.mark.pure

TEXT = """\
vcpus = 4
memory  = "8GiB"
labels = { team = "web",
  "a.b" = "x" }

[cpu]
  topology.cores = 4

[disk.root]
path = "é", # not a value
"""
GOOD = TEXT.replace('"é", # not a value', '"é" # fine') + (
    '\n[raw]\nargs = [\n  "-a",\n    "-b",\n]\n\n[console]\n\n[labels2]\nvalue_line = "a"\nvalue = "b"\n'
)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("vcpus", (1, 9), (1, 1)),
        ("memory", (2, 11), (2, 1)),
        ("labels", (3, 10), (3, 1)),
        ("labels.team", (3, 19), (3, 12)),
        ('labels."a.b"', (4, 11), (4, 3)),
        ("cpu.topology.cores", (7, 20), (7, 12)),
        ("cpu", (7, 12), (7, 12)),
        ("disk.root", (10, 1), (10, 1)),
        ("disk.root.path", (10, 8), (10, 1)),
        ("raw.args", (13, 8), (13, 1)),
        ("raw.args[1]", (15, 5), (15, 5)),
        ("console", (18, 2), (18, 2)),
        ("labels2.value", (22, 9), (22, 1)),
        ("labels2", (21, 1), (21, 1)),
    ],
)
def test_a_key_is_found_where_it_is_written(key: str, value: tuple[int, int], name: tuple[int, int]) -> None:
    assert locate(GOOD, key) == value
    assert locate(GOOD, key, at="key") == name


@pytest.mark.parametrize("key", ["nothing", "cpu.nothing", "vcpus.nothing", "raw.args[9]", "", "a..b", "[0]"])
def test_a_key_that_is_not_there_has_no_place(key: str) -> None:
    assert locate(GOOD, key) is None


@pytest.mark.parametrize(
    "text", [TEXT, "a = " + "[" * 2000 + "]" * 2000, "\udcff = 1", ".".join(["a"] * 2000) + " = 1"]
)
def test_a_text_that_cannot_be_read_has_no_places(text: str) -> None:
    assert locate(text, "vcpus") is None


def test_the_usual_path_imports_nothing_that_only_mistakes_need() -> None:
    import subprocess

    script = (
        "import sys\n"
        "from pathlib import PurePosixPath as P\n"
        "from kvmlaunch.define.layers import Source\n"
        "from kvmlaunch.define.load import Surroundings, load_definition\n"
        "here = Surroundings(environment={}, home=P('/'), working_directory=P('/'))\n"
        "source = Source(path=P('/vm/a.toml'), text='vcpus = 4\\ndisk = \"a.img\"\\n')\n"
        "assert load_definition('a', [source], ['memory=1GiB'], here, {}).definition\n"
        "print(sorted({'difflib', 'toml_rs', 'json', 'asyncio', 'subprocess'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)  # noqa: S603

    assert done.stdout == "[]\n", done.stderr
