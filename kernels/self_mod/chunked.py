"""Production form: one chunk's writes of a group of memories in closed form, with matrix products only.

A group is a set of residual MLP memories M(x) = skip(x) + W_out gelu(W_in x) that are written with the same
stream (k_t, v_t, eta_t, alpha_t). Token by token (Eqs. 83-93), all gradients at the chunk's first
weights,

    W_out <- alpha_t W_out - eta_t m_t,    W_in <- W_in (alpha_t I - eta_t k_t k_t^T) - eta_t m_t,

m_t = beta m_{t-1} + gradient of the loss of token t, W_skip as W_in. Each gradient has rank one, so the chunk
is a combination of W_0, m_0 and C outer products. The projections of the W_in's before each token's write
follow from those at the start by one unit-triangular C x C system, which is common to the whole group
(WY/UT transform). Only ratios alpha_{s+1} .. alpha_t of decays appear, all at most 1: no decay overflows.

Rows are tokens. Everything is for one example; the batch is a vmap.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from hope_jax.kernels.self_mod.group import Group, Layout, Products, outer, wide
from hope_jax.kernels.triangular import exact, unit_lower_inverse

from hope_jax.core.ranges import Decay


class Tokens(NamedTuple):
    """The stream that a group is written with. k, v: [C, D]; eta, log_alpha: [C], at least float32.

    A token with eta = 0 and log_alpha = 0, as padding has, changes no weight and no momentum buffer.
    """

    k: jax.Array
    v: jax.Array
    eta: jax.Array
    log_alpha: jax.Array


@dataclass(frozen=True)
class Rule:
    """How memories are written."""

    objective: Literal["l2", "dot"] = "l2"  # inner loss |M(k) - M(v)|^2 or -<M(k), M(v)>
    stopgrad_vhat: bool = True  # no inner gradient through the target M(v); written weights have one
    rank1_precondition: bool = True  # the factor (alpha I - eta k k^T) of the write; False: alpha
    momentum: Decay = 0.0  # beta of the writes


class Factors(NamedTuple):
    """A chunk's write: W <- exp(log_total) W - start m - left^T right, m <- keep m + given^T right.

    log_total: []. left, right: of each matrix, [n, O] and [n, I]. buffers: (start, keep, given), [], [] and
    as left; None without momentum, where there is no m.
    """

    log_total: jax.Array
    left: tuple[jax.Array, ...]
    right: tuple[jax.Array, ...]
    buffers: tuple[jax.Array, jax.Array, tuple[jax.Array, ...]] | None = None


def read(products: Products, layout: Layout, x: jax.Array) -> dict[str, jax.Array]:
    """Every memory of a group at the tokens x [n, D]: name -> [n, out], in at least float32.

    The skip of a memory is W_skip, where it has one, else x where widths allow, else nothing.
    """
    outs = _forward(products, layout, x)[-1]
    return {part.name: out for part, out in zip(layout, outs, strict=True)}


def write_chunk(group: Group, layout: Layout, tokens: Tokens, rule: Rule) -> Group:
    """The group after one chunk's writes, in its own dtype; see `factors_of_chunk`.

    It has buffers if `rule.momentum` is not 0.
    """
    return advance(group, factors_of_chunk(Products(group), layout, tokens, rule))


def advance(group: Group, factors: Factors) -> Group:
    """The group after the write, in its own dtype."""
    log_total, left, right, momentum = jax.lax.optimization_barrier(factors)
    total, count = jnp.exp(log_total), len(left)
    weights = [
        total.astype(w.dtype) * w - outer(a, b, w.dtype)
        for w, a, b in zip(group[:count], left, right, strict=True)
    ]
    if momentum is None:
        return tuple(weights)
    start, keep, given = momentum
    buffers = group[count:]
    weights = [w - start.astype(w.dtype) * m for w, m in zip(weights, buffers, strict=True)]
    three = zip(buffers, given, right, strict=True)
    return (*weights, *(keep.astype(m.dtype) * m + outer(a, b, m.dtype) for m, a, b in three))


def factors_of_chunk(products: Products, layout: Layout, tokens: Tokens, rule: Rule) -> Factors:
    """The write of one chunk, as factors.

    products: with the group at the chunk's start. tokens: any number C >= 1; the large products run in k's
    dtype, decays and the C x C algebra in at least float32. With momentum a token with eta = 0 and
    log_alpha = 0 is left out, which without it writes nothing anyway.
    """
    size = tokens.k.shape[0]
    live = (tokens.eta != 0) | (tokens.log_alpha != 0) if rule.momentum else jnp.ones(size, bool)
    both = jnp.concatenate([jnp.where(live[:, None], t, 0) for t in (tokens.k, tokens.v)])
    eta, log_alpha = (jnp.where(live, wide(t), 0) for t in (tokens.eta, tokens.log_alpha))
    pre, slopes, hidden, outs = _forward(products, layout, both)
    signals = [_signals(rule, live, *jnp.split(out, 2)) for out in outs]
    # Token t's gradients are left_t^T right_t (and those of v_t below them, if they count).
    count = signals[0].shape[0]
    right, *hidden = (rows[:count] for rows in (both, *hidden))
    pulled = [products("back", i + 1, d.astype(both.dtype)) for i, d in enumerate(signals)]
    skips = [d for part, d in zip(layout, signals, strict=True) if part.skip]
    rows = jnp.concatenate([jnp.concatenate(pulled, 1) * slopes[:count], *skips], 1)

    def shared(share: jax.Array) -> list[jax.Array]:
        by_row = jnp.tile(share, count // size)[:, None]
        return [by_row * gradient for gradient in (rows, *signals)]

    after, shares = decays(eta, log_alpha)
    given, start = shares, None
    if rule.momentum:
        carried, first = _carried(live.astype(eta.dtype), rule.momentum)
        given, start = exact(shares, carried), exact(shares, first)
    left, *others = shared(given[-1])
    if rule.rank1_precondition:
        # y_t = W_{t-1} k_t: the factor removes eta_t y_t k_t^T.
        keys = wide(both[:size])
        y = jnp.exp(after[:-1, None]) * pre[:size]
        y -= exact(jnp.tile(given[:-1], (1, count // size)) * exact(keys, wide(right).T), rows)
        if start is not None:
            y -= start[:-1, None] * products("through", len(layout) + 1, both[:size])
        y = exact(unit_lower_inverse(shares[:-1] * exact(keys, keys.T)), y)
        left = left.at[:size].add(shares[-1][:, None] * y)
    buffers = None if start is None else (start[-1], first[-1], tuple(shared(carried[-1])))
    return Factors(after[-1], (left, *others), (right, *hidden), buffers)


def _forward(
    products: Products, layout: Layout, x: jax.Array
) -> tuple[jax.Array, jax.Array, list[jax.Array], list[jax.Array]]:
    """At rows x [n, D]: the products with the stacked rows [n, R], the slopes of all hidden units [n, hidden
    units], and each memory's activations and outputs."""
    pre = products("through", 0, x)
    # Parts are split off: the derivative of slices would fill up each of them to the whole, and add.
    widths = [sum(part.hidden for part in layout), *(part.out for part in layout if part.skip)]
    units, *skips = jax.lax.split(pre, widths, axis=1)
    # The normal distribution's share below, fenced, or XLA makes it once more in everything that reads it.
    below = jax.lax.optimization_barrier(0.5 * (1 + jax.lax.erf(units * 0.5**0.5)))
    slopes = below + units * jnp.exp(-0.5 * units * units) * (0.5 / jnp.pi) ** 0.5
    hidden = jax.lax.split((units * below).astype(x.dtype), [part.hidden for part in layout], axis=1)
    outs = []
    for i, part in enumerate(layout):
        out = products("through", i + 1, hidden[i])
        if part.skip:
            out = out + skips.pop(0)
        elif part.out == x.shape[1]:
            out = out + x
        outs.append(out)
    return pre, slopes, list(hidden), outs


