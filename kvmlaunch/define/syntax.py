"""Text of a definition becomes tables, or one fault with its line and column.

The parser of record is tomli.  Besides its own error it lets RecursionError and UnicodeDecodeError
through, and a text of many megabytes would keep it busy: all three are caught here, so that no
text whatever raises.
"""

import re
from functools import lru_cache
from typing import Final

import tomli

from kvmlaunch.model.definition import SHORTHANDS
from kvmlaunch.model.value import frozen
from kvmlaunch.units import count

LARGEST_TEXT: Final = 1 << 20
DEEPEST: Final = 16
UNCLOSED: Final = "Illegal character '\\n'"  # tomli's words
LONGEST_NAME: Final = 60
SHORTHAND_LINE = r"(?m)^[ \t]*(memory|disk|network|cdrom)[ \t]*="
PATH_LINE = r"[ \t]*(path|kernel|initrd|binary|disk|cdrom)[ \t]*="
OPENINGS = r"[\[{][\[{ =A-Za-z]*"
DOTTED = r"(?:[A-Za-z0-9_-]+[ \t]*\.[ \t]*)+|[\[{][\[{ =A-Za-z]*"
DIGITS = r"[0-9_]+"
KNOWN_ENDINGS = r" \(at (?:line \d+, column \d+|end of document)\)$"


@frozen(kw_only=True)
class Fault:
    """Why a text is no TOML; line and column count characters from 1."""

    code: str = "def.toml.syntax"
    line: int = 1
    column: int = 1
    message: str
    why: str = ""
    hint: str = ""


@frozen(kw_only=True)
class Parsed:
    """The tables of a text; empty, with a fault, when it has none.  The table is shared: nobody changes it."""

    table: dict[str, object]
    text: str
    fault: Fault | None = None


def parse_toml(text: str | bytes) -> Parsed:
    """Give the tables of a text, or its fault; never raises."""
    if len(text) > LARGEST_TEXT:
        message = f"the file is too large for a definition, which has {count(LARGEST_TEXT, 'byte')} at most"
        return Parsed(table={}, text="", fault=Fault(message=message))
    return parse_small(text)


@lru_cache(maxsize=64)
def parse_small(text: str | bytes) -> Parsed:
    """Give the same for a text of a size worth keeping."""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            return Parsed(table={}, text="", fault=fault_of_bytes(error))
    return parse_text(text)


def parse_text(text: str) -> Parsed:
    """Give the tables of decoded text, or its fault."""
    try:
        table = tomli.loads(text)
        if not is_too_deep(table):
            return Parsed(table=table, text=text)
        fault = fault_of_match("arrays or tables are nested too deep", text, DOTTED)
    except tomli.TOMLDecodeError as error:
        return Parsed(table={}, text=text, fault=fault_of_syntax(text, error))
    except RecursionError:
        fault = fault_of_match("arrays or tables are nested too deep", text, OPENINGS)
    except ValueError:  # Python's own limit for the digits of an integer
        fault = fault_of_match("a number has too many digits", text, DIGITS)
    return Parsed(table={}, text=text, fault=fault)


def is_too_deep(table: dict[str, object]) -> bool:
    """Tell tables or arrays nested beyond all use; walked level by level, as recursion is what they would break."""
    level: list[object] = [table]
    for _ in range(DEEPEST):
        inner = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [node for nodes in inner for node in nodes]
        if not level:
            return False
    return True


def fault_of_match(message: str, text: str, pattern: str) -> Fault:
    """Give a fault at the longest match of a pattern."""
    match = max(re.finditer(pattern, text), key=lambda found: len(found[0]), default=None)
    if match is None:
        return Fault(message=message)
    start = match.start()
    return Fault(message=message, line=text.count("\n", 0, start) + 1, column=start - text.rfind("\n", 0, start))


