"""The byte stream of a console: pure, it never meets a terminal."""

import re

from kvmlaunch.model.value import frozen

CONTROL_MASK = 0x1F
# Control sequences, and strings up to their end, in 7 bits and in 8; then an escape with one more character.
# One that is cut off loses its introducer and parameters.  Source: ECMA-48, 5.4 to 5.6 and 8.3.
SEQUENCES = (
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)

# What may yet become a sequence: without its end.
UNFINISHED = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*|\x1b[ -/]*"
LONGEST_SEQUENCE = 4096


def plain_text(text: str) -> str:
    """Give a guest's text without escape sequences and control characters other than line ends and tabs."""
    if text.isprintable():
        return text
    rest = re.sub(SEQUENCES, "", text)
    return "".join(character for character in rest if character in "\n\t" or character.isprintable())


class PlainText:
    """Text that comes in pieces, made plain: an escape sequence that is cut off waits for the rest of it."""

    def __init__(self) -> None:
        """Begin with nothing that waits."""
        self.rest = ""

    def feed(self, text: str, *, last: bool = False) -> str:
        """Give what can be told of a piece; the `last` one waits for nothing."""
        text = self.rest + text
        place = len(text) if last else unfinished_at(text)
        self.rest = text[place:]
        return plain_text(text[:place])


def unfinished_at(text: str) -> int:
    """Give where a sequence begins that the end of a text cuts off; its length where none does."""
    before = None
    for found in re.finditer(SEQUENCES, text):
        if found.end() == len(text) and re.fullmatch(UNFINISHED, found[0]):
            place = found.start()
            if before and found[0] == "\x1b" and before.end() == place and re.fullmatch(UNFINISHED, before[0]):
                place = before.start()  # the escape may be the first half of what ends it
            return place if len(text) - place <= LONGEST_SEQUENCE else len(text)
        before = found
    return len(text)


def parse_escape(text: str) -> bytes:
    """Give the byte of an escape written `^]`; raises ValueError with the right spelling."""
    if len(text) != 2 or text[0] != "^" or not ("@" <= text[1].upper() <= "_"):  # noqa: PLR2004 - caret and letter
        message = f'{text!r} is no escape; write a control character such as "^]"'
        raise ValueError(message)
    return bytes([ord(text[1].upper()) & CONTROL_MASK])


@frozen(kw_only=True)
class EscapeWatch:
    """Looks for the escape byte among what is typed."""

    escape: bytes

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """Give what goes to the guest, and whether the escape was typed: what follows it is not sent."""
        before, found, _ = typed.partition(self.escape)
        return before, bool(found)
