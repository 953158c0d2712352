"""Production form: one chunk's writes of a group of memories in closed form, with matrix products only.

A group is a set of residual MLP memories M(x) = skip(x) + W_out gelu(W_in x) that are written with the same
stream (k_t, v_t, eta_t, alpha_t). Token by token (Eqs. 83-93, SPEC §2.3), all gradients at the chunk's first
weights,

    W_out <- alpha_t W_out - eta_t m_t,    W_in <- W_in (alpha_t I - eta_t k_t k_t^T) - eta_t m_t,

m_t = beta m_{t-1} + gradient of the loss of token t, W_skip as W_in. Each gradient has rank one, so the chunk
is a combination of W_0, m_0 and C outer products. The projections of the W_in's before each token's write
follow from those at the start by one unit-triangular C x C system, which is common to the whole group
(WY/UT transform). Only ratios alpha_{s+1} .. alpha_t of decays appear, all at most 1: no decay overflows.

Rows are tokens. Everything is for one example; the batch is a vmap.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from hope_jax.kernels.self_mod.group import Layout, Stacked, hidden_units, of_matrices
from hope_jax.kernels.self_mod.products import (
    MOMENTUM_ROWS,
    ROWS,
    Group,
    Products,
    outer,
    wide,
)
from hope_jax.kernels.triangular import exact, unit_lower_inverse


class Tokens(NamedTuple):
    """The stream that a group is written with. k, v: [C, D]; eta, log_alpha: [C], at least float32.

    A token with eta = 0 and log_alpha = 0, as padding has, changes no weight and no momentum buffer.
    """

    k: jax.Array
    v: jax.Array
    eta: jax.Array
    log_alpha: jax.Array


class Rule(NamedTuple):
    """Options of the write.

    objective: inner loss, |M(k) - M(v)|^2 (l2) or -<M(k), M(v)> (dot). stopgrad_vhat: leave the target M(v)
    out of the inner gradient (derivatives of the written weights go through it all the same). rank1: the
    factor (alpha I - eta k k^T); False: alpha. momentum: beta.
    """

    objective: Literal["l2", "dot"] = "l2"
    stopgrad_vhat: bool = True
    rank1: bool = True
    momentum: float = 0.0


class _Inside(NamedTuple):
    """What a group's read of n rows computes before the W_out's. pre: [n, R] products with `rows`; units:
    [n, hidden units], those of the W_in's; below: see `_normal_below`; activations: [n, hidden units]."""

    pre: jax.Array
    units: jax.Array
    below: jax.Array
    activations: jax.Array


class Factors(NamedTuple):
    """A chunk's write: W <- exp(log_total) W - start m - left^T right, m <- keep m + given^T right.

    left, right: of each of `Stacked.matrices`, [n, O] and [n, I]. start, keep: []; given: as left; these
    three are None without momentum.
    """

    log_total: jax.Array
    left: tuple[jax.Array, ...]
    right: tuple[jax.Array, ...]
    start: jax.Array | None
    keep: jax.Array | None
    given: tuple[jax.Array, ...] | None


Across: TypeAlias = tuple[jax.Array, ...]
"""Of each matrix, sum over tokens of left * (right W^T), W at the chunk's start: of `rows` by row, [R]; of a
W_out, []. What `change` needs."""


class _Decays(NamedTuple):
    """What decay, step size and momentum leave of a token, of the first weights W_0, of the first buffer m_0.

    before, log_total: [C], [] share of W_0 just before token t, log of that after the chunk. lower: [C, C]
    share of what token s < t wrote, just before t, times eta_s; end: [C] the same after the chunk. lower_m,
    end_m: as `lower` and `end` for a gradient, which momentum repeats at later tokens. start_m, start_end:
    [C], [] the same for m_0. keep, keep_start: [C], [] share of a gradient, of m_0, in the last buffer.
    """

    before: jax.Array
    log_total: jax.Array
    lower: jax.Array
    end: jax.Array
    lower_m: jax.Array
    end_m: jax.Array
    start_m: jax.Array
    start_end: jax.Array
    keep: jax.Array
    keep_start: jax.Array