def _signals(rule: Rule, live: jax.Array, pred: jax.Array, target: jax.Array) -> jax.Array:
    """The inner loss's derivative by M(k) [C, out] and, if it is in the inner gradient, by M(v) below."""
    pair = (2 * (pred - target), 2 * (target - pred)) if rule.objective == "l2" else (-target, -pred)
    wanted = pair[:1] if rule.stopgrad_vhat else pair
    return jnp.concatenate([jnp.where(live[:, None], d, 0) for d in wanted])


def decays(eta: jax.Array, log_alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Just before each token, and after the last: log of the share of the first weights, [C + 1]; eta_s times
    the share of what token s wrote, [C + 1, C]."""
    size = eta.shape[0]
    after = jnp.concatenate([jnp.zeros(1, eta.dtype), jnp.cumsum(log_alpha)])
    earlier = jnp.tril(jnp.ones((size + 1, size), bool), -1)
    # Exponents are masked first: above the diagonal they would overflow, and poison the gradient.
    between = jnp.exp(jnp.where(earlier, after[:, None] - after[1:], 0))
    return after, jnp.where(earlier, eta * between, 0)


def _carried(live: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
    """In the buffer at s: the share of the gradient of r, [C, C], and of the first buffer, [C]. live: [C] of
    0 and 1."""
    steps = jnp.cumsum(live)
    until = steps[:, None] - steps
    earlier = jnp.tril(jnp.ones(until.shape, bool))
    return jnp.where(earlier, beta ** jnp.where(earlier, until, 0), 0), beta**steps
