"""Ranges of numbers, as types: the floors declare their options with them, the configuration checks them."""

import math
from typing import Annotated, NamedTuple


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


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above_low=True)]
Decay = Annotated[float, Range(0, 1, below_high=True)]
