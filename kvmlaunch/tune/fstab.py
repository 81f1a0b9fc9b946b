r"""Lines of ours in fstab: between two markers, and taken out again without a trace.

Law: `without_region(render_region(text, lines)) == text` for every text without our markers.  Bytes that are no UTF-8
are surrogates (surrogateescape) and come back as they were.  A line ends with "\n" alone, as for the readers of fstab:
glibc leaves a "\r" on the last field of a CRLF file, so lines of ours end with "\n" in such a file too.

Source: fstab(5); getmntent(3) names the four characters that are escaped.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from kvmlaunch.model.value import frozen

BEGIN = "# kvmlaunch: begin"
# The file had no final newline: the one before this marker is ours, and goes with it.
BEGIN_AFTER_NEWLINE = "# kvmlaunch: begin, after a final newline that was missing"
END = "# kvmlaunch: end"

ESCAPES = str.maketrans({" ": r"\040", "\t": r"\011", "\n": r"\012", "\\": r"\134"})
OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
BLANKS = re.compile(r"[ \t]+")
TARGET_FIELD = 1


@frozen(kw_only=True)
class FstabLine:
    """A mount that the host makes when it starts; neither dumped nor checked."""

    source: str
    target: PurePosixPath
    type: str
    options: tuple[str, ...] = ("defaults",)


@frozen(kw_only=True)
class Region:
    """A text taken apart at our markers: `before`, the line of the first marker, our lines, `after`."""

    before: str
    begin: str
    lines: tuple[str, ...]
    after: str


def render_line(line: FstabLine) -> str:
    """Give the line, without a newline; ValueError for an empty field or a target that is no absolute path."""
    if not line.target.is_absolute():
        message = f"a mount point in fstab is an absolute path, and {str(line.target)!r} is none"
        raise ValueError(message)
    fields = (line.source, str(line.target), line.type, ",".join(line.options))
    return " ".join((*map(render_field, fields), "0 0"))


def render_field(text: str) -> str:
    r"""Give a field as it stands in fstab: a blank is `\040`, and a first `#`, which would make a comment, `\043`."""
    if not text or "\0" in text:
        message = f"a field of fstab cannot be empty or hold a NUL: {text!r}"
        raise ValueError(message)
    escaped = text.translate(ESCAPES)
    return rf"\043{escaped[1:]}" if escaped.startswith("#") else escaped


def parse_field(text: str) -> str:
    """Give what a field of fstab says; an octal number is one byte, of UTF-8 or not."""
    written = text.encode(errors="surrogateescape")
    return OCTAL.sub(lambda match: bytes((int(match[1], 8),)), written).decode(errors="surrogateescape")


def render_region(text: str, lines: Sequence[str]) -> str:
    """Give the text with these lines of ours: at the end, or where lines of ours are already; none take all away.

    ValueError for markers that do not fit together, and for a line that would not be read back as it is.
    """
    if not lines:
        return without_region(text)
    found = find_region(text) or new_region(text)
    body = "".join(f"{line}\n" for line in (*map(whole_line, lines), END))
    return f"{found.before}{found.begin}{body}{found.after}"


def new_region(text: str) -> Region:
    """Give the place for a region at the end of a text, whose last line is ended when it is not."""
    ended = not text or text.endswith("\n")
    before, begin = (text, BEGIN) if ended else (f"{text}\n", BEGIN_AFTER_NEWLINE)
    return Region(before=before, begin=f"{begin}\n", lines=(), after="")


def whole_line(line: str) -> str:
    """Give a line that may stand between our markers."""
    if "\n" in line or line.endswith("\r") or is_marker(line):
        message = f"this is no line that can stand in fstab between our markers: {line!r}"
        raise ValueError(message)
    return line


def without_region(text: str, ours: Sequence[str] | None = None) -> str:
    """Give the text as it was before our lines came; ValueError for markers that do not fit together.

    Lines between our markers that are not `ours`, where that is given, are somebody else's and stay.  The newline that
    was added for ours stays when somebody wrote lines behind them: it would glue two lines together.
    """
    found = find_region(text)
    if found is None:
        return text
    before, theirs = found.before, [line for line in found.lines if ours is not None and line not in ours]
    if theirs:
        return before + "".join(f"{line}\n" for line in theirs) + found.after
    if marker_of(found.begin) == BEGIN_AFTER_NEWLINE and not found.after:
        # An editor may have made a CRLF file of all of it, our newline included.
        before = before.removesuffix("\r\n" if found.begin.endswith("\r\n") else "\n")
    return before + found.after


def parse_region(text: str) -> tuple[str, ...] | None:
    """Give the lines between our markers, None without markers; ValueError for markers that do not fit together."""
    found = find_region(text)
    return None if found is None else found.lines


def find_region(text: str) -> Region | None:
    """Give the text taken apart at our markers, None without markers; ValueError for markers that do not fit."""
    rows = re.findall(r"[^\n]*\n|[^\n]+", text)
    begins = [index for index, row in enumerate(rows) if marker_of(row) in {BEGIN, BEGIN_AFTER_NEWLINE}]
    ends = [index for index, row in enumerate(rows) if marker_of(row) == END]
    if not begins and not ends:
        return None
    check_markers(begins, ends)
    begin, end = begins[0], ends[0]
    return Region(
        before="".join(rows[:begin]),
        begin=rows[begin],
        lines=tuple(row.removesuffix("\n").removesuffix("\r") for row in rows[begin + 1 : end]),
        after="".join(rows[end + 1 :]),
    )


def check_markers(begins: Sequence[int], ends: Sequence[int]) -> None:
    """Raise ValueError, with the lines' numbers, unless there is one begin and one end behind it."""
    if len(begins) == len(ends) == 1 and begins[0] < ends[0]:
        return
    if len(begins) > 1 or len(ends) > 1:
        message = f"more than one region of ours is marked: begin at {numbers(begins)}, end at {numbers(ends)}"
    elif not ends:
        message = f"our region begins at {numbers(begins)} and has no end: '{END}' is missing"
    elif not begins:
        message = f"our region ends at {numbers(ends)} and has no begin: '{BEGIN}' is missing"
    else:
        message = f"our region ends at {numbers(ends)}, before it begins at {numbers(begins)}"
    raise ValueError(message)


def numbers(rows: Sequence[int]) -> str:
    """Give the numbers of lines, counted from 1, in words."""
    return f"line {', '.join(str(row + 1) for row in rows)}" if rows else "no line"


def marker_of(row: str) -> str:
    """Give a row without what editors leave at its end."""
    return row.rstrip(" \t\r\n")


def is_marker(row: str) -> bool:
    """Tell whether a row is one of our markers."""
    return marker_of(row) in {BEGIN, BEGIN_AFTER_NEWLINE, END}


def duplicate_targets(text: str, lines: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Give each line of ours whose mount point another line has too, with that line; whatever its spelling."""
    others = dict(targets(without_region(text).split("\n")))
    found = []
    for target, line in targets(lines):
        if target in others:
            found.append((line, others[target]))
        others[target] = line
    return tuple(found)


def targets(rows: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give mount point and row of every row that has one; swap has none."""
    for row in rows:
        stripped = row.strip(" \t\r")
        fields = BLANKS.split(stripped)
        if not stripped.startswith("#") and len(fields) > TARGET_FIELD and fields[TARGET_FIELD].startswith("/"):
            yield str(PurePosixPath("/", parse_field(fields[TARGET_FIELD]).lstrip("/"))), stripped
