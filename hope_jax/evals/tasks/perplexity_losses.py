"""Losses of texts summed over buckets of position, and what is estimated of them: nats per unit with
intervals over texts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from hope_jax.evals.statistics import Estimate

FIRST = 16
"""Where the first position bucket ends; the others end at the powers of two after it."""


class Losses(NamedTuple):
    """Of each bucket of one text: sum of -log p in nats, tokens, bytes, words; [buckets]."""

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray


def losses_of(nats: np.ndarray, byte_counts: np.ndarray, words: np.ndarray) -> Losses:
    """The losses of one text; arguments: of each token, [n] with n > 0."""
    n = len(nats)
    starts = [low for low, _ in buckets(n)]
    columns = (np.asarray(c, np.float64) for c in (nats, np.ones(n), byte_counts, words))
    return Losses(*(np.add.reduceat(column, starts) for column in columns))


def buckets(n: int) -> list[tuple[int, int]]:
    """Where the buckets [low, high) of a text of n tokens lie: [0, 16), [16, 32), [32, 64) and so on."""
    found, low, high = [], 0, FIRST
    while low < n:
        found.append((low, high))
        low, high = high, 2 * high
    return found


def estimates(texts: Sequence[Losses]) -> dict[str, Estimate]:
    """perplexity (e to the nats per token), nats_per_token, nats_per_byte, and nats_per_word if there are
    words, over some texts."""
    whole = Losses(*(np.array([column.sum() for column in columns]) for columns in zip(*texts, strict=True)))
    token = ratio(whole.nats, whole.tokens)
    units = {"token": whole.tokens, "byte": whole.bytes, "word": whole.words}
    return {
        **{f"nats_per_{name}": ratio(whole.nats, count) for name, count in units.items() if count.sum()},
        "perplexity": Estimate(
            _exponential(token.value), _exponential(token.low), _exponential(token.high), token.n
        ),
    }


def _exponential(nats: float) -> float:
    """e to the nats; infinite where a model has diverged."""
    return math.exp(nats) if nats < 700 or math.isnan(nats) else math.inf


def over_positions(texts: Sequence[Losses]) -> dict[tuple[int, int], Estimate]:
    """Nats per token by bucket of the tokens before, each over the texts that reach it."""
    found = {}
    longest = max(int(text.tokens.sum()) for text in texts)
    for i, bucket in enumerate(buckets(longest)):
        there = [text for text in texts if len(text.tokens) > i]
        found[bucket] = ratio(
            np.array([text.nats[i] for text in there]), np.array([text.tokens[i] for text in there])
        )
    return found


def ratio(values: np.ndarray, units: np.ndarray) -> Estimate:
    """Sum of values over sum of units, [texts] each; some text has units.

    Its 95 % interval is Student's over texts, of the linearised ratio: texts may hold different numbers of
    units, and tokens of one text need not be independent. NaN bounds for one text.
    """
    n, total = len(values), float(units.sum())
    value = float(values.sum()) / total
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    residual = values - value * units
    error = float(np.sqrt(n / (n - 1) * np.square(residual).sum())) / total
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return Estimate(value, value - half, value + half, n)
