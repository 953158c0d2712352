"""The writes of one level, for any memory that teach signals drive (SPEC §2.1, §2.4, §2.5).

A memory gives the factors of its gradient, token by token; here they are summed over a period, passed once
through the level's inner optimizer, gated and bounded. One example and one layer; rows are tokens.

All of it can be differentiated: norms have slope zero at zero, and statistics are cut off.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.cms_write import root, shrink, write_periods
from hope_jax.memory import dgd, gate, levels, mlp_memory
from hope_jax.memory.inner_optim import (
    is_linear,
    make_inner_optimizer,
    projects,
    velocity,
    with_velocity,
)
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.state import Reduce, WriteSignal, WriteStats, add_stats, own, zero_stats
from hope_jax.types import Array, PyTree


class Pending(NamedTuple):
    """What the unfinished period of a level has gathered, of all examples that share the fast state.

    grad: summed gradient of the fast weights. context: [D] sum of LN(x).
    tokens: [] unmasked tokens. seen: [] tokens. surprise: sums over counted tokens.
    """

    grad: PyTree
    context: Array
    tokens: Array
    seen: Array
    surprise: gate.Surprise


class LevelState(NamedTuple):
    """Fast state of one level.

    delta: what the context has added to the fast weights. opt: inner-optimizer state.
    pending: the unfinished period of a level whose period spans several chunks (`Pending`, or what another
    rule gathers), else ().
    """

    delta: PyTree
    opt: PyTree
    pending: PyTree


class Bounds(NamedTuple):
    """Per matrix and example: |eta u|_F <= write |theta|_F and |delta|_F <= delta |theta|_F; 0: off."""

    write: float = 0.02
    delta: float = 0.5


@dataclass(frozen=True)
class WriteRules:
    """What the levels of a memory share.

    chunk_size: tokens of an online chunk (N). flush_partial_at_end: write unfinished periods when a
    stream ends.
    """

    chunk_size: int
    gate_rule: gate.GateRule = gate.GateRule()
    bounds: Bounds = Bounds()
    flush_partial_at_end: bool = False


def init_level(spec: LevelSpec, params: PyTree, chunk_size: int) -> LevelState:
    """The state of a level that has written nothing. params: that level's, of one layer."""
    weights = mlp_memory.fast_weights(params)
    pending: Pending | tuple[()] = ()
    if levels.spans_chunks(spec.update_period, chunk_size):
        pending = _nothing_pending(weights)
    return LevelState(
        delta=trees.zeros_like(weights), opt=make_inner_optimizer(spec).init(weights), pending=pending
    )


def _nothing_pending(weights: mlp_memory.Weights) -> Pending:
    w_up = weights["w_up"]
    zero = jnp.zeros((), w_up.dtype)
    return Pending(
        grad=trees.zeros_like(weights),
        context=jnp.zeros(w_up.shape[0], w_up.dtype),
        tokens=zero,
        seen=zero,
        surprise=gate.Surprise(zero, zero),
    )


