"""Estimates with 95 % intervals, and paired tests."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_LEVEL = 0.95
_Z = float(stats.norm.ppf(0.5 + _LEVEL / 2))
_ROUNDING = 8 * np.finfo(np.float64).eps
"""Spread of differences, beside the values that they are of, which arithmetic alone makes."""


class Estimate(NamedTuple):
    """value: of `n` observations. low, high: its 95 % interval; NaN where none can be given."""

    value: float
    low: float
    high: float
    n: int

    def mapped(self, function: Callable[[float], float]) -> "Estimate":
        """A monotonic function of it; the interval goes with it."""
        value, *bounds = map(function, self[:3])
        return Estimate(value, min(bounds), max(bounds), self.n)

    def as_json(self, chance: float | None = None) -> dict[str, Any]:
        """A metric of a result: value, interval, count, chance level."""
        return {"value": self.value, "ci95": _bounds(self), "n": self.n, "chance": chance}


class Paired(NamedTuple):
    """delta: mean of a - b over `n` pairs. low, high: its 95 % interval; NaN where none can be given.
    p_value: of no difference, two-sided, by `test`; NaN where that needs more pairs."""

    delta: float
    low: float
    high: float
    p_value: float
    n: int
    test: str

    def as_json(self) -> dict[str, Any]:
        """A paired test of a result; None where there is no interval or p value."""
        p_value = None if math.isnan(self.p_value) else self.p_value
        return {
            "delta": self.delta,
            "ci95": _bounds(self),
            "p_value": p_value,
            "n": self.n,
            "test": self.test,
        }


def _bounds(found: Estimate | Paired) -> list[float] | None:
    return None if math.isnan(found.low) or math.isnan(found.high) else [found.low, found.high]


def proportion(hits: Sequence[bool] | np.ndarray) -> Estimate:
    """Share of hits, with Wilson's interval. Raises: ValueError for none at all."""
    n, k = len(hits), int(np.sum(np.asarray(hits, bool)))
    _need(n)
    interval = stats.binomtest(k, n).proportion_ci(_LEVEL, method="wilson")
    return Estimate(k / n, float(interval.low), float(interval.high), n)


