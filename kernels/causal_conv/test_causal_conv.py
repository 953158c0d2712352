"""The shifted form against the oracle, in one call and in pieces, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.causal_conv import bench, causal_conv, naive


def case(tokens: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(tokens * 31 + window)
    return rng.normal(size=(tokens, 5)), rng.normal(size=(window, 5))


@pytest.mark.parametrize(("tokens", "window"), [(1, 4), (3, 4), (17, 4), (9, 1), (12, 7)])
def test_matches_naive(tokens: int, window: int) -> None:
    x, taps = case(tokens, window)
    y, _ = causal_conv(jnp.asarray(x), jnp.asarray(taps))
    np.testing.assert_allclose(y, naive.causal_conv(x, taps), rtol=0, atol=1e-12)


def test_pieces_with_carried_history_equal_one_call() -> None:
    x, taps = case(23, 4)
    whole, last = causal_conv(jnp.asarray(x), jnp.asarray(taps))
    history, pieces = None, []
    for piece in np.split(x, [1, 2, 9, 16]):
        y, history = causal_conv(jnp.asarray(piece), jnp.asarray(taps), history)
        pieces.append(y)
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=1e-12)
    np.testing.assert_allclose(history, last, rtol=0, atol=0)


@pytest.mark.parametrize(("tokens", "window"), [(1, 4), (3, 4), (17, 4), (9, 1), (12, 7)])
def test_gradients_match_naive(tokens: int, window: int) -> None:
    x, taps = case(tokens, window)
    history, by_y = case(window - 1, tokens)[0], np.cos(np.arange(x.size)).reshape(x.shape)

    def value(x: jax.Array, taps: jax.Array, history: jax.Array) -> jax.Array:
        return (causal_conv(x, taps, history)[0] * by_y).sum()

    got = jax.grad(value, argnums=(0, 1, 2))(*(jnp.asarray(t) for t in (x, taps, history)))
    for one, wanted in zip(got, naive.gradients(x, taps, history, by_y), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=0, atol=1e-12)


def test_the_library_that_the_benchmark_compares_with_computes_the_same() -> None:
    x, taps = (jnp.asarray(t) for t in case(9, 4))
    stack = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(bench.library(stack, taps), bench.shifted(stack, taps), rtol=0, atol=1e-12)
