"""Values do as those of attrs would, by one function for all classes."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from unittest import mock

import attrs
import pytest

from kvmlaunch.model.choice import Origin
from kvmlaunch.model.value import NOTHING, Factory, asdict, evolve, field, fields, frozen, is_value

pytestmark = pytest.mark.pure


@frozen(kw_only=True)
class Ours:
    """A value as ours are made."""

    number: int
    names: Mapping[str, str] = Factory(dict)
    kinds: tuple[str, ...] = ("a",)
    secret: str = field(default="", repr=False, eq=False, metadata={"doc": "Not shown."})

    @property
    def twice(self) -> int:
        """Twice the number."""
        return 2 * self.number


@attrs.frozen(kw_only=True)
class Theirs:
    """The same, made by attrs."""

    number: int
    names: Mapping[str, str] = attrs.Factory(dict)
    kinds: tuple[str, ...] = ("a",)
    secret: str = attrs.field(default="", repr=False, eq=False, metadata={"doc": "Not shown."})

    @property
    def twice(self) -> int:
        """Twice the number."""
        return 2 * self.number


GIVEN: list[dict[str, Any]] = [
    {"number": 1},
    {"number": 2},
    {"number": 1, "names": {"a": "b"}},
    {"number": 1, "kinds": ()},
    {"number": 1, "secret": "y"},
]


@pytest.mark.parametrize("given", GIVEN)
def test_a_value_has_what_one_of_attrs_has(given: dict[str, Any]) -> None:
    ours, theirs = Ours(**given), Theirs(**given)

    assert attrs.asdict(ours) == attrs.asdict(theirs)
    assert attrs.astuple(ours) == attrs.astuple(theirs)
    assert asdict(ours) == attrs.asdict(theirs)
    assert ours.twice == theirs.twice
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("other", GIVEN)
def test_values_are_equal_when_those_of_attrs_are(given: dict[str, Any], other: dict[str, Any]) -> None:
    ours = Ours(**given) == Ours(**other)
    theirs = Theirs(**given) == Theirs(**other)

    assert ours is theirs


@pytest.mark.parametrize("given", GIVEN[1:])
@pytest.mark.parametrize("copied", [evolve, attrs.evolve])
def test_a_value_is_changed_as_one_of_attrs_is(given: dict[str, Any], copied: Callable[..., Any]) -> None:
    ours = Ours(number=7, secret="x")  # noqa: S106 - no password

    changed = copied(ours, **given)

    assert attrs.asdict(changed) == attrs.asdict(attrs.evolve(Theirs(number=7, secret="x"), **given))  # noqa: S106
    assert ours.number == 7


@frozen(kw_only=True)
class Around:
    """A value with values in it."""

    inner: Ours


def test_the_fields_of_a_value_in_a_value_are_given_too() -> None:
    value = Around(inner=Ours(number=1))

    given = asdict(value)

    assert given == attrs.asdict(value)


def test_attrs_knows_the_fields_as_it_would_know_its_own() -> None:
    ours, theirs = attrs.fields(Ours), attrs.fields(Theirs)

    assert attrs.has(Ours)
    assert [(f.name, f.default, f.type, f.metadata, f.repr, f.eq, f.kw_only) for f in ours] == [
        (f.name, f.default, f.type, f.metadata, f.repr, f.eq, f.kw_only) for f in theirs
    ]
    assert [(f.name, f.type, f.metadata) for f in fields(Ours)] == [(f.name, f.type, f.metadata) for f in theirs]
    assert [f.name for f in fields(Ours) if f.default is NOTHING] == ["number"]
    assert {f.name: f.default for f in fields(Ours)}["kinds"] == ("a",)


def test_only_values_are_values() -> None:
    assert [is_value(kind) for kind in (Ours, Theirs, dict)] == [True, False, False]


def test_values_of_two_classes_are_never_equal() -> None:
    other: object = Theirs(number=1)

    assert Ours(number=1) != other


def test_what_a_factory_makes_belongs_to_one_value() -> None:
    one, other = Ours(number=1), Ours(number=1)

    assert one.names == {}
    assert one.names is not other.names


def test_what_is_secret_is_not_shown() -> None:
    assert "hidden" not in repr(Ours(number=1, secret="hidden"))  # noqa: S106 - no password


@pytest.mark.parametrize("given", [{}, {"nummer": 1}, {"number": 1, "nummer": 2}])
@pytest.mark.parametrize("kind", [Ours, Theirs])
def test_a_name_too_many_or_too_few_is_refused(kind: type[Any], given: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        kind(**given)


def test_a_value_is_frozen_and_takes_named_arguments_only() -> None:
    value = Origin(kind="file")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        value.place = "elsewhere"  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del value.place
    with pytest.raises(TypeError):
        Origin("file")  # type: ignore[call-arg]


def test_a_value_has_no_hash_so_that_none_is_relied_on() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Origin(kind="file"))


def test_a_field_that_attrs_declares_is_refused_as_nobody_would_read_it() -> None:
    for declared in (attrs.field(default=1), attrs.Factory(int)):
        with pytest.raises(TypeError, match="by attrs"):
            frozen(kw_only=True)(type("Mixed", (), {"__annotations__": {"number": int}, "number": declared}))


def test_a_value_lets_the_other_side_say_whether_it_is_equal() -> None:
    assert Ours(number=1) == mock.ANY
    assert Theirs(number=1) == mock.ANY


def extended() -> type[Any]:
    class More(Ours):
        """A value with one field more."""

        more: int = 0

    return More


BODIES: dict[str, dict[str, Any]] = {
    "a variable": {"__annotations__": {"kinds": ClassVar[tuple[str, ...]]}, "kinds": ()},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_attrs_would_do_and_nobody_does_here_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        frozen(kw_only=True)(type("Odd", (), body))


def test_a_class_of_values_has_no_subclasses() -> None:
    with pytest.raises(TypeError, match="no subclasses"):
        frozen(kw_only=True)(extended())
