"""A configuration that compiles in seconds, for the benchmarks of whole steps."""

from typing import Any

from hope_jax.config.experiment import ExperimentConfig, base_config, level
from hope_jax.perf.steps import changed


def config(variant: str = "hope_attention", **values: Any) -> ExperimentConfig:
    """Width 16, 2 layers, rows of 32 tokens in online chunks of 16; values as of `steps.changed`."""
    base = base_config()
    base.cms.levels = {"cms_fast": level(update_period=8, lr=1e-3)}
    base.model.update({"block_variant": variant, "dim": 16, "num_layers": 2, "heads": 2, "vocab_size": 64})
    base.data.update({"seq_len": 32, "batch_size": 2})
    base.train.online_chunk_size = 16
    base.optim.name = "adamw"
    return changed(base, **values)
