"""When a level is written, and by how much at most: periods on the clock, gate, bounds, statistics.

A memory gives the factors of its gradient, token by token; here they are summed over a period and passed
once through the level's inner optimizer. `level_write.LevelWriter` does so with many periods at once;
`titans_rule.TitansWriter` has another rule. One example and one layer; rows are tokens.

All of it can be differentiated: norms have slope zero at zero, and statistics are cut off.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.cms_write import root, shrink
from hope_jax.memory import mlp_memory
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.rules import RULES, make_inner_optimizer
from hope_jax.memory.state import Reduce, WriteStats, add_stats, relative, total_stats, zero_stats


class LevelState(NamedTuple):
    """Fast state of one level.

    delta: what the context has added to the fast weights. opt: inner-optimizer state.
    pending: the partial period of a level whose period spans several chunks (what its rule gathers), else ().
    rounded: matrices of delta in the dtype of reads, which a write leaves for the read after it; then ().
    gram: of a rule in closed form, the inner products of each affine map's delta and velocity, which a write
    leaves for the next one (`Map.gram`); () where they are taken anew.
    init: of a nested level that starts from an init, the state of that, else (): its delta is init - theta,
    its opt that of the next slower level, its pending the unfinished move.
    """

    delta: PyTree
    opt: PyTree
    pending: PyTree
    rounded: PyTree = ()
    gram: PyTree = ()
    init: PyTree = ()

    @property
    def read_with(self) -> PyTree:
        """What a read adds to the slow weights."""
        return {**self.delta, **self.rounded} if self.rounded else self.delta


class WriteRules(NamedTuple):
    """What the levels of a memory share: when they are written, and how their writes are gated and bounded.

    chunk_size: tokens of an online chunk (N). flush_partial_at_end: write partial periods when a stream ends.
    read_in: dtype in which reads take the weights; None: the weights' own.
    """

    chunk_size: int
    options: MemoryOptions = MemoryOptions()
    flush_partial_at_end: bool = False
    read_in: jnp.dtype | None = None


class Ended(NamedTuple):
    """What is known of a period when its write is decided, over all examples that share the fast state.

    tokens: unmasked tokens. seen: tokens. surprise: summed over `counted` tokens. Leaves [] or, of P periods,
    [P].
    """

    tokens: Array
    seen: Array
    surprise: Array
    counted: Array

    def mean_surprise(self) -> Array:
        """Surprise per counted token, 0 for a period without any."""
        return self.surprise / jnp.maximum(self.counted, 1)


class LevelTokens(NamedTuple):
    """Consecutive tokens of a level, leaves [n, ...] or, of P periods, [P, C, ...]; see `PeriodWriter.write`.
    gates: of a rule whose tokens have rates of their own, else ()."""

    factors: WriteFactors
    mask: Array
    surprise_n: Array
    counted_n: Array
    gates: PyTree = ()


class Gathered(NamedTuple):
    """The sums over the tokens of a period and over all examples that share the fast state.

    grad: summed gradient of the fast weights. context: [D] sum of LN(x).
    """

    grad: PyTree
    context: Array
    ended: Ended


Sizes = list[tuple[Array, Array]]
"""For each affine map the size of a write or delta after bounds, and whether its bound was active."""


class PeriodWriter:
    """The writes of one level at fixed slow weights, a period at a time: theta_l <- theta_l - eta_l u.

    params: the level's, of one layer. norms: of `mlp_memory.group_norms`. Another rule may gather something
    else than `Gathered` over a period, with a field `ended` too.
    """

    def __init__(
        self, rules: WriteRules, spec: Level, params: PyTree, norms: tuple[Array, ...], reduce: Reduce
    ) -> None:
        self.rules, self.spec, self.norms, self.reduce = rules, spec, norms, reduce
        self.rule = RULES[spec.optimizer]
        self.weights = mlp_memory.fast_weights(params)
        self.dtype = self.weights["w_up"].dtype

    def gather(self, tokens: LevelTokens) -> Any:
        """What consecutive tokens add to a period, over all examples that share the state."""
        total = self.reduce(summed(tokens.factors, self.count(tokens), self.weights))
        return total._replace(ended=self.shared(total.ended, len(tokens.mask)))

    def join(self, first: Any, second: Any) -> Any:
        """What the tokens of `first` and then those of `second` have added together."""
        return trees.add(first, second)

    def nothing(self, before: Any = ()) -> Any:
        """What a period holds before its first token. before: what the period before it has held."""
        inputs = jnp.zeros(len(self.weights["w_up"]), self.dtype)
        return Gathered(trees.zeros_like(self.weights), inputs, self.no_tokens())

    def init_opt(self) -> PyTree:
        """The state `opt` of a level that has written nothing."""
        return make_inner_optimizer(self.spec).init(self.weights)

    def proposed(self, state: LevelState, period: Any) -> tuple[PyTree, PyTree, PyTree]:
        """The change of the fast weights before bounds, the state `opt` after it, and the gradient."""
        context = period.context / jnp.maximum(period.ended.seen, 1)
        update, opt = make_inner_optimizer(self.spec).update(period.grad, state.opt, context=context)
        return jax.tree.map(lambda u: -self.spec.lr * u, update), opt, period.grad

    def init(self) -> LevelState:
        """The state of a level that has written nothing."""
        pending = self.nothing() if self._spans_chunks() else ()
        return LevelState(trees.zeros_like(self.weights), self.init_opt(), pending)

    def _spans_chunks(self) -> bool:
        """Whether the level gathers several chunks before it writes."""
        return self.spec.update_period > self.rules.chunk_size

    def no_tokens(self) -> Ended:
        """The counts of a period that has not begun."""
        zero = jnp.zeros((), self.dtype)
        return Ended(zero, zero, zero, zero)

    def count(self, tokens: LevelTokens) -> Ended:
        """The counts of one example's tokens, summed over the last axis."""
        unmasked, counted = (m.astype(self.dtype) for m in (tokens.mask, tokens.counted_n))
        surprise = (tokens.surprise_n.astype(self.dtype) * counted).sum(-1)
        seen = jnp.full_like(surprise, tokens.mask.shape[-1])
        return Ended(unmasked.sum(-1), seen, surprise, counted.sum(-1))

    def shared(self, ended: Ended, tokens: int) -> Ended:
        """Sums over the examples that share the state, with the number of tokens known: `tokens` for each."""
        return ended._replace(seen=jnp.full_like(ended.seen, self.reduce(tokens)))

    def write(
        self, state: LevelState, tokens: LevelTokens, position: Array, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """Writes one chunk of n tokens, whose first stands at `position`.

        tokens: with the factors of the gradient at the weights that read the chunk, zero where `mask` is
        False. last: the stream ends here.
        """
        if self.rule.at_outputs is not None:
            biases = "b_up" in self.weights
            factors = self.rule.at_outputs(tokens.factors, self.spec.lr, tokens.mask, biases)
            tokens = tokens._replace(factors=factors)
        if self._spans_chunks():
            return self._part_of_a_period(state, tokens, position, last)
        period = self.spec.update_period
        whole, rest = divmod(len(tokens.mask), period)
        by_period = jax.tree.map(lambda t: t[: whole * period].reshape(whole, period, *t.shape[1:]), tokens)
        state, stacked = self.write_periods(state, by_period)
        stats = total_stats(stacked)
        if rest and last and self.rules.flush_partial_at_end:
            tail = self.gather(jax.tree.map(lambda t: t[whole * period :], tokens))
            state, tail_stats = self.apply(state, tail)
            stats = add_stats(stats, flushed(tail_stats))
        return state, stats

    def write_periods(self, state: LevelState, by_period: LevelTokens) -> tuple[LevelState, WriteStats]:
        """One write per period, in token order; leaves [P, C, ...]. Statistics are stacked, [P]."""
        return jax.lax.scan(lambda state, tokens: self.apply(state, self.gather(tokens)), state, by_period)

    def _part_of_a_period(
        self, state: LevelState, tokens: LevelTokens, position: Array, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """Adds the chunk to the partial period, and writes it if it ends here; C > N."""
        due = (position + len(tokens.mask)) % self.spec.update_period == 0
        state = state._replace(pending=self.hold(state.pending, tokens, position))
        if last and self.rules.flush_partial_at_end:
            new, stats = self.apply(state, state.pending)
            stats = trees.select(due, stats, flushed(stats))
        else:
            new, stats = self.written_if(due, state)
        if last:
            new = new._replace(pending=self.nothing())
            stats = stats._replace(pending_tokens=jnp.zeros((), float))
        return new, stats

    def hold(self, pending: Any, tokens: LevelTokens, position: Array) -> Any:
        """The partial period with one more chunk, whose first token stands at `position`."""
        return self.join(pending, self.gather(tokens))

    def written_if(self, due: Array, state: LevelState) -> tuple[LevelState, WriteStats]:
        """Writes what is pending if it is due."""

        def write() -> tuple[LevelState, WriteStats]:
            new, stats = self.apply(state, state.pending)
            return new._replace(pending=self.nothing(state.pending)), stats

        return jax.lax.cond(due, write, lambda: (state, self.waiting(state.pending)))

    def waiting(self, pending: Any) -> WriteStats:
        """The statistics of a partial period that goes on."""
        return zero_stats()._replace(pending_tokens=pending.ended.seen.astype(float))

    def decided(self, ended: Ended) -> tuple[Array, Array]:
        """Whether the gate is open to the mean surprise, and whether the period is written: it is if a token
        is left, too."""
        threshold = self.rules.options.surprise_threshold
        is_open = jnp.ones(ended.tokens.shape, bool)
        if threshold is not None:
            is_open = ended.mean_surprise() >= threshold
        return is_open, is_open & (ended.tokens > 0)

    def apply(self, state: LevelState, period: Any) -> tuple[LevelState, WriteStats]:
        """The state after the period's write, bounded, if it is to be written."""
        _, applied = self.decided(period.ended)
        write, opt, grad = self.proposed(state, period)
        write, writes = self._bounded(write, self.rules.options.write_clip)
        # Where nothing is written, the delta that is measured is the one that stays.
        write = trees.select(applied, write, trees.zeros_like(write))
        delta, deltas = self._bounded(trees.add(state.delta, write), self.rules.options.delta_clip)
        norms = [root(jnp.square(g).sum()) for g in jax.tree.leaves(grad)]
        stats = self.statistics(period.ended, norms, writes, deltas)
        delta, opt = trees.select(applied, (delta, opt), (state.delta, state.opt))
        return state._replace(delta=delta, opt=opt), stats

    def _bounded(self, weights: PyTree, bound: float) -> tuple[PyTree, Sizes]:
        """Scales each affine map down to `bound` times its slow norm (0: off), and says what came of each."""
        sizes = mlp_memory.group_norms(weights)
        if not bound:
            return weights, [(size, jnp.zeros((), bool)) for size in sizes]
        shrunk = [shrink(size, bound * norm) for size, norm in zip(sizes, self.norms, strict=True)]
        kept = [(factor * size, hit) for (factor, hit), size in zip(shrunk, sizes, strict=True)]
        maps = zip(mlp_memory.maps_of(weights), shrunk, strict=True)
        return mlp_memory.by_name(jax.tree.map(lambda w, f=f: w * f, one) for one, (f, _) in maps), kept

    def statistics(self, ended: Ended, grad_norms: list[Array], writes: Sizes, deltas: Sizes) -> WriteStats:
        """The statistics of ended periods, leaves [] or [P]; lists have an entry a weight or affine map."""
        is_open, applied = self.decided(ended)
        on = applied.astype(float)

        def total(parts: list[Array]) -> Array:
            return on * sum((part.astype(float) for part in parts), jnp.zeros_like(on))

        def largest(sizes: Sizes) -> Array:
            pairs = zip(sizes, self.norms, strict=True)
            return jnp.stack([relative(size, norm).astype(float) for (size, _), norm in pairs]).max(0)

        stats = zero_stats()._replace(
            grad_norm=total(grad_norms),
            periods=jnp.ones_like(on),
            chunk_tokens=ended.tokens.astype(float),
            gate_hit=is_open.astype(float),
            updates_applied=on,
            tokens_flushed=jnp.zeros_like(on),
            pending_tokens=jnp.zeros_like(on),
            surprise_value=ended.mean_surprise().astype(float),
            write_clip_hits=total([hit for _, hit in writes]),
            delta_clip_hits=total([hit for _, hit in deltas]),
            write_norm=jnp.where(applied, largest(writes), 0),
            delta_norm=largest(deltas),
        )
        # Statistics are reported, never optimized: no loss may reach a memory through them.
        return jax.lax.stop_gradient(stats)


def summed(factors: WriteFactors, ended: Ended, like: mlp_memory.Weights) -> Gathered:
    """The sums over the factors' tokens, in the dtype of the fast weights `like`."""
    grad = mlp_memory.write_gradient(factors, like)
    return Gathered(grad, factors.z.astype(like["w_up"].dtype).sum(0), ended)


def flushed(stats: WriteStats) -> WriteStats:
    """The statistics of a partial period that a stream's end has written."""
    return stats._replace(tokens_flushed=stats.updates_applied * stats.chunk_tokens)


def settled(tree: PyTree) -> PyTree:
    """The states in a tree without what a write has left for the read after it."""

    def is_level(part: PyTree) -> bool:
        return isinstance(part, LevelState)

    return jax.tree.map(lambda s: s._replace(rounded=()) if is_level(s) else s, tree, is_leaf=is_level)
