"""Production form: the periods of a chunk advance as coefficients, and the matrices are touched once.

All gradients of a chunk are taken at its first weights, G_p = sum over the tokens t of period p of
x_t g_t^T, so the state after it is a combination of (D_0, v_0, G_1 .. G_P), whose coefficients
(`coefficients`) ask only for the inner products of these:

    <G_p, G_q> = sum_{t in p, s in q} (x_t . x_s)(g_t . g_s),   <D_0, G_q> = sum_{t in q} x_t^T D_0 g_t.

The cost is O(n I O) in a few products instead of P passes over I x O matrices. A bias is part of the map: the
row of a matrix that meets a constant input 1.
"""

from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from hope_jax.kernels.cms_write.coefficients import Coefficients, Inner, coefficients


class Affine(NamedTuple):
    """A matrix [I, O] and its bias [O], or None."""

    matrix: jax.Array
    bias: jax.Array | None


class Rows(NamedTuple):
    """Tokens of the gradient of an affine map: sum_t x_t g_t^T [I, O], and sum_t b_t [O] for a bias."""

    x_ni: jax.Array
    g_no: jax.Array
    b_no: jax.Array | None


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
    maps = tuple(_in_dtype(one) for one in maps)
    first, periods = maps[0], applied_p.shape[0]
    rate = None if first.velocity is None else beta
    bounds = jax.tree.map(lambda *b: jnp.stack(b), *((one.max_write, one.max_delta) for one in maps))
    inner = jax.tree.map(lambda *leaf: jnp.stack(leaf), *(inner_products(one, periods) for one in maps))
    dtype = first.delta.matrix.dtype

    def of_map(inner: Inner, max_write: jax.Array | None, max_delta: jax.Array | None) -> Coefficients:
        return coefficients(inner, applied_p, rate, lr, max_write, max_delta, dtype)

    found = jax.vmap(of_map, axis_size=len(maps))(inner, *bounds)
    return tuple(_combine(one, jax.tree.map(lambda c, i=i: c[i], found)) for i, one in enumerate(maps))


def _in_dtype(one: Map) -> Map:
    dtype = one.delta.matrix.dtype
    return one._replace(rows=jax.tree.map(lambda t: t.astype(dtype), one.rows))


def times_transposed(x_ni: jax.Array, m_si: jax.Array) -> jax.Array:
    """x m^T [n, S] as one product over the last axis of both, which XLA runs without a transposed copy."""
    return jax.lax.dot_general(x_ni, m_si, (((1,), (1,)), ((), ())))


def token_products(rows: Rows, other: Rows) -> jax.Array:
    """Inner products [n, m] between the gradients of single tokens."""
    products = times_transposed(rows.x_ni, other.x_ni) * times_transposed(rows.g_no, other.g_no)
    if rows.b_no is None or other.b_no is None:
        return products
    return products + times_transposed(rows.b_no, other.b_no)


def inner_products(one: Map, periods: int) -> Inner:
    """Inner products between the map's delta, velocity and gradients."""
    x, g, b = one.rows
    zero = jnp.zeros((), g.dtype)
    gg_pp = (
        token_products(one.rows, one.rows).reshape(periods, -1, periods, x.shape[0] // periods).sum((1, 3))
    )

    def along(m: Affine) -> jax.Array:
        # Over the narrower side first: the products that reading W_up and pulling back W_down have made.
        narrow_in = x.shape[1] <= g.shape[1]
        each = ((x @ m.matrix) * g if narrow_in else x * times_transposed(g, m.matrix)).sum(1)
        if b is not None and m.bias is not None:
            each = each + b @ m.bias
        return each.reshape(periods, -1).sum(1)

    def inner(m: Affine, other: Affine) -> jax.Array:
        size = jnp.sum(m.matrix * other.matrix)
        return size if m.bias is None or other.bias is None else size + m.bias @ other.bias

    d, v = one.delta, one.velocity
    if v is None:
        return inner(d, d), zero, zero, along(d), jnp.zeros(periods, g.dtype), gg_pp
    return inner(d, d), inner(d, v), inner(v, v), along(d), along(v), gg_pp


def _combine(one: Map, c: Coefficients) -> Written:
    x, g, b = one.rows
    delta, velocity = one.delta, one.velocity
    period = x.shape[0] // c.g_p.shape[0]
    weights = [c.g_p] if velocity is None else [c.g_p, c.velocity_g_p]
    by_token = [jnp.repeat(w, period) for w in weights]
    weighted = jax.lax.optimization_barrier(jnp.concatenate([(x * w[:, None]).T for w in by_token]))
    sums = jnp.split(weighted @ g, len(weights))
    biases = [None if b is None else w @ b for w in by_token]
    if velocity is None:
        new = jax.tree.map(lambda d, s: c.d * d + s, delta, Affine(sums[0], biases[0]))
        return new, None, c
    new = jax.tree.map(lambda d, v, s: c.d * d + c.v * v + s, delta, velocity, Affine(sums[0], biases[0]))
    ema = jax.tree.map(lambda v, s: c.velocity_v * v + s, velocity, Affine(sums[1], biases[1]))
    return new, ema, c
