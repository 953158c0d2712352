"""Keys that make a step smaller change no number: the rows in parts, layers that are read again."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from hope_jax.cluster.sharding import make_mesh
from hope_jax.config import experiment as c
from hope_jax.core.types import Batch, FrozenMapping
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.self_mod import SelfModifyingTitans
from hope_jax.models.spec import Architecture
from hope_jax.optim.outer import Optim
from hope_jax.training.step import Step, jit_train

LEVELS = {"fast": Level(update_period=4, lr=0.1), "slow": Level(update_period=16, lr=0.1)}
ROWS, TOKENS, VOCAB, LAYERS = 4, 16, 32, 2


def settings(mode: str, variant: str, **train: Any) -> c.ExperimentConfig:
    cut = {"truncate_tokens": 16} if mode == "online" and variant == "hope_selfmod" else {}
    return c.ExperimentConfig(
        model=Architecture(variant, vocab_size=VOCAB, dim=16, num_layers=LAYERS, heads=2),
        cms=CmsOptions(FrozenMapping(LEVELS), hidden_multiplier=1),
        self_modifying_titans=SelfModifyingTitans(chunk_size=4, chunk_size_memory=8),
        memory=MemoryOptions(surprise_threshold=0.008),
        optim=Optim(name="adamw", lr=0.01, eps=1e-3),
        data=c.DataConfig(seq_len=TOKENS, batch_size=ROWS),
        train=c.TrainConfig(mode, online_chunk_size=8, compute_dtype="float64", **cut, **train),
    )


def batch() -> Batch:
    """Rows of different numbers of supervised tokens."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (ROWS, TOKENS + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[1, 3:] = targets[3, :9] = -1
    return Batch(*map(jax.numpy.asarray, (tokens[:, :-1], targets, np.ones_like(targets))))


def run(config: c.ExperimentConfig, *, evaluate: bool = False) -> tuple[Any, Any]:
    """The state after a step and its metrics, or an evaluation; and the program."""
    step = Step(config)
    function = step.evaluate if evaluate else step.train
    state = jax.jit(step.init)()
    traced = jax.jit(function).trace(state, batch())
    compiled = traced.lower().compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return compiled(state, batch()), (temporaries, str(traced.jaxpr).count(" remat2["))


def same(got: Any, wanted: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), got, wanted)


def test_the_whole_state_is_updated_in_place() -> None:
    """Parameters, optimizer and memories that persist: donated, and every array's place is used again."""
    memory = MemoryOptions(scope="batch", lifetime="persistent")
    config = dataclasses.replace(settings("two_pass", "titan"), memory=memory, optim=Optim(lr=0.01))
    mesh = make_mesh(jax.devices()[:1])
    step = Step(config, mesh)
    state = jax.eval_shape(step.init)
    analysis = jit_train(step, mesh).lower(state, batch()).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert analysis.alias_size_in_bytes >= size > 10_000
    assert analysis.output_size_in_bytes - analysis.alias_size_in_bytes < 10_000, "the metrics"


def others(mode: str, variant: str) -> Any:
    return pytest.param(mode, variant, marks=pytest.mark.nightly)


@pytest.mark.parametrize(
    ("mode", "variant"),
    [("two_pass", "hope_attention"), others("online", "hope_hybrid"), others("online", "hope_selfmod")],
)
def test_rows_in_parts_give_what_the_whole_batch_gives(mode: str, variant: str) -> None:
    (wanted, whole), (got, less) = (run(settings(mode, variant, accumulate=n)) for n in (1, 2))
    same(got, wanted)
    assert less[0] < 0.9 * whole[0]


@pytest.mark.nightly
def test_rows_in_parts_are_evaluated_as_the_whole_batch() -> None:
    parts = (settings("online", "hope_hybrid", accumulate=n) for n in (1, 4))
    (wanted, whole), (got, less) = (run(config, evaluate=True) for config in parts)
    same(got, wanted)
    assert less[0] < 0.9 * whole[0]


@pytest.mark.parametrize(
    ("mode", "variant"),
    [
        ("online", "hope_attention"),
        others("two_pass", "hope_hybrid"),
        others("online", "hope_hybrid"),
        others("online", "hope_selfmod"),
        others("through_writes", "titan"),
        others("two_pass", "gated_deltanet"),
    ],
)
def test_layers_that_are_read_again_give_what_they_gave(mode: str, variant: str) -> None:
    (wanted, before), (got, after) = (run(settings(mode, variant, remat=on)) for on in ("none", "layers"))
    same(got, wanted)
    assert after[1] >= before[1] + LAYERS
