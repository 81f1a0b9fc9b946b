"""Laws of the lines of ours in fstab, and how findmnt's words are read."""

from pathlib import PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvmlaunch.tune.fstab import (
    BEGIN,
    BEGIN_AFTER_NEWLINE,
    END,
    FstabLine,
    duplicate_targets,
    is_marker,
    parse_field,
    parse_region,
    render_field,
    render_line,
    render_region,
    without_region,
)
from kvmlaunch.tune.fstab_problems import new_problems, parse_problems

LINE = "none /dev/huge hugetlbfs pagesize=2M 0 0"

# What is special to us, to Python's own idea of lines, and to UTF-8; a lone surrogate is a byte that is none.
PIECES = ("/a", "#", " ", "\t", "\\", "\\040", "\r", "\n", "\r\n", "\x0c", "\x85", "\u2028", "\ufeff", "é", "\udcff")
texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=20))
texts = texts.filter(lambda text: not any(map(is_marker, text.split("\n"))))
bodies = texts.map(lambda text: text.replace("\n", "").rstrip("\r"))
regions = st.lists(bodies, min_size=1, max_size=3).map(tuple)
# A path is bytes, some of which are special to fstab.
special = st.lists(st.sampled_from((b" ", b"\t", b"\n", b"\\", b"040", b"#", b"\xff")), min_size=1).map(b"".join)
paths = st.one_of(special, st.binary(min_size=1).filter(lambda path: b"\0" not in path))


@given(texts, regions)
def test_taking_our_lines_out_gives_the_text_back_as_it_was(text: str, lines: tuple[str, ...]) -> None:
    assert without_region(render_region(text, lines)) == text


@given(texts, regions)
def test_our_lines_are_read_back_and_all_others_are_before_them(text: str, lines: tuple[str, ...]) -> None:
    rendered = render_region(text, lines)

    assert parse_region(rendered) == lines
    assert rendered.startswith(text)
    assert rendered.endswith(f"\n{END}\n")


@given(texts, regions)
def test_the_same_lines_twice_are_the_same_text(text: str, lines: tuple[str, ...]) -> None:
    once = render_region(text, lines)

    assert render_region(once, lines) == once


@given(texts, regions, regions)
def test_other_lines_replace_the_first(text: str, first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert render_region(render_region(text, first), second) == render_region(text, second)


@given(texts, regions)
def test_no_lines_are_no_region(text: str, lines: tuple[str, ...]) -> None:
    assert render_region(text, ()) == text
    assert render_region(render_region(text, lines), ()) == text
    assert parse_region(text) is None


@given(texts, regions, texts)
def test_what_somebody_wrote_behind_our_lines_stays_and_is_not_glued(
    text: str, lines: tuple[str, ...], behind: str
) -> None:
    assume(behind)
    ended = text if not text or text.endswith("\n") else f"{text}\n"

    assert without_region(render_region(text, lines) + behind) == ended + behind


@given(texts, regions, texts)
def test_lines_are_replaced_where_they_stand(text: str, lines: tuple[str, ...], behind: str) -> None:
    assert render_region(render_region(text, lines) + behind, (LINE,)) == render_region(text, (LINE,)) + behind


@pytest.mark.parametrize("text", ["/a\r\n/b\r\n", "/a\r\n/b", ""])
def test_a_file_that_an_editor_gave_other_ends_of_lines_keeps_them(text: str) -> None:
    edited = render_region(text, (LINE,)).replace("\r\n", "\n").replace("\n", "\r\n")

    assert parse_region(edited) == (LINE,)
    assert without_region(edited) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{BEGIN}\n{LINE}\n", "begins at line 1 and has no end"),
        (f"/a\n{END}\n", "ends at line 2 and has no begin"),
        (f"{END}\n{BEGIN}\n", "ends at line 1, before it begins at line 2"),
        (
            f"{BEGIN}\n{END}\n{BEGIN_AFTER_NEWLINE}\n{END}\n",
            "more than one region of ours is marked: begin at line 1, 3",
        ),
        (f"{BEGIN}\n{END}\n{END}", "end at line 2, 3"),
    ],
)
def test_markers_that_do_not_fit_are_refused_in_words(text: str, words: str) -> None:
    for function in (parse_region, without_region, lambda text: render_region(text, (LINE,))):
        with pytest.raises(ValueError, match=words):
            function(text)


