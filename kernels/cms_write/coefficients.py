"""The periods of a chunk as coefficients, for one affine map under a linear inner optimizer.

A chunk of P periods takes P inner steps in order,

    v <- beta v + (1 - beta) G_p,   D <- bound_D(D + s_p w_p),   w_p = -lr v,  s_p = bound_w(w_p) / w_p,

so every v and D is a combination of (D_0, v_0, G_1 .. G_P), and the bounds ask only for norms, which follow
from the inner products of these P + 2. The v_p and w_p do not depend on the bounds and are known at once;
what runs from period to period is a few scalars: |D|^2, and <D, s_q w_q> of the writes to come.
"""

from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from hope_jax.kernels.cms_write.kept import kept, root, shrink

from hope_jax.core.types import Array

Inner: TypeAlias = tuple[Array, Array, Array]
"""Inner products [2, 2] of one map's D_0 and v_0, [2, P] of these and its gradients G_1 .. G_P, and [P, P] of
these; without a velocity those with v_0 are zero."""


class Coefficients(NamedTuple):
    """The map after a chunk: D = d D_0 + v v_0 + sum_p g_p G_p, and its velocity likewise (`velocity_v`,
    `velocity_g_p`; of no meaning without one). write_hits, delta_hits: bool [P], applied periods in which a
    bound was active. write_sizes, delta_sizes: [P] Frobenius norms, after bounds, of each period's write (0
    where it was not applied) and of D after it. gradient_sizes: [P] those of G_p."""

    d: Array
    v: Array
    g_p: Array
    velocity_v: Array
    velocity_g_p: Array
    write_hits: Array
    delta_hits: Array
    write_sizes: Array
    delta_sizes: Array
    gradient_sizes: Array


def velocities(beta: float | Array | None, applied_p: Array, dtype: jnp.dtype) -> Array:
    """Coefficients [P, 1 + P] of v_p after each period, over (v_0, G_1 .. G_P). beta None: there is no
    velocity, v_p = G_p."""
    periods = applied_p.shape[0]
    if beta is None:
        return jnp.concatenate([jnp.zeros((periods, 1), dtype), jnp.eye(periods, dtype=dtype)], axis=1)
    steps = jnp.cumsum(applied_p)
    since = steps[:, None] - steps
    own = applied_p & jnp.tri(periods, dtype=bool)
    # A power's exponent is masked before it is taken: later periods would have negative ones.
    gradients = jnp.where(own, (1 - beta) * beta ** jnp.where(own, since, 0).astype(dtype), 0)
    first = beta ** steps.astype(dtype)
    return jnp.concatenate([first[:, None], gradients], axis=1).astype(dtype)


def coefficients(
    inner: Inner,
    applied_p: Array,
    beta: float | Array | None,
    lr: float,
    max_write: Array | None,
    max_delta: Array | None,
    dtype: jnp.dtype,
) -> Coefficients:
    """The coefficients of one map. max_write, max_delta: [] bounds, or None: off."""
    (of_d, (_, vv)), (dg_p, vg_p), gg_pp = inner
    v_pb = velocities(beta, applied_p, dtype)
    writes_pb = jnp.where(applied_p[:, None], -lr * v_pb, 0)
    write_hits = jnp.zeros(applied_p.shape, bool)
    vg = jnp.concatenate([vv[None], vg_p])
    gram_bb = jnp.concatenate([vg[None], jnp.concatenate([vg_p[:, None], gg_pp], axis=1)], axis=0)
    gram_pp = _outer(writes_pb, gram_bb)
    write_sizes = root(jnp.diagonal(gram_pp))
    if max_write is not None:
        factor, write_hits = shrink(write_sizes, max_write)
        writes_pb, write_sizes = writes_pb * factor[:, None], write_sizes * factor
        gram_pp = gram_pp * factor[:, None] * factor
    along_p = _times(writes_pb, jnp.concatenate([of_d[1:], dg_p]))
    bound = jnp.asarray(jnp.finfo(dtype).max, dtype) if max_delta is None else max_delta
    keep_p, delta_hits, delta_sizes = kept(of_d[0], along_p, gram_pp, applied_p, bound)
    # What is left at the end of the write of period q: the product of the factors from q on.
    left_p = jnp.cumprod(keep_p[::-1])[::-1]
    change_b = _times(writes_pb.T, left_p)
    return Coefficients(
        d=left_p[0],
        v=change_b[0],
        g_p=change_b[1:],
        velocity_v=v_pb[-1, 0],
        velocity_g_p=v_pb[-1, 1:],
        write_hits=write_hits,
        delta_hits=delta_hits,
        write_sizes=write_sizes,
        delta_sizes=delta_sizes,
        gradient_sizes=root(jnp.diagonal(gg_pp)),
    )


def _outer(a_pb: Array, gram_bb: Array) -> Array:
    exact = "highest"
    return jnp.matmul(jnp.matmul(a_pb, gram_bb, precision=exact), a_pb.T, precision=exact)


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
