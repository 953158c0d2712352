"""The Titans paper's own write: momentum and decay with data-dependent gates (arXiv 2501.00663, SPEC §2.2).

Token by token, g_t = grad l(M; k_t, v_t) at the weights that read the tokens,

    S_t = eta_t S_{t-1} - theta_t g_t,    M_t = (1 - alpha_t) M_{t-1} + S_t,

with alpha = sigmoid(k w_alpha + b_alpha), eta = sigmoid(k w_eta + b_eta), theta = lr softplus(k w_theta +
b_theta); a masked token is skipped. All of a period is one affine map of (M, S),

    M' = a M + b S - sum_t w_t g_t,    S' = e S - sum_t v_t g_t,

with scalars only from token to token; maps compose, so a period may span chunks. One example, one layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.cms_write import root
from hope_jax.memory import gate, levels, mlp_memory
from hope_jax.memory.level_write import LevelState, WriteRules, bounded, flushed, write_stats
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.state import Reduce, WriteSignal, WriteStats, add_stats, zero_stats
from hope_jax.types import Array, PyTree

NAME = "titans"
"""The optimizer's name in a configuration."""


class TokenGates(NamedTuple):
    """[n] each: decay alpha, momentum eta, rate theta."""

    alpha: Array
    eta: Array
    theta: Array


class Period(NamedTuple):
    """What a period, or its part, does to (M, S), and what its gate is decided from.

    a, b, e: [] coefficients. grad_m, grad_s: the weighted sums of gradients. tokens: [] unmasked tokens.
    seen: [] tokens. surprise: sums over counted tokens.
    """

    a: Array
    b: Array
    e: Array
    grad_m: PyTree
    grad_s: PyTree
    tokens: Array
    seen: Array
    surprise: gate.Surprise


def token_gates(params: dict[str, Array], key_nd: Array, lr: float) -> TokenGates:
    """The gates of n tokens from their keys [n, D], in the parameters' dtype.

    params: `w_alpha`, `w_eta`, `w_theta` [D] and `b_alpha`, `b_eta`, `b_theta` [].
    """
    key = key_nd.astype(params["w_alpha"].dtype)

    def gate_of(name: str) -> Array:
        return key @ params[f"w_{name}"] + params[f"b_{name}"]

    return TokenGates(
        alpha=jax.nn.sigmoid(gate_of("alpha")),
        eta=jax.nn.sigmoid(gate_of("eta")),
        theta=lr * jax.nn.softplus(gate_of("theta")),
    )


def token_weights(gates: TokenGates, mask: Array) -> tuple[Array, Array, Array, Array, Array]:
    """(a, b, e) [] of consecutive tokens, and the weights w, v [n] of their gradients. mask: bool [n]."""

    def back(carry: tuple[Array, Array, Array], xs: Any) -> tuple[Any, tuple[Array, Array]]:
        # The final (M, S) as functions of (M_t, S_t): M' = a M_t + b S_t - ..., S' = e S_t - ...
        a, b, e = carry
        (alpha, eta, theta), on = xs
        before = ((1 - alpha) * a, (a + b) * eta, e * eta)
        weights = jnp.where(on, (a + b) * theta, 0), jnp.where(on, e * theta, 0)
        return trees.select(on, before, carry), weights

    one = jnp.ones((), gates.alpha.dtype)
    (a, b, e), (w, v) = jax.lax.scan(back, (one, 0 * one, one), (gates, mask), reverse=True)
    return a, b, e, w, v


def init(spec: LevelSpec, params: PyTree, chunk_size: int) -> LevelState:
    """The state of a memory that has written nothing: `opt` is S."""
    weights = mlp_memory.fast_weights(params)
    spans = levels.spans_chunks(spec.update_period, chunk_size)
    pending = nothing(weights) if spans else ()
    return LevelState(trees.zeros_like(weights), trees.zeros_like(weights), pending)


def nothing(weights: PyTree) -> Period:
    """The map of no token: the identity."""
    zero = jnp.zeros((), jax.tree.leaves(weights)[0].dtype)
    zeros = trees.zeros_like(weights)
    return Period(zero + 1, zero, zero + 1, zeros, zeros, zero, zero, gate.Surprise(zero, zero))


def then(first: Period, second: Period) -> Period:
    """The map of `first` and then `second`."""

    def mix(x: Array, y: PyTree, u: Array, v: PyTree, rest: PyTree) -> PyTree:
        return jax.tree.map(lambda p, q, r: x * p + u * q + r, y, v, rest)

    zero = jnp.zeros_like(second.b)
    return Period(
        a=second.a * first.a,
        b=second.a * first.b + second.b * first.e,
        e=second.e * first.e,
        grad_m=mix(second.a, first.grad_m, second.b, first.grad_s, second.grad_m),
        grad_s=mix(zero, first.grad_m, second.e, first.grad_s, second.grad_s),
        tokens=first.tokens + second.tokens,
        seen=first.seen + second.seen,
        surprise=trees.add(first.surprise, second.surprise),
    )


