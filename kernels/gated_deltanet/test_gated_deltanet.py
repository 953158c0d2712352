"""Chunks against the recurrence: outputs, states and gradients, any length, split, decay and dtype."""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.gated_deltanet import gated_delta

from hope_jax.perf import kernel_benchmarks as bench
from tests.close import assert_close, value
from tests.oracle.gated_deltanet import token

HEADS, KEYS, VALUES = 2, 4, 5
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def case(n: int, seed: int = 0, least: float = 0.05) -> list[jax.Array]:
    """Keys that are nearly parallel, alpha between `least` and 1, beta in (0, 1)."""
    rng = np.random.default_rng(seed + n)
    q, k = rng.normal(size=(2, n, HEADS, KEYS)) + 1.0
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, state = rng.normal(size=(n, HEADS, VALUES)), rng.normal(size=(HEADS, KEYS, VALUES))
    log_alpha = np.log(least) * rng.uniform(size=(n, HEADS)) ** 4
    return [jnp.asarray(t) for t in (q, k, v, log_alpha, rng.uniform(size=(n, HEADS)), state)]


def recurrence(q: Any, k: Any, v: Any, log_alpha: Any, beta: Any, state: Any) -> tuple[Any, Any]:
    """o [n, heads, V] and the state after the last token. q, k: [n, heads, K]; v: [n, heads, V]; log_alpha,
    beta: [n, heads]; state: [heads, K, V]."""
    heads, outs = jnp.unstack(state), []
    for row in zip(*(jnp.unstack(t) for t in (q, k, v, log_alpha, beta)), strict=True):
        o, heads = token(heads, *(jnp.unstack(t) for t in row))
        outs.append(jnp.stack(o))
    return jnp.stack(outs), jnp.stack(heads)


def slopes(rule: Any, given: list[jax.Array]) -> Any:
    """Outputs and state, and the gradient of a function of them in everything that is given."""

    def total(*given: jax.Array) -> Any:
        results = rule(*given)
        return value(results), results

    gradient = jax.grad(total, argnums=tuple(range(6)), has_aux=True)
    return (gradient if rule is recurrence else quick(gradient))(*given)[::-1]


@pytest.mark.parametrize(("n", "chunk"), [(1, 64), (16, 4), (23, 5), (37, 64), (70, 64)])
def test_matches_the_recurrence_with_gradients(n: int, chunk: int) -> None:
    given = case(n)
    got, wanted = slopes(partial(gated_delta, chunk=chunk), given), slopes(recurrence, given)
    assert_close(got, wanted, f"{n} tokens in chunks of {chunk}")
    assert min(float(np.abs(g).max()) for g in wanted[1]) > 1e-3, (
        "what has no part in the value tests nothing"
    )


@pytest.mark.parametrize("cuts", [(1, 2, 9, 20), (8, 16), (5, 5, 22)])
def test_any_split_is_one_call(cuts: tuple[int, ...]) -> None:
    """Also an empty call."""
    *tokens, state = case(23)
    rule = quick(partial(gated_delta, chunk=8))
    wanted, outs = rule(*tokens, state), []
    for start, end in pairwise((0, *cuts, 23)):
        o, state = rule(*(t[start:end] for t in tokens), state)
        outs.append(o)
    assert_close((jnp.concatenate(outs), state), wanted, f"cut at {cuts}", 1e-12)


def test_decays_of_nearly_nothing_and_nearly_everything_match() -> None:
    """Tokens that forget all (log alpha -1e4) among tokens that keep all but 1e-9."""
    given = case(40)
    rng = np.random.default_rng(3)
    given[3] = jnp.asarray(np.where(rng.uniform(size=(40, HEADS)) < 0.2, -1e4, -1e-9))
    got, wanted = slopes(partial(gated_delta, chunk=16), given), slopes(recurrence, given)
    assert_close(got, wanted, "mixed")


@pytest.mark.parametrize("log_alpha", [0.0, -1e-7, -50.0, -1e5, -np.inf, "mixed"])
def test_extreme_decays_are_finite_in_float32(log_alpha: Any) -> None:
    """And as exact as float32 is, also after many tokens that forget all."""
    given = [jnp.float32(t) for t in case(150)]
    extreme = np.full((150, HEADS), -1e-3 if log_alpha == "mixed" else log_alpha)
    if log_alpha == "mixed":
        extreme[:60] = extreme[64:100] = -1e5
    given[3] = jnp.float32(extreme)
    results, gradient = slopes(gated_delta, given)
    for leaf in jax.tree.leaves((results, gradient)):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    exact = quick(gated_delta)(*(jnp.float64(t) for t in given))
    for got, wanted in zip(results, exact, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())


def test_padding_changes_no_state() -> None:
    *tokens, state = case(11)
    idle = [*tokens[:3], *(jnp.zeros_like(t) for t in tokens[3:])]
    np.testing.assert_array_equal(gated_delta(*idle, state, chunk=4)[1], state)
    wanted = gated_delta(*(t[:7] for t in tokens), state, chunk=4)
    padded = [*(100 * t[7:] for t in tokens[:3]), *(t[7:] * 0 for t in tokens[3:])]
    longer = [jnp.concatenate([t[:7], tail]) for t, tail in zip(tokens, padded, strict=True)]
    o, after = gated_delta(*longer, state, chunk=4)
    assert_close((o[:7], after), wanted, "padded", 1e-12)


def relative(got: Any, wanted: Any) -> float:
    return float(np.linalg.norm(np.float64(got) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_rounding(dtype: str, bound: float) -> None:
    """Error over the norm, of each result and each gradient, against float64 of the same values; keys with a
    cosine of about 0.5, beta up to 1, 200 tokens in chunks of 64."""
    given = [t.astype(jnp.bfloat16) for t in case(200, least=0.5)]
    rounded = [t.astype(dtype) if i < 3 else jnp.float32(t) for i, t in enumerate(given)]
    results, gradient = slopes(gated_delta, rounded)
    exact = slopes(gated_delta, [jnp.float64(t) for t in given])
    errors = jax.tree.map(relative, (results, gradient), exact)
    assert max(jax.tree.leaves(errors)) < bound, errors
    assert results[0].dtype == dtype and results[1].dtype == jnp.float32
    assert all(g.dtype == t.dtype for g, t in zip(gradient, rounded, strict=True))


def test_the_scan_that_the_benchmark_compares_with_computes_the_same() -> None:
    given = [jnp.float64(t) for t in bench.delta_inputs(2, 9, HEADS, 6)]
    assert_close(
        *(quick(jax.vmap(rule))(*given) for rule in (bench.delta_by_token, gated_delta)), "scan", 1e-12
    )
