"""Commands in hints: they name definitions as the command line did."""

import pytest

from kvmlaunch.cli.hints import as_asked

HINT = "kvmlaunch up web --set accel=any   # slow\nor: kvmlaunch disk create web:root\nkvmlaunch down other"


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
