"""The surprise gate: which periods are written, and with which of their tokens (SPEC §2.4)."""

from typing import NamedTuple

import jax.numpy as jnp

from hope_jax.core.types import Array

METRICS = ("l2", "loss", "logit_entropy")


class GateRule(NamedTuple):
    """metric: one of `METRICS`. threshold: smallest mean surprise that opens the gate; None: always open."""

    metric: str = "l2"
    threshold: float | None = None


def token_mask(rule: GateRule, surprise_n: Array, active_n: Array) -> Array:
    """bool [n]: tokens that take part in a write. Under `l2`, unsurprising tokens are masked too."""
    if rule.threshold is None or rule.metric != "l2":
        return active_n
    return active_n & (surprise_n >= rule.threshold)


def is_open(rule: GateRule, mean_surprise: Array) -> Array:
    """bool: whether a period of this mean surprise may be written."""
    if rule.threshold is None:
        return jnp.ones((), bool)
    return mean_surprise >= rule.threshold
