"""Estimates with 95 % intervals, and paired tests."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_LEVEL = 0.95


class Estimate(NamedTuple):
    """value: of `n` observations. low, high: its 95 % interval; NaN where none can be given."""

    value: float
    low: float
    high: float
    n: int


class Paired(NamedTuple):
    """delta: mean of a - b over `n` pairs. low, high: its 95 % interval. p_value: of no difference,
    two-sided, by `test`; NaN where that needs more pairs."""

    delta: float
    low: float
    high: float
    p_value: float
    n: int
    test: str


def proportion(hits: Sequence[bool] | np.ndarray) -> Estimate:
    """Share of hits, with Wilson's interval. Raises: ValueError for none at all."""
    n, k = len(hits), int(np.sum(np.asarray(hits, bool)))
    _need(n)
    interval = stats.binomtest(k, n).proportion_ci(_LEVEL, method="wilson")
    return Estimate(k / n, float(interval.low), float(interval.high), n)


def share(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of values in [0, 1], with Wilson's interval as if they were hits and misses: no such values vary
    more, so it is wide enough, also where all are equal. Raises: ValueError for none at all."""
    n, p = len(values), float(np.mean(values)) if len(values) else 0.0
    _need(n)
    z = float(stats.norm.ppf(0.5 + _LEVEL / 2))
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


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Paired:
    """Whether a and b, item by item, differ.

    Of hits and misses: McNemar's exact test, and Newcombe's interval for a difference of paired proportions
    (his method 10). Of other values: Student's interval and the paired t test; of one
    pair alone neither exists.

    Raises:
      ValueError: lengths that differ, or nothing.
    """
    if len(a) != len(b):
        raise ValueError(f"paired: want as many values of a as of b, got {len(a)} and {len(b)}")
    x, y = np.asarray(a), np.asarray(b)
    _need(len(x))
    if set(np.unique(np.concatenate([x, y])).tolist()) <= {0, 1}:
        return _paired_hits(x.astype(bool), y.astype(bool))
    differences = mean(x.astype(np.float64) - y.astype(np.float64))
    p = math.nan if len(x) < 2 else 1.0
    if len(x) > 1 and not np.allclose(x, y, rtol=0, atol=0):
        p = float(stats.ttest_rel(x, y).pvalue)
    return Paired(differences.value, differences.low, differences.high, p, len(x), "paired t")


def as_json(estimate: Estimate, chance: float | None = None) -> dict[str, Any]:
    """A metric of a result: value, interval, count, chance level."""
    bounds = [estimate.low, estimate.high]
    interval = None if any(map(math.isnan, bounds)) else bounds
    return {"value": estimate.value, "ci95": interval, "n": estimate.n, "chance": chance}


def paired_as_json(test: Paired) -> dict[str, Any]:
    """A paired test of a result."""
    interval = None if math.isnan(test.low) else [test.low, test.high]
    return {
        "delta": test.delta,
        "ci95": interval,
        "p_value": None if math.isnan(test.p_value) else test.p_value,
        "n": test.n,
        "test": test.test,
    }


def _need(n: int) -> None:
    if not n:
        raise ValueError("no observations: nothing can be estimated")


def _paired_hits(x: np.ndarray, y: np.ndarray) -> Paired:
    n = len(x)
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
