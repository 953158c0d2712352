"""The writes of a level whose context is short: its deltas are held as tokens, not as matrices.

The rule is that of `LevelWriter` for linear inner optimizers, the same to rounding; what differs is the state
(`hope_jax.kernels.cms_write.dual`): a chunk's tokens are put beside those before them, and the delta is what
their coefficients make of them. The token at position t of the context lies in row t. Tokens of a period
that is not finished have coefficient zero.
"""

import jax
import jax.numpy as jnp

from hope_jax.kernels.cms_write import Dual, Rows, dual
from hope_jax.kernels.cms_write.dual import Limits
from hope_jax.memory import levels, mlp_memory
from hope_jax.memory.inner_optim import is_linear
from hope_jax.memory.level_write import LevelWriter, Tokens, init_level, limit
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.period_write import Ended, LevelState, WriteRules, count, flushed, no_tokens
from hope_jax.memory.state import Reduce, WriteStats, add_stats, total_stats, zero_stats
from hope_jax.trees import add
from hope_jax.types import Array, PyTree

_MAPS = tuple(matrix for matrix, _ in mlp_memory.GROUPS)
"""Names under which a level's affine maps are held."""


def holds_tokens(spec: LevelSpec, params: PyTree, context_tokens: int) -> bool:
    """Whether a level's state is held as tokens: contexts are no longer than `context_tokens` (0: not known)
    and so short that this is the smaller form, and the inner optimizer is linear."""
    rows, columns = params["w_up"].shape[-2:]
    short = bool(context_tokens) and dual.form_by_size(context_tokens, rows, columns) == "dual"
    return short and is_linear(spec)


def init(spec: LevelSpec, params: PyTree, chunk_size: int, context_tokens: int) -> LevelState:
    """The state of a level that has written nothing. params: that level's, of one layer."""
    weights = mlp_memory.fast_weights(params)
    dtype = weights["w_up"].dtype
    capacity = _capacity(spec, context_tokens)
    velocity = spec.optimizer not in ("sgd", "dgd") and spec.beta > 0
    delta = {
        w: dual.empty(capacity, *weights[w].shape[-2:], dtype, bias=b in weights, velocity=velocity)
        for w, b in mlp_memory.GROUPS
    }
    spans = levels.spans_chunks(spec.update_period, chunk_size)
    return LevelState(delta=delta, opt=(), pending=no_tokens(dtype) if spans else ())


