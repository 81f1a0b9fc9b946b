"""Secrets: QEMU reads one from its file, and nothing that kvmlaunch writes, prints or starts repeats it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.sandbox import CACHE, OWN, TINY, Machine

HIDDEN: Final = "correcthorsebatterystapl"
FROM_A_FILE: Final = '[raw]\nargs = ["-object", "secret,id=key,format=base64,file={place}/key"]\n'
QUESTIONS: Final = (
    ("validate", "web"),
    ("print-cmd", "web", "--comments"),
    ("print-cmd", "web", "--json"),
    ("explain", "web"),
    ("diff", "web", "--running"),
    ("status", "web", "--json"),
    ("logs", "web", "--source", "qemu"),
    ("facts", "web", "--save", "saved"),
)
# All of them are taken by QEMU.
SPELLINGS: Final = (
    f"secret,id=s,data={HIDDEN}",
    f"data={HIDDEN},qom-type=secret,id=s",
    f'{{"qom-type":"secret","id":"s","data":"{HIDDEN}"}}',
    f'{{"data":"{HIDDEN}","qom-type":"secret","id":"s"}}',
    f'{{"qom-type":"secret","id":"s","d\\u0061ta":"{HIDDEN}"}}',
    f"{{'qom-type': 'secret', 'id': 's', 'data': '{HIDDEN}'}}",
)


def written(machine: Machine) -> Iterator[Path]:
    """Give every file that kvmlaunch or QEMU keeps in a machine."""
    for top in (*OWN, CACHE, machine.directory / "saved"):
        yield from (path for path in machine.outside(top).rglob("*") if path.is_file())


def where_repeated(machine: Machine) -> list[str]:
    """Give the files that hold the secret, and the processes that have it in their argv or environment."""
    kernel = [Path(f"/proc/{pid}/{name}") for pid in machine.processes() for name in ("cmdline", "environ")]
    return [str(path) for path in (*written(machine), *kernel) if HIDDEN.encode() in path.read_bytes()]


def test_a_secret_that_qemu_reads_from_its_file_is_repeated_nowhere(machine: Machine) -> None:
    place = machine.directory / "vmdefs"
    machine.define("web", f"{TINY}{FROM_A_FILE.format(place=place)}")
    key = place / "key"
    key.touch(0o600)
    key.write_text("no base64!")
    spoiled = machine.run("up", "web")
    key.write_text(HIDDEN)

    said = [machine.run("-vv", "up", "web")]
    said += [machine.run(*words) for words in QUESTIONS]
    repeated, kept = where_repeated(machine), {path.name for path in written(machine)}
    said.append(machine.end("web"))

    assert spoiled.code == 9, "QEMU did not read the file"
    assert [result.code for result in said] == [0] * len(said), said
    assert [result for result in said if HIDDEN in result.out + result.err] == []
    assert kept >= {"record.json", "events.log", "qemu.log"}
    assert repeated == []
    assert where_repeated(machine) == []


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_secret_in_an_argument_is_refused_and_not_repeated(machine: Machine, spelling: str) -> None:
    machine.define("web", f'{TINY}[raw]\nargs = ["-object", {json.dumps(spelling)}]\n')

    said = [
        machine.run(*words) for words in (("-vv", "up", "web"), ("print-cmd", "web"), ("validate", "web", "--json"))
    ]

    assert [result.code for result in said] == [5, 5, 5]
    assert said[0].codes == {"def.secret"}
    assert [result for result in said if HIDDEN in result.out + result.err] == []
    assert where_repeated(machine) == []
    assert machine.leftovers() == []
