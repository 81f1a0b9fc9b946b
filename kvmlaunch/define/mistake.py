"""A mistake in one value, told where the value is read; whoever knows its key makes it a finding."""

from datetime import date, datetime, time
from typing import Final

from kvmlaunch.define.tree import Path, quote
from kvmlaunch.model.choice import Origin
from kvmlaunch.model.value import frozen

LONGEST_SHOWN: Final = 60
KINDS: Final = {
    str: "text",
    bool: "a truth value",
    int: "a whole number",
    float: "a number with a fraction",
    list: "an array",
    dict: "a table",
    date: "a date",
    datetime: "a date and time",
    time: "a time of day",
}


class Mistake(ValueError):
    """What is wrong with a value; `right` is the TOML value to write instead, `hint` other advice.

    `meant` is the key that was probably meant, where there is none of the name that was written.
    """

    def __init__(
        self, *, code: str, message: str, why: str = "", right: str = "", hint: str = "", meant: str = ""
    ) -> None:
        """Keep the parts of the finding."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.why = why
        self.right = right
        self.hint = hint
        self.meant = meant


@frozen(kw_only=True)
class Misplaced:
    """A mistake and the key path where it was made.

    `on_key` marks a mistake of the key, not of its value; `rests` one that may owe itself to what a
    broken template would have said.
    """

    path: Path
    mistake: Mistake
    on_key: bool = False
    rests: bool = False


@frozen(kw_only=True)
class Placed:
    """A mistake with the place where it shows: an origin, and line and column where they are known already."""

    mistake: Mistake
    origin: Origin
    key: str = ""
    position: tuple[int, int] | None = None
    on_key: bool = False


def shown(value: object) -> str:
    """Give a value as TOML has it, shortened: for messages only."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return quote(value if len(value) <= LONGEST_SHOWN else value[: LONGEST_SHOWN - 1] + "…")
        case int() if value.bit_length() > LONGEST_SHOWN + 4:
            return f"a number of {value.bit_length()} bits"
        case _:
            return str(value)


def wrong_type(value: object, wanted: str, *, right: str = "", hint: str = "") -> Mistake:
    """Give the mistake of a value that is of another type than the key's."""
    kind = KINDS.get(type(value), "no value of a definition")
    what = f"{kind} stands here" if isinstance(value, list | dict) else f"{shown(value)} is {kind}"
    return Mistake(code="def.value.type", message=f"{what}; {wanted} is wanted", right=right, hint=hint)


def choose(value: object, choices: tuple[str, ...], *, what: str = "one of the choices") -> Mistake:
    """Give the mistake of a word that is none of the choices, with the nearest of them."""
    import difflib

    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), lowered, n=1, cutoff=0.5)
    return Mistake(
        code="def.value.choice",
        message=f"{shown(value)} is not {what}",
        why=f"choices: {', '.join(choices)}",
        right=quote(lowered[close[0]]) if close else "",
    )


def nearest(word: str, names: tuple[str, ...]) -> str:
    """Give the name that was probably meant, "" when none is near."""
    import difflib

    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else ""