def _normal_below(z: jax.Array) -> jax.Array:
    """The normal distribution's share below z: the exact GELU is z times it. Fenced, or XLA computes it once
    more in everything that reads it."""
    return jax.lax.optimization_barrier(0.5 * (1 + jax.lax.erf(z * 0.5**0.5)))


def _gelu_slope(z: jax.Array, below: jax.Array) -> jax.Array:
    """Derivative of the exact GELU. below: of `_normal_below`."""
    return below + z * jnp.exp(-0.5 * z * z) * (0.5 / jnp.pi) ** 0.5


# Parts are split off: the derivative of slices would fill up each of them to the whole, and add.
def _columns(x_nr: jax.Array, widths: list[int]) -> list[jax.Array]:
    return list(jax.lax.split(x_nr, widths, axis=1))


def _inside(products: Products, layout: Layout, sets: list[jax.Array]) -> list[_Inside]:
    """The first half of the read of several sets of rows, with one product for all of them."""
    joined = products.through(ROWS, jnp.concatenate(sets))
    pres = jax.lax.split(joined, [len(rows) for rows in sets], axis=0)
    units = [_columns(pre, _widths(layout))[0] for pre in pres]
    below = [_normal_below(one) for one in units]
    return [_Inside(pre, z, share, z * share) for pre, z, share in zip(pres, units, below, strict=True)]


def _widths(layout: Layout) -> list[int]:
    """Of the parts of a product with `rows`: all hidden units, and each W_skip."""
    return [hidden_units(layout), *(part.out for part in layout if part.skip)]


def _outputs(
    products: Products, layout: Layout, hidden: tuple[jax.Array, ...], pre: jax.Array, x: jax.Array
) -> tuple[jax.Array, ...]:
    """W_out hidden + skip, by memory: linear in `hidden`, `pre` and `x` together."""
    skips, outs = _columns(pre, _widths(layout))[1:], []
    for i, (part, units) in enumerate(zip(layout, hidden, strict=True)):
        out = products.through(("weights", i + 1), units)
        if part.skip:
            out = out + skips.pop(0)
        elif part.out == x.shape[1]:
            out = out + x
        outs.append(out)
    return tuple(outs)


