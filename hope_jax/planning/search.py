"""The largest batch per device whose step fits, in few compilations."""

from collections.abc import Callable
from typing import NamedTuple


class Fit(NamedTuple):
    """largest: rows a device that fit, by compilation; 0: not one row does. failing: the smallest that were
    compiled and did not; None: none was. They are neighbours unless the compilations ran out. tried: rows a
    device -> bytes needed, None where the compiler refused without a number."""

    largest: int
    failing: int | None
    tried: dict[int, float | None]

    @property
    def exact(self) -> bool:
        """Whether the next larger batch is known to fail."""
        return self.failing == self.largest + 1


def largest_batch(
    needed: Callable[[int], float | None],
    capacity: float,
    known: dict[int, float | None],
    *,
    compilations: int = 6,
) -> Fit:
    """Searches by the straight line through the two known sizes next to the capacity.

    needed: rows a device -> bytes (None: refused). known: sizes that have been compiled already.
    """
    fit = _fit(dict(known), capacity)
    for _ in range(compilations):
        if fit.exact:
            break
        good, bad = fit.largest, fit.failing
        guess = _guess({rows: size for rows, size in fit.tried.items() if size is not None}, capacity)
        if guess is None or (bad is not None and guess >= bad):
            guess = 2 * good if bad is None else (good + bad) // 2
        rows = max(guess, good + 1) if bad is None else min(max(guess, good + 1), bad - 1)
        fit = _fit({**fit.tried, rows: needed(rows)}, capacity)
    return fit


def _fit(tried: dict[int, float | None], capacity: float) -> Fit:
    good = [rows for rows, size in tried.items() if size is not None and size <= capacity]
    return Fit(max(good, default=0), min(tried.keys() - set(good), default=None), tried)


def _guess(sizes: dict[int, float], capacity: float) -> int | None:
    """Where the line through the two sizes nearest to the capacity meets it; None: no line that rises."""
    if len(sizes) < 2:
        return None
    (a, at_a), (b, at_b) = sorted(sizes.items(), key=lambda item: abs(item[1] - capacity))[:2]
    slope = (at_b - at_a) / (b - a)
    return int((capacity - at_a) / slope + a) if slope > 0 else None
