"""What an example computes and writes does not depend on the other examples of the batch."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.core.types import Batch, PyTree
from hope_jax.learning import modes
from hope_jax.learning.chunk import OnlineRule, State
from hope_jax.learning.teach import Teach
from hope_jax.memory.levels import Level
from hope_jax.models.blocks import BLOCKS
from hope_jax.models.lm import HopeModel
from tests.close import at
from tests.specs import small_spec

QUICK = {"xla_backend_optimization_level": 0}
DOUBLE = jnp.dtype("float64")
TOKENS, VOCAB = 32, 11
MODES = {"online": 8, "through_writes": 8, "two_pass": TOKENS}
DAILY = {("hope_hybrid", "online"), ("hope_attention", "two_pass")}
"""Of the variants with memories; the others are nightly."""

CASES = [
    pytest.param(
        variant,
        mode,
        marks=()
        if variant in ("transformer", "transformer_pp") or (variant, mode) in DAILY
        else pytest.mark.nightly,
    )
    for variant in BLOCKS
    for mode in MODES
]


def model_of(variant: str, chunk: int, optimizer: str = "momentum", scope: str = "example") -> HopeModel:
    levels = {"fast": Level(4, 0.2), "slow": Level(16, 0.1)}
    return HopeModel(
        small_spec(
            variant, chunk, levels, titan=Level(8, 0.1, optimizer), own_options={"eta_scale": 0.05},
            memory={"scope": scope}, dtype=DOUBLE,
        )
    )  # fmt: skip


def rows(seed: int, count: int = 2) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (count, TOKENS + 1))
    ones = jnp.ones((count, TOKENS), jnp.int32)
    return Batch(jnp.asarray(tokens[:, :-1], jnp.int32), jnp.asarray(tokens[:, 1:], jnp.int32), ones)


def train_pass(model: HopeModel, mode: str, params: PyTree, batch: Batch) -> tuple[PyTree, State]:
    """The outer gradient of a mode, and what the streams have written."""
    chunk, one = model.spec.chunk_size, jnp.ones(())
    rule, fast = OnlineRule(chunk, chunk, Teach()), model.init_fast_state(params, len(batch.tokens))
    return modes.MODES[mode](model, rule, params, fast, batch, one)


@pytest.mark.parametrize(("variant", "mode"), CASES)
def test_an_example_does_not_see_the_others(variant: str, mode: str) -> None:
    model = model_of(variant, MODES[mode], "titans" if mode == "online" else "momentum")
    params = model.init_params(jax.random.key(0))
    probe = rows(9).tokens[:, :8]

    def run(batch: Batch) -> Any:
        fast = train_pass(model, mode, params, batch)[1].fast
        return fast, model.logits(params, model.read(params, fast, None, probe, jnp.ones_like(probe)).hidden)

    compiled = jax.jit(run, compiler_options=QUICK)
    batch, other = rows(1), rows(2)
    mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), batch, other)
    (fast, logits), (fast_mixed, logits_mixed) = compiled(batch), compiled(mixed)
    np.testing.assert_allclose(logits_mixed[0], logits[0], rtol=0, atol=1e-12)
    first, first_mixed = (at(tree, 0) for tree in (fast, fast_mixed))
    chex.assert_trees_all_close(first_mixed, first, rtol=0, atol=1e-12)
    if model.level_names():
        moved = max(float(jnp.abs(a[1] - b[1]).max()) for a, b in both_floats(fast, fast_mixed))
        assert moved > 1e-6 and float(jnp.abs(logits_mixed[1] - logits[1]).max()) > 1e-9


def both_floats(a: PyTree, b: PyTree) -> list[tuple[jax.Array, jax.Array]]:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [(x, y) for x, y in pairs if jnp.issubdtype(x.dtype, jnp.floating)]


@pytest.mark.nightly
def test_two_pass_differentiates_through_self_modifying_writes() -> None:
    model = model_of("hope_selfmod", TOKENS)
    params, batch = model.init_params(jax.random.key(0)), rows(1)
    run = jax.jit(lambda p: train_pass(model, "two_pass", p, batch), compiler_options=QUICK)
    gradient, result = run(params)
    for name in ("k", "v", "eta", "alpha", "memory"):
        assert float(optax.tree.norm(gradient["blocks"]["self_mod"][name])) > 1e-8, name
    way = jax.tree.map(lambda t: jnp.asarray(np.random.default_rng(3).normal(size=t.shape)), params)
    h = 1e-7

    def loss(by: float) -> Any:
        return run(jax.tree.map(lambda t, w: t + by * w, params, way))[1].sums.loss

    slope = (loss(h) - loss(-h)) / (2 * h)
    exact = sum(jnp.vdot(g, w) for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
    np.testing.assert_allclose(exact, slope, rtol=1e-6)
    assert result.stats["self_mod"]["memory"].updates_applied.min() == TOKENS // 8


def test_a_persistent_self_modifying_memory_moves_with_the_parameters() -> None:
    model = model_of("hope_selfmod", TOKENS, scope="batch")
    old = model.init_params(jax.random.key(0))
    new = jax.tree.map(lambda t: t + 0.1, old)
    fast = model.init_fast_state(old, 2)
    fresh = model.init_fast_state(new, 2)
    for a, b in both_floats(model.move(old, new, fast), fresh):
        np.testing.assert_allclose(a, b, atol=1e-12)
