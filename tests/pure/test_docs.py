"""What the pages of docs/ say of the code is still so."""

import re
from pathlib import Path
from typing import Final

import pytest

from kvmlaunch.cli.commands import COMMANDS
from kvmlaunch.errors import KvmlaunchError
from kvmlaunch.model.codes import CODES
from tests.docbook import REFERENCE, ROOT, replaced

PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# What `make guest` makes, or a user, and a fresh clone does not have.
MADE: Final = ("vmdefs/web01.img", "vmdefs/web01.initrd", "vmdefs/web01.vmlinuz", "vmdefs/profiles/*.toml")
LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A file or directory of ours, named in backquotes.
NAMED: Final = re.compile(r"`((?:kvmlaunch|tests|docs|vmdefs)/[A-Za-z0-9_./*-]*)`")
# Tables of a definition that look like a code.
TABLES: Final = {"disk.root", "disk.data", "network.lan", "cdrom.install", "share.data"}
CODE: Final = re.compile(r"\[([a-z]+(?:\.[a-z_]+)+)\]")
COMMAND: Final = re.compile(r"kvmlaunch ([a-z][a-z-]+)")
SOURCE: Final = re.compile(r"kvmlaunch docs, ([a-z]+)(?: \(([a-z]+)\))?")


def anchors(text: str) -> set[str]:
    """Give the anchors of a page's headings, as Git hosts make them."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


def shell_lines(text: str) -> list[str]:
    """Give the lines of the blocks that a shell runs."""
    return [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]


def test_the_reference_says_what_the_code_says(request: pytest.FixtureRequest) -> None:
    page = REFERENCE.read_text()
    if request.config.getoption("--regenerate"):
        REFERENCE.write_text(replaced(page))
        return

    assert page == replaced(page), "pytest --regenerate tests/pure/test_docs.py, then read the difference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text()):
        name, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = {name for name in NAMED.findall(page.read_text()) if "NAME" not in name and "SUBJECT" not in name}

    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/")))]

    assert sorted(name for name in missing if name not in MADE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_codes_that_are_named_are_real(page: Path) -> None:
    named = set(CODE.findall(page.read_text()))

    assert sorted(named - CODES.keys() - TABLES) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_shell_blocks_are_real(page: Path) -> None:
    used = {word for line in shell_lines(page.read_text()) for word in COMMAND.findall(line)}

    assert sorted(word for word in used if word not in COMMANDS) == []


def test_every_exit_code_is_explained() -> None:
    text = REFERENCE.read_text()
    subclasses = {error.exit_code for error in KvmlaunchError.__subclasses__()}
    numbers = {number for number, _ in CODES.values()} | subclasses | {0, 2, 130, 143}

    missing = [number for number in sorted(numbers) if not re.search(rf"^\| {number} \|", text, flags=re.MULTILINE)]

    assert missing == []


def test_every_source_of_ours_names_a_section_that_is_there() -> None:
    sources = {match for path in (ROOT / "kvmlaunch").rglob("*.py") for match in SOURCE.findall(path.read_text())}

    broken = []
    for page, section in sources:
        file = ROOT / "docs" / f"{page}.md"
        if not file.exists() or (section and section not in anchors(file.read_text())):
            broken.append((page, section))

    assert sources
    assert broken == []
