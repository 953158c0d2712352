"""The whole online step at a small width, against the published code's tokens/s on this machine.

Width 128, 2 layers, 4 heads, vocabulary 8192, rows of 256 tokens in online chunks of 64, AdamW, float32, the
pilot's CMS levels and TITAN memory; one row a step (`b1`) and four (`b4`). The goals are 60 times what the
published code reached on two CPU cores. What a step can reach at most is the peak over its operations a token
(the JSON's `tokens_per_second_at_peak`): where a goal lies above that, no implementation meets it.
"""

from collections.abc import Iterator
from functools import partial

from hope_jax.benchmarks.runs import changed, step_case
from hope_jax.config import ExperimentConfig
from hope_jax.presets import pilot_config, set_size
from hope_jax.timing import Case, Comparison, Goal

PUBLISHED = {"transformer": 475, "hope_attention": 87, "hope_hybrid": 89, "hope_selfmod": 68}
"""Variant -> tokens/s of the published code on two CPU cores."""

TIMES = 60


def config(variant: str, batch: int) -> ExperimentConfig:
    """The pilot's mechanisms at the row's sizes; see `hope_jax.benchmarks.step.config` for the rates."""
    pilot = pilot_config()
    set_size(pilot, dim=128, num_layers=2, heads=4)
    pilot.model.teach_schedule.update({"warmup_steps": 0, "decay_start": 0, "decay_duration": 0})
    pilot.optim.update({"name": "adamw", "lr": 1e-6})
    return changed(
        pilot,
        model__block_variant=variant,
        model__vocab_size=8192,
        data__seq_len=256,
        data__batch_size=batch,
        data__mixture={},
        train__online_chunk_size=64,
        train__compute_dtype="float32",
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
