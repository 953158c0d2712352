"""The whole train step of every variant and mode at the pilot's width, beside the transformer's.

`step/MODE/VARIANT` compares `transformer` with a variant in one mode: state donated, memories, teach signals,
writes, outer gradient and outer step as training runs them. Width 512, 8 heads, vocabulary 32000, the pilot's
CMS levels, TITAN memory, inner optimizer and online chunk of 32 tokens; 2 layers, one row of 256 tokens,
float32, AdamW. The goal is a share of the peak of at least three quarters of the transformer's: per useful
operation (docs/speed.md), memories cost as little as attention and MLPs.
"""

from collections.abc import Iterator
from functools import partial

from hope_jax.benchmarks.runs import step_case, timed_step
from hope_jax.config import ExperimentConfig
from hope_jax.timing import Case, Comparison, Goal

BASE = "transformer"
VARIANTS = ("transformer_pp", "hope_attention", "hope_selfmod", "hope_hybrid", "titan")
MODES = ("online", "two_pass", "through_writes")


def config(variant: str, mode: str) -> ExperimentConfig:
    """One row a step, of a variant in a mode."""
    return timed_step(variant, train__algorithm_mode=mode, data__batch_size=1)


def _cases(variant: str, mode: str) -> tuple[Case, ...]:
    goal = (Goal("share_ratio", 0.75),)
    return step_case(BASE, config(BASE, mode)), step_case(variant, config(variant, mode), goal)


def comparisons() -> Iterator[Comparison]:
    """Every mode and variant."""
    for mode in MODES:
        for variant in VARIANTS:
            yield Comparison(f"step/{mode}/{variant}", partial(_cases, variant, mode))
