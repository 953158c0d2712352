"""Gated DeltaNet against the loop over tokens: outputs, states, gradients, calls, padding, shared states."""

from functools import cache, partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.gated_deltanet import GatedDeltaNet
from hope_jax.memory.initial import Initial, Params
from tests.close import assert_close, value
from tests.oracle.gated_deltanet import read

DIM, HEADS, TOKENS = 6, 2, 19
MEMORY = GatedDeltaNet(DIM, HEADS, conv_window=4, chunk=8)
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DOCUMENTS = np.repeat([1, 2, 3, 1], [8, 2, 1, 8])
"""Some shorter than the window; a number comes again."""


def first(memory: GatedDeltaNet, seed: int, dtype: Any = jnp.float32) -> Any:
    """The modern style's parameters of a model of two layers."""
    begin = Initial(modern=True, num_layers=2, dtype=jnp.dtype(dtype))
    return Params(memory.entries(begin), dtype).init(jax.random.key(seed))["params"]


@cache
def make_params() -> dict[str, jax.Array]:
    """As at the start, with decays that let something live and scales that differ."""
    params = first(MEMORY, 0, jnp.float64)
    scale = jnp.linspace(0.5, 2, DIM // HEADS)
    return {**params, "dt_bias": params["dt_bias"] + 1, "norm_scale": scale, "conv": 2 * params["conv"]}


def inputs(count: int = TOKENS, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, DIM)))


