"""What is said, and how: text of guests, steps that are told once, hints that can be pasted."""

import ast
import re
from pathlib import Path, PurePosixPath
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.cli.build import explain, no_meaning
from kvmlaunch.define.keys import key_paths
from kvmlaunch.errors import Report, UnknownVm
from kvmlaunch.facts.console import plain_text
from kvmlaunch.host.definitions import Trust, trust_hint
from kvmlaunch.model.change import Entry, PoolChange, render_undone
from kvmlaunch.model.codes import CODES, REMEDIES, TOPICS
from kvmlaunch.model.definition import Ready
from kvmlaunch.preflight.death import report_death
from kvmlaunch.steps.foreground import once

PACKAGE: Final = Path(__file__).resolve().parents[2] / "kvmlaunch"
LETTERS: Final = st.characters(min_codepoint=0x20, max_codepoint=0x17F, exclude_categories=("C", "Z"))
PRINTED: Final = st.text(LETTERS, max_size=9)
CSI: Final = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["\x1b[", "\x9b"]),
    st.text("0123456789:;<=>?", max_size=6),
    st.text(" !/", max_size=1),
    st.sampled_from([*"@ABHJKmnhlr~"]),
)
STRINGS: Final = st.builds(
    "{}{}{}".format,
    st.sampled_from(["\x1b]", "\x1bP", "\x1b^", "\x1b_", "\x1bX", "\x9d", "\x90"]),
    st.text("0;abc /:", max_size=12),
    st.sampled_from(["\x07", "\x1b\\", "\x9c"]),
)
OTHERS: Final = st.sampled_from(["\x1bc", "\x1b7", "\x1b=", "\x1b(B", "\x00", "\x07", "\r", "\x08"])


def test_a_button_that_is_pressed_again_is_told_when_that_comes_to_something_new() -> None:
    told: list[tuple[str, str]] = []
    tell = once(lambda word, text: told.append((word, text)))

    for text in ("was asked", "was asked", "was let run", "was asked"):
        tell("powerdown", text)

    assert told == [("powerdown", "was asked"), ("powerdown", "was let run")]


@given(st.lists(st.tuples(PRINTED, st.one_of(CSI, STRINGS, OTHERS))))
def test_a_guests_text_loses_whole_escape_sequences_and_nothing_else(parts: list[tuple[str, str]]) -> None:
    assert plain_text("".join(map("".join, parts))) == "".join(text for text, _ in parts)


@given(st.text())
def test_whatever_a_guest_prints_nothing_of_it_moves_the_cursor(text: str) -> None:
    assert all(character in "\n\t" or character.isprintable() for character in plain_text(text))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\x1b[6nb", "ab"),
        ("\x1b[2J\x1b[01;01HSeaBIOS", "SeaBIOS"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]0;never ended\nx", "\nx"),
        ("x\x1b[", "x"),
        ("x\x1b", "x"),
        ("[6n", "[6n"),
    ],
)
def test_escape_sequences_of_a_console(text: str, plain: str) -> None:
    assert plain_text(text) == plain


def test_every_code_of_the_hosts_preflight_says_what_to_do() -> None:
    wanted = {code for code, (exit_code, _) in CODES.items() if exit_code == 6}

    assert wanted - REMEDIES.keys() == set()
    assert REMEDIES.keys() - CODES.keys() == set()


def test_the_help_of_explain_lists_the_topics() -> None:
    assert all(topic in (explain.help or "") for topic in TOPICS)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("disk.missng", "kvmlaunch explain disk.missing"),
        ("secruity", "kvmlaunch explain security"),
        ("disk.cahce", "kvmlaunch explain disk.NAME.cache"),
        ("lifecycle.autostrat", "kvmlaunch explain lifecycle.autostart"),
        ("web02", "kvmlaunch explain web01"),
        ("zzzzzz", "kvmlaunch ls   # lists the VMs, kvmlaunch explain --help the topics"),
    ],
)
def test_a_word_that_explain_does_not_know_leads_to_the_nearest(word: str, hint: str) -> None:
    error = UnknownVm(Report(code="vm.unknown", message="there is none"))

    assert no_meaning(word, ["web01"], error).report.hint == hint


def test_key_paths_are_those_of_tables_named_tables_and_their_keys() -> None:
    assert {"memory", "memory.size", "disk", "disk.NAME.cache", "lifecycle.autostart"} <= set(key_paths())


@pytest.mark.parametrize(
    ("ready", "text"),
    [
        (Ready(kind="http", target="http://127.0.0.1:8080/"), "http://127.0.0.1:8080/"),
        (Ready(kind="tcp", target="127.0.0.1:22"), "tcp:127.0.0.1:22"),
        (Ready(kind="console", target="login:"), "console:login:"),
    ],
)
def test_what_is_waited_for_is_said_as_it_is_written(ready: Ready, text: str) -> None:
    assert ready.text == text


def test_a_pool_that_was_taken_back_was_lowered_by_what_it_had_gained() -> None:
    change = PoolChange(page_size=2 << 20, pages=128)

    assert render_undone(Entry(change=change)) == "the pool of 2048 KiB pages lowered by 128"
    assert render_undone(Entry(change=change, before=8, after=16)) == "the pool of 2048 KiB pages lowered by 8"


def test_the_hint_of_a_qemu_that_died_names_its_vm_and_its_image() -> None:
    argv = ("qemu", "-name", "guest=web01,debug-threads=on")
    held = 'Failed to get "write" lock\nIs another process using the image [/srv/a b.img]?'

    assert report_death(1, "what?", argv, "").hint == "kvmlaunch print-cmd web01 --pretty   # or qemu --help"
    assert report_death(-6, "", argv, "").hint.startswith("kvmlaunch print-cmd web01 --pretty   # ")
    assert report_death(1, held, argv, "").hint == "fuser -v '/srv/a b.img'   # shows who holds it"


@pytest.mark.parametrize("sudo", [False, True])
def test_a_definition_that_root_does_not_believe_comes_with_the_command_that_mends_it(sudo: bool) -> None:  # noqa: FBT001
    trust = Trust(checked=True, uids=frozenset({0}), sudo=sudo)
    file = Path("/srv/my vms/web.toml")
    before = "sudo " if sudo else ""

    own = trust_hint(file, file, trust, foreign=True)
    closed = trust_hint(file, file.parent, trust, foreign=False)
    copied = trust_hint(file, file.parent, trust, foreign=True)

    assert own == f"{before}chown root: '/srv/my vms/web.toml' && {before}chmod go-w '/srv/my vms/web.toml'"
    assert closed == f"{before}chmod go-w '/srv/my vms'"
    assert copied.startswith(f"{before}install -D -m 0644 '/srv/my vms/web.toml' /etc/kvmlaunch/vmdefs/web.toml   # ")


def hints() -> list[tuple[str, str]]:
    """Give every text of the package that stands as a hint, with its file: literal parts, `…` for the others."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in {"hint", "fix"}:
                found += [(str(PurePosixPath(path.relative_to(PACKAGE))), text) for text in texts_of(node.value)]
    return found


def texts_of(node: ast.AST) -> list[str]:
    """Give the texts in an expression."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)]
        case _:
            return [text for child in ast.iter_child_nodes(node) for text in texts_of(child)]


def test_prose_behind_a_command_is_a_comment_of_the_shell() -> None:
    bare = [hint for hint in hints() if re.search(r"\S {2,}[^ #]", hint[1])]

    assert len(hints()) > 100
    assert [hint for hint in bare if not hint[1].startswith(("lasting:", "without:"))] == []
