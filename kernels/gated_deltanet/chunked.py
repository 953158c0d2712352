"""Production form: many tokens of the gated delta rule with matrix products only (WY/UT transform).

Per head, with a state S [K, V],

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t.

In a chunk that begins at S_0, each token adds one outer product. With g_t = alpha_1 .. alpha_t,

    S_t = g_t S_0 + sum_{i <= t} (g_t / g_i) k_i u_i^T,
    u_t = beta_t (v_t - g_t S_0^T k_t - sum_{i < t} (g_t / g_i) (k_t . k_i) u_i),

so U = (I + L)^{-1} diag(beta) (V - diag(g) K S_0) with L_ti = beta_t (g_t / g_i) (k_t . k_i) for i < t. What
does not read S_0 is computed for all chunks at once; four products a chunk run through the sequence. Only
ratios g_t / g_i at most 1 appear: no decay overflows. Rows are tokens; one example, the batch is a vmap.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
from hope_jax.kernels.triangular import unit_lower_inverse

LEAST = -40.0
"""Bound of log alpha from below (4e-18): less leaves nothing either, but the sums of logarithms, whose
differences are the decays of later tokens, would lose their last digits."""


def gated_delta(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_alpha: jax.Array,
    beta: jax.Array,
    state: jax.Array,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """Outputs o [n, heads, V] of n tokens, in v's dtype, and the state after them, in at least float32.

    q, k: [n, heads, K]. v: [n, heads, V]. log_alpha (at most 0), beta: [n, heads], at least float32; a token
    with 0 and 0, as padding has, changes no state. state: [heads, K, V]. chunk: C, tokens of a chunk.
    Products with q, k, v and the state are in q's dtype, sums and the C x C algebra in at least float32.
    """
    chex.assert_rank([q, k, v, state], 3)
    chex.assert_equal_shape_prefix([q, k, v, log_alpha, beta], 2)
    chex.assert_shape(state, (q.shape[1], k.shape[2], v.shape[2]))
    n, dtype = len(q), jnp.promote_types(jnp.promote_types(q.dtype, state.dtype), jnp.float32)
    size = max(1, min(chunk, n))

    def chunks(x: jax.Array) -> jax.Array:
        """Cuts [n, heads, ...] into [chunks, heads, size, ...], with zeros at the end of the last chunk."""
        padded = jnp.pad(x, [(0, -n % size), *[(0, 0)] * (x.ndim - 1)])
        return jnp.moveaxis(padded.reshape(-1, size, *x.shape[1:]), 2, 1)

    each = jax.vmap(jax.vmap(partial(_without_state, dtype)))
    # Both checkpoints: 36 MiB saved for the backward instead of 103 (2,048 tokens, 8 heads of 64, float32).
    prepared = jax.checkpoint(each)(*(chunks(x) for x in (q, k, v, log_alpha, beta)))
    step = jax.checkpoint(jax.vmap(_with_state), prevent_cse=False)
    state, o = jax.lax.scan(step, state.astype(dtype), prepared)
    return jnp.moveaxis(o, 1, 2).reshape(-1, *v.shape[1:])[:n].astype(v.dtype), state


def _without_state(
    dtype: jnp.dtype, q: jax.Array, k: jax.Array, v: jax.Array, log_alpha: jax.Array, beta: jax.Array
) -> tuple[jax.Array, ...]:
    """What a chunk of C tokens and one head comes to without its first state: query, key [C, K], times g_t
    and g_C / g_t; within [C, C], the share of u_i in o_t; u [C, V], of_state [C, K], U = u - of_state S_0;
    kept [], g_C. u and kept in `dtype`, that of sums, the others in q's.

    q, k: [C, K]; v: [C, V]; log_alpha, beta: [C].
    """
    size, narrow, beta = len(q), q.dtype, beta.astype(dtype)
    after = jnp.cumsum(jnp.maximum(log_alpha.astype(dtype), LEAST))
    until = jnp.tril(jnp.ones((size, size), bool))
    # Exponents are masked first: above the diagonal they would overflow, and poison the gradient.
    between = jnp.where(until, jnp.exp(jnp.where(until, after[:, None] - after, 0)), 0)
    overlap = jnp.matmul(k, k.T, precision="highest", preferred_element_type=dtype)
    inverse = unit_lower_inverse(jnp.tril(beta[:, None] * between * overlap, -1)) * beta
    kept = jnp.exp(after)
    query = (kept[:, None] * q).astype(narrow)
    key = (jnp.exp(after[-1] - after)[:, None] * k).astype(narrow)
    within = (between * _product(q, k.T, narrow, dtype)).astype(narrow)
    of_state = _product(inverse * kept, k, narrow, dtype).astype(narrow)
    return query, key, within, _product(inverse, v, narrow, dtype), of_state, kept[-1]


def _with_state(state: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """The state [K, V] after a chunk, and its outputs [C, V]."""
    query, key, within, u, of_state, kept = chunk
    product = partial(_product, narrow=query.dtype, dtype=state.dtype)
    u = u - product(of_state, state)
    return kept * state + product(key.T, u), product(query, state) + product(within, u)


def _product(a: jax.Array, b: jax.Array, narrow: jnp.dtype, dtype: jnp.dtype) -> jax.Array:
    """The product of two factors that are rounded to `narrow`, summed in `dtype`."""
    return jnp.matmul(a.astype(narrow), b.astype(narrow), preferred_element_type=dtype)
