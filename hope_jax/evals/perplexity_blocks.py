"""Losses summed over blocks of tokens, and what is estimated of them: nats per unit with intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from hope_jax.evals.statistics import Estimate

BLOCK = 128
"""Tokens of a block at most; blocks lie in one position bucket each."""

FIRST = 16
"""Where the first position bucket ends; the others end at the powers of two after it."""


class Losses(NamedTuple):
    """Of each block: position of its first token, sum of -log p in nats, tokens, bytes, words; [blocks]."""

    start: np.ndarray
    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray


def block_losses(nats: np.ndarray, byte_counts: np.ndarray, words: np.ndarray) -> Losses:
    """The losses of one text by block; arguments: of each token, [n] with n > 0."""
    n = len(nats)
    powers = [FIRST << i for i in range((BLOCK // FIRST).bit_length())]
    start = np.array([0, *(p for p in powers if p < n), *range(2 * BLOCK, n, BLOCK)])
    columns = (np.asarray(c, np.float64) for c in (nats, np.ones(n), byte_counts, words))
    return Losses(start, *(np.add.reduceat(column, start) for column in columns))


def joined(parts: Sequence[Losses]) -> Losses:
    """The blocks of several texts."""
    return Losses(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def estimates(losses: Losses) -> dict[str, Estimate]:
    """perplexity (e to the nats per token), nats_per_token, nats_per_byte, and nats_per_word if there are
    words."""
    token = ratio(losses.nats, losses.tokens)
    units = {"token": losses.tokens, "byte": losses.bytes, "word": losses.words}
    return {
        **{f"nats_per_{name}": ratio(losses.nats, count) for name, count in units.items() if count.sum()},
        "perplexity": Estimate(
            _exponential(token.value), _exponential(token.low), _exponential(token.high), token.n
        ),
    }


def _exponential(nats: float) -> float:
    """e to the nats; infinite where a model has diverged."""
    return math.exp(nats) if nats < 700 or math.isnan(nats) else math.inf


def over_positions(losses: Losses) -> dict[tuple[int, int], Estimate]:
    """Nats per token by bucket [low, high) of the tokens before: [0, 16), [16, 32), [32, 64) and so on."""
    found = {}
    low, high = 0, FIRST
    while low <= losses.start.max():
        inside = (losses.start >= low) & (losses.start < high)
        found[low, high] = ratio(losses.nats[inside], losses.tokens[inside])
        low, high = high, 2 * high
    return found


def ratio(values: np.ndarray, units: np.ndarray) -> Estimate:
    """Sum of values over sum of units, [blocks] each; some block has units.

    Its 95 % interval is Student's over blocks, of the linearised ratio: blocks may hold different numbers of
    units. Neighbouring blocks of a text are taken as independent. NaN bounds for one block.
    """
    n, total = len(values), float(units.sum())
    value = float(values.sum()) / total
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    residual = values - value * units
    error = float(np.sqrt(n / (n - 1) * np.square(residual).sum())) / total
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return Estimate(value, value - half, value + half, n)