@pytest.mark.parametrize("line", ["a\nb", "a\r", BEGIN, f"{END} "])
def test_a_line_that_would_not_be_read_back_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="no line that can stand in fstab"):
        render_region("", (line,))


@given(paths)
def test_a_field_is_read_back(path: bytes) -> None:
    field = render_field(path.decode(errors="surrogateescape"))

    assert parse_field(field).encode(errors="surrogateescape") == path
    assert not set(field) & set(" \t\n")


def test_a_line_has_its_six_fields_escaped() -> None:
    line = FstabLine(
        source="#x", target=PurePosixPath("/a b\t\n\\"), type="hugetlbfs", options=("pagesize=2M", "uid=1")
    )

    assert render_line(line) == r"\043x /a\040b\011\012\134 hugetlbfs pagesize=2M,uid=1 0 0"


@pytest.mark.parametrize(("source", "target"), [("", "/a"), ("none", "a"), ("a\0", "/a")])
def test_what_cannot_be_a_field_is_refused(source: str, target: str) -> None:
    with pytest.raises(ValueError, match="fstab"):
        render_line(FstabLine(source=source, target=PurePosixPath(target), type="tmpfs"))


@pytest.mark.parametrize("other", ["x /dev/huge ext4", "\tx\t/dev//huge/ ext4\r", r"x /d\145v/huge ext4", LINE])
def test_a_mount_point_of_another_line_is_seen_in_every_spelling(other: str) -> None:
    text = render_region(f"# x {LINE}\nnone none swap sw 0 0\n\n{other}", (LINE,))

    assert duplicate_targets(text, (LINE,)) == ((LINE, other.strip()),)


def test_our_own_earlier_lines_are_no_duplicates_and_two_new_ones_are() -> None:
    text = render_region("x /a ext4\n#y /dev/huge ext4\nshort", (LINE,))

    assert duplicate_targets(text, (LINE,)) == ()
    assert duplicate_targets(text, (LINE, LINE)) == ((LINE, LINE),)


# As findmnt of util-linux 2.38.1 wrote it.
OUT = """/mnt/nope
   [E] unreachable on boot required target: No such file or directory
   [W] unreachable source: /dev/nope: No such file or directory
/
   [ ] target exists
   [W] recommended root FS passno is 1 (current is 0)
"""
ERR = "findmnt: f: parse error at line 3 -- ignored\n\n1 parse error, 1 error, 2 warnings\n"


def test_problems_are_told_with_their_target_and_unreadable_lines_by_their_words() -> None:
    assert parse_problems(OUT, ERR, "a\nb\ngarbage\n") == (
        "cannot be parsed: garbage",
        "/mnt/nope: [E] unreachable on boot required target: No such file or directory",
        "/mnt/nope: [W] unreachable source: /dev/nope: No such file or directory",
        "/: [W] recommended root FS passno is 1 (current is 0)",
    )
    assert parse_problems("Success, no errors or warnings detected\n", "", "") == ()


def test_only_what_there_is_more_of_is_new() -> None:
    assert new_problems(("a", "b", "b"), ("b", "a", "b", "b", "c")) == ("b", "c")
    assert new_problems(("a", "b"), ("b",)) == ()


@given(st.text(), st.text(), st.text())
def test_any_words_of_findmnt_are_read_without_an_error(out: str, err: str, text: str) -> None:
    parse_problems(out, err, text)
    parse_problems(out, f"parse error at line {len(err)}", text)


@given(st.binary())
def test_any_file_is_read_or_refused_with_a_sentence(content: bytes) -> None:
    text = content.decode(errors="surrogateescape")

    assert duplicate_targets(text, ()) == ()
    assert without_region(text) == text or parse_region(text) is not None
