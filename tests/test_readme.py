"""The README keeps its word: what can be run of it is run, and every command line that it shows is one."""

import os
import re
import shlex
import shutil
import subprocess  # noqa: TID253 - a reader's shell runs the lines
import sys
import tomllib
from pathlib import Path
from typing import Final

import click
import pytest

from kvmlaunch.cli.commands import COMMANDS
from kvmlaunch.cli.main import LazyGroup, cli
from kvmlaunch.preflight.checks import CHECK_COUNT

TESTS: Final = Path(__file__).resolve().parent
ROOT: Final = TESTS.parent
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
README: Final = PAGES[0].read_text()
RAW_LINES: Final = (ROOT / "docs" / "raw-lines.md").read_text()
# They answer and change nothing but what the test gives them.
HARMLESS: Final = (
    "validate",
    "print-cmd",
    "explain",
    "init",
    "show",
    "schema",
    "status",
    "ls",
    "completion",
    "version",
)
PLANNED: Final = "print-cmd|explain"
ENDS: Final = ("|", "&", ">", ";")


def blocks(text: str, language: str) -> list[str]:
    """Give the blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def shell_lines(text: str) -> list[str]:
    """Give the lines of the blocks that a shell runs."""
    return [line for block in blocks(text, "sh") for line in block.splitlines() if line]


def can_run(line: str) -> bool:
    """Is this a line that a test may run."""
    words = line.split()
    return words[0] == "kvmlaunch" and words[1] in HARMLESS


def calls(text: str) -> list[list[str]]:
    """Give the words behind every `kvmlaunch` of a page: in shell blocks, in backquotes, in units."""
    sources = [*shell_lines(text), *re.findall(r"`((?:sudo )?kvmlaunch [^`]+)`", text)]
    sources += [
        line.partition("=")[2] for block in blocks(text, "ini") for line in block.splitlines() if "/kvmlaunch " in line
    ]
    found = []
    for source in sources:
        for call in re.findall(r"(?:^|[ (/])kvmlaunch ([^)#]*)", source):
            words = shlex.split(call.rstrip('" '))
            stops = [index for index, word in enumerate(words) if word in ENDS]
            found.append(words[: stops[0]] if stops else words)
    return [words for words in found if words and not any("{" in word for word in words)]


@pytest.fixture
def reader(tmp_path: Path) -> dict[str, str]:
    """Give the environment of a reader's shell: in it kvmlaunch plans for a captured host, so that no QEMU is asked."""
    facts = tmp_path / "facts"
    shutil.copytree(TESTS / "hosts" / "kvm-intel-8cpu", facts)
    shutil.copytree(TESTS / "qemus" / "7.2.22", facts / "qemu")
    for name in ("vmdefs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "vmdefs").unlink()
    shutil.copytree(ROOT / "vmdefs", tmp_path / "vmdefs", ignore=shutil.ignore_patterns("web01.[iv]*"))
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    command = Path(sys.executable).parent / "kvmlaunch"
    body = f'case $1 in {PLANNED}) set -- "$@" --facts {shlex.quote(str(facts))} ;; esac'
    function = f'() {{ {body}; {shlex.quote(str(command))} "$@"; }}'
    own = {name: value for name, value in os.environ.items() if not name.startswith("KVMLAUNCH")}
    return own | {"BASH_FUNC_kvmlaunch%%": function, "XDG_RUNTIME_DIR": str(runtime)}


@pytest.mark.parametrize("line", [line for line in shell_lines(README) if can_run(line)])
def test_a_line_of_the_readme_runs(line: str, tmp_path: Path, reader: dict[str, str]) -> None:
    for tool in ("jq",):
        if f"| {tool} " in line and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")

    ran = subprocess.run(  # noqa: S603 - the README is ours
        ["bash", "-euc", line],  # noqa: S607 - the bash of PATH
        cwd=tmp_path,
        env=reader,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout or "ok" in ran.stderr


def test_enough_of_the_readme_runs() -> None:
    run = {line.split()[1] for line in shell_lines(README) if can_run(line)}

    assert run >= {"validate", "print-cmd", "explain", "init", "status"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_that_is_shown_is_one(page: Path) -> None:
    assert isinstance(cli, LazyGroup)
    wrong = []
    for written in calls(page.read_text()):
        words = [word for word in written if not word.startswith("[")]  # what may be left out
        command, rest = (cli.get_command(click.Context(cli), words[0]) if words[0] in COMMANDS else None), words[1:]
        while isinstance(command, click.Group) and rest:
            command, rest = command.commands.get(rest[0]), rest[1:]
        if command is None:
            wrong.append((words, "no such command"))
            continue
        try:
            command.make_context(words[0], list(rest), parent=click.Context(cli))
        except click.exceptions.Exit:
            continue
        except click.UsageError as error:
            if not error.format_message().startswith(("Missing argument", "Missing option")):
                wrong.append((words, error.format_message()))

    assert wrong == []


def printed(directory: Path, environment: dict[str, str]) -> list[str]:
    """Give the words of the command line of web01 as a reader's shell prints it."""
    ran = subprocess.run(
        ["bash", "-euc", "kvmlaunch print-cmd web01"],  # noqa: S607 - the bash of PATH
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return shlex.split(ran.stdout)


def test_the_definition_beside_the_raw_line_gives_that_line_and_more(tmp_path: Path, reader: dict[str, str]) -> None:
    (tmp_path / "vmdefs" / "web01.toml").write_text(blocks(README, "toml")[0])

    argv = printed(tmp_path, reader)

    assert [argv[argv.index(flag) + 1].split(",")[0] for flag in ("-smp", "-m", "-cpu")] == ["4", "8G", "host"]
    assert "-mem-prealloc" in argv
    drive = argv[argv.index("-drive") + 1]
    assert drive.startswith("file=/srv/vm/web01.img,")
    assert "cache=none,aio=native" in drive
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in argv[argv.index("-netdev") + 1]
    assert {"-nodefaults", "-sandbox"} <= set(argv)


@pytest.mark.parametrize("block", blocks(RAW_LINES, "toml"))
def test_what_is_written_by_hand_is_taken(block: str, tmp_path: Path, reader: dict[str, str]) -> None:
    (tmp_path / "vmdefs" / "web01.toml").write_text(block)
    by_hand: list[str] = tomllib.loads(block)["raw"]["args"]
    words = [word.replace("${vm.dir}", str(tmp_path / "vmdefs")) for word in by_hand]

    assert printed(tmp_path, reader)[-len(words) :] == words


def test_the_transcript_counts_the_checks_as_the_code_does() -> None:
    assert f"preflight   {CHECK_COUNT} checks" in README


def test_the_targets_of_make_that_are_named_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {target for page in PAGES for target in re.findall(r"`?make ([a-z]+)`", page.read_text())}

    assert sorted(target for target in named if f"\n{target}:" not in makefile) == []


def test_the_readme_names_no_capability_as_missing_that_is_there() -> None:
    missing = README.partition("Not there yet:")[2].partition("\n- ")[0]

    assert missing
    assert sorted(word for word in re.findall(r"`([a-z-]+)`", missing) if word in COMMANDS) == []
