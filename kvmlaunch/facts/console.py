"""The byte stream of a console: pure, it never meets a terminal."""

from attrs import define

CONTROL_MASK = 0x1F


def parse_escape(text: str) -> bytes:
    """Give the byte of an escape written `^]`; raises ValueError with the right spelling."""
    if len(text) != 2 or text[0] != "^" or not ("@" <= text[1].upper() <= "_"):  # noqa: PLR2004 - caret and letter
        message = f'{text!r} is no escape; write a control character such as "^]"'
        raise ValueError(message)
    return bytes([ord(text[1].upper()) & CONTROL_MASK])


@define(kw_only=True)
class EscapeWatch:
    """Looks for the escape byte among what is typed."""

    escape: bytes

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """Give what goes to the guest, and whether the escape was typed: what follows it is not sent."""
        before, found, _ = typed.partition(self.escape)
        return before, bool(found)
