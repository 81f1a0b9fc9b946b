"""Commands in hints: they name definitions as the command line did."""

import pytest

from kvmlaunch.cli import hints
from kvmlaunch.cli.main import nearest

HINT = "kvmlaunch up web --set accel=any   # slow\nor: kvmlaunch disk create web:root\nkvmlaunch down other"


def as_asked(hint: str, words: list[str]) -> str:
    """Give a hint where every file is there but `gone.toml`."""
    return hints.as_asked(hint, words, exists=lambda file: file != "gone.toml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["up", "web"], HINT),
        (["up", "defs/web.toml"], HINT.replace(" web", " defs/web.toml")),
        (["disk", "info", "defs/web.toml:root"], HINT.replace(" web", " defs/web.toml")),
        (["up", "-f", "defs/web.toml", "web"], HINT.replace(" web", " defs/web.toml")),
        (["up", "--file=my defs/web.toml", "web"], HINT.replace(" web", " 'my defs/web.toml'")),
        (["up", "--defs", "d", "web"], HINT.replace("kvmlaunch ", "kvmlaunch --defs d ")),
        (["--defs=d", "up", "web", "--defs", "e"], HINT.replace("kvmlaunch ", "kvmlaunch --defs d --defs e ")),
        (["up", "--json", "third.toml"], HINT),
        (
            ["up", "web", "--set", "vcpus=2"],
            HINT.replace("up web", "up web --set vcpus=2").replace("web:root", "web:root --set vcpus=2"),
        ),
        (["up", "web", "--set", "accel=tcg"], HINT.replace("web:root", "web:root --set accel=tcg")),
    ],
)
def test_the_commands_of_a_hint_find_what_was_asked_for(words: list[str], expected: str) -> None:
    assert as_asked(HINT, words) == expected


def test_what_was_set_comes_along_where_a_vm_is_planned() -> None:
    hint = "kvmlaunch print-cmd web --pretty   # shows it\nkvmlaunch down web"

    assert as_asked(hint, ["up", "web", "--set", "raw.args=['-x']"]) == hint.replace(
        "print-cmd web", "print-cmd web --set 'raw.args=['\"'\"'-x'\"'\"']'"
    )


def test_what_is_no_command_stays_as_it_is() -> None:
    hint = "apt install qemu-utils   # kvmlaunch web\nkvmlaunch version   # kvmlaunch's own"

    assert as_asked(hint, ["--defs", "d", "up", "web.toml"]) == hint


def test_a_file_that_there_is_not_is_not_put_for_its_name() -> None:
    assert as_asked("kvmlaunch print-cmd gone", ["print-cmd", "gone.toml"]) == "kvmlaunch print-cmd gone"


@pytest.mark.parametrize(
    ("word", "following", "meant"),
    [
        ("start", "web", ["up"]),
        ("Kill", "web", ["down --force"]),
        ("UP", "web", ["up"]),
        ("web", "up", ["kvmlaunch up web"]),
        ("my vm", "down", ["kvmlaunch down 'my vm'"]),
        ("help", "", ["kvmlaunch --help"]),
        ("help", "up", ["up --help"]),
        ("statsu", "", ["status"]),
        ("xyzzy", "", []),
    ],
)
def test_a_slip_of_a_command_is_answered_with_what_was_meant(word: str, following: str, meant: list[str]) -> None:
    assert nearest(word, following)[:1] == meant
