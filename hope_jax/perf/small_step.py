"""The whole online step at a small width, against the published code's tokens/s on this machine.

Width 128, 2 layers, 4 heads, vocabulary 8192, rows of 256 tokens in online chunks of 64, AdamW, float32, the
pilot's CMS levels and TITAN memory; one row a step (`b1`) and four (`b4`). The goals are 60 times what the
published code reached on two CPU cores. What a step can reach at most is the peak over its operations a token
(the JSON's `tokens_per_second_at_peak`): where a goal lies above that, no implementation meets it.
"""

from collections.abc import Iterator
from functools import partial

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.perf.runs import step_case, timed_step
from hope_jax.perf.timing import Case, Comparison, Goal

PUBLISHED = {"transformer": 475, "hope_attention": 87, "hope_hybrid": 89, "hope_selfmod": 68}
"""Variant -> tokens/s of the published code on two CPU cores."""

TIMES = 60


def config(variant: str, batch: int) -> ExperimentConfig:
    """The pilot's mechanisms at the small width."""
    return timed_step(
        variant,
        model__dim=128,
        model__heads=4,
        model__vocab_size=8192,
        data__batch_size=batch,
        train__online_chunk_size=64,
    )


def _cases(batch: int) -> tuple[Case, ...]:
    return tuple(
        step_case(variant, config(variant, batch), (Goal("tokens_per_second", float(TIMES * published)),))
        for variant, published in PUBLISHED.items()
    )


def comparisons() -> Iterator[Comparison]:
    """One row a step, and four."""
    for batch in (1, 4):
        yield Comparison(f"step_small/b{batch}", partial(_cases, batch))