class LevelWriter:
    """The writes of one level at fixed slow weights. params: the level's, of one layer."""

    def __init__(self, rules: WriteRules, spec: LevelSpec, params: PyTree, reduce: Reduce) -> None:
        self.rules, self.spec, self.reduce = rules, spec, reduce
        self.optimizer = make_inner_optimizer(spec)
        self.weights = mlp_memory.fast_weights(params)
        self.norms = mlp_memory.group_norms(self.weights)

    def write(
        self,
        state: LevelState,
        factors: WriteFactors,
        mask: Array,
        signal: WriteSignal,
        position: Array,
        last: bool,
    ) -> tuple[LevelState, WriteStats]:
        """Writes one chunk of n tokens, whose first stands at `position`.

        factors: of the gradient at the weights that read the chunk, zero where mask (bool [n]) is False.
        last: the stream ends here.
        """
        if self.spec.optimizer == "dgd":
            factors = dgd.factors(factors, self.spec.lr, mask, biases="b_up" in self.weights)
        if state.pending:
            return self._gather(state, factors, mask, signal, position, last)
        return self._write_periods(state, factors, mask, signal, last)

    def _write_periods(
        self, state: LevelState, factors: WriteFactors, mask: Array, signal: WriteSignal, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """One inner-optimizer step per period of the chunk, in token order; C <= N."""
        period = self.spec.update_period
        whole, rest = levels.split_chunk(mask.shape[0], period)
        tokens = (factors, mask, signal.surprise_n, signal.counted_n)

        def step(
            carry: tuple[PyTree, PyTree], xs: tuple[WriteFactors, Array, Array, Array]
        ) -> tuple[tuple[PyTree, PyTree], WriteStats]:
            return self._apply(*carry, self._sums(*xs))

        by_period = jax.tree.map(lambda t: t[: whole * period].reshape(whole, period, *t.shape[1:]), tokens)
        if whole > 1 and self._in_closed_form():
            (delta, opt), stats = self._write_linear(state, *by_period)
        else:
            (delta, opt), stats = jax.lax.scan(step, (state.delta, state.opt), by_period)
        stats = jax.tree.map(lambda s: s.sum(0), stats)
        if rest and last and self.rules.flush_partial_at_end:
            tail = jax.tree.map(lambda t: t[whole * period :], tokens)
            (delta, opt), tail_stats = step((delta, opt), tail)
            stats = add_stats(stats, flushed(tail_stats))
        return LevelState(delta, opt, ()), stats

    def _in_closed_form(self) -> bool:
        """Whether a chunk's periods can advance as coefficients: a linear optimizer, matrices without
        biases, and one example a state."""
        return is_linear(self.spec) and len(self.weights) == 2 and self.reduce is own

    def _write_linear(
        self, state: LevelState, factors: WriteFactors, mask: Array, surprise_n: Array, counted_n: Array
    ) -> tuple[tuple[PyTree, PyTree], WriteStats]:
        """All whole periods of a chunk at once (`hope_jax.kernels.cms_write`); inputs [P, C, ...]."""
        dtype, spec, bounds = self.norms[0].dtype, self.spec, self.rules.bounds
        surprise = gate.measure(surprise_n.astype(dtype), counted_n)
        tokens = mask.sum(1).astype(jnp.float32)
        is_open = jax.vmap(lambda s: gate.is_open(self.rules.gate_rule, s))(surprise)
        applied = is_open & (tokens > 0)
        z = factors.z.astype(dtype)
        inputs = {"w_up": project_tokens(z, spec.eps) if projects(spec) else z, "w_down": factors.a}
        outputs = {"w_up": factors.g_h, "w_down": factors.g_o}
        before = velocity(state.opt)
        written = {
            name: write_periods(
                inputs[name].reshape(-1, inputs[name].shape[-1]),
                outputs[name].reshape(-1, outputs[name].shape[-1]),
                state.delta[name],
                None if before is None else before[name],
                applied,
                beta=spec.beta,
                lr=spec.lr,
                max_write=_limit(bounds.write, norm),
                max_delta=_limit(bounds.delta, norm),
            )
            for name, norm in zip(("w_up", "w_down"), self.norms, strict=True)
        }
        norms = [_period_norms(factors.z, factors.g_h, dtype), _period_norms(factors.a, factors.g_o, dtype)]
        hits = [w.write_hits for w in written.values()], [w.delta_hits for w in written.values()]
        stats = write_stats(is_open, applied, tokens, gate.mean_surprise(surprise), norms, *hits)
        opt = state.opt
        if before is not None:
            ema = {name: w.velocity for name, w in written.items()}
            opt = with_velocity(opt, ema, applied.sum())
        return ({name: w.delta for name, w in written.items()}, opt), stats

    def _gather(
        self,
        state: LevelState,
        factors: WriteFactors,
        mask: Array,
        signal: WriteSignal,
        position: Array,
        last: bool,
    ) -> tuple[LevelState, WriteStats]:
        """Adds the chunk to the unfinished period, and writes it if it ends here; C > N."""
        pending = trees.add(state.pending, self._sums(factors, mask, signal.surprise_n, signal.counted_n))

        def apply(_: None) -> tuple[LevelState, WriteStats]:
            (delta, opt), stats = self._apply(state.delta, state.opt, pending)
            return LevelState(delta, opt, trees.zeros_like(pending)), stats

        def wait(_: None) -> tuple[LevelState, WriteStats]:
            stats = zero_stats()._replace(pending_tokens=pending.seen.astype(jnp.float32))
            return LevelState(state.delta, state.opt, pending), stats

        due = levels.is_due(position + mask.shape[0], self.spec.update_period)
        new_state, stats = jax.lax.cond(due, apply, wait, None)
        if not last:
            return new_state, stats
        if not self.rules.flush_partial_at_end:
            dropped = stats._replace(pending_tokens=jnp.zeros((), jnp.float32))
            return new_state._replace(pending=trees.zeros_like(pending)), dropped
        early, early_stats = apply(None)
        return jax.lax.cond(due, lambda: (new_state, stats), lambda: (early, flushed(early_stats)))

    def _sums(self, factors: WriteFactors, mask: Array, surprise_n: Array, counted_n: Array) -> Pending:
        """One period's (or its part's) gradient and counts, over all examples that share the state."""
        dtype = self.norms[0].dtype
        active = mask.astype(dtype)
        return self.reduce(
            Pending(
                grad=mlp_memory.write_gradient(factors, self.weights),
                context=factors.z.astype(dtype).sum(0),
                tokens=active.sum(),
                seen=jnp.asarray(mask.shape[0], dtype),
                surprise=gate.measure(surprise_n.astype(dtype), counted_n),
            )
        )

    def _apply(self, delta: PyTree, opt: PyTree, period: Pending) -> tuple[tuple[PyTree, PyTree], WriteStats]:
        """theta_l <- theta_l - eta_l u, bounded, if the gate is open and a token is left."""
        is_open = gate.is_open(self.rules.gate_rule, period.surprise)
        applied = is_open & (period.tokens > 0)
        context = period.context / jnp.maximum(period.seen, 1)
        update, new_opt = self.optimizer.update(period.grad, opt, context=context)
        write, write_hits = bounded(
            jax.tree.map(lambda u: -self.spec.lr * u, update), self.norms, self.rules.bounds.write
        )
        new_delta, delta_hits = bounded(trees.add(delta, write), self.norms, self.rules.bounds.delta)
        norms = [root(jnp.square(g).sum()) for g in jax.tree.leaves(period.grad)]
        surprise = gate.mean_surprise(period.surprise)
        stats = write_stats(is_open, applied, period.tokens, surprise, norms, write_hits, delta_hits)
        return trees.select(applied, (new_delta, new_opt), (delta, opt)), stats


def flushed(stats: WriteStats) -> WriteStats:
    """The statistics of a partial period that a stream's end has written."""
    return stats._replace(tokens_flushed=stats.updates_applied * stats.chunk_tokens)


def project_tokens(z_pcd: Array, eps: float) -> Array:
    """Tokens [P, C, D] without their component along their period's mean: the projection of
    `inner_optim.project_out_context`, applied to the factors of the gradient."""
    context = z_pcd.mean(1, keepdims=True)
    norm = root(jnp.square(context).sum(-1, keepdims=True))
    unit = context / (norm + eps)
    return jnp.where(norm > 0, z_pcd - (z_pcd * unit).sum(-1, keepdims=True) * unit, z_pcd)


def _period_norms(x_pci: Array, g_pco: Array, dtype: jnp.dtype) -> Array:
    """Frobenius norm [P] of each period's gradient sum_t x_t g_t^T, from its tokens' inner products."""
    x, g = x_pci.astype(dtype), g_pco.astype(dtype)
    square = jnp.einsum("pci,pdi->pcd", x, x) * jnp.einsum("pco,pdo->pcd", g, g)
    return root(square.sum((1, 2)))


def _limit(bound: float, norm: Array) -> Array | None:
    return bound * norm if bound else None


def write_stats(
    is_open: Array,
    applied: Array,
    tokens: Array,
    surprise: Array,
    grad_norms: list[Array],
    write_hits: list[Array],
    delta_hits: list[Array],
) -> WriteStats:
    """Statistics of ended periods, over any leading axes: lists have one entry a weight, or a bounded map."""
    on = applied.astype(jnp.float32)

    def total(parts: list[Array]) -> Array:
        return on * sum((part.astype(jnp.float32) for part in parts), jnp.zeros_like(on))

    stats = WriteStats(
        grad_norm=total(grad_norms),
        periods=jnp.ones_like(on),
        chunk_tokens=tokens.astype(jnp.float32),
        gate_hit=is_open.astype(jnp.float32),
        updates_applied=on,
        tokens_flushed=jnp.zeros_like(on),
        pending_tokens=jnp.zeros_like(on),
        surprise_value=surprise.astype(jnp.float32),
        write_clip_hits=total(write_hits),
        delta_clip_hits=total(delta_hits),
    )
    # Statistics are reported, never optimized: no loss may reach a memory through them.
    return jax.lax.stop_gradient(stats)


def bounded(weights: PyTree, norms: tuple[Array, ...], bound: float) -> tuple[PyTree, list[Array]]:
    """Scales each affine map down to bound * its slow norm; also bool [] a map, whether it was scaled."""
    if not bound:
        return weights, []
    scaled = [
        shrink(size, bound * norm) for size, norm in zip(mlp_memory.group_norms(weights), norms, strict=True)
    ]
    return mlp_memory.scale_groups(weights, tuple(s[0] for s in scaled)), [s[1] for s in scaled]
