"""The gated delta rule in chunks over the rule token by token, heads of 64.

Useful operations of a token and head: 4 K V for its read and its write, 2 K V for what the write replaces,
so 6 K V; three times that with gradients.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from hope_jax.kernels.gated_deltanet import gated_delta
from hope_jax.perf.timing import Case, Comparison, forms

SIZE, HEADS = 64, 8
"""SIZE: K = V."""


def by_token(
    q: jax.Array, k: jax.Array, v: jax.Array, log_alpha: jax.Array, beta: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What `gated_delta` computes, as a scan over tokens."""

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, log_alpha, beta = token
        state = jnp.exp(log_alpha)[:, None, None] * state
        u = beta[:, None] * (v - jnp.einsum("hkv,hk->hv", state, k))
        state = state + k[:, :, None] * u[:, None]
        return state, jnp.einsum("hkv,hk->hv", state, q)

    state, o = jax.lax.scan(step, state, (q, k, v, log_alpha, beta))
    return o, state


def inputs(batch: int, n: int, heads: int, size: int = SIZE) -> tuple[jax.Array, ...]:
    """Of a layer at its start: unit keys, alpha around 0.9, states that are not zero."""
    keys = jax.random.split(jax.random.key(0), 6)
    q, k, v = (jax.random.normal(key, (batch, n, heads, size)) for key in keys[:3])
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    log_alpha = -0.2 * jax.random.uniform(keys[3], (batch, n, heads))
    beta = jax.random.uniform(keys[4], (batch, n, heads))
    return q, k, v, log_alpha, beta, jax.random.normal(keys[5], (batch, heads, size, size))


def _cases(kind: str, batch: int, n: int) -> tuple[Case, ...]:
    rules = {"token by token": by_token}
    rules |= {f"chunks of {size}": partial(gated_delta, chunk=size) for size in (64, 32, 128)}
    return forms(
        {name: jax.vmap(rule) for name, rule in rules.items()},
        *inputs(batch, n, HEADS),
        flops=6.0 * SIZE * SIZE * batch * n * HEADS,
        tokens=batch * n,
        by=tuple(range(6)) if kind == "gradient" else (),
    )


def comparisons() -> Iterator[Comparison]:
    """An online chunk of a stream, and whole sequences, of width 512."""
    for kind in ("forward", "gradient"):
        for n, batch in ((32, 1), (512, 1), (2048, 1), (512, 4)):
            yield Comparison(f"gated_deltanet/{kind}-t{n}-b{batch}", partial(_cases, kind, batch, n))
