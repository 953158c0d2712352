"""Production form: one chunk's writes of a group of memories in closed form, with matrix products only.

A group is a set of residual MLP memories M(x) = skip(x) + W_out gelu(W_in x) that are written with the same
stream (k_t, v_t, eta_t, alpha_t). Token by token (Eqs. 83-93, SPEC §2.3), all gradients at the chunk's first
weights,

    W_out <- alpha_t W_out - eta_t m_t,    W_in <- W_in (alpha_t I - eta_t k_t k_t^T) - eta_t m_t,

m_t = beta m_{t-1} + gradient of the loss of token t, W_skip as W_in. Each gradient has rank one, so the chunk
is a combination of W_0, m_0 and C outer products. The projections of the W_in's before each token's write
follow from those at the start by one unit-triangular C x C system, which is common to the whole group
(WY/UT transform). Only ratios alpha_{s+1} .. alpha_t of decays appear, all at most 1: no decay overflows.

Rows are tokens. Weights are kept as (out, in): the products with few rows, which are nearly all of the work,
then run over the long axis of the big matrix in the order in which it lies in memory, and the rows of all
W_in and W_skip stack into one matrix. Everything is for one example; the batch is a vmap.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Memories: TypeAlias = dict[str, dict[str, jax.Array]]

BLOCK = 8
"""Width up to which a unit-triangular matrix is inverted by powers; wider ones by blocks, because those
powers grow until float32 loses the result."""


class Part(NamedTuple):
    """The shape of one memory of a group. skip: it has a W_skip."""

    name: str
    hidden: int
    out: int
    skip: bool


Layout: TypeAlias = tuple[Part, ...]


class Stacked(NamedTuple):
    """Weights (or momentum buffers) of a group. rows: [R, D], all W_in and then all W_skip.
    w_out: [out, hidden] each."""

    rows: jax.Array
    w_out: tuple[jax.Array, ...]


class Tokens(NamedTuple):
    """The stream that a group is written with. k, v: [C, D]; eta, log_alpha: [C], at least float32.

    A token with eta = 0 and log_alpha = 0 writes nothing if there is no momentum; with momentum, name it in
    `live` of `write_chunk`.
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


class _Forward(NamedTuple):
    """A group's read. pre: [n, R] products with `rows`; hidden: activations; outs: [n, out] each."""

    pre: jax.Array
    hidden: jax.Array
    outs: tuple[jax.Array, ...]


class _Decays(NamedTuple):
    """What decay, step size and momentum leave of a token, of the first weights W_0, of the first buffer m_0.

    before, total: [C], [] share of W_0 just before token t, after the chunk. lower: [C, C] share of what
    token s < t wrote, just before t, times eta_s; end: [C] the same after the chunk. lower_m, end_m: as
    `lower` and `end` for a gradient, which momentum repeats at later tokens. start_m, start_end: [C], []
    the same for m_0. keep, keep_start: [C], [] share of a gradient, of m_0, in the last buffer.
    """

    before: jax.Array
    total: jax.Array
    lower: jax.Array
    end: jax.Array
    lower_m: jax.Array
    end_m: jax.Array
    start_m: jax.Array
    start_end: jax.Array
    keep: jax.Array
    keep_start: jax.Array


def layout_of(memories: Memories) -> Layout:
    """The static description of a group, from its weights (in the order of their names)."""
    return tuple(
        Part(name, m["w_in"].shape[0], m["w_out"].shape[0], "w_skip" in m)
        for name, m in sorted(memories.items())
    )


def stack(memories: Memories) -> Stacked:
    """The weights of a group as `Stacked`, in the order of `layout_of`."""
    ordered = [memories[name] for name in sorted(memories)]
    rows = [m["w_in"] for m in ordered] + [m["w_skip"] for m in ordered if "w_skip" in m]
    return Stacked(jnp.concatenate(rows), tuple(m["w_out"] for m in ordered))


def unstack(weights: Stacked, layout: Layout) -> Memories:
    """The inverse of `stack`."""
    memories: Memories = {}
    for part, (start, skip), w_out in zip(layout, _columns(layout), weights.w_out, strict=True):
        memories[part.name] = {"w_in": weights.rows[start : start + part.hidden], "w_out": w_out}
        if part.skip:
            memories[part.name]["w_skip"] = weights.rows[skip : skip + part.out]
    return memories


