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
from hope_jax.kernels.cms_write.coefficients import Coefficients, Inner, coefficients
from hope_jax.kernels.cms_write.states import advance, gram, products, times_transposed

from hope_jax.core.types import Array


class Affine(NamedTuple):
    """A matrix [I, O] and its bias [O], or None."""

    matrix: Array
    bias: Array | None


class Rows(NamedTuple):
    """Tokens of the gradient of an affine map: sum_t x_t g_t^T [I, O], and sum_t b_t [O] for a bias.

    y_no: the products x_t D_0 with the matrix that is written, where a read has made them; else None.
    """

    x_ni: Array
    g_no: Array
    b_no: Array | None
    y_no: Array | None = None


class Map(NamedTuple):
    """One affine map of a level and what a chunk writes into it.

    rows: n tokens. delta: what the context has added. velocity: average of its gradients, or None: v = G_p.
    max_write, max_delta: [] bounds on |lr v|_F and |delta|_F; None: off. gram: `gram_of` delta and
    velocity, which the write before this one has left; None: taken anew.
    """

    rows: Rows
    delta: Affine
    velocity: Affine | None
    max_write: Array | None
    max_delta: Array | None
    gram: Array | None = None


Written: TypeAlias = tuple[Affine, Affine | None, Coefficients, Array, Array | None]
"""delta, velocity after the chunk (None if there was none), the coefficients, for their hits and sizes,
`gram_of` the new delta and velocity, and delta's matrix in the dtype of the tokens, if it is another."""


def write_periods(
    maps: tuple[Map, ...], applied_p: Array, *, beta: float | Array, lr: float
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
    known = jax.tree.map(lambda *leaf: jnp.stack(leaf), *(inner_products(one, periods) for one in maps))
    dtype = first.delta.matrix.dtype

    def of_map(inner: Inner, max_write: Array | None, max_delta: Array | None) -> Coefficients:
        return coefficients(inner, applied_p, rate, lr, max_write, max_delta, dtype)

    found = jax.vmap(of_map, axis_size=len(maps))(known, *bounds)
    each = (jax.tree.map(lambda c, i=i: c[i], found) for i in range(len(maps)))
    given = zip(maps, each, known[0], strict=True)
    return tuple(_combine(one, c, before, applied_p.any()) for one, c, before in given)


def token_products(rows: Rows, other: Rows, dtype: jnp.dtype) -> Array:
    """Inner products [n, m] between the gradients of single tokens."""
    products = times_transposed(rows.x_ni, other.x_ni, dtype) * times_transposed(rows.g_no, other.g_no, dtype)
    if rows.b_no is None or other.b_no is None:
        return products
    return products + times_transposed(rows.b_no, other.b_no, dtype)


def _state(delta: Affine, velocity: Affine | None) -> tuple[tuple[Array, ...], Array | None]:
    """Delta and velocity, if there is one: their matrices, and their biases [k, O] or None."""
    state = [m for m in (delta, velocity) if m is not None]
    biases = [m.bias for m in state if m.bias is not None]
    return tuple(m.matrix for m in state), jnp.stack(biases) if biases else None


def gram_of(delta: Affine, velocity: Affine | None) -> Array:
    """Inner products [k, k] of an affine map's delta and velocity, or delta alone."""
    matrices, biases = _state(delta, velocity)
    return _with_biases(gram(matrices), biases)


def _with_biases(gram_kk: Array, biases: Array | None) -> Array:
    return gram_kk if biases is None else gram_kk + biases @ biases.T


def inner_products(one: Map, periods: int) -> Inner:
    """Inner products between the map's delta, velocity and gradients."""
    (x, g, b, y), (matrices, biases) = one.rows, _state(one.delta, one.velocity)
    dtype = matrices[0].dtype
    gram_kk = gram_of(one.delta, one.velocity) if one.gram is None else one.gram
    along = [] if y is None else [(y.astype(dtype) * g.astype(dtype)).sum(1)[None]]
    if unread := matrices[len(along) :]:
        along.append(products(unread, x, g))
    along_kn = jnp.concatenate(along)
    if b is not None and biases is not None:
        along_kn = along_kn + biases @ b.astype(dtype).T
    each_pcqc = token_products(one.rows, one.rows, dtype).reshape(periods, -1, periods, len(x) // periods)
    along_kp = along_kn.reshape(len(matrices), periods, -1).sum(-1)
    without = (0, 2 - len(matrices))
    return jnp.pad(gram_kk, (without, without)), jnp.pad(along_kp, (without, (0, 0))), each_pcqc.sum((1, 3))


def _combine(one: Map, c: Coefficients, before: Array, written: Array) -> Written:
    """before: [2, 2] inner products of delta and velocity as they are."""
    (x, g, b, _), (matrices, biases) = one.rows, _state(one.delta, one.velocity)
    k, period = len(matrices), len(x) // len(c.g_p)
    mix = jnp.stack([jnp.stack([c.d, c.v]), jnp.stack([jnp.zeros_like(c.d), c.velocity_v])])[:k, :k]
    weights = jnp.repeat(jnp.stack([c.g_p, c.velocity_g_p][:k]), period, axis=1)
    narrow = None if g.dtype == weights.dtype else g.dtype
    new, gram_kk, rounded = advance(matrices, x, g, (mix, weights, written), narrow)
    new_biases: Any = [None] * k
    if b is not None and biases is not None:
        new_biases = mix @ biases + weights @ b.astype(weights.dtype)
        gram_kk = _with_biases(gram_kk, new_biases)
    gram_kk = jnp.where(written, gram_kk, before[:k, :k])
    maps = [Affine(*pair) for pair in zip(new, new_biases, strict=True)]
    return maps[0], maps[1] if k > 1 else None, c, gram_kk, rounded
