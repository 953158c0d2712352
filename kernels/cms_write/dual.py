"""Dual form: what a short context has added to an affine map, held as its tokens instead of a matrix.

Over S tokens the delta is sum_s c_s x_s g_s^T, and a row is read through it as

    x D = ((x X^T) * c) G,

n S (I + O) products for n rows instead of n I O, and a chunk's write only appends its tokens and scales c: no
pass over an I x O matrix. The velocity is the same tokens with coefficients of its own. The context starts
from nothing, and |D|^2, <D, v>, |v|^2, which the bounds ask for, are carried along with it. Rows that are not
filled yet are zero, with coefficient zero.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from hope_jax.kernels.cms_write.coefficients import Coefficients, Inner, Rates, coefficients
from hope_jax.kernels.cms_write.gram import Affine, Rows, token_products
from hope_jax.kernels.cms_write.products import times_transposed


class Dual(NamedTuple):
    """An affine map's delta and velocity over at most S tokens.

    rows: the tokens [S, ...]. delta_s: their coefficients in the delta; velocity_s: in the velocity, or None:
    the inner optimizer keeps none. dd, dv, vv: [] squares of both and their inner product.
    """

    rows: Rows
    delta_s: jax.Array
    velocity_s: jax.Array | None
    dd: jax.Array
    dv: jax.Array
    vv: jax.Array


class Limits(NamedTuple):
    """[] bounds on |lr v|_F and |delta|_F of one map; None: off."""

    write: jax.Array | None
    delta: jax.Array | None


def empty(capacity: int, inputs: int, outputs: int, dtype: jnp.dtype, *, bias: bool, velocity: bool) -> Dual:
    """Of a context that has written nothing. capacity: S. bias, velocity: whether the map has one."""
    zero = jnp.zeros((), dtype)
    g, none = jnp.zeros((capacity, outputs), dtype), jnp.zeros(capacity, dtype)
    rows = Rows(jnp.zeros((capacity, inputs), dtype), g, g if bias else None)
    return Dual(rows, none, none if velocity else None, zero, zero, zero)


def read(dual: Dual, x_ni: jax.Array) -> jax.Array:
    """x D (+ the bias's delta), [n, O]."""
    y = (times_transposed(x_ni, dual.rows.x_ni) * dual.delta_s) @ dual.rows.g_no
    return y if dual.rows.b_no is None else y + dual.delta_s @ dual.rows.b_no


def pull_back(dual: Dual, g_no: jax.Array) -> jax.Array:
    """g D^T, [n, I]."""
    return (times_transposed(g_no, dual.rows.g_no) * dual.delta_s) @ dual.rows.x_ni


def dense(dual: Dual) -> tuple[Affine, Affine | None]:
    """Delta and velocity as matrices."""

    def matrix(c: jax.Array) -> Affine:
        x, g, b = dual.rows
        return Affine((x * c[:, None]).T @ g, None if b is None else c @ b)

    return matrix(dual.delta_s), None if dual.velocity_s is None else matrix(dual.velocity_s)


def write_periods(
    duals: tuple[Dual, ...],
    chunks: tuple[Rows, ...],
    used: jax.Array | int,
    applied_p: jax.Array,
    limits: tuple[Limits, ...],
    *,
    beta: float,
    lr: float,
) -> tuple[tuple[Dual, ...], tuple[Coefficients, ...]]:
    """What a chunk of n = P * C tokens makes of each map, which holds `used` tokens before it, by the rule of
    `gram.write_periods`: complete but for the rows, which are the chunk's alone (see `enter`). Also the
    coefficients, for their hits and sizes."""
    periods, dtype = applied_p.shape[0], duals[0].delta_s.dtype
    rates = Rates(None if duals[0].velocity_s is None else beta, lr)
    # Fenced, or XLA would compute what makes the tokens (activations) anew in every product.
    chunks = jax.lax.optimization_barrier(tuple(map(_in_dtype_of, duals, chunks)))
    tokens = chunks[0].x_ni.shape[0]
    inner = jax.tree.map(
        lambda *leaf: jnp.stack(leaf),
        *(_inner_products(*each, periods) for each in zip(duals, chunks, strict=True)),
    )
    bounds = jax.tree.map(lambda *bound: jnp.stack(bound), *limits)

    def of_map(inner: Inner, limits: Limits) -> Coefficients:
        return coefficients(inner, applied_p, rates, limits.write, limits.delta, dtype)

    stacked = jax.vmap(of_map, axis_size=len(duals))(inner, bounds)
    found = [jax.tree.map(lambda c, i=i: c[i], (inner, stacked)) for i in range(len(duals))]
    period = tokens // periods
    written = tuple(_scaled(dual, used, period, *each) for dual, each in zip(duals, found, strict=True))
    written = tuple(dual._replace(rows=rows) for dual, rows in zip(written, chunks, strict=True))
    return written, tuple(each for _, each in found)


def enter(held: Dual, written: Dual, at: jax.Array | int) -> Dual:
    """The state after a write that stands at row `at` of `held`: `write_periods`' result with all rows."""
    return written._replace(rows=jax.tree.map(lambda old, new: _put(old, new, at), held.rows, written.rows))


def _in_dtype_of(dual: Dual, chunk: Rows) -> Rows:
    return jax.tree.map(lambda held, new: new.astype(held.dtype), dual.rows, chunk)


def _put(held: jax.Array, new: jax.Array, used: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(held, new.astype(held.dtype), used, 0)


def _inner_products(dual: Dual, chunk: Rows, periods: int) -> Inner:
    """Of the delta, the velocity, and the gradients of the chunk's tokens."""
    products = token_products(chunk, dual.rows)  # rows that count for nothing yet have coefficient zero
    own = token_products(chunk, chunk).reshape(periods, -1, periods, chunk.x_ni.shape[0] // periods)

    def along(coefficients_s: jax.Array) -> jax.Array:
        return (products @ coefficients_s).reshape(periods, -1).sum(1)

    dg_p = along(dual.delta_s)
    vg_p = jnp.zeros_like(dg_p) if dual.velocity_s is None else along(dual.velocity_s)
    return Inner(dual.dd, dual.dv, dual.vv, dg_p, vg_p, own.sum((1, 3)))


def _scaled(dual: Dual, used: jax.Array | int, period: int, inner: Inner, c: Coefficients) -> Dual:
    """The coefficients after the chunk."""
    delta_s, d, v = c.d * dual.delta_s, jnp.concatenate([c.d[None], c.v[None], c.g_p]), None
    if dual.velocity_s is not None:
        delta_s = delta_s + c.v * dual.velocity_s
        v = jnp.concatenate([jnp.zeros((1,), d.dtype), c.velocity_v[None], c.velocity_g_p])
    delta_s = _put(delta_s, jnp.repeat(c.g_p, period), used)
    after_d = _times(inner, d)
    if v is None:
        return Dual(dual.rows, delta_s, None, d @ after_d, dual.dv, dual.vv)
    velocity_s = _put(c.velocity_v * dual.velocity_s, jnp.repeat(c.velocity_g_p, period), used)
    return Dual(dual.rows, delta_s, velocity_s, d @ after_d, v @ after_d, v @ _times(inner, v))


def _times(inner: Inner, c: jax.Array) -> jax.Array:
    """The inner products' matrix over (D_0, v_0, G_1 .. G_P) times c [2 + P]."""
    d, v, g = c[0], c[1], c[2:]
    first = d * inner.dd + v * inner.dv + g @ inner.dg_p
    second = d * inner.dv + v * inner.vv + g @ inner.vg_p
    rest = d * inner.dg_p + v * inner.vg_p + inner.gg_pp @ g
    return jnp.concatenate([first[None], second[None], rest])


def form_by_size(tokens: int, inputs: int, outputs: int) -> Literal["dense", "dual"]:
    """The form with fewer elements for a context of so many tokens, which starts from nothing."""
    return "dual" if tokens * (inputs + outputs) <= inputs * outputs else "dense"