def start() -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).normal(size=(HEADS, DIM // HEADS, DIM // HEADS)))


def known(documents: Any) -> jax.Array:
    """With the documents of the history before the first token."""
    return jnp.asarray(np.concatenate([[-1] * 3, documents]))


def ours(params: Any, state: jax.Array, x: jax.Array, documents: Any = None) -> Any:
    of = None if documents is None else known(documents)
    return MEMORY.read(params, state, None, x, position=0, segments=of)[:2]


def in_calls(cuts: tuple[int, ...], params: Any, state: jax.Array, x: jax.Array, documents: Any) -> Any:
    of, carry, outs = known(documents), MEMORY.init_carry(x.dtype), []
    for i, j in pairwise((0, *cuts, len(x))):
        piece = of[i : j + 3]
        y, state, carry, _ = MEMORY.read(params, state, carry, x[i:j], position=i, segments=piece)
        outs.append(y)
    return jnp.concatenate(outs), state


def naive(params: Any, state: jax.Array, x: jax.Array, documents: Any = None) -> Any:
    return read(params, x, state, documents)


def slopes(way: Any, *given: Any) -> Any:
    """Results, and the gradient of a function of them in parameters, first state and inputs."""

    def total(*given: Any) -> Any:
        results = way(*given)
        return value(results), results

    return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*given)


@cache
def wanted(documents: bool) -> Any:
    return slopes(
        partial(naive, documents=DOCUMENTS if documents else None), make_params(), start(), inputs()
    )


@pytest.mark.parametrize("documents", [False, True])
def test_outputs_states_and_gradients_match_the_loop(documents: bool) -> None:
    way = partial(ours, documents=DOCUMENTS if documents else None)
    got = quick(partial(slopes, way))(make_params(), start(), inputs())
    assert_close(got, wanted(documents), "one call")
    assert min(float(np.abs(g).max()) for g in jax.tree.leaves(got)) > 1e-3, "no part in the value"


@pytest.mark.parametrize("cuts", [(1, 2, 9), (8, 16)])
def test_any_split_is_one_call(cuts: tuple[int, ...]) -> None:
    """With gradients through state and carry, among documents."""
    way = partial(in_calls, cuts, documents=DOCUMENTS)
    got = quick(partial(slopes, way))(make_params(), start(), inputs())
    assert_close(got, wanted(True), f"cut at {cuts}")


def test_documents_cut_the_convolution_only() -> None:
    """The state goes on: what a document reads depends on the one before it."""
    params, x = make_params(), inputs()
    y, _ = ours(params, start(), x, DOCUMENTS)
    _, state = ours(params, start(), x[:8])
    after = ours(params, state, x[8:], DOCUMENTS[8:])[0]
    np.testing.assert_allclose(y[8:], after, rtol=0, atol=1e-12)
    assert np.abs(after - ours(params, 0 * state, x[8:], DOCUMENTS[8:])[0]).max() > 1e-2
    assert np.abs(y[8:] - ours(params, start(), x)[0][8:]).max() > 1e-2


def test_a_context_that_keeps_nothing() -> None:
    params, x = make_params(), inputs()
    y, state, carry, stats = MEMORY.read(params, None, None, x, position=0)
    assert state is None and carry is None
    assert float(stats["state"].updates_applied) == TOKENS
    assert_close((y, MEMORY.init(params)), (naive(params, 0 * start(), x)[0], 0 * start()), "from zeros")


def test_padding_changes_nothing_and_is_not_counted() -> None:
    params, x, active = make_params(), inputs(12), jnp.arange(12) < 9
    want = ours(params, start(), x[:9])
    for tail in (x[9:], 100 * x[9:]):
        row = jnp.concatenate([x[:9], tail])
        y, state, _, stats = MEMORY.read(params, start(), None, row, position=0, active_n=active)
        assert_close((y[:9], state), want, "padded", 1e-12)
        counts = [float(count) for count in stats["state"]]
        names = ("periods", "chunk_tokens", "gate_hit", "updates_applied")
        assert {name: counts[stats["state"]._fields.index(name)] for name in names} == dict.fromkeys(names, 9)
        assert sum(counts) == 4 * 9
    idle = MEMORY.read(params, start(), None, x, position=0, active_n=jnp.zeros(12, bool))[1]
    np.testing.assert_array_equal(idle, start())


def test_a_shared_state_is_the_mean() -> None:
    """Of what each example makes of it, after each call."""
    params, batch = make_params(), jnp.stack([inputs(seed=seed) for seed in (1, 2, 3)])
    reduce = partial(jax.lax.psum, axis_name="examples")

    def call(state: jax.Array, x: jax.Array) -> Any:
        return MEMORY.read(params, state, None, x, position=0, reduce=reduce)[:2]

    together = jax.vmap(call, (None, 0), (0, None), axis_name="examples")
    got, want = start(), start()
    for part in (batch[:, :5], batch[:, 5:12]):
        y, got = together(got, part)
        each = [naive(params, want, x) for x in part]
        want = sum(state for _, state in each) / len(each)
        assert_close((y, got), (jnp.stack([out for out, _ in each]), want), "shared")


@pytest.mark.nightly
def test_what_a_context_of_one_token_does_not_learn_from() -> None:
    params = make_params()
    for count in (1, 2):

        def total(params: Any, count: int = count) -> Any:
            return value(ours(params, MEMORY.init(params), inputs(count)))

        gradient = jax.grad(total)(params)
        still = {name for name, g in gradient.items() if not np.abs(g).max()}
        assert still == set(MEMORY.without_gradient(count))


def test_a_state_moves_with_no_parameters() -> None:
    params = make_params()
    assert MEMORY.periods() == {"state": 1}
    assert MEMORY.move(params, {}, start()).tolist() == start().tolist()


def test_parameters_at_the_start() -> None:
    memory = GatedDeltaNet(64, 32)
    params = first(memory, 3)
    assert {t.dtype for t in params.values()} == {jnp.dtype("float32")}
    rates, steps = np.exp(params["a_log"]), np.log10(jax.nn.softplus(params["dt_bias"]))
    assert 1 <= rates.min() < 4 and 13 < rates.max() <= 16
    assert -3 - 1e-4 <= steps.min() < -2.7 and -1.3 < steps.max() <= -1 + 1e-4
    assert float(params["w_q"].std()) == pytest.approx(1 / 8, rel=0.05)
    assert 0.49 < np.abs(params["conv"]).max() <= 0.5
    assert float(params["w_out"].std()) == pytest.approx(1 / 16, rel=0.05)
    y, *_ = memory.read(params, None, None, jnp.ones((5, 64), jnp.float32), position=0)
    assert y.dtype == jnp.float32 and np.isfinite(y).all()


def test_bfloat16_stays_near() -> None:
    """Error over the norm against float64 of the same values, over 150 tokens."""
    memory = GatedDeltaNet(32, 4)
    params = first(memory, 4)
    x = jax.random.normal(jax.random.key(5), (150, 32), jnp.bfloat16)

    def run(params: Any, x: jax.Array) -> Any:
        carry = memory.init_carry(x.dtype)
        return memory.read(params, memory.init(params), carry, x, position=0)[:3]

    got = quick(run)(params, x)
    assert [t.dtype for t in got] == [jnp.bfloat16, jnp.float32, jnp.bfloat16]
    exact = quick(run)(jax.tree.map(jnp.float64, params), jnp.float64(x))
    for one, want in zip(got, exact, strict=True):
        assert np.linalg.norm(np.float64(one) - want) < 2e-2 * np.linalg.norm(want)