def _columns(layout: Layout) -> list[tuple[int, int]]:
    """Of each memory, where its hidden units and its skip begin among the stacked rows."""
    found, hidden, skip = [], 0, _hidden(layout)
    for part in layout:
        found.append((hidden, skip))
        hidden, skip = hidden + part.hidden, skip + (part.out if part.skip else 0)
    return found


def _hidden(layout: Layout) -> int:
    return sum(part.hidden for part in layout)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _gelu_slope(z: jax.Array) -> jax.Array:
    """Derivative of the exact GELU."""
    below = 0.5 * (1 + jax.lax.erf(z * 0.5**0.5))
    return below + z * jnp.exp(-0.5 * z * z) * (0.5 / jnp.pi) ** 0.5


def _forward(weights: Stacked, layout: Layout, x: jax.Array) -> _Forward:
    pre = _wide(x @ weights.rows.astype(x.dtype).T)
    hidden = jax.nn.gelu(pre[:, : _hidden(layout)], approximate=False).astype(x.dtype)
    outs = []
    for part, (start, skip), w_out in zip(layout, _columns(layout), weights.w_out, strict=True):
        out = _wide(hidden[:, start : start + part.hidden] @ w_out.astype(x.dtype).T)
        if part.skip:
            out = out + pre[:, skip : skip + part.out]
        elif part.out == x.shape[1]:
            out = out + x
        outs.append(out)
    return _Forward(pre, hidden, tuple(outs))


def read(weights: Stacked, layout: Layout, x: jax.Array) -> dict[str, jax.Array]:
    """Every memory of a group at the tokens x [n, D]: name -> [n, out], in at least float32.

    The skip of a memory is W_skip, where it has one, else x where widths allow, else nothing.
    """
    outs = _forward(weights, layout, x).outs
    return {part.name: out for part, out in zip(layout, outs, strict=True)}


def _unit_lower_inverse(lower: jax.Array) -> jax.Array:
    """(I + L)^{-1} of a strictly lower L [C, C].

    Up to `BLOCK` by powers, L being nilpotent: (I - L)(I + L^2)(I + L^4). Above, by 2 x 2 blocks.
    """
    width = lower.shape[0]
    eye = jnp.eye(width, dtype=lower.dtype)
    if width > BLOCK:
        half = (width + 1) // 2
        a, d = _unit_lower_inverse(lower[:half, :half]), _unit_lower_inverse(lower[half:, half:])
        corner = -_exact(_exact(d, lower[half:, :half]), a)
        return jnp.block([[a, jnp.zeros((half, width - half), lower.dtype)], [corner, d]])
    inverse, power, exact = eye - lower, lower, 2
    while exact < width:
        power = _exact(power, power)
        inverse = _exact(inverse, eye + power)
        exact *= 2
    return inverse


