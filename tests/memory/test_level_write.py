"""A chunk's periods at once and one after the other are the same write, for every linear inner optimizer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import level_write, mlp_memory
from hope_jax.memory.level_write import LevelWriter, init_level, measured
from hope_jax.memory.levels import Level
from hope_jax.memory.period_write import LevelTokens, MemoryOptions, PeriodWriter, WriteRules, settled
from hope_jax.memory.rules import OPTIMIZERS, RULES
from hope_jax.memory.state import Reduce, own

N, D, H = 12, 5, 8
LINEAR = [v for v in OPTIMIZERS if RULES[v].linear]


class OneByOne(LevelWriter):
    def write_periods(self, state: Any, by_period: Any) -> Any:
        return PeriodWriter.write_periods(self, state, by_period)


@pytest.mark.parametrize("bounds", [(0.0, 0.0), (0.03, 0.05)])
@pytest.mark.parametrize("biases", [True, pytest.param(False, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("period", [pytest.param(1, marks=pytest.mark.nightly), 3])
@pytest.mark.parametrize("variant", LINEAR)
def test_periods_at_once_are_periods_one_by_one(
    variant: str, period: int, biases: bool, bounds: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    params = {"w_up": rng.normal(size=(D, H)), "w_down": rng.normal(size=(H, D))}
    if biases:
        params |= {"b_up": rng.normal(size=H), "b_down": rng.normal(size=D)}
    params = jax.tree.map(jnp.asarray, params)
    spec = Level(period, 0.1, variant, beta=0.8)
    rules = WriteRules(N, MemoryOptions("l2", 0.2, *bounds))
    mask = jnp.asarray(rng.random(N) < 0.7)
    surprise = jnp.asarray(rng.random(N))
    x, teach = jnp.asarray(rng.normal(size=(2, N, D)))

    def run(writer: type[LevelWriter], x: jax.Array, teach: jax.Array) -> Any:
        state = init_level(spec, params, rules)
        delta = jax.tree.map(lambda w: 0.01 * jnp.cos(jnp.arange(w.size)).reshape(w.shape), state.delta)
        state = measured(state._replace(delta=delta))
        for _ in range(2):
            factors = mlp_memory.write_factors(params, state.delta, x, jnp.where(mask[:, None], teach, 0))
            one = writer(rules, spec, params, mlp_memory.group_norms(params), own)
            state, stats = one.write(state, LevelTokens(factors, mask, surprise, mask), jnp.int32(0), False)
        return state, stats

    def value(writer: type[LevelWriter], x: jax.Array, teach: jax.Array) -> jax.Array:
        leaves = [t for t in jax.tree.leaves(run(writer, x, teach)[0]) if t.dtype == jnp.float64]
        return sum(jnp.sum(jnp.sin(leaf + jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves)

    both = LevelWriter, OneByOne
    quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    states = [quick(partial(run, writer))(x, teach) for writer in both]
    gradients = [quick(jax.grad(partial(value, writer), argnums=(0, 1)))(x, teach) for writer in both]
    ends, stats = zip(*states, strict=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), *ends)
    # Statistics are float32 whatever the state is.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), *gradients)
    assert float(stats[0].updates_applied) > 1
    if bounds[0]:
        assert float(stats[0].write_clip_hits + stats[0].delta_clip_hits) > 0


@pytest.mark.parametrize("variant", LINEAR)
@pytest.mark.parametrize(("tokens", "shared"), [(100, True), (8, False), (16, True)])
def test_blocks_of_periods_and_shared_states(
    variant: str, tokens: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two examples, that share a state or have their own, in blocks of 33, 2 (with a rest) and 2 periods."""
    monkeypatch.setattr(level_write, "TOKENS_AT_ONCE", tokens)
    rng = np.random.default_rng(1)
    params = {
        "w_up": rng.normal(size=(D, H)),
        "w_down": rng.normal(size=(H, D)),
        "b_down": rng.normal(size=D),
    }
    params = jax.tree.map(jnp.asarray, {"b_up": rng.normal(size=H), **params})
    spec, rules = Level(4, 0.1, variant, beta=0.8), WriteRules(N, MemoryOptions("l2", 0.2, 0.03, 0.05))
    x, teach = jnp.asarray(rng.normal(size=(2, 2, N, D)))
    mask, surprise = jnp.asarray(rng.random((2, N)) < 0.7), jnp.asarray(rng.random((2, N)))
    reduce = Reduce(("examples",)) if shared else own

    def run(writer: type[LevelWriter], x: jax.Array, teach: jax.Array, mask: Any, surprise: Any) -> Any:
        state = init_level(spec, params, rules)
        factors = mlp_memory.write_factors(params, state.delta, x, jnp.where(mask[:, None], teach, 0))
        one = writer(rules, spec, params, mlp_memory.group_norms(params), reduce)
        return one.write(state, LevelTokens(factors, mask, surprise, mask), jnp.int32(0), False)

    def over(writer: type[LevelWriter]) -> Any:
        mapped = jax.vmap(partial(run, writer), axis_name="examples", out_axes=(None if shared else 0, 0))
        return jax.jit(mapped, compiler_options={"xla_backend_optimization_level": 0})

    (state, stats), (wanted, wanted_stats) = (
        over(w)(x, teach, mask, surprise) for w in (LevelWriter, OneByOne)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), state, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stats, wanted_stats)
    assert float(stats.updates_applied.min()) == 3


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("variant", LINEAR)
def test_a_period_that_spans_chunks_is_written_alike_by_branch_and_by_mask(variant: str, dtype: str) -> None:
    """What CPUs do and what GPUs do, over two periods and a half of which the gate closes the second."""
    rng, read_in = np.random.default_rng(2), jnp.dtype(dtype)
    wide = jnp.float64 if dtype == "float64" else jnp.float32
    params = {
        "w_up": jnp.asarray(rng.normal(size=(D, H)), wide),
        "w_down": jnp.asarray(rng.normal(size=(H, D)), wide),
    }
    spec, rules = (
        Level(3 * N, 0.1, variant, beta=0.8),
        WriteRules(N, MemoryOptions("loss", 0.2, 0.03, 0.05), read_in=read_in),
    )
    writer = LevelWriter(rules, spec, params, mlp_memory.group_norms(params), own)
    tolerance = 1e-12 if dtype == "float64" else 2e-2
    quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    forms = quick(partial(PeriodWriter.written_if, writer)), quick(writer.written_by_mask)
    ends = []

    def compare(due: bool, state: Any) -> Any:
        (new, stats), (masked, masked_stats) = (form(jnp.asarray(due), state) for form in forms)
        assert bool(masked.rounded) == (dtype == "bfloat16")
        for name, rounded in dict(masked.rounded).items():
            np.testing.assert_array_equal(rounded, masked.delta[name].astype(read_in))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=tolerance), settled(masked), new)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-2), masked_stats, stats)
        ends.append(float(stats.updates_applied))
        return new

    state = writer.init()
    for chunk in range(8):
        x, teach = jnp.asarray(rng.normal(size=(2, N, D)), read_in)
        mask = jnp.asarray(rng.random(N) < 0.7)
        surprise = jnp.full(N, 0.1 if 3 <= chunk < 6 else 1.0)
        factors = mlp_memory.write_factors(params, state.delta, x, jnp.where(mask[:, None], teach, 0))
        tokens = LevelTokens(factors, mask, surprise, mask)
        state = state._replace(pending=writer.hold(state.pending, tokens, jnp.int32(chunk * N)))
        state = compare(chunk % 3 == 2, state)
    assert ends == [0, 0, 1, 0, 0, 0, 0, 0]
    assert float(state.pending.ended.seen) == 2 * N
