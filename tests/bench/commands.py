"""Commands that end at once, against a bare Python of the same environment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench.measure import KVMLAUNCH, PYTHON, ROOT, Row, command, compare, in_turn

GROUP: Final = "a"
PAIRS: Final = 15
AIM: Final = 9.0
# As kvmlaunch does, these leave without taking their modules apart.
LEAVE: Final = "; import os; os._exit(0)"
LIBRARIES: Final = "import click, tomli"
MODULES: Final = "import kvmlaunch.cli.main, kvmlaunch.cli.build, kvmlaunch.steps.compile"
BARE: Final = "python3 -c pass"

DEFINITION: Final = """\
vcpus  = 2
memory = "256MiB"
disk   = "bench.img"
accel  = "any"
"""


def completion(words: str) -> dict[str, str]:
    """Give what a shell sets when it asks for the last of these words."""
    return {
        "_KVMLAUNCH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }


def measure_commands(directory: Path) -> Iterator[Row]:
    """Give the rows of `print-cmd` and its kin; the definition is a plain one with a disk of 1 MiB."""
    (directory / "vmdefs").mkdir(exist_ok=True)
    (directory / "vmdefs" / "bench.toml").write_text(DEFINITION)
    (directory / "vmdefs" / "bench.img").write_bytes(bytes(1 << 20))
    bare = command(PYTHON, "-c", "pass", at=directory)
    for what, side, aim in (
        ("print-cmd", command(KVMLAUNCH, "print-cmd", "bench", at=directory), AIM),
        ("  of it: Python and the two libraries", command(PYTHON, "-c", LIBRARIES + LEAVE, at=directory), None),
        ("  of it: and kvmlaunch's own modules", command(PYTHON, "-c", MODULES + LEAVE, at=ROOT), None),
        ("completion of a VM's name", command(KVMLAUNCH, at=directory, extra=completion("kvmlaunch up be")), AIM),
        ("completion of a command", command(KVMLAUNCH, at=directory, extra=completion("kvmlaunch pr")), AIM),
        ("validate, one definition", command(KVMLAUNCH, "validate", "bench", at=directory), None),
        ("explain", command(KVMLAUNCH, "explain", "bench", at=directory), None),
    ):
        yield compare(GROUP, what, BARE, in_turn(side, bare, PAIRS), aim=aim)