def _capacity(spec: LevelSpec, context_tokens: int) -> int:
    """Rows: whole periods, where any fits."""
    period = spec.update_period
    return context_tokens if period >= context_tokens else -(-context_tokens // period) * period


def fresh(spec: LevelSpec, params: PyTree, chunk_size: int, context_tokens: int) -> LevelState:
    """The state of a level that has written nothing, in the form that `holds_tokens` says."""
    if holds_tokens(spec, params, context_tokens):
        return init(spec, params, chunk_size, context_tokens)
    return init_level(spec, params, chunk_size)


def is_held(state: LevelState) -> bool:
    """Whether the state is held as tokens."""
    return any(isinstance(delta, Dual) for delta in state.delta.values())


def writer(
    state: LevelState, rules: WriteRules, spec: LevelSpec, params: PyTree, reduce: Reduce
) -> LevelWriter:
    """The writer of a level in the form that its state has."""
    kind = DualWriter if is_held(state) else LevelWriter
    return kind(rules, spec, params, reduce)


def entered(held: LevelState, written: LevelState, spec: LevelSpec, chunk_size: int, at: Array) -> LevelState:
    """The state after the write of a chunk at position `at`: what `writer` gives, complete."""
    return enter(held, written, first_row(spec, chunk_size, at)) if is_held(held) else written


def enter(held: LevelState, written: LevelState, at: Array) -> LevelState:
    """The state after a chunk's write, which stands at row `at` (`first_row`)."""
    delta = {name: dual.enter(held.delta[name], change, at) for name, change in written.delta.items()}
    return written._replace(delta=delta)


def first_row(spec: LevelSpec, chunk_size: int, position: Array) -> Array:
    """Where the rows of a write at `position` begin: there, or where its unfinished period does."""
    if levels.spans_chunks(spec.update_period, chunk_size):
        return position - position % spec.update_period
    return position


class DualWriter(LevelWriter):
    """The writes of one level held as tokens. Its results hold, of the rows, those of the chunk (of its
    period, if that spans chunks) alone: see `enter`."""

    def write_chunk(
        self, state: LevelState, tokens: Tokens, position: Array, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """See `PeriodWriter.write_chunk`."""
        period = self.spec.update_period
        if levels.spans_chunks(period, self.rules.chunk_size):
            return self._part_of_a_period(state, tokens, position, last)
        whole, rest = levels.split_chunk(tokens.mask.shape[0], period)
        by_period = jax.tree.map(lambda t: t[: whole * period].reshape(whole, period, *t.shape[1:]), tokens)
        written, stats = (
            self._periods(state, by_period, position) if whole else (_nothing(state), zero_stats())
        )
        if rest and last and self.rules.flush_partial_at_end:
            held, at = enter(state, written, position), position + whole * period
            tail = jax.tree.map(lambda t: t[None, whole * period :], tokens)
            after, tail_stats = self._periods(held, tail, at)
            rows = {name: _joined(written.delta[name], change) for name, change in after.delta.items()}
            return after._replace(delta=rows), add_stats(stats, flushed(tail_stats))
        return written, stats

    def _periods(
        self, state: LevelState, by_period: Tokens, position: Array
    ) -> tuple[LevelState, WriteStats]:
        """Periods [P, C, ...], which begin at row `position`."""
        ended = self.ended(by_period.mask, by_period.surprise_n, by_period.counted_n)
        delta, stats = self._step(state.delta, by_period.factors, ended, position)
        return state._replace(delta=delta), stats

    def _step(
        self, delta: dict[str, Dual], factors: WriteFactors, ended: Ended, position: Array
    ) -> tuple[dict[str, Dual], WriteStats]:
        spec, bounds = self.spec, self.rules.bounds
        limits = tuple(Limits(limit(bounds.write, norm), limit(bounds.delta, norm)) for norm in self.norms)
        after, found = dual.write_periods(
            tuple(delta[name] for name in _MAPS),
            self.rows_of(factors, ended),
            position,
            self.applied(ended),
            limits,
            beta=spec.beta,
            lr=spec.lr,
        )
        stats = total_stats(self.stats_of(ended, factors, list(found)))
        return dict(zip(_MAPS, after, strict=True)), stats

    def _part_of_a_period(
        self, state: LevelState, tokens: Tokens, position: Array, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """Puts the chunk beside the period's earlier tokens, and writes them if it ends here; C > N."""
        start, dtype = first_row(self.spec, self.rules.chunk_size, position), self.norms[0].dtype
        gathered = self._period_so_far(state, tokens.factors, start, position - start)
        more = count(tokens.mask, tokens.surprise_n, tokens.counted_n, dtype)
        pending = add(state.pending, more)

        def apply(_: None) -> tuple[LevelState, WriteStats]:
            up, down = gathered
            factors = WriteFactors(up.x_ni, up.g_no, down.x_ni, down.g_no, None, None)
            period: tuple[WriteFactors, Ended] = jax.tree.map(lambda t: t[None], (factors, pending))
            delta, stats = self._step(state.delta, *period, start)
            return LevelState(delta, (), no_tokens(dtype)), stats

        def wait(_: None) -> tuple[LevelState, WriteStats]:
            pairs = zip(_MAPS, gathered, strict=True)
            delta = {name: state.delta[name]._replace(rows=rows) for name, rows in pairs}
            stats = zero_stats()._replace(pending_tokens=pending.seen.astype(float))
            return LevelState(delta, (), pending), stats

        due = levels.is_due(position + tokens.mask.shape[0], self.spec.update_period)
        if last and self.rules.flush_partial_at_end:
            written, stats = apply(None)
            on_time = jnp.asarray(due, float)
            early = flushed(stats)
            return written, early._replace(tokens_flushed=early.tokens_flushed * (1 - on_time))
        written, stats = jax.lax.cond(due, apply, wait, None)
        if last:
            stats = stats._replace(pending_tokens=jnp.zeros((), float))
            written = written._replace(pending=no_tokens(dtype))
        return written, stats

    def _period_so_far(
        self, state: LevelState, factors: WriteFactors, start: Array, offset: Array
    ) -> tuple[Rows, ...]:
        """The tokens of each map's unfinished period, with those of a chunk at `offset` in it; the gradient's
        own, before what the optimizer makes of them."""
        both = (factors.z, factors.g_h), (factors.a, factors.g_o)
        gathered = []
        for (w, b), (x, g) in zip(mlp_memory.GROUPS, both, strict=True):
            held = state.delta[w]
            rows = _rows_from(held, start, min(self.spec.update_period, held.delta_s.shape[0]))
            gathered.append(_put(rows, Rows(x, g, g if b in self.weights else None), offset))
        return tuple(gathered)


def _nothing(state: LevelState) -> LevelState:
    """A write of no tokens."""
    delta = {
        name: held._replace(rows=jax.tree.map(lambda t: t[:0], held.rows))
        for name, held in state.delta.items()
    }
    return state._replace(delta=delta)


def _joined(first: Dual, second: Dual) -> Dual:
    """Two writes in order as one."""
    return second._replace(rows=jax.tree.map(lambda *t: jnp.concatenate(t), first.rows, second.rows))


def _rows_from(held: Dual, start: Array, count: int) -> Rows:
    """`count` rows from row `start` on."""
    return jax.tree.map(lambda t: jax.lax.dynamic_slice_in_dim(t, start, count, 0), held.rows)


def _put(rows: Rows, new: Rows, offset: Array) -> Rows:
    """The rows with the new ones from `offset` on."""

    def at(t: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(t, new.astype(t.dtype), offset, 0)

    return jax.tree.map(at, rows, new)
