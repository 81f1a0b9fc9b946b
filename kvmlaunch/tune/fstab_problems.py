"""What `findmnt --verify` finds wrong with a text of fstab, and what of it is new.

Source: findmnt(8); util-linux 2.38.1: problems stand beneath their target on standard output, lines that cannot be
parsed are named by number on standard error, and a warning alone leaves the exit status 0.
"""

import re
from collections import Counter
from collections.abc import Sequence

PROBLEM = re.compile(r"\s+\[[EW]\] .*")
PARSE_ERROR = re.compile(r"parse error at line ([0-9]+)")


def parse_problems(out: str, err: str, text: str) -> tuple[str, ...]:
    """Give the problems, a line each: errors and warnings with their target, and what cannot be parsed as it stands.

    `text` is what was verified.  A line that cannot be parsed is named by its words: its number changes with the text.
    """
    rows = text.split("\n")
    unread = [rows[int(number) - 1] for number in PARSE_ERROR.findall(err) if 0 < int(number) <= len(rows)]
    found, target = [f"cannot be parsed: {row.rstrip()}" for row in unread], ""
    for line in out.split("\n"):
        if PROBLEM.fullmatch(line):
            found.append(f"{target}: {line.strip()}")
        elif line and not line[0].isspace():
            target = line
    return tuple(found)


def new_problems(before: Sequence[str], after: Sequence[str]) -> tuple[str, ...]:
    """Give the problems that there are more of after than before."""
    return tuple((Counter(after) - Counter(before)).elements())
