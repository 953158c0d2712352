"""Forgetting and transfer, from what is measured of every segment at every moment.

A table is, for each segment, an array [K, n]: K moments (checkpoints, or ends of segments that were read),
n blocks or items of the segment, the same at each moment; lower is better (a loss, or 1 for a miss).
Differences are taken block by block, so that what makes a block hard falls out of the intervals.
"""

import math
from collections.abc import Sequence

import numpy as np

from hope_jax.evals import statistics
from hope_jax.evals.statistics import Estimate

Table = Sequence[np.ndarray]


def forgetting(table: Table, since: Sequence[int]) -> list[Estimate | None]:
    """Of each segment, how much worse the last moment is than the best one before it, from moment `since` on;
    None for segments that were not known before the last moment.

    The best moment is chosen by its mean over the same blocks: with noise alone the figure is above zero.
    """
    found: list[Estimate | None] = []
    for rows, first in zip(table, since, strict=True):
        before = rows[first:-1]
        if not len(before):
            found.append(None)
            continue
        best = before[int(before.mean(axis=1).argmin())]
        found.append(statistics.difference(rows[-1], best))
    return found


def backward_transfer(table: Table, since: Sequence[int]) -> list[Estimate | None]:
    """Of each segment, how much better the last moment is than moment `since`, when it had just been learned;
    below zero: it has been forgotten. None where that is the last moment."""
    return [
        statistics.difference(rows[first], rows[-1]) if first < len(rows) - 1 else None
        for rows, first in zip(table, since, strict=True)
    ]


def forward_transfer(table: Table, start: Table, since: Sequence[int]) -> list[Estimate | None]:
    """Of each segment, how much better the moment before it was learned is than the beginning (`start`: an
    array [n] each); None for those with no moment before."""
    return [
        statistics.difference(begin, rows[first - 1]) if first > 0 else None
        for rows, begin, first in zip(table, start, since, strict=True)
    ]


def average(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Mean of segments' estimates, each weighing the same, and its interval: segments are what they are, only
    their blocks are drawn, so distances to the bounds add up as squares, below and above apart (Zou and
    Donner's MOVER). None if there is none; `n` counts blocks."""
    there = [estimate for estimate in estimates if estimate is not None]
    if not there:
        return None
    value = float(np.mean([estimate.value for estimate in there]))
    below = math.sqrt(sum((estimate.value - estimate.low) ** 2 for estimate in there)) / len(there)
    above = math.sqrt(sum((estimate.high - estimate.value) ** 2 for estimate in there)) / len(there)
    return Estimate(value, value - below, value + above, sum(estimate.n for estimate in there))
