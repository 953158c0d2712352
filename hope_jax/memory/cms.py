"""Continuum Memory System: a chain of MLP levels, each written every C tokens (Eqs. 70-71, SPEC §2.1).

y = MLP_k(... MLP_1(x)). Level l with period C is written at token counts that are multiples of C with

    theta_l <- theta_l - eta_l u,   u = inner optimizer of  sum_t m_t d<stopgrad(delta_t), y_t>/dtheta_l

over exactly its last C tokens, all gradients at the weights that read those tokens. One example and one
layer; rows are tokens. The slow weights theta never change here: a write changes `delta`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.cms_write import write_periods
from hope_jax.memory import gate, levels, mlp_memory
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
    pending: the unfinished period of a level whose period spans several chunks, else ().
    """

    delta: PyTree
    opt: PyTree
    pending: Pending | tuple[()]


class Bounds(NamedTuple):
    """Per matrix and example: |eta u|_F <= write |theta|_F and |delta|_F <= delta |theta|_F; 0: off."""

    write: float = 0.02
    delta: float = 0.5


@dataclass(frozen=True)
class Cms:
    """The constants of a CMS: a memory of the protocol in `hope_jax.memory.state`.

    levels: in chain order. chunk_size: tokens of an online chunk (N). own_output: levels take their own
    teach signal rather than the block's. output_clip: bound on each level's residual branch while
    training (reference style). flush_partial_at_end: write unfinished periods when a stream ends.
    """

    levels: tuple[LevelSpec, ...]
    chunk_size: int
    gate_rule: gate.GateRule = gate.GateRule()
    bounds: Bounds = Bounds()
    own_output: bool = True
    output_clip: float | None = None
    flush_partial_at_end: bool = False

    @property
    def write_only(self) -> tuple[str, ...]:
        """No parameter acts through writes alone."""
        return ()

    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, in chain order."""
        return tuple(spec.name for spec in self.levels)

    def taps(self) -> tuple[str, ...]:
        """Levels whose own output cotangent is wanted."""
        return self.level_names() if self.own_output else ()

    def init(self, params: PyTree) -> dict[str, LevelState]:
        """The state of a context that has written nothing. `params`: one layer's, by level name."""
        return {spec.name: self._init_level(spec, params[spec.name]) for spec in self.levels}

    def _init_level(self, spec: LevelSpec, params: PyTree) -> LevelState:
        weights = mlp_memory.fast_weights(params)
        pending: Pending | tuple[()] = ()
        if levels.spans_chunks(spec.update_period, self.chunk_size):
            pending = _nothing_pending(weights)
        return LevelState(
            delta=trees.zeros_like(weights), opt=make_inner_optimizer(spec).init(weights), pending=pending
        )

    def read(
        self, params: PyTree, fast: dict[str, LevelState] | None, x: Array, taps: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """x [n, D] -> y [n, D], and each level's own input.

        fast None reads the slow weights alone. taps: level name -> [n, D], added to that level's output:
        zeros, whose gradient is the level's teach signal.
        """
        trace = {}
        for spec in self.levels:
            trace[spec.name] = x
            delta = None if fast is None else fast[spec.name].delta
            x = mlp_memory.read(params[spec.name], delta, x, output_clip=self.output_clip)
            if spec.name in taps:
                x = x + taps[spec.name].astype(x.dtype)
        return x, trace

    def write(
        self,
        params: PyTree,
        fast: dict[str, LevelState],
        trace: dict[str, Array],
        signal: WriteSignal,
        *,
        position: Array,
        reduce: Reduce,
        last: bool = False,
    ) -> tuple[dict[str, LevelState], dict[str, WriteStats]]:
        """Writes every level with one chunk; see `Memory.write`."""
        new_fast, stats = {}, {}
        for spec in self.levels:
            teach = signal.own[spec.name] if self.own_output else signal.block
            writer = _LevelWriter(self, spec, params[spec.name], reduce)
            new_fast[spec.name], stats[spec.name] = writer.write(
                fast[spec.name], trace[spec.name], teach, signal, position, last
            )
        return new_fast, stats


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


class _LevelWriter:
    """The writes of one level at fixed slow weights."""

    def __init__(self, cms: Cms, spec: LevelSpec, params: PyTree, reduce: Reduce) -> None:
        self.cms, self.spec, self.params, self.reduce = cms, spec, params, reduce
        self.optimizer = make_inner_optimizer(spec)
        self.weights = mlp_memory.fast_weights(params)
        self.norms = mlp_memory.group_norms(self.weights)

    def write(
        self,
        state: LevelState,
        x: Array,
        teach: Array,
        signal: WriteSignal,
        position: Array,
        last: bool,
    ) -> tuple[LevelState, WriteStats]:
        mask = gate.token_mask(self.cms.gate_rule, signal.surprise_n, signal.active_n)
        factors = mlp_memory.write_factors(
            self.params,
            state.delta,
            x,
            jnp.where(mask[:, None], teach, 0),
            output_clip=self.cms.output_clip,
        )
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
        if rest and last and self.cms.flush_partial_at_end:
            tail = jax.tree.map(lambda t: t[whole * period :], tokens)
            (delta, opt), flushed = step((delta, opt), tail)
            stats = add_stats(stats, _flushed(flushed))
        return LevelState(delta, opt, ()), stats

    def _in_closed_form(self) -> bool:
        """Whether a chunk's periods can advance as coefficients: a linear optimizer, matrices without
        biases, and one example a state."""
        return is_linear(self.spec) and len(self.weights) == 2 and self.reduce is own

    def _write_linear(
        self, state: LevelState, factors: WriteFactors, mask: Array, surprise_n: Array, counted_n: Array
    ) -> tuple[tuple[PyTree, PyTree], WriteStats]:
        """All whole periods of a chunk at once (`hope_jax.kernels.cms_write`); inputs [P, C, ...]."""
        dtype, spec, bounds = self.norms[0].dtype, self.spec, self.cms.bounds
        surprise = gate.measure(surprise_n.astype(dtype), counted_n)
        tokens = mask.sum(1).astype(jnp.float32)
        is_open = jax.vmap(lambda s: gate.is_open(self.cms.gate_rule, s))(surprise)
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
        stats = _write_stats(is_open, applied, tokens, gate.mean_surprise(surprise), norms, *hits)
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
        if not self.cms.flush_partial_at_end:
            dropped = stats._replace(pending_tokens=jnp.zeros((), jnp.float32))
            return new_state._replace(pending=trees.zeros_like(pending)), dropped
        flushed_state, flushed = apply(None)
        return jax.lax.cond(due, lambda: (new_state, stats), lambda: (flushed_state, _flushed(flushed)))

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
        is_open = gate.is_open(self.cms.gate_rule, period.surprise)
        applied = is_open & (period.tokens > 0)
        context = period.context / jnp.maximum(period.seen, 1)
        update, new_opt = self.optimizer.update(period.grad, opt, context=context)
        write, write_hits = _bounded(
            jax.tree.map(lambda u: -self.spec.lr * u, update), self.norms, self.cms.bounds.write
        )
        new_delta, delta_hits = _bounded(trees.add(delta, write), self.norms, self.cms.bounds.delta)
        norms = [jnp.linalg.norm(g.reshape(-1)) for g in jax.tree.leaves(period.grad)]
        surprise = gate.mean_surprise(period.surprise)
        stats = _write_stats(is_open, applied, period.tokens, surprise, norms, write_hits, delta_hits)
        return trees.select(applied, (new_delta, new_opt), (delta, opt)), stats


def _flushed(stats: WriteStats) -> WriteStats:
    return stats._replace(tokens_flushed=stats.updates_applied * stats.chunk_tokens)


def project_tokens(z_pcd: Array, eps: float) -> Array:
    """Tokens [P, C, D] without their component along their period's mean: the projection of
    `inner_optim.project_out_context`, applied to the factors of the gradient."""
    context = z_pcd.mean(1, keepdims=True)
    norm = jnp.linalg.norm(context, axis=-1, keepdims=True)
    unit = context / (norm + eps)
    return jnp.where(norm > 0, z_pcd - (z_pcd * unit).sum(-1, keepdims=True) * unit, z_pcd)


def _period_norms(x_pci: Array, g_pco: Array, dtype: jnp.dtype) -> Array:
    """Frobenius norm [P] of each period's gradient sum_t x_t g_t^T, from its tokens' inner products."""
    x, g = x_pci.astype(dtype), g_pco.astype(dtype)
    square = jnp.einsum("pci,pdi->pcd", x, x) * jnp.einsum("pco,pdo->pcd", g, g)
    return jnp.sqrt(jnp.maximum(square.sum((1, 2)), 0))


def _limit(bound: float, norm: Array) -> Array | None:
    return jnp.maximum(bound * norm, jnp.finfo(norm.dtype).tiny) if bound else None


def _write_stats(
    is_open: Array,
    applied: Array,
    tokens: Array,
    surprise: Array,
    grad_norms: list[Array],
    write_hits: list[Array],
    delta_hits: list[Array],
) -> WriteStats:
    """Statistics of ended periods, over any leading axes. Lists have one entry a weight, or a bounded map."""
    on = applied.astype(jnp.float32)

    def total(parts: list[Array]) -> Array:
        return on * sum((part.astype(jnp.float32) for part in parts), jnp.zeros_like(on))

    return WriteStats(
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


def _bounded(weights: PyTree, norms: tuple[Array, ...], bound: float) -> tuple[PyTree, list[Array]]:
    """Scales each affine map down to bound * its slow norm; also bool [] a map, whether it was scaled."""
    if not bound:
        return weights, []
    tiny = jnp.finfo(norms[0].dtype).tiny
    ratios = tuple(
        size / jnp.maximum(bound * norm, tiny)
        for size, norm in zip(mlp_memory.group_norms(weights), norms, strict=True)
    )
    factors = tuple(1.0 / jnp.maximum(r, 1.0) for r in ratios)
    return mlp_memory.scale_groups(weights, factors), [r > 1.0 for r in ratios]
