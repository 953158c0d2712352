"""Production form: the periods of a chunk advance as coefficients, and the matrices are touched once.

A chunk of P periods takes P inner steps in order,

    v <- beta v + (1 - beta) G_p,   D <- bound_D(D + bound_w(-lr v)),   G_p = sum over the period of x_t g_t^T

with all G_p taken at the chunk's first weights. So every v and D is a combination of (D_0, v_0, G_1 .. G_P),
and the bounds ask only for norms, which follow from the Gram matrix of these P + 2 matrices. Its entries
come from tokens: <G_p, G_q> = sum_{t in p, s in q} (x_t . x_s)(g_t . g_s) and
<D_0, G_q> = sum_{t in q} x_t^T D_0 g_t.
The cost is O(n I O) in a few products instead of P passes over I x O matrices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Written(NamedTuple):
    """delta, velocity: [I, O] after the chunk (velocity None if there was none). write_hits, delta_hits:
    bool [P], periods in which a bound was active (applied or not)."""

    delta: jax.Array
    velocity: jax.Array | None
    write_hits: jax.Array
    delta_hits: jax.Array


def root(square: jax.Array) -> jax.Array:
    """Square root with slope zero at zero, where a norm has none; 0 for what rounding made negative."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def shrink(size: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """min(bound / size, 1), finite with its slopes at size 0 and bound 0; bool: whether it is below 1."""
    # Below the root of the smallest number the slope bound / size^2 would overflow.
    over = size > jnp.maximum(bound, jnp.sqrt(jnp.finfo(size.dtype).tiny))
    return jnp.where(over, bound / jnp.where(over, size, 1), 1), over


def write_periods(
    x_ni: jax.Array,
    g_no: jax.Array,
    delta: jax.Array,
    velocity: jax.Array | None,
    applied_p: jax.Array,
    *,
    beta: float,
    lr: float,
    max_write: jax.Array | None,
    max_delta: jax.Array | None,
) -> Written:
    """Writes the P periods of a chunk in order.

    x_ni, g_no: factors of the gradients, n = P * C tokens. delta, velocity: [I, O]; velocity None: v = G_p.
    applied_p: bool [P]; a period that is not applied leaves delta and velocity as they were.
    max_write, max_delta: [] bounds on |lr v|_F and |delta|_F; None: off.
    """
    periods = applied_p.shape[0]
    x, g = x_ni.astype(delta.dtype), g_no.astype(delta.dtype)
    gram = _gram(x, g, delta, velocity, periods)
    basis = jnp.eye(periods + 2, dtype=delta.dtype)

    def bounded(c: jax.Array, bound: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        if bound is None:
            return c, jnp.zeros((), bool)
        factor, hit = shrink(root(c @ gram @ c), bound)
        return c * factor, hit

    def step(
        carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        (d, v), (applied, own) = carry, xs
        new_v = own if velocity is None else beta * v + (1 - beta) * own
        write, write_hit = bounded(-lr * new_v, max_write)
        new_d, delta_hit = bounded(d + write, max_delta)
        return (jnp.where(applied, new_d, d), jnp.where(applied, new_v, v)), (write_hit, delta_hit)

    (d, v), hits = jax.lax.scan(step, (basis[0], basis[1]), (applied_p, basis[2:]))

    def combine(c: jax.Array) -> jax.Array:
        by_token = jnp.repeat(c[2:], x.shape[0] // periods)
        total = c[0] * delta + (x * by_token[:, None]).T @ g
        return total if velocity is None else total + c[1] * velocity

    return Written(combine(d), None if velocity is None else combine(v), *hits)


def _gram(
    x: jax.Array, g: jax.Array, delta: jax.Array, velocity: jax.Array | None, periods: int
) -> jax.Array:
    """Inner products of (delta, velocity, G_1 .. G_P), [P + 2, P + 2]; velocity None counts as zero."""
    tokens = ((x @ x.T) * (g @ g.T)).reshape(periods, -1, periods, x.shape[0] // periods)
    carried = [delta, jnp.zeros((), delta.dtype) if velocity is None else velocity]
    cross = jnp.stack(
        [
            jnp.zeros(periods, delta.dtype) if m.ndim == 0 else ((x @ m) * g).reshape(periods, -1).sum(1)
            for m in carried
        ]
    )
    corner = jnp.stack([jnp.stack([jnp.sum(a * b) for b in carried]) for a in carried])
    return jnp.block([[corner, cross], [cross.T, tokens.sum((1, 3))]])