def share(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of values in [0, 1], with Wilson's interval as if they were hits and misses: no such values vary
    more, so it is wide enough, also where all are equal. Raises: ValueError for none at all."""
    n, z = len(values), _Z
    _need(n)
    p = float(np.mean(values))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(centre - half, 0.0), min(centre + half, 1.0), n)


def mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean, with Student's interval; NaN bounds for one value. Raises: ValueError for none at all."""
    x = np.asarray(values, np.float64)
    _need(len(x))
    centre = float(x.mean())
    if len(x) < 2:
        return Estimate(centre, math.nan, math.nan, len(x))
    half = float(stats.t.ppf(0.5 + _LEVEL / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(centre, centre - half, centre + half, len(x))


def total(groups: Sequence[np.ndarray]) -> Estimate:
    """Sum of all values, float [n] each, and its interval: in each group the values are drawn, the groups are
    what they are. NaN bounds where no group has two. Raises: ValueError for none at all."""
    n = sum(map(len, groups))
    _need(n)
    value = float(sum(group.sum() for group in groups))
    several = [group for group in groups if len(group) > 1]
    if not several:
        return Estimate(value, math.nan, math.nan, n)
    variance = sum(len(group) * float(group.var(ddof=1)) for group in several)
    degrees = sum(len(group) - 1 for group in several)
    half = float(stats.t.ppf(0.5 + _LEVEL / 2, degrees)) * math.sqrt(variance)
    return Estimate(value, value - half, value + half, n)


def ratio(values: Sequence[float] | np.ndarray, units: Sequence[float] | np.ndarray) -> Estimate:
    """Sum of values over sum of units, [n] each; some unit is not zero. The interval is Student's of the
    linearised ratio: items may hold different numbers of units, and those of one need not be independent."""
    v, u = np.asarray(values, np.float64), np.asarray(units, np.float64)
    found = float(v.sum() / u.sum())
    around = mean((v - found * u) / u.mean())
    return Estimate(found, found + around.low, found + around.high, len(v))


def within_one(estimate: Estimate, n: float) -> Estimate:
    """An estimate of a share in [0, 1], with an interval that Student's formula gave: cut to [0, 1], and no
    closer to 0 (1) at its far end than Wilson's interval of `n` misses (hits) alone. n: observations; of
    those that weigh unlike the effective ones, 1 / sum of squared weights (docs/evals/README.md)."""
    none = _Z * _Z / (n + _Z * _Z)
    value, low, high = np.clip(estimate[:3], 0.0, 1.0)  # NaN stays
    low, high = np.minimum(low, 1.0 - none), np.maximum(high, none)
    return Estimate(float(value), float(low), float(high), estimate.n)


def difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Mean of a - b over pairs: of hits and misses with Newcombe's interval, which does not close where all
    are alike, of other values with Student's. Raises: ValueError for none at all."""
    if not _are_hits(a, b):
        return mean(a - b)
    _need(len(a))
    test = _paired_hits(a, b)
    return Estimate(test.delta, test.low, test.high, test.n)


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Paired:
    """Whether a and b, item by item, differ. Of hits and misses: McNemar's exact test, and Newcombe's
    interval for a difference of paired proportions (his method 10). Of other values: Student's interval and
    the paired t test; of one pair alone neither exists. Differences that are all one number but zero tell
    nothing of their spread: no interval, and the sign test. Raises: ValueError for lengths that differ, or
    nothing."""
    x, y = _pair(a, b)
    return _paired_hits(x, y) if _are_hits(x, y) else _paired_t([(x, y)], "paired t")


def paired_over(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> Paired:
    """Whether a and b of several groups of items differ: the mean over groups, each weighing the same, of the
    mean of a - b, and a paired t test in which the groups are what they are and only their items are drawn
    (Welch's variance, Satterthwaite's degrees of freedom). Of a group of one item there is none. Raises: as
    `paired`."""
    _need(len(groups))
    return _paired_t([_pair(a, b) for a, b in groups], "stratified paired t")


def _pair(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(a) != len(b):
        raise ValueError(f"paired: want as many values of a as of b, got {len(a)} and {len(b)}")
    _need(len(a))
    return np.asarray(a, np.float64), np.asarray(b, np.float64)


def _are_hits(x: np.ndarray, y: np.ndarray) -> bool:
    return set(np.unique(np.concatenate([x, y])).tolist()) <= {0, 1}


def _need(n: int) -> None:
    if not n:
        raise ValueError("no observations: nothing can be estimated")


def _paired_t(groups: Sequence[tuple[np.ndarray, np.ndarray]], test: str) -> Paired:
    differences = [a - b for a, b in groups]
    everything, n = np.concatenate(differences), sum(map(len, differences))
    delta = float(np.mean([each.mean() for each in differences]))
    if min(map(len, differences)) < 2 or not np.isfinite(everything).all():
        return Paired(delta, math.nan, math.nan, math.nan, n, test)
    if not everything.any():
        return Paired(0.0, 0.0, 0.0, 1.0, n, test)
    errors = np.array([each.std(ddof=1) / math.sqrt(len(each)) for each in differences]) / len(groups)
    error = float(np.sqrt(np.square(errors).sum()))
    if error <= _ROUNDING * max(float(np.abs(pair).max()) for pair in groups):
        signs = stats.binomtest(int((everything > 0).sum()), int((everything != 0).sum()))
        return Paired(delta, math.nan, math.nan, float(signs.pvalue), n, "sign")
    shares, free = np.square(errors / error), np.array([len(each) - 1 for each in differences])
    degrees = 1.0 / float((np.square(shares) / free).sum())
    half = float(stats.t.ppf(0.5 + _LEVEL / 2, degrees)) * error
    p = 2 * float(stats.t.sf(abs(delta) / error, degrees))
    return Paired(delta, delta - half, delta + half, p, n, test)


def _paired_hits(a: np.ndarray, b: np.ndarray) -> Paired:
    x, y, n = a.astype(bool), b.astype(bool), len(a)
    only_x, only_y, both = int((x & ~y).sum()), int((~x & y).sum()), int((x & y).sum())
    neither = n - only_x - only_y - both
    discordant = only_x + only_y
    p = float(stats.binomtest(only_x, discordant).pvalue) if discordant else 1.0
    first, second = proportion(x), proportion(y)
    delta = first.value - second.value
    margins = (both + only_x) * (only_y + neither) * (both + only_y) * (only_x + neither)
    cross = float(both * neither - only_x * only_y)
    # Newcombe's continuity correction of phi, of a positive association alone
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross
    phi = cross / math.sqrt(margins) if margins else 0.0
    below = _root(first.value - first.low, second.high - second.value, phi)
    above = _root(second.value - second.low, first.high - first.value, phi)
    return Paired(delta, delta - below, delta + above, p, n, "exact McNemar")


def _root(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))
