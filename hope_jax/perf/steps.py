"""The whole train step of every variant and mode, beside the transformer's and the published code's.

`step/MODE/VARIANT` compares `transformer` with a variant in one mode: state donated, memories, teach signals,
writes, outer gradient and outer step as training runs them. Width 512, 8 heads, vocabulary 32000, the pilot's
CMS levels, TITAN memory, inner optimizer and online chunk of 32 tokens; 2 layers, one row of 256 tokens,
float32, AdamW. `step/MODE-TOKENS/VARIANT` is the same in longer rows: the pilot's own of 2,048, and of 512
through the writes.

`step_small` is the online step of width 128, 2 layers, 4 heads, vocabulary 8192, rows of 256 tokens in online
chunks of 64; one row a step (`b1`) and four (`b4`). The goals are 60 times what the published code reached on
two CPU cores. What a step can reach at most is the peak over its operations a token (the JSON's
`tokens_per_second_at_peak`): where a goal lies above that, no implementation meets it.
"""

from collections.abc import Iterator
from functools import partial

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.perf.runs import step_case, timed_step
from hope_jax.perf.timing import Case, Comparison, Goal

BASE = "transformer"
VARIANTS = ("transformer_pp", "hope_attention", "hope_selfmod", "hope_hybrid", "titan", "gated_deltanet")
MODES = ("online", "two_pass", "through_writes")
LONGER = (("online", 2048), ("through_writes", 512))
TEACH_DRIVEN = ("hope_attention", "hope_hybrid")

PUBLISHED = {"transformer": 475, "hope_attention": 87, "hope_hybrid": 89, "hope_selfmod": 68}
"""Variant -> tokens/s of the published code on two CPU cores."""

TIMES = 60.0


def pilot_step(variant: str, mode: str, tokens: int = 256) -> ExperimentConfig:
    """One row a step, of a variant in a mode."""
    return timed_step(variant, train__algorithm_mode=mode, data__batch_size=1, data__seq_len=tokens)


def small(variant: str, batch: int) -> ExperimentConfig:
    """The pilot's mechanisms at the small width."""
    sizes = {"model__dim": 128, "model__heads": 4, "model__vocab_size": 8192}
    return timed_step(variant, **sizes, data__batch_size=batch, train__online_chunk_size=64)


def _against_base(variant: str, mode: str, tokens: int = 256) -> tuple[Case, ...]:
    return tuple(step_case(each, pilot_step(each, mode, tokens)) for each in (BASE, variant))


def _small_cases(batch: int) -> tuple[Case, ...]:
    return tuple(
        step_case(variant, small(variant, batch), (Goal("tokens_per_second", TIMES * published),))
        for variant, published in PUBLISHED.items()
    )


def comparisons() -> Iterator[Comparison]:
    """Every mode and variant, then longer rows, then small steps of one row and of four."""
    for mode in MODES:
        for variant in VARIANTS:
            yield Comparison(f"step/{mode}/{variant}", partial(_against_base, variant, mode))
    for mode, tokens in LONGER:
        for variant in TEACH_DRIVEN:
            name = f"step/{mode}-{tokens}/{variant}"
            yield Comparison(name, partial(_against_base, variant, mode, tokens))
    for batch in (1, 4):
        yield Comparison(f"step_small/b{batch}", partial(_small_cases, batch))
