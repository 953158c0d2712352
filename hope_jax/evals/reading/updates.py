"""What writes have done, by memory and level, for the results of evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hope_jax.memory.state import WriteStats
from hope_jax.models.lm import HopeModel

Updates = dict[str, dict[str, np.ndarray]]
""" "memory/level" -> name -> float [B]: of `WriteStats` over layers and readings; sums, but of `_LARGEST` the
largest."""

_LARGEST = ("write_norm", "delta_norm")
_COUNTED = (
    "updates_applied", "chunk_tokens", "grad_norm", "surprise_value", "write_clip_hits", "delta_clip_hits",
    *_LARGEST,
)  # fmt: skip
"""What the padding of a batch has no part in."""


def add(total: Updates, stats: Mapping[str, Mapping[str, WriteStats]]) -> None:
    """Adds the statistics of one reading, leaves [L, B], to `total`."""
    for memory, levels in jax.device_get(stats).items():
        for level, counts in levels.items():
            merge(total, {f"{memory}/{level}": _over_layers(counts)})


def merge(total: Updates, more: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds updates to `total`."""
    for level, counts in more.items():
        known = total.setdefault(level, {})
        for name, value in counts.items():
            join = np.maximum if name in _LARGEST else np.add
            known[name] = join(known.get(name, 0.0), value)


def count_texts(
    total: Updates, model: HopeModel, lengths: Sequence[int], readings: Mapping[str, int]
) -> None:
    """Counts of the memories that write while they read, without the chunks of padding, which write nothing.

    lengths: tokens of each context. readings: by memory, how often a layer of it has read them.
    """
    tokens = np.array(lengths, float)
    for name, memory in model.stream_memories().items():
        for level, chunk in memory.periods().items():
            counts = total[f"{name}/{level}"]
            counts["updates_applied"] = readings[name] * np.ceil(tokens / chunk)
            counts["chunk_tokens"] = readings[name] * tokens


def as_json(total: Mapping[str, Mapping[str, Any]], i: int = 0) -> dict[str, dict[str, float]]:
    """The updates of context i."""
    return {
        level: {name: float(np.atleast_1d(values)[i]) for name, values in counts.items()}
        for level, counts in total.items()
    }


def _over_layers(counts: WriteStats) -> dict[str, np.ndarray]:
    found = {}
    for name in _COUNTED:
        value = getattr(counts, name)
        found[name] = value.max(0) if name in _LARGEST else value.sum(0)
    return found
