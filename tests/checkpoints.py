"""Small checkpoints of real models, for the commands that read one."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.values import resolve
from hope_jax.core import files
from hope_jax.core.types import PyTree
from hope_jax.data.tokenizer import Tokenizer
from hope_jax.storage.checkpoint import Checkpointer
from hope_jax.training import telemetry
from hope_jax.training.step import Step

SMALL = {
    "model": {"vocab_size": 1024, "dim": 16, "num_layers": 1, "heads": 2, "block_variant": "hope_attention"},
    "cms": {"levels": {"fast": {"update_period": 4, "lr": 0.1}, "slow": {"update_period": 32, "lr": 0.1}}},
    "data": {"seq_len": 32, "batch_size": 2},
    "train": {"steps": 2},
}  # fmt: skip


def small_config(**groups: dict[str, Any]) -> ExperimentConfig:
    """`SMALL` with keys of its groups changed."""
    return resolve({name: {**SMALL.get(name, {}), **groups.get(name, {})} for name in {**SMALL, **groups}})


def save_small(workdir: Path, config: ExperimentConfig) -> Path:
    """A checkpoint of the first state, whose parameters are moved a little: as after a short training."""
    meta = {
        "tokenizer_digest": Tokenizer.load(config.data.tokenizer).sha256,
        "versions": telemetry.versions(),
    }
    state, rng = jax.jit(Step(config).init)(), np.random.default_rng(0)

    def move(leaf: PyTree) -> PyTree:
        moves = 0.1 * rng.normal(size=leaf.shape)
        return leaf + moves.astype(leaf.dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf

    state = state._replace(params=jax.tree.map(move, state.params), fast=jax.tree.map(move, state.fast))
    folder = workdir.absolute() / files.CHECKPOINT_DIR
    with Checkpointer(folder, config.checkpoint, files.as_plain(config), meta) as checkpointer:
        checkpointer.save(2, state, {"next_batch": 2}, {})
        checkpointer.wait()
    return workdir