def _exact(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b without the reduced precision that accelerators default to; for the small C x C algebra."""
    return jnp.matmul(a, b, precision="highest")


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
        total=jnp.exp(after[-1]),
        lower=lower,
        end=end,
        lower_m=_exact(lower, carried) if beta else lower,
        end_m=_exact(end, carried) if beta else end,
        start_m=_exact(lower, first),
        start_end=_exact(end, first),
        keep=carried[-1],
        keep_start=first[-1],
    )


def _signals(
    layout: Layout, outs: tuple[jax.Array, ...], live: jax.Array, rule: Rule
) -> tuple[jax.Array, ...]:
    """Per memory, d loss / d M(k), and below it d loss / d M(v) if that is in the inner gradient."""
    found = []
    for out in outs:
        pred, target = jnp.split(out, 2)
        d = [2 * (pred - target), 2 * (target - pred)] if rule.objective == "l2" else [-target, -pred]
        masked = [jnp.where(live[:, None], one, 0) for one in d]
        found.append(masked[0] if rule.stopgrad_vhat else jnp.concatenate(masked))
    return tuple(found)


def _projections(
    k: jax.Array,
    pre: jax.Array,
    momentum_rows: jax.Array | None,
    left: jax.Array,
    right: jax.Array,
    decays: _Decays,
) -> jax.Array:
    """y_t = W_{t-1} k_t of the stacked rows W, [C, R]: the rank-one factor removes eta_t y_t k_t^T.

    pre: [C, R], W_0 k_t. left, right: factors of the gradients, as in `write_chunk`.
    """
    wide, repeats = _wide(k), right.shape[0] // k.shape[0]
    shared = jnp.tile(decays.lower_m, (1, repeats)) * _exact(wide, _wide(right).T)
    y = decays.before[:, None] * pre - _exact(shared, left)
    if momentum_rows is not None:
        y = y - decays.start_m[:, None] * _wide(k @ momentum_rows.astype(k.dtype).T)
    return _exact(_unit_lower_inverse(decays.lower * _exact(wide, wide.T)), y)


def write_chunk(
    weights: Stacked,
    momentum: Stacked | None,
    layout: Layout,
    tokens: Tokens,
    rule: Rule,
    live: jax.Array | None = None,
) -> tuple[Stacked, Stacked | None]:
    """The group after one chunk's writes, and its momentum buffers.

    weights: at the chunk's start; their dtype is the result's. momentum: buffers; None if `rule.momentum` is
    0. tokens: any number C >= 1; the large products run in k's dtype, decays and the C x C algebra in at
    least float32. live: bool [C]; a token that is not live is an exact identity, whatever it holds, and
    gets no gradient. None: all are live.
    """
    live = jnp.ones(tokens.k.shape[0], bool) if live is None else live
    k, v = (jnp.where(live[:, None], t, 0) for t in (tokens.k, tokens.v))
    eta, log_alpha = (jnp.where(live, _wide(t), 0) for t in (tokens.eta, tokens.log_alpha))
    decays = _decays(eta, log_alpha, live, rule.momentum)
    both = jnp.concatenate([k, v])
    seen = _forward(weights, layout, both)
    signals = _signals(layout, seen.outs, live, rule)
    # Token t's gradients are left_t^T right_t (and those of v_t below them, if they count).
    pairs = signals[0].shape[0]
    left, right = _pull_back(weights, layout, signals, seen.pre[:pairs], k.dtype), both[:pairs]
    share = jnp.tile(decays.end_m, pairs // k.shape[0])[:, None]
    keep = jnp.tile(decays.keep, pairs // k.shape[0])[:, None]
    row_share = share * left
    if rule.rank1:
        rows_m = None if momentum is None else momentum.rows
        y = _projections(k, seen.pre[: k.shape[0]], rows_m, left, right, decays)
        row_share = row_share.at[: k.shape[0]].add(decays.end[:, None] * y)

    columns = [
        slice(start, start + part.hidden) for part, (start, _) in zip(layout, _columns(layout), strict=True)
    ]
    hidden = [seen.hidden[:pairs, c] for c in columns]

    def advance(w: jax.Array, m: jax.Array | None, taken: jax.Array, right: jax.Array) -> jax.Array:
        new = decays.total.astype(w.dtype) * w - _outer(taken, right, w.dtype)
        return new if m is None else new - decays.start_end.astype(w.dtype) * m

    def gather(m: jax.Array, given: jax.Array, right: jax.Array) -> jax.Array:
        return decays.keep_start.astype(m.dtype) * m + _outer(keep * given, right, m.dtype)

    buffers = [None] * len(layout) if momentum is None else momentum.w_out
    outs = zip(weights.w_out, buffers, signals, hidden, strict=True)
    written = Stacked(
        advance(weights.rows, None if momentum is None else momentum.rows, row_share, right),
        tuple(advance(w, m, share * d, h) for w, m, d, h in outs),
    )
    if momentum is None:
        return written, None
    given = zip(momentum.w_out, signals, hidden, strict=True)
    return written, Stacked(gather(momentum.rows, left, right), tuple(gather(m, d, h) for m, d, h in given))


def _pull_back(
    weights: Stacked, layout: Layout, signals: tuple[jax.Array, ...], pre: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """d loss / d (products with the stacked rows) [n, R] from d loss / d outputs [n, out] each."""
    slope = _gelu_slope(pre[:, : _hidden(layout)])
    pulled = zip(signals, weights.w_out, strict=True)
    hidden = [_wide(d.astype(dtype) @ w.astype(dtype)) for d, w in pulled]
    skips = [d for part, d in zip(layout, signals, strict=True) if part.skip]
    return jnp.concatenate([jnp.concatenate(hidden, 1) * slope, *skips], 1)


def _outer(left: jax.Array, right: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """sum_t left_t right_t^T in `dtype`, multiplied in right's dtype."""
    return jnp.matmul(left.astype(right.dtype).T, right, preferred_element_type=dtype)
