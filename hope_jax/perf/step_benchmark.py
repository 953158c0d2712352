"""The whole train step of every variant and mode at the pilot's width, beside the transformer's.

`step/MODE/VARIANT` compares `transformer` with a variant in one mode: state donated, memories, teach signals,
writes, outer gradient and outer step as training runs them. Width 512, 8 heads, vocabulary 32000, the pilot's
CMS levels, TITAN memory, inner optimizer and online chunk of 32 tokens; 2 layers, one row of 256 tokens,
float32, AdamW. `step/MODE-TOKENS/VARIANT` is the same in longer rows: the pilot's own of 2,048, and of 512
through the writes.
"""

from collections.abc import Iterator
from functools import partial

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.perf.runs import step_case, timed_step
from hope_jax.perf.timing import Case, Comparison

BASE = "transformer"
VARIANTS = ("transformer_pp", "hope_attention", "hope_selfmod", "hope_hybrid", "titan", "gated_deltanet")
MODES = ("online", "two_pass", "through_writes")


LONGER = (("online", 2048), ("through_writes", 512))
TEACH_DRIVEN = ("hope_attention", "hope_hybrid")


def config(variant: str, mode: str, tokens: int = 256) -> ExperimentConfig:
    """One row a step, of a variant in a mode."""
    return timed_step(variant, train__algorithm_mode=mode, data__batch_size=1, data__seq_len=tokens)


def _cases(variant: str, mode: str, tokens: int = 256) -> tuple[Case, ...]:
    return tuple(step_case(each, config(each, mode, tokens)) for each in (BASE, variant))


def comparisons() -> Iterator[Comparison]:
    """Every mode and variant, then longer rows."""
    for mode in MODES:
        for variant in VARIANTS:
            yield Comparison(f"step/{mode}/{variant}", partial(_cases, variant, mode))
    for mode, tokens in LONGER:
        for variant in TEACH_DRIVEN:
            yield Comparison(f"step/{mode}-{tokens}/{variant}", partial(_cases, variant, mode, tokens))
