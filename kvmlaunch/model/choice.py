"""A value that carries its reason: what was chosen, why, on what ground, and from where."""

from typing import Final, Generic, Literal, TypeVar

from kvmlaunch.model.value import frozen

T_co = TypeVar("T_co", covariant=True)

MEASURED: Final = "kvmlaunch docs, performance"  # the source of what was measured

OriginKind = Literal["file", "set", "profile", "default", "host", "qemu"]


@frozen(kw_only=True)
class Origin:
    """Where an input stands.

    `place` is a file's absolute path for `file`, the profile's name for `profile`, and the fact or
    capability in words for `host` and `qemu`; `key` is the dotted key path (`disk.root.cache`), ""
    where there is none.
    """

    kind: OriginKind
    place: str = ""
    key: str = ""


@frozen(kw_only=True)
class Choice(Generic[T_co]):
    """A tuned value with its reason.

    `reason` is one clause for the user with the numbers that decided, "" for a value that was
    written by hand; `source` names what the rule rests on; `origin` where the input stands.
    """

    value: T_co
    reason: str
    source: str
    origin: Origin
