"""Production form: the periods of a chunk advance as coefficients, and the matrices are touched once.

All gradients of a chunk are taken at its first weights, G_p = sum over the tokens t of period p of
x_t g_t^T, so the state after it is a combination of (D_0, v_0, G_1 .. G_P), whose coefficients
(`coefficients`) ask only for the inner products of these:

    <G_p, G_q> = sum_{t in p, s in q} (x_t . x_s)(g_t . g_s),   <D_0, G_q> = sum_{t in q} x_t^T D_0 g_t.

The cost is O(n I O) in a few products instead of P passes over I x O matrices. A bias is part of the map: the
row of a matrix that meets a constant input 1.
"""

from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from hope_jax.kernels.cms_write.advance import advance
from hope_jax.kernels.cms_write.coefficients import Coefficients, Inner, coefficients


class Affine(NamedTuple):
    """A matrix [I, O] and its bias [O], or None."""

    matrix: jax.Array
    bias: jax.Array | None


class Rows(NamedTuple):
    """Tokens of the gradient of an affine map: sum_t x_t g_t^T [I, O], and sum_t b_t [O] for a bias.

    y_no: the products x_t D_0 with the matrix that is written, where a read has made them; else None.
    """

    x_ni: jax.Array
    g_no: jax.Array
    b_no: jax.Array | None
    y_no: jax.Array | None = None


class Map(NamedTuple):
    """One affine map of a level and what a chunk writes into it.

    rows: n tokens. delta: what the context has added. velocity: average of its gradients, or None: v = G_p.
    max_write, max_delta: [] bounds on |lr v|_F and |delta|_F; None: off.
    """

    rows: Rows
    delta: Affine
    velocity: Affine | None
    max_write: jax.Array | None
    max_delta: jax.Array | None


Written: TypeAlias = tuple[Affine, Affine | None, Coefficients]
"""delta, velocity after the chunk (None if there was none), and the coefficients, for their hits and
sizes."""


def write_periods(
    maps: tuple[Map, ...], applied_p: jax.Array, *, beta: float | jax.Array, lr: float
) -> tuple[Written, ...]:
    """Writes the P periods of a chunk in order.

    maps: alike in what they have (velocity, bounds); each with n = P * C tokens. applied_p: bool [P]; a
    period that is not applied leaves delta and velocity as they were.
    """
    chex.assert_rank([one.delta.matrix for one in maps], 2)
    chex.assert_type(applied_p, bool)
    first, periods = maps[0], applied_p.shape[0]
    rate = None if first.velocity is None else beta
    bounds = jax.tree.map(lambda *b: jnp.stack(b), *((one.max_write, one.max_delta) for one in maps))
    inner = jax.tree.map(lambda *leaf: jnp.stack(leaf), *(inner_products(one, periods) for one in maps))
    dtype = first.delta.matrix.dtype

    def of_map(inner: Inner, max_write: jax.Array | None, max_delta: jax.Array | None) -> Coefficients:
        return coefficients(inner, applied_p, rate, lr, max_write, max_delta, dtype)

    found = jax.vmap(of_map, axis_size=len(maps))(inner, *bounds)
    each = (jax.tree.map(lambda c, i=i: c[i], found) for i in range(len(maps)))
    return tuple(_combine(one, c, applied_p.any()) for one, c in zip(maps, each, strict=True))


def times_transposed(x_ni: jax.Array, m_si: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x m^T [n, S] in `dtype`, as one product over the last axis of both, which XLA runs without a transposed
    copy."""
    return jax.lax.dot_general(x_ni, m_si, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


def token_products(rows: Rows, other: Rows, dtype: jnp.dtype) -> jax.Array:
    """Inner products [n, m] between the gradients of single tokens."""
    products = times_transposed(rows.x_ni, other.x_ni, dtype) * times_transposed(rows.g_no, other.g_no, dtype)
    if rows.b_no is None or other.b_no is None:
        return products
    return products + times_transposed(rows.b_no, other.b_no, dtype)


def inner_products(one: Map, periods: int) -> Inner:
    """Inner products between the map's delta, velocity and gradients."""
    x, g, b, y = one.rows
    dtype = one.delta.matrix.dtype
    zero = jnp.zeros((), dtype)
    each_pcqc = token_products(one.rows, one.rows, dtype).reshape(periods, -1, periods, len(x) // periods)

    def along(m: Affine, y: jax.Array | None) -> jax.Array:
        wide_x, wide_g = x.astype(dtype), g.astype(dtype)
        if y is not None:
            each = y.astype(dtype) * wide_g
        elif x.shape[1] <= g.shape[1]:
            each = (wide_x @ m.matrix) * wide_g
        else:
            each = wide_x * times_transposed(wide_g, m.matrix, dtype)
        total = each.sum(1)
        if b is not None and m.bias is not None:
            total = total + b.astype(dtype) @ m.bias
        return total.reshape(periods, -1).sum(1)

    def inner(m: Affine, other: Affine) -> jax.Array:
        size = jnp.sum(m.matrix * other.matrix)
        return size if m.bias is None or other.bias is None else size + m.bias @ other.bias

    d, v = one.delta, one.velocity
    gg_pp, dg_p = each_pcqc.sum((1, 3)), along(d, y)
    if v is None:
        return inner(d, d), zero, zero, dg_p, jnp.zeros(periods, dtype), gg_pp
    return inner(d, d), inner(d, v), inner(v, v), dg_p, along(v, None), gg_pp


def _combine(one: Map, c: Coefficients, written: jax.Array) -> Written:
    x, g, b, _ = one.rows
    delta, velocity = one.delta, one.velocity
    period = len(x) // len(c.g_p)
    state = (delta,) if velocity is None else (delta, velocity)
    zero = jnp.zeros_like(c.d)
    mix = jnp.stack([jnp.stack([c.d, c.v]), jnp.stack([zero, c.velocity_v])])[: len(state), : len(state)]
    by_period = [c.g_p] if velocity is None else [c.g_p, c.velocity_g_p]
    weights = jnp.repeat(jnp.stack(by_period), period, axis=1)
    matrices = advance(tuple(m.matrix for m in state), mix, x, weights, g, written)
    biases: list[jax.Array | None] = [None] * len(state)
    if b is not None:
        old: Any = [m.bias for m in state]
        biases = list(mix @ jnp.stack(old) + weights @ b.astype(weights.dtype))
    new = [Affine(*pair) for pair in zip(matrices, biases, strict=True)]
    return new[0], None if velocity is None else new[1], c
