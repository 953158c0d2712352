"""When a level is written, and by how much at most: periods on the clock, gate, bounds, statistics.

What a period gathers from its tokens, and what it then does to the fast weights, is a rule's own
(`level_write.LevelWriter`, `titans_rule.TitansWriter`). One example and one layer; rows are tokens.

All of it can be differentiated: norms have slope zero at zero, and statistics are cut off.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.cms_write import root, shrink
from hope_jax.memory import gate, levels, mlp_memory
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.state import Reduce, WriteStats, add_stats, relative, total_stats, zero_stats
from hope_jax.types import Array, PyTree


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


class Ended(NamedTuple):
    """What every period knows when its write is decided, of all examples that share the fast state.

    tokens: [] unmasked tokens. seen: [] tokens. surprise: sums over counted tokens.
    """

    tokens: Array
    seen: Array
    surprise: gate.Surprise


def no_tokens(dtype: jnp.dtype) -> Ended:
    """Of a period that has not begun."""
    zero = jnp.zeros((), dtype)
    return Ended(zero, zero, gate.Surprise(zero, zero))


def count(mask: Array, surprise_n: Array, counted_n: Array, dtype: jnp.dtype) -> Ended:
    """Of consecutive tokens [n]."""
    surprise = gate.measure(surprise_n.astype(dtype), counted_n)
    return Ended(mask.astype(dtype).sum(), jnp.asarray(mask.shape[0], dtype), surprise)


P = TypeVar("P", bound=tuple[Any, ...])
"""What a rule gathers over a period; it has a field `ended`."""


class PeriodWriter(ABC, Generic[P]):
    """The writes of one level at fixed slow weights. params: the level's, of one layer. norms: of
    `mlp_memory.group_norms`."""

    def __init__(
        self, rules: WriteRules, spec: LevelSpec, params: PyTree, norms: tuple[Array, ...], reduce: Reduce
    ) -> None:
        self.rules, self.spec, self.norms, self.reduce = rules, spec, norms, reduce
        self.weights = mlp_memory.fast_weights(params)

    @abstractmethod
    def gather(self, tokens: Any) -> P:
        """What consecutive tokens add, over all examples that share the state. tokens: leaves [n, ...]."""

    def shared(self, ended: Ended, tokens: int) -> Ended:
        """A sum over the examples that share the state, each with `tokens` tokens: nobody needs to ask for
        their number."""
        return ended._replace(seen=jnp.asarray(self.reduce(tokens), ended.seen.dtype))

    @abstractmethod
    def join(self, first: P, second: P) -> P:
        """What the tokens of both have added, in this order."""

    @abstractmethod
    def nothing(self) -> P:
        """What no token adds."""

    @abstractmethod
    def proposed(self, state: LevelState, period: P) -> tuple[PyTree, PyTree, PyTree]:
        """The change of the fast weights before bounds, the state `opt` after it, and the gradient."""

    def write_chunk(
        self, state: LevelState, tokens: Any, position: Array, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """Writes one chunk of n tokens, whose first stands at `position`. last: the stream ends here."""
        if levels.spans_chunks(self.spec.update_period, self.rules.chunk_size):
            return self._part_of_a_period(state, tokens, position, last)
        period = self.spec.update_period
        whole, rest = levels.split_chunk(_length(tokens), period)
        by_period = jax.tree.map(lambda t: t[: whole * period].reshape(whole, period, *t.shape[1:]), tokens)
        state, stacked = self.write_periods(state, by_period)
        stats = total_stats(stacked)
        if rest and last and self.rules.flush_partial_at_end:
            tail = self.gather(jax.tree.map(lambda t: t[whole * period :], tokens))
            state, tail_stats = self.apply(state, tail)
            stats = add_stats(stats, flushed(tail_stats))
        return state, stats

    def write_periods(self, state: LevelState, by_period: Any) -> tuple[LevelState, WriteStats]:
        """One write per period, in token order; leaves [P, C, ...]. Statistics are stacked, [P]."""

        def step(state: LevelState, tokens: Any) -> tuple[LevelState, WriteStats]:
            return self.apply(state, self.gather(tokens))

        return jax.lax.scan(step, state, by_period)

    def _part_of_a_period(
        self, state: LevelState, tokens: Any, position: Array, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """Adds the chunk to the unfinished period, and writes it if it ends here; C > N."""
        pending, empty = self.join(state.pending, self.gather(tokens)), self.nothing()

        def apply(_: None) -> tuple[LevelState, WriteStats]:
            new, stats = self.apply(state, pending)
            return new._replace(pending=empty), stats

        def wait(_: None) -> tuple[LevelState, WriteStats]:
            stats = zero_stats()._replace(pending_tokens=_ended(pending).seen.astype(float))
            return state._replace(pending=pending), stats

        due = levels.is_due(position + _length(tokens), self.spec.update_period)
        new_state, stats = jax.lax.cond(due, apply, wait, None)
        if not last:
            return new_state, stats
        if not self.rules.flush_partial_at_end:
            dropped = stats._replace(pending_tokens=jnp.zeros((), float))
            return new_state._replace(pending=empty), dropped
        early, early_stats = apply(None)
        return jax.lax.cond(due, lambda: (new_state, stats), lambda: (early, flushed(early_stats)))

    def apply(self, state: LevelState, period: P) -> tuple[LevelState, WriteStats]:
        """The state after the period's write, bounded, if the gate is open and a token is left."""
        ended = _ended(period)
        is_open = gate.is_open(self.rules.gate_rule, ended.surprise)
        applied = is_open & (ended.tokens > 0)
        write, opt, grad = self.proposed(state, period)
        write, writes = _bounded(write, self.norms, self.rules.bounds.write)
        # Without a write that is not applied, the delta that is measured is the one that stays.
        write = trees.select(applied, write, trees.zeros_like(write))
        delta, deltas = _bounded(trees.add(state.delta, write), self.norms, self.rules.bounds.delta)
        norms = [root(jnp.square(g).sum()) for g in jax.tree.leaves(grad)]
        surprise = gate.mean_surprise(ended.surprise)
        stats = write_stats(is_open, applied, ended.tokens, surprise, norms, writes, deltas)
        delta, opt = trees.select(applied, (delta, opt), (state.delta, state.opt))
        return state._replace(delta=delta, opt=opt), stats


