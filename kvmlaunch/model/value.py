"""What every value is: an attrs class, frozen, made by named arguments, equal to another by its fields.

`frozen` is that of attrs, to the type checker and in all it does but one thing: `==` and `repr()` are not generated and
compiled for each class but are one function each, for all, and nothing is hashed.  A start makes about a hundred
classes; generating those methods was a fifth of all that `print-cmd` executes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

__all__ = ["frozen"]

T = TypeVar("T")

if TYPE_CHECKING:
    from attrs import frozen
else:

    def frozen(kind: type[T] | None = None, **options: bool) -> type[T] | Callable[[type[T]], type[T]]:
        """Make a class one of values; without the class, give the decorator that does."""
        if kind is None:
            return lambda kind: frozen(kind, **options)
        for name, method in METHODS.items():
            if name not in kind.__dict__:
                setattr(kind, name, method)  # attrs then takes it for the class's own and makes none
        return attrs.frozen(kind, **options)


def fields(value: Any) -> tuple[object, ...]:  # noqa: ANN401 - any value
    """Give what a value is compared by, in the order of its fields."""
    return tuple(getattr(value, field.name) for field in attrs.fields(type(value)) if field.eq)


def equal(value: object, other: object) -> bool:
    """Tell whether two values are of one class and have equal fields."""
    return type(value) is type(other) and fields(value) == fields(other)


def shown(value: object) -> str:
    """Give the text of a value for whoever debugs."""
    kind: type[Any] = type(value)
    parts = (f"{field.name}={getattr(value, field.name)!r}" for field in attrs.fields(kind) if field.repr)
    return f"{kind.__qualname__}({', '.join(parts)})"


METHODS: dict[str, Callable[..., object] | None] = {"__eq__": equal, "__hash__": None, "__repr__": shown}