def _by_memory(layout: Layout, activations: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    return tuple(_columns(activations.astype(dtype), [part.hidden for part in layout]))


def read(products: Products, layout: Layout, x: jax.Array) -> dict[str, jax.Array]:
    """Every memory of a group at the tokens x [n, D]: name -> [n, out], in at least float32.

    The skip of a memory is W_skip, where it has one, else x where widths allow, else nothing.
    """
    (seen,) = _inside(products, layout, [x])
    outs = _outputs(products, layout, _by_memory(layout, seen.activations, x.dtype), seen.pre, x)
    return {part.name: out for part, out in zip(layout, outs, strict=True)}


def _decays(eta: jax.Array, log_alpha: jax.Array, live: jax.Array, beta: float) -> _Decays:
    size = eta.shape[0]
    after = jnp.cumsum(log_alpha)
    before = jnp.concatenate([jnp.zeros_like(after[:1]), after[:-1]])
    strict = jnp.tril(jnp.ones((size, size), bool), -1)
    # Exponents are masked first: above the diagonal they would overflow, and poison the gradient.
    between = jnp.exp(jnp.where(strict, before[:, None] - after, 0))
    lower = jnp.where(strict, eta * between, 0)
    end = eta * jnp.exp(after[-1] - after)
    # The buffer at s holds beta^(live tokens after r, up to s) of the gradient of r <= s.
    steps = jnp.cumsum(live.astype(eta.dtype))
    until = strict | jnp.eye(size, dtype=bool)
    carried = jnp.where(until, beta ** jnp.where(until, steps[:, None] - steps, 0), 0)
    first = beta**steps
    return _Decays(
        before=jnp.exp(before),
        log_total=after[-1],
        lower=lower,
        end=end,
        lower_m=exact(lower, carried) if beta else lower,
        end_m=exact(end, carried) if beta else end,
        start_m=exact(lower, first),
        start_end=exact(end, first),
        keep=carried[-1],
        keep_start=first[-1],
    )


class _Errors(NamedTuple):
    """Of every memory, (signals_t)^T right_t is token t's gradient of W_out; [n, out] and [n, hidden].
    n: C, or 2 C where that of M(v) is of rank one more."""

    signals: tuple[jax.Array, ...]
    right: tuple[jax.Array, ...]


def _errors(
    products: Products,
    layout: Layout,
    k: jax.Array,
    v: jax.Array,
    seen: list[_Inside],
    live: jax.Array,
    rule: Rule,
) -> _Errors:
    """The inner loss's derivative by M(k) and, if it is in the inner gradient, by M(v).

    Under l2 these are D = 2 (M(k) - M(v)) and -D: one product with the difference of the activations gives
    D, and the gradient of W_out is D^T (h(k) - h(v)).
    """
    dtype = k.dtype
    at_k, at_v = seen
    apart = _by_memory(layout, at_k.activations - at_v.activations, dtype)
    hidden_k = _by_memory(layout, at_k.activations, dtype)
    if rule.objective == "l2":
        errors = _outputs(products, layout, apart, at_k.pre - at_v.pre, wide(k) - wide(v))
        signals = tuple(jnp.where(live[:, None], 2 * error, 0) for error in errors)
        return _Errors(signals, hidden_k if rule.stopgrad_vhat else apart)
    hidden_v = _by_memory(layout, at_v.activations, dtype)
    hidden = tuple(jnp.concatenate(both) for both in zip(hidden_k, hidden_v, strict=True))
    outs = _outputs(products, layout, hidden, jnp.concatenate([at_k.pre, at_v.pre]), jnp.concatenate([k, v]))
    preds, targets = zip(*(jnp.split(out, 2) for out in outs), strict=True)
    by_pred = [jnp.where(live[:, None], -target, 0) for target in targets]
    if rule.stopgrad_vhat:
        return _Errors(tuple(by_pred), hidden_k)
    by_target = [jnp.where(live[:, None], -pred, 0) for pred in preds]
    signals = tuple(jnp.concatenate(both) for both in zip(by_pred, by_target, strict=True))
    return _Errors(signals, hidden)


def _projections(
    products: Products, k: jax.Array, pre: jax.Array, left: jax.Array, right: jax.Array, decays: _Decays
) -> jax.Array:
    """y_t = W_{t-1} k_t of the stacked rows W, [C, R]: the rank-one factor removes eta_t y_t k_t^T.

    pre: [C, R], W_0 k_t. left, right: factors of the gradients, as in `factors_of_chunk`.
    """
    keys, repeats = wide(k), right.shape[0] // k.shape[0]
    shared = jnp.tile(decays.lower_m, (1, repeats)) * exact(keys, wide(right).T)
    y = decays.before[:, None] * pre - exact(shared, left)
    if products.momentum:
        y = y - decays.start_m[:, None] * products.through(MOMENTUM_ROWS, k)
    return exact(unit_lower_inverse(decays.lower * exact(keys, keys.T)), y)


def factors_of_chunk(
    products: Products, layout: Layout, tokens: Tokens, rule: Rule, live: jax.Array | None = None
) -> tuple[Factors, Across]:
    """What one chunk writes.

    products: with the group at the chunk's start. tokens: any number C >= 1; the large products run in k's
    dtype, decays and the C x C algebra in at least float32. live: bool [C]; a token that is not live is an
    exact identity, whatever it holds, and gets no gradient. None: all are live, but with momentum those with
    eta = 0 and log_alpha = 0, which without it write nothing anyway.
    """
    if live is None:
        live = jnp.ones(tokens.k.shape[0], bool)
        if rule.momentum:
            live = (tokens.eta != 0) | (tokens.log_alpha != 0)
    k, v = (jnp.where(live[:, None], t, 0) for t in (tokens.k, tokens.v))
    eta, log_alpha = (jnp.where(live, wide(t), 0) for t in (tokens.eta, tokens.log_alpha))
    decays = _decays(eta, log_alpha, live, rule.momentum)
    seen = _inside(products, layout, [k, v])
    signals, hidden = _errors(products, layout, k, v, seen, live, rule)
    pulled = [products.back(("weights", i + 1), d, k.dtype) for i, d in enumerate(signals)]
    # Token t's gradients are left_t^T right_t (and those of v_t below them, if they count).
    left, right = _row_gradients(layout, seen, signals, pulled, rule), k
    if not rule.stopgrad_vhat:
        right = jnp.concatenate([k, v])

    def shared(rows: jax.Array, share: jax.Array) -> jax.Array:
        return jnp.tile(share, len(rows) // len(k))[:, None] * rows

    row_share = shared(left, decays.end_m)
    if rule.rank1:
        y = _projections(products, k, seen[0].pre, left, right, decays)
        row_share = row_share.at[: k.shape[0]].add(decays.end[:, None] * y)
    lefts, rights = (row_share, *(shared(d, decays.end_m) for d in signals)), (right, *hidden)
    pres = seen[0].pre if rule.stopgrad_vhat else jnp.concatenate([one.pre for one in seen])
    across = (
        jnp.sum(row_share * pres, 0),
        *(jnp.sum(shared(d, decays.end_m) * h) for d, h in zip(pulled, hidden, strict=True)),
    )
    if not products.momentum:
        return Factors(decays.log_total, lefts, rights, None, None, None), across
    given = (shared(left, decays.keep), *(shared(d, decays.keep) for d in signals))
    return Factors(decays.log_total, lefts, rights, decays.start_end, decays.keep_start, given), across


def advance(group: Group, factors: Factors) -> Group:
    """The group after the write, in its own dtype."""

    def written(w: jax.Array, m: jax.Array | None, left: jax.Array, right: jax.Array) -> jax.Array:
        new = jnp.exp(factors.log_total).astype(w.dtype) * w - outer(left, right, w.dtype)
        return new if m is None else new - jnp.asarray(factors.start).astype(w.dtype) * m

    weights, momentum = group
    factors = jax.lax.optimization_barrier(factors)
    if momentum is None or factors.given is None or factors.keep is None:
        pairs = zip(weights.matrices(), factors.left, factors.right, strict=True)
        return Group(of_matrices(tuple(written(w, None, left, right) for w, left, right in pairs)), None)
    keep = factors.keep
    four = zip(weights.matrices(), momentum.matrices(), factors.left, factors.right, strict=True)
    new = tuple(written(*matrix) for matrix in four)
    three = zip(momentum.matrices(), factors.given, factors.right, strict=True)
    buffers = tuple(keep.astype(m.dtype) * m + outer(given, right, m.dtype) for m, given, right in three)
    return Group(of_matrices(new), of_matrices(buffers))


def write_chunk(
    weights: Stacked,
    momentum: Stacked | None,
    layout: Layout,
    tokens: Tokens,
    rule: Rule,
    live: jax.Array | None = None,
) -> tuple[Stacked, Stacked | None]:
    """The group after one chunk's writes, and its momentum buffers; see `factors_of_chunk`.

    weights: at the chunk's start; their dtype is the result's. momentum: buffers; None if `rule.momentum`
    is 0.
    """
    group = Group(weights, momentum)
    return advance(group, factors_of_chunk(Products(group), layout, tokens, rule, live)[0])


def _row_gradients(
    layout: Layout, seen: list[_Inside], signals: tuple[jax.Array, ...], pulled: list[jax.Array], rule: Rule
) -> jax.Array:
    """d loss / d (products with the stacked rows) [n, R] from d loss / d outputs, [n, out] each, and what the
    W_out's make of them, [n, hidden] each. n: C, 2 C with the rows of v."""
    slopes = [_gelu_slope(one.units, one.below) for one in seen]
    skips = [d for part, d in zip(layout, signals, strict=True) if part.skip]
    hidden = jnp.concatenate(pulled, 1)
    if rule.stopgrad_vhat:
        return jnp.concatenate([hidden * slopes[0], *skips], 1)
    if rule.objective == "l2":
        hidden, *skips = (jnp.concatenate([d, -d]) for d in (hidden, *skips))
    return jnp.concatenate([hidden * jnp.concatenate(slopes), *skips], 1)
