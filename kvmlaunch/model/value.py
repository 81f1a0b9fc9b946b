"""What every value is: an object that is frozen, made by named arguments, and equal to another by its fields.

To the type checker these are classes of attrs, and they do what those do that are frozen, made by names, and have no
subclasses; attrs also says what their fields are, to whoever asks it.  But attrs writes and compiles methods for each
class, half a millisecond each, and a start makes a hundred classes: that was a fifth of `print-cmd`.  Here one
function of each kind serves all classes.  attrs is imported, and builds a class, only when it is asked; a start never
asks it.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    import attrs

__all__ = ["NOTHING", "Factory", "Field", "asdict", "evolve", "field", "fields", "frozen", "is_value"]

T = TypeVar("T")
OF_ATTRS = "attr."  # what the modules are called that attrs is made of
ABSENT = object()  # stands where a field has no default


class Made:
    """A default that is made anew for each value, by a function without arguments."""

    def __init__(self, factory: Callable[[], object]) -> None:
        """Keep what makes it."""
        self.factory = factory


class Declared(NamedTuple):
    """What a class says of a field beside its type; the names are those of attrs.field."""

    default: Any = ABSENT
    metadata: Mapping[str, Any] = {}
    repr: bool = True
    eq: bool = True


class Field(NamedTuple):
    """A field as its class declares it; the default is NOTHING, a value, or a Factory."""

    name: str
    default: Any
    type: Any
    metadata: Mapping[str, Any]


class Layout:
    """What the functions below need to know of a class: its fields, and how those are filled that nobody gives."""

    def __init__(self, kind: type) -> None:
        """Read what the body of a class declares."""
        body = vars(kind)
        self.declared: dict[str, Declared] = {}
        if any(is_value(base) for base in kind.__mro__[1:]):
            raise TypeError(f"{kind.__qualname__}: a class of values has no subclasses")
        forms: Mapping[str, Any] = kind.__annotations__
        for name, form in forms.items():
            given = body.get(name, ABSENT)
            if type(given).__module__.startswith(OF_ATTRS):
                raise TypeError(f"{kind.__qualname__}.{name}: declared by attrs, where only the words of here are read")
            if getattr(form, "__origin__", form) is ClassVar:
                raise TypeError(f"{kind.__qualname__}.{name}: a class of values has no variables of its own")
            self.declared[name] = given if type(given) is Declared else Declared(given)
        self.names = self.declared.keys()
        self.plain = {}
        self.factories = []
        for name, (default, *_) in self.declared.items():
            if type(default) is Made:
                self.factories.append((name, default.factory))
            elif default is not ABSENT:
                self.plain[name] = default


class AskAttrs:
    """`__attrs_attrs__` of a class, by which attrs knows its own: built by attrs, when it is asked for."""

    def __get__(self, value: object, kind: type[Any]) -> tuple["attrs.Attribute[Any]", ...]:
        """Have attrs build the class, and keep what it says of the fields."""
        import attrs  # noqa: PLC0415 - when it is asked

        layout = kind.__layout__
        body: dict[str, Any] = {
            name: attrs.field(**each._replace(default=as_attrs_has(each.default))._asdict())
            for name, each in layout.declared.items()
        }
        body["__annotations__"] = kind.__annotations__
        twin: type[Any] = attrs.frozen(kw_only=True)(type(kind.__name__, (), body))
        built: tuple[attrs.Attribute[Any], ...] = attrs.fields(twin)
        kind.__attrs_attrs__ = built
        return built


def as_attrs_has(default: Any) -> Any:  # noqa: ANN401 - any default
    """Give a default in the words of attrs."""
    import attrs  # noqa: PLC0415 - when it is asked

    if type(default) is Made:
        return attrs.Factory(default.factory)
    return attrs.NOTHING if default is ABSENT else default


def fill(self: Any, /, **given: object) -> None:  # noqa: ANN401 - any value
    """Make a value: what is given, and defaults for the rest; TypeError for a name too many or too few."""
    layout: Layout = self.__layout__
    values = {**layout.plain, **given}
    for name, make in layout.factories:
        if name not in given:
            values[name] = make()
    if values.keys() != layout.names:
        unknown, missing = values.keys() - layout.names, layout.names - values.keys()
        raise TypeError(f"{type(self).__qualname__}: unknown {sorted(unknown)}, missing {sorted(missing)}")
    self.__dict__.update(values)


def refuse(self: object, name: str, value: object = None) -> None:
    """Refuse to set or to delete what a value has."""
    del self, name, value
    import attrs  # noqa: PLC0415 - nobody does so

    raise attrs.exceptions.FrozenInstanceError


def equal(self: Any, other: Any) -> Any:  # noqa: ANN401 - any value; a truth value or NotImplemented
    """Tell whether two values are of one class and have equal fields."""
    if type(self) is not type(other):
        return NotImplemented
    mine, its = vars(self), vars(other)
    declared: Mapping[str, Declared] = self.__layout__.declared
    return all(mine[name] == its[name] for name, each in declared.items() if each.eq)


def shown(self: Any) -> str:  # noqa: ANN401 - any value
    """Give the text of a value for whoever debugs."""
    declared: Mapping[str, Declared] = self.__layout__.declared
    parts = (f"{name}={getattr(self, name)!r}" for name, each in declared.items() if each.repr)
    return f"{type(self).__qualname__}({', '.join(parts)})"


METHODS: dict[str, Callable[..., object] | None] = {
    "__init__": fill,
    "__setattr__": refuse,
    "__delattr__": refuse,
    "__eq__": equal,
    "__hash__": None,
    "__repr__": shown,
    "__replace__": lambda self, /, **changes: changed(self, **changes),  # of copy.replace, since Python 3.13
}


def make(kind: type[T]) -> type[T]:
    """Make a class one of values."""
    layout = Layout(kind)
    for name in layout.names & vars(kind).keys():
        delattr(kind, name)
    for name, method in METHODS.items():
        setattr(kind, name, method)
    kind.__layout__, kind.__attrs_attrs__ = layout, AskAttrs()  # type: ignore[attr-defined]
    return kind


def is_value(kind: type) -> bool:
    """Tell whether a class is one of values."""
    return hasattr(kind, "__layout__")


def fields(kind: type) -> tuple[Field, ...]:
    """Give the fields of a class of values in their order."""
    layout: Layout = kind.__layout__  # type: ignore[attr-defined]
    types = kind.__annotations__
    return tuple(Field(name, each.default, types[name], each.metadata) for name, each in layout.declared.items())


def changed(value: Any, /, **changes: object) -> Any:  # noqa: ANN401 - the same class
    """Give a value like another but for some fields."""
    return type(value)(**{**vars(value), **changes})


def as_dict(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any value
    """Give the fields of a value by name, and so those of a value that is one of them."""
    return {name: as_dict(part) if is_value(type(part)) else part for name, part in vars(value).items()}


if TYPE_CHECKING:
    from attrs import NOTHING, Factory, asdict, evolve, field, frozen
else:
    NOTHING, Factory, asdict, evolve, field = ABSENT, Made, as_dict, changed, Declared

    def frozen(*, kw_only: Literal[True]) -> Callable[[type[T]], type[T]]:
        """Give the decorator of a class of values."""
        del kw_only
        return make