def _ended(period: Any) -> Ended:
    ended: Ended = period.ended
    return ended


def _length(tokens: Any) -> int:
    return int(jax.tree.leaves(tokens)[0].shape[0])


def flushed(stats: WriteStats) -> WriteStats:
    """The statistics of a partial period that a stream's end has written."""
    return stats._replace(tokens_flushed=stats.updates_applied * stats.chunk_tokens)


class Measured(NamedTuple):
    """One map's write, or delta: its norm over that of the slow weights, after bounds, and whether the bound
    was active. Over any leading axes."""

    norm: Array
    hit: Array


def write_stats(
    is_open: Array,
    applied: Array,
    tokens: Array,
    surprise: Array,
    grad_norms: list[Array],
    writes: list[Measured],
    deltas: list[Measured],
) -> WriteStats:
    """Statistics of ended periods, over any leading axes: lists have one entry a weight, or an affine map."""
    on = applied.astype(float)

    def total(parts: list[Array]) -> Array:
        return on * sum((part.astype(float) for part in parts), jnp.zeros_like(on))

    stats = WriteStats(
        grad_norm=total(grad_norms),
        periods=jnp.ones_like(on),
        chunk_tokens=tokens.astype(float),
        gate_hit=is_open.astype(float),
        updates_applied=on,
        tokens_flushed=jnp.zeros_like(on),
        pending_tokens=jnp.zeros_like(on),
        surprise_value=surprise.astype(float),
        write_clip_hits=total([write.hit for write in writes]),
        delta_clip_hits=total([delta.hit for delta in deltas]),
        write_norm=jnp.where(applied, _largest(writes), 0),
        delta_norm=_largest(deltas),
    )
    # Statistics are reported, never optimized: no loss may reach a memory through them.
    return jax.lax.stop_gradient(stats)


def _largest(parts: list[Measured]) -> Array:
    return jnp.stack([part.norm.astype(float) for part in parts]).max(0)


def _bounded(weights: PyTree, norms: tuple[Array, ...], bound: float) -> tuple[PyTree, list[Measured]]:
    """Scales each affine map down to bound * its slow norm (0: off); also what came of each."""
    sizes = mlp_memory.group_norms(weights)
    if not bound:
        off = jnp.zeros((), bool)
        return weights, [Measured(relative(*each), off) for each in zip(sizes, norms, strict=True)]
    factors, measured = [], []
    for size, norm in zip(sizes, norms, strict=True):
        factor, hit = shrink(size, bound * norm)
        factors.append(factor)
        measured.append(Measured(relative(factor * size, norm), hit))
    return mlp_memory.scale_groups(weights, tuple(factors)), measured
