"""The shifted form against the oracle, in one call and in pieces, with gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.causal_conv import causal_conv

from tests.oracle.layers import convolve

SHAPES = [(1, 4), (3, 4), (17, 4), (9, 1), (12, 7)]


def case(tokens: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(tokens * 31 + window)
    return rng.normal(size=(tokens, 5)), rng.normal(size=(window, 5))


def documents(tokens: int, window: int) -> list[int]:
    """Of history and tokens: some are shorter than the window, and numbers come again."""
    return list(np.repeat([1, 2, 1, 3, 0, 4, 3], [3, 2, 1, 4, 2, 6, 99])[: window - 1 + tokens])


def naive(x: jax.Array, taps: jax.Array, history: jax.Array, of: list[int]) -> jax.Array:
    """Token by token; of: the documents of the history and the tokens."""
    stream = [*history, *x]
    ends = range(len(history) + 1, len(stream) + 1)
    return jnp.stack([convolve(taps, stream[:end], of[:end]) for end in ends])


@pytest.mark.parametrize(("tokens", "window"), SHAPES)
def test_matches_naive(tokens: int, window: int) -> None:
    x, taps = case(tokens, window)
    y, _ = causal_conv(jnp.asarray(x), jnp.asarray(taps))
    np.testing.assert_allclose(y, naive(x, taps, x[:0], [1] * tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("several", [False, True])
def test_pieces_with_carried_history_equal_one_call(several: bool) -> None:
    (x, taps), window = case(23, 4), 4
    of = jnp.asarray(documents(23, window)) if several else None
    whole, last = causal_conv(jnp.asarray(x), jnp.asarray(taps), None, of)
    history, pieces, start = None, [], 0
    for piece in np.split(x, [1, 2, 9, 16]):
        here = None if of is None else of[start : start + window - 1 + len(piece)]
        y, history = causal_conv(jnp.asarray(piece), jnp.asarray(taps), history, here)
        pieces.append(y)
        start += len(piece)
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=1e-12)
    np.testing.assert_allclose(history, last, rtol=0, atol=0)


def test_a_token_of_another_document_is_not_read() -> None:
    """Not even times zero."""
    x = jnp.asarray(np.repeat([[np.inf], [2.0]], 3, axis=0))
    y, _ = causal_conv(x, jnp.ones((3, 1)), None, jnp.asarray([-1, -1, 1, 1, 1, 2, 2, 2]))
    np.testing.assert_array_equal(y[3:, 0], [2, 4, 6])


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("tokens", "window"), SHAPES)
def test_values_and_gradients_match_naive(tokens: int, window: int, several: bool) -> None:
    x, taps = case(tokens, window)
    history, by_y = case(window - 1, tokens)[0], np.cos(np.arange(x.size)).reshape(x.shape)
    of = documents(tokens, window) if several else [1] * (window - 1 + tokens)

    def slopes(way: Any) -> Any:
        def value(*given: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = way(*given)
            return (y * by_y).sum(), y

        gradient = jax.grad(value, argnums=(0, 1, 2), has_aux=True)
        return gradient(*(jnp.asarray(t) for t in (x, taps, history)))

    fast = slopes(lambda *given: causal_conv(*given, jnp.asarray(of))[0])
    slow = slopes(lambda *given: naive(*given, of))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), fast, slow)
