"""The surprise gate: which periods are written, and with which of their tokens (SPEC §2.4)."""

from typing import NamedTuple

import jax.numpy as jnp

from hope_jax.types import Array

METRICS = ("l2", "loss", "logit_entropy")


class GateRule(NamedTuple):
    """metric: one of `METRICS`. threshold: smallest mean surprise that opens the gate; None: always open."""

    metric: str = "l2"
    threshold: float | None = None


class Surprise(NamedTuple):
    """Sums over the tokens of a period, from which its mean surprise follows.

    total: [] sum of the surprise of the counted tokens; tokens: [] their number.
    """

    total: Array
    tokens: Array


def token_mask(rule: GateRule, surprise_n: Array, active_n: Array) -> Array:
    """bool [n]: tokens that take part in a write. Under `l2`, unsurprising tokens are masked too."""
    if rule.threshold is None or rule.metric != "l2":
        return active_n
    return active_n & (surprise_n >= rule.threshold)


def measure(surprise_n: Array, counted_n: Array) -> Surprise:
    """Surprise sums over the last axis; tokens that are not counted leave the mean as it is."""
    counted = counted_n.astype(surprise_n.dtype)
    return Surprise(total=(surprise_n * counted).sum(-1), tokens=counted.sum(-1))


def mean_surprise(surprise: Surprise) -> Array:
    """[]: mean surprise per counted token, 0 for a period without any."""
    return surprise.total / jnp.maximum(surprise.tokens, 1)


def is_open(rule: GateRule, surprise: Surprise) -> Array:
    """bool []: whether the period may be written."""
    if rule.threshold is None:
        return jnp.ones((), bool)
    return mean_surprise(surprise) >= rule.threshold
