"""Forgetting and transfer, from what is measured of every segment at every moment.

A table is, for each segment, an array [K, n]: K moments (checkpoints, or ends of segments that were read),
n blocks or items of the segment, the same at each moment; lower is better (a loss, or 1 for a miss).
Differences are taken block by block, so that what makes a block hard falls out of the intervals.
"""

import math
from collections.abc import Sequence

import numpy as np

from hope_jax.evals.statistics import Estimate, difference

Table = Sequence[np.ndarray]


def forgetting(table: Table, since: Sequence[int]) -> list[Estimate | None]:
    """Of each segment, how much worse the last moment is than the best one before it, from moment `since` on;
    None for segments that were not known before the last moment. The best moment is chosen by its mean over
    the same blocks: with noise alone the figure is above zero."""
    before = [rows[first:-1] for rows, first in zip(table, since, strict=True)]
    return [
        difference(rows[-1], known[int(known.mean(axis=1).argmin())]) if len(known) else None
        for rows, known in zip(table, before, strict=True)
    ]


def backward_transfer(table: Table, since: Sequence[int]) -> list[Estimate | None]:
    """Of each segment, how much better the last moment is than moment `since`, when it had just been learned;
    below zero: it has been forgotten. None where that is the last moment."""
    pairs = zip(table, since, strict=True)
    return [difference(rows[at], rows[-1]) if at < len(rows) - 1 else None for rows, at in pairs]


def forward_transfer(table: Table, start: Table, since: Sequence[int]) -> list[Estimate | None]:
    """Of each segment, how much better the moment before it was learned is than the beginning (`start`: an
    array [n] each); None for those with no moment before."""
    triples = zip(table, start, since, strict=True)
    return [difference(begin, rows[at - 1]) if at > 0 else None for rows, begin, at in triples]


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