class TitansWriter:
    """The writes of one memory at fixed slow weights; the counterpart of `level_write.LevelWriter`.

    Under a shared state every chunk's map is the mean of its examples' maps. The statistic `grad_norm` is
    of the gradients weighted by w_t, rates included.
    """

    def __init__(self, rules: WriteRules, spec: LevelSpec, params: PyTree, reduce: Reduce) -> None:
        self.rules, self.spec, self.reduce = rules, spec, reduce
        self.weights = mlp_memory.fast_weights(params)
        self.norms = mlp_memory.group_norms(self.weights)

    def write(
        self,
        state: LevelState,
        factors: WriteFactors,
        gates: TokenGates,
        mask: Array,
        signal: WriteSignal,
        position: Array,
        last: bool,
    ) -> tuple[LevelState, WriteStats]:
        """Writes one chunk of n tokens, whose first stands at `position`; see `LevelWriter.write`."""
        tokens = (factors, gates, mask, signal.surprise_n, signal.counted_n)
        if isinstance(state.pending, Period):
            return self._gather(state, then(state.pending, self._period(*tokens)), position, mask, last)
        period = self.spec.update_period
        whole, rest = levels.split_chunk(mask.shape[0], period)

        def step(state: LevelState, xs: Any) -> tuple[LevelState, WriteStats]:
            return self._apply(state, self._period(*xs))

        by_period = jax.tree.map(lambda t: t[: whole * period].reshape(whole, period, *t.shape[1:]), tokens)
        state, stats = jax.lax.scan(step, state, by_period)
        stats = jax.tree.map(lambda s: s.sum(0), stats)
        if rest and last and self.rules.flush_partial_at_end:
            state, tail = step(state, jax.tree.map(lambda t: t[whole * period :], tokens))
            stats = add_stats(stats, flushed(tail))
        return state, stats

    def _gather(
        self, state: LevelState, period: Period, position: Array, mask: Array, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """The state with the period so far; written if it ends here. C > N."""
        empty = nothing(self.weights)

        def apply(_: None) -> tuple[LevelState, WriteStats]:
            new, stats = self._apply(state, period)
            return new._replace(pending=empty), stats

        def wait(_: None) -> tuple[LevelState, WriteStats]:
            stats = zero_stats()._replace(pending_tokens=period.seen.astype(jnp.float32))
            return state._replace(pending=period), stats

        due = levels.is_due(position + mask.shape[0], self.spec.update_period)
        new_state, stats = jax.lax.cond(due, apply, wait, None)
        if not last:
            return new_state, stats
        if not self.rules.flush_partial_at_end:
            dropped = stats._replace(pending_tokens=jnp.zeros((), jnp.float32))
            return new_state._replace(pending=empty), dropped
        early, early_stats = apply(None)
        return jax.lax.cond(due, lambda: (new_state, stats), lambda: (early, flushed(early_stats)))

    def _period(
        self, factors: WriteFactors, gates: TokenGates, mask: Array, surprise_n: Array, counted_n: Array
    ) -> Period:
        """The map of consecutive tokens, over all examples that share the state."""
        dtype = self.norms[0].dtype
        a, b, e, w, v = token_weights(gates, mask)

        def weighted(weights_n: Array) -> PyTree:
            column = weights_n[:, None].astype(dtype)
            scaled = factors._replace(g_h=factors.g_h * column, g_o=factors.g_o * column)
            return mlp_memory.write_gradient(scaled, self.weights)

        own = (a, b, e, weighted(w), weighted(v))
        counts = (
            mask.astype(dtype).sum(),
            jnp.asarray(mask.shape[0], dtype),
            gate.measure(surprise_n.astype(dtype), counted_n),
        )
        total, counts = self.reduce((own, counts))
        examples = self.reduce(jnp.ones((), dtype))
        return Period(*jax.tree.map(lambda t: (t / examples).astype(dtype), total), *counts)

    def _apply(self, state: LevelState, period: Period) -> tuple[LevelState, WriteStats]:
        """The period's map, bounded, if the gate is open and a token is left."""
        is_open = gate.is_open(self.rules.gate_rule, period.surprise)
        applied = is_open & (period.tokens > 0)
        delta, momentum = state.delta, state.opt
        write = jax.tree.map(
            lambda theta, d, s, g: (period.a - 1) * (theta + d) + period.b * s - g,
            self.weights,
            delta,
            momentum,
            period.grad_m,
        )
        write, write_hits = bounded(write, self.norms, self.rules.bounds.write)
        new_delta, delta_hits = bounded(trees.add(delta, write), self.norms, self.rules.bounds.delta)
        new_momentum = jax.tree.map(lambda s, g: period.e * s - g, momentum, period.grad_s)
        norms = [root(jnp.square(g).sum()) for g in jax.tree.leaves(period.grad_m)]
        surprise = gate.mean_surprise(period.surprise)
        stats = write_stats(is_open, applied, period.tokens, surprise, norms, write_hits, delta_hits)
        new_delta, new_momentum = trees.select(applied, (new_delta, new_momentum), (delta, momentum))
        return LevelState(new_delta, new_momentum, state.pending), stats
