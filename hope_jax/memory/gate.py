"""The surprise gate: which periods are written, and with which of their tokens."""

import jax.numpy as jnp

from hope_jax.core.types import Array
from hope_jax.memory.levels import MemoryOptions


def token_mask(options: MemoryOptions, surprise_n: Array, active_n: Array) -> Array:
    """Which tokens take part in a write, bool [n]. Under `l2` unsurprising tokens are masked too."""
    if options.surprise_threshold is None or options.surprise_metric != "l2":
        return active_n
    return active_n & (surprise_n >= options.surprise_threshold)


def is_open(options: MemoryOptions, mean_surprise: Array) -> Array:
    """Whether a period of this mean surprise may be written."""
    if options.surprise_threshold is None:
        return jnp.ones((), bool)
    return mean_surprise >= options.surprise_threshold
