"""Ranges of numbers, as types: the floors declare their options with them, the configuration checks them."""

import math
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin


class Range(NamedTuple):
    """Bounds of a number, `low` included and `high` included unless said otherwise."""

    low: float
    high: float = math.inf
    above_low: bool = False
    below_high: bool = False

    def holds(self, value: float) -> bool:
        """True if `value` is finite and within the bounds."""
        low_ok = value > self.low if self.above_low else value >= self.low
        high_ok = value < self.high if self.below_high else value <= self.high
        return math.isfinite(value) and low_ok and high_ok

    def __str__(self) -> str:
        low = f"{'above' if self.above_low else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.below_high else 'at most'} {self.high:g}"


def fits(kind: Any, value: Any) -> bool:
    """Whether a value, as JSON and YAML have it, is of a type. A tuple of different types is a list there."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(parts[0], value) and parts[1].holds(value)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(fits(part, value) for part in parts)
    if origin is tuple and parts[1:] not in ((), (...,)):
        return isinstance(value, list) and len(value) == len(parts) and all(map(fits, parts, value))
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(parts[0], item) for item in value)
    if kind is float:
        return isinstance(value, float) or fits(int, value)
    if kind is int:
        return type(value) is int and abs(value) <= 2**62
    return isinstance(value, origin or kind)


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above_low=True)]
Decay = Annotated[float, Range(0, 1, below_high=True)]
Fraction = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, above_low=True, below_high=True)]