def fault_of_bytes(error: UnicodeDecodeError) -> Fault:
    """Tell where a file stops being UTF-8, the bytes escaped; in a path's line it is the path that is refused."""
    before = error.object[: error.start]
    line_start = before.rfind(b"\n") + 1
    lead = error.object[line_start : error.start].decode(errors="replace")
    bad = "".join(f"\\x{byte:02x}" for byte in error.object[error.start : error.end])
    line = before.count(b"\n") + 1
    if re.match(PATH_LINE, lead):
        tail = error.object[error.start :].split(b"\n", 1)[0].decode(errors="backslashreplace").rstrip()
        return Fault(
            code="def.path",
            line=line,
            column=len(lead) + 1,
            message="a path that is not UTF-8 cannot be written in TOML",
            why=f"the line reads: {lead}{tail}"[:200],
            hint="rename the file, or reach it through a symbolic link with a name in UTF-8",
        )
    return Fault(line=line, column=len(lead) + 1, message=f"not UTF-8: {bad}", hint="save the file as UTF-8")


def fault_of_syntax(text: str, error: tomli.TOMLDecodeError) -> Fault:
    """Tell what tomli found, in our words where a shorthand meets its table."""
    line, column = error.lineno, error.colno
    if text.startswith("\ufeff"):
        hint = "save the file as UTF-8 without a byte order mark"
        return Fault(message="the file starts with a byte order mark", hint=hint)
    if error.msg.startswith("Cannot "):
        return fault_of_twice(text, line)
    if error.msg == UNCLOSED:
        return Fault(line=line, column=column, message="a string does not end on its line", hint='close it with "')
    message = lowered(re.sub(KNOWN_ENDINGS, "", error.msg))
    return Fault(line=line, column=column, message=message, hint=quoted_value(text.split("\n")[line - 1]))


def quoted_value(line: str) -> str:
    """Give a line whose value is text without quotes as TOML has it, "" for another line."""
    found = re.fullmatch(r"[ \t]*([A-Za-z0-9_.-]+)[ \t]*=[ \t]*([A-Za-z/~.][^\s\"'#,{}\[\]=]*)[ \t]*(?:#.*)?", line)
    return f'{found[1]} = "{found[2]}"' if found else ""


def fault_of_twice(text: str, line: int) -> Fault:
    """Tell a name that is written twice, in the words of the shorthand when one of the two is one."""
    faulty = text.split("\n")[line - 1]
    column = len(faulty) - len(faulty.lstrip()) + 1
    shorthand = shorthand_clash(text, faulty)
    if shorthand:
        return Fault(code="def.shorthand", line=line, column=column, **shorthand)
    name = faulty.partition("=")[0].strip()
    return Fault(line=line, column=column, message=f"{name[:LONGEST_NAME]} is written twice", hint="keep one")


def table_in(line: str) -> str:
    """Give the table that a line opens, or writes a key of."""
    name = line.partition("=")[0].strip()
    return f"the table {name}" if name.startswith("[") else f"the key {name}"


def shorthand_clash(text: str, faulty: str) -> dict[str, str] | None:
    """Give message and hint when the faulty line opens a table whose name is written as a shorthand above."""
    header = re.match(
        r"[ \t]*(?:\[+[ \t]*\"?(memory|disk|network|cdrom)\b|(memory|disk|network|cdrom)[ \t]*\.)", faulty
    )
    written = {match[1] for match in re.finditer(SHORTHAND_LINE, text)}
    key = (header[1] or header[2]) if header else ""
    if key not in written:
        return None
    table, _, leaf = SHORTHANDS[key].rpartition(".")
    value = re.search(rf"^[ \t]*{key}[ \t]*=[ \t]*(.+?)[ \t]*(?:#.*)?$", text, re.MULTILINE)
    return {
        "message": f"the shorthand `{key} = …` and {table_in(faulty)} cannot stand in one file",
        "why": f"`{key} = …` means {SHORTHANDS[key]}; TOML allows a name to be a value or a table, not both",
        "hint": f"[{table}]\n{leaf} = {value[1] if value else '…'}",
    }


def lowered(message: str) -> str:
    """Give a library's sentence with a small first letter, as ours begin."""
    return message[:1].lower() + message[1:]
