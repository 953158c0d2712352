"""A CMS without levels is the identity: the block keeps what stands before it, and has no such memory."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core.types import Batch
from hope_jax.memory.levels import Level
from hope_jax.models.lm import HopeModel
from hope_jax.training.step import Step
from tests.checkpoints import small_config
from tests.specs import small_spec

QUICK = {"xla_backend_optimization_level": 0}
MEMORIES: dict[str, dict[str, tuple[str, ...]]] = {
    "hope_attention": {},
    "hope_hybrid": {"titan": ("titan",)},
    "hope_selfmod": {"self_mod": ("generators", "memory")},
}


def model_of(
    variant: str, connection: str = "sequential", levels: Mapping[str, Level] = MappingProxyType({})
) -> HopeModel:
    return HopeModel(small_spec(variant, 4, levels, own=(2, 4), cms={"connection": connection}))


@pytest.mark.parametrize("variant", MEMORIES)
def test_it_has_no_parameters_and_no_memory(variant: str) -> None:
    model = model_of(variant)
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    assert "cms" not in params["blocks"]
    assert model.level_names() == MEMORIES[variant]
    fast = jax.eval_shape(lambda p: model.init_fast_state(p, 2), params)
    assert all(set(layer) == set(MEMORIES[variant]) for layer in fast)
    assert all(set(layer) == {"block", *model.memories()} for layer in model.init_taps(1, 4))


def test_the_hybrid_is_then_the_titan_baseline() -> None:
    hybrid, titan, key = model_of("hope_hybrid"), model_of("titan"), jax.random.key(0)
    params = jax.jit(titan.init_params, compiler_options=QUICK)(key)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        lambda t: t.shape, jax.eval_shape(hybrid.init_params, key)
    )
    tokens = jnp.arange(8)[None] % 11
    reads = [
        jax.jit(lambda p, m=m: m.read(p, {}, None, tokens, jnp.ones_like(tokens)).hidden)(params)
        for m in (hybrid, titan)
    ]
    np.testing.assert_array_equal(*reads)


@pytest.mark.parametrize("connection", ["independent", "nested"])
def test_a_connection_of_one_level_reads_as_the_chain_does(connection: str) -> None:
    levels = {"only": Level(4, 0.1)}
    chain, other = model_of("hope_attention", levels=levels), model_of("hope_attention", connection, levels)
    params = jax.jit(other.init_params, compiler_options=QUICK)(jax.random.key(0))
    tokens = jnp.arange(8)[None] % 11
    reads = [
        jax.jit(lambda p, m=m: m.read(p, {}, None, tokens, jnp.ones_like(tokens)).hidden)(params)
        for m in (chain, other)
    ]
    np.testing.assert_allclose(*reads, rtol=1e-6)
    assert other.level_names() == {"cms": ("only",)}


NIGHTLY = pytest.mark.nightly
STEPS = [
    pytest.param("hope_attention", "online", {}),
    pytest.param("hope_attention", "two_pass", {"scope": "batch", "lifetime": "persistent"}, marks=NIGHTLY),
    pytest.param("hope_attention", "through_writes", {}, marks=NIGHTLY),
    pytest.param("hope_hybrid", "online", {"reset_at_document": True}, marks=NIGHTLY),
    pytest.param("hope_hybrid", "two_pass", {"scope": "batch", "lifetime": "persistent"}, marks=NIGHTLY),
    pytest.param("hope_selfmod", "online", {}, marks=NIGHTLY),
    pytest.param("hope_selfmod", "through_writes", {}, marks=NIGHTLY),
]


@pytest.mark.parametrize(("variant", "mode", "memory"), STEPS)
def test_it_trains_and_is_evaluated(variant: str, mode: str, memory: dict[str, object]) -> None:
    config = small_config(
        model={"block_variant": variant},
        cms={"levels": {}},
        self_modifying_titans={"chunk_size": 4, "chunk_size_memory": 16},
        train={"algorithm_mode": mode},
        memory=memory,
    )
    step, rng = Step(config), np.random.default_rng(0)
    tokens = rng.integers(1, 1024, (2, 33)).astype(np.int32)
    batch = Batch(*map(jnp.asarray, (tokens[:, :-1], tokens[:, 1:], np.ones((2, 32), np.int32))))
    state = jax.jit(step.init)()
    new, metrics = jax.jit(step.train, compiler_options=QUICK)(state, batch)
    sums = jax.jit(step.evaluate, compiler_options=QUICK)(state, batch)
    assert set(metrics["writes"]) == {name for names in MEMORIES[variant].values() for name in names}
    assert float(metrics["grad_norm"]) > 0 and int(new.step) == 1
    if variant == "hope_attention":
        assert step.rule.chunk_size == 32 and "loss_sum_no_writes" not in sums
