"""Values are compared and shown as attrs would have them, by one function for all classes."""

from collections.abc import Mapping

import attrs
import pytest
from attrs import field

from kvmlaunch.model.choice import Origin
from kvmlaunch.model.value import frozen

pytestmark = pytest.mark.pure


@frozen(kw_only=True)
class Ours:
    """A value as ours are made."""

    number: int
    names: Mapping[str, str] = field(factory=dict)
    secret: str = field(default="", repr=False, eq=False)


@attrs.frozen(kw_only=True)
class Theirs:
    """The same, made by attrs."""

    number: int
    names: Mapping[str, str] = field(factory=dict)
    secret: str = field(default="", repr=False, eq=False)


@pytest.mark.parametrize("other", [{"number": 1}, {"number": 2}, {"number": 1, "names": {"a": "b"}}])
def test_values_are_equal_when_those_of_attrs_are(other: dict[str, object]) -> None:
    ours = Ours(number=1, secret="x") == Ours(**other)  # type: ignore[arg-type]  # noqa: S106 - no password
    theirs = Theirs(number=1, secret="x") == Theirs(**other)  # type: ignore[arg-type]  # noqa: S106 - no password

    assert ours is theirs


def test_values_of_two_classes_are_never_equal() -> None:
    other: object = Theirs(number=1)

    assert Ours(number=1) != other


def test_a_value_shows_itself_as_attrs_would_and_leaves_out_what_is_secret() -> None:
    shown = repr(Ours(number=1, names={"a": "b"}, secret="hidden"))  # noqa: S106 - no password

    assert shown == repr(Theirs(number=1, names={"a": "b"})).replace("Theirs", "Ours")
    assert "hidden" not in shown


def test_a_value_is_frozen_and_takes_named_arguments_only() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Origin(kind="file").place = "elsewhere"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Origin("file")  # type: ignore[call-arg]


def test_a_value_has_no_hash_so_that_none_is_relied_on() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Origin(kind="file"))
