"""A key of host.toml becomes a choice: a value by hand passes through with its place, `auto` brings its reason."""

from kvmlaunch.model.choice import Choice, Origin
from kvmlaunch.model.wishes import HOST_FILE

KEEP = "keep"


def by_hand(value: object, key: str, *, note: str = "") -> Choice[str]:
    """Give what a key of host.toml says; `note` is said where the written word was translated."""
    return Choice(value=str(value), reason=note, source="", origin=Origin(kind="file", place=HOST_FILE, key=key))


def chosen(value: object, reason: str, source: str, *, key: str = "") -> Choice[str]:
    """Give what kvmlaunch chooses for a key at auto, from the host's facts."""
    return Choice(
        value=str(value), reason=reason, source=source, origin=Origin(kind="host", place="its knobs", key=key)
    )


def switch(word: str) -> str:
    """Give the digit that the kernel has for on and off."""
    return "1" if word == "on" else "0"
