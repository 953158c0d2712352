"""Forgetting and transfer of tables with known answers."""

import math

import numpy as np
import pytest

from hope_jax.evals import transfer
from hope_jax.evals.statistics import Estimate

TABLE = [
    # Segment 0 is learned at moment 0, at its best at moment 1, and worse at the end.
    np.array([[2.0, 4.0], [1.0, 3.0], [3.5, 5.5]]),
    # Segment 1 is learned at moment 1 and better at the end.
    np.array([[5.0, 7.0], [4.0, 6.0], [3.0, 6.5]]),
    # Segment 2 is learned at the end.
    np.array([[9.0, 9.0], [8.0, 7.0], [1.0, 1.0]]),
]
SINCE = [0, 1, 2]


def values(estimates: list[Estimate | None]) -> list[float | None]:
    return [None if e is None else e.value for e in estimates]


def test_forgetting_is_from_the_best_moment_since_a_segment_was_learned() -> None:
    assert values(transfer.forgetting(TABLE, SINCE)) == [2.5, -0.25, None]
    assert values(transfer.forgetting(TABLE, [0, 0, 0])) == [2.5, -0.25, -6.5]


def test_transfer_is_what_later_and_earlier_segments_gave() -> None:
    assert values(transfer.backward_transfer(TABLE, SINCE)) == [-1.5, 0.25, None]
    start = [np.array([3.0, 5.0]), np.array([6.0, 7.0]), np.array([9.0, 9.0])]
    assert values(transfer.forward_transfer(TABLE, start, SINCE)) == [None, 0.5, 1.5]


def test_intervals_are_of_differences_of_the_same_blocks() -> None:
    """Blocks differ by 2 in hardness and not at all in what is forgotten."""
    (first, *_) = transfer.forgetting(TABLE, SINCE)
    assert first is not None and (first.low, first.high, first.n) == (2.5, 2.5, 2)


def test_the_average_weighs_segments_alike_and_adds_their_uncertainties() -> None:
    estimates = [Estimate(1.0, 0.7, 1.3, 10), None, Estimate(3.0, 2.6, 3.4, 100)]
    got = transfer.average(estimates)
    assert got is not None and got.value == 2.0 and got.n == 110
    assert got.high - got.value == pytest.approx(math.hypot(0.3, 0.4) / 2)
    assert transfer.average([None]) is None
