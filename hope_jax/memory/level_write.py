"""The writes of one level by an inner optimizer, for any memory that teach signals drive (SPEC §2.1, §2.5).

A memory gives the factors of its gradient, token by token; here they are summed over a period and passed once
through the level's inner optimizer. One example and one layer; rows are tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.cms_write import Affine, Coefficients, Map, Rows, root, write_periods
from hope_jax.memory import gate, levels, mlp_memory
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.period_write import (
    Ended,
    LevelState,
    Measured,
    PeriodWriter,
    WriteRules,
    count,
    no_tokens,
    write_stats,
)
from hope_jax.memory.rules import RULES, make_inner_optimizer, velocity, with_velocity
from hope_jax.memory.state import Reduce, WriteSignal, WriteStats, own, relative
from hope_jax.types import Array, PyTree


class Pending(NamedTuple):
    """What the unfinished period of a level has gathered, of all examples that share the fast state.

    grad: summed gradient of the fast weights. context: [D] sum of LN(x).
    """

    grad: PyTree
    context: Array
    ended: Ended


def init_level(spec: LevelSpec, params: PyTree, chunk_size: int) -> LevelState:
    """The state of a level that has written nothing. params: that level's, of one layer."""
    weights = mlp_memory.fast_weights(params)
    pending: Pending | tuple[()] = ()
    if levels.spans_chunks(spec.update_period, chunk_size):
        pending = nothing(weights)
    return LevelState(
        delta=trees.zeros_like(weights), opt=make_inner_optimizer(spec).init(weights), pending=pending
    )


def nothing(weights: mlp_memory.Weights) -> Pending:
    """What no token has gathered."""
    w_up = weights["w_up"]
    context = jnp.zeros(w_up.shape[0], w_up.dtype)
    return Pending(trees.zeros_like(weights), context, no_tokens(w_up.dtype))


class Tokens(NamedTuple):
    """Consecutive tokens of a level, leaves [n, ...]; see `LevelWriter.write`."""

    factors: WriteFactors
    mask: Array
    surprise_n: Array
    counted_n: Array


class LevelWriter(PeriodWriter[Pending]):
    """The writes of one level with its inner optimizer: theta_l <- theta_l - eta_l u."""

    def __init__(
        self, rules: WriteRules, spec: LevelSpec, params: PyTree, norms: tuple[Array, ...], reduce: Reduce
    ) -> None:
        super().__init__(rules, spec, params, norms, reduce)
        self.optimizer, self.rule = make_inner_optimizer(spec), RULES[spec.optimizer]

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
        if self.rule.at_outputs is not None:
            factors = self.rule.at_outputs(factors, self.spec.lr, mask, "b_up" in self.weights)
        return self.write_chunk(
            state, Tokens(factors, mask, signal.surprise_n, signal.counted_n), position, last
        )

    def nothing(self) -> Pending:
        """See `PeriodWriter`."""
        return nothing(self.weights)

    def join(self, first: Pending, second: Pending) -> Pending:
        """Sums."""
        return trees.add(first, second)

    def gather(self, tokens: Tokens) -> Pending:
        """The sums of a period's (or its part's) gradient, and its counts."""
        dtype = self.norms[0].dtype
        total = self.reduce(
            Pending(
                grad=mlp_memory.write_gradient(tokens.factors, self.weights),
                context=tokens.factors.z.astype(dtype).sum(0),
                ended=count(tokens.mask, tokens.surprise_n, tokens.counted_n, dtype),
            )
        )
        return total._replace(ended=self.shared(total.ended, tokens.mask.shape[0]))

    def proposed(self, state: LevelState, period: Pending) -> tuple[PyTree, PyTree, PyTree]:
        """A step of the inner optimizer."""
        context = period.context / jnp.maximum(period.ended.seen, 1)
        update, opt = self.optimizer.update(period.grad, state.opt, context=context)
        return jax.tree.map(lambda u: -self.spec.lr * u, update), opt, period.grad

    def write_periods(self, state: LevelState, by_period: Tokens) -> tuple[LevelState, WriteStats]:
        """One step per period: all at once where they are linear, else one after the other."""
        if by_period.mask.shape[0] > 1 and self._in_closed_form():
            return self._write_linear(state, *by_period)
        return super().write_periods(state, by_period)

    def _in_closed_form(self) -> bool:
        """Whether a chunk's periods can advance as coefficients: linear optimizer, one example a state."""
        return self.rule.linear and self.reduce is own

    def _write_linear(
        self, state: LevelState, factors: WriteFactors, mask: Array, surprise_n: Array, counted_n: Array
    ) -> tuple[LevelState, WriteStats]:
        """All whole periods of a chunk at once (`hope_jax.kernels.cms_write`); inputs [P, C, ...]."""
        spec, ended = self.spec, self.ended(mask, surprise_n, counted_n)
        applied = self.applied(ended)
        written = write_periods(self._maps(state, factors, ended), applied, beta=spec.beta, lr=spec.lr)
        stats = self.stats_of(ended, factors, [w.found for w in written])
        opt, delta = state.opt, _by_name([w.delta for w in written])
        if velocity(opt) is not None:
            opt = with_velocity(opt, _by_name([w.velocity for w in written]), applied.sum())
        return state._replace(delta=delta, opt=opt), stats

    def ended(self, mask: Array, surprise_n: Array, counted_n: Array) -> Ended:
        """Of periods [P, C]: leaves [P]."""
        dtype = self.norms[0].dtype
        of_period: Callable[..., Ended] = partial(count, dtype=dtype)
        return jax.vmap(of_period)(mask, surprise_n, counted_n)

    def applied(self, ended: Ended) -> Array:
        """bool [P]: periods that are written, of `ended` with leaves [P]."""
        return self._is_open(ended) & (ended.tokens > 0)

    def _is_open(self, ended: Ended) -> Array:
        return jax.vmap(lambda s: gate.is_open(self.rules.gate_rule, s))(ended.surprise)

    def stats_of(self, ended: Ended, factors: WriteFactors, found: list[Coefficients]) -> WriteStats:
        """Statistics [P] of periods; factors [P, C, ...]; found: one a map."""
        dtype = self.norms[0].dtype
        norms = [
            *_period_norms(factors.z, factors.g_h, dtype, "b_up" in self.weights),
            *_period_norms(factors.a, factors.g_o, dtype, "b_down" in self.weights),
        ]
        is_open, applied = self._is_open(ended), self.applied(ended)
        surprise = gate.mean_surprise(ended.surprise)
        maps = list(zip(found, self.norms, strict=True))
        writes = [Measured(relative(c.write_sizes, norm), c.write_hits) for c, norm in maps]
        deltas = [Measured(relative(c.delta_sizes, norm), c.delta_hits) for c, norm in maps]
        return write_stats(is_open, applied, ended.tokens, surprise, norms, writes, deltas)

    def _maps(self, state: LevelState, factors: WriteFactors, ended: Ended) -> tuple[Map, ...]:
        """What the periods [P, C, ...] write into each of the level's affine maps."""
        bounds, before = self.rules.bounds, velocity(state.opt)
        return tuple(
            Map(
                rows,
                _affine(state.delta, group),
                None if before is None else _affine(before, group),
                limit(bounds.write, norm),
                limit(bounds.delta, norm),
            )
            for rows, group, norm in zip(
                self.rows_of(factors, ended), mlp_memory.GROUPS, self.norms, strict=True
            )
        )

    def rows_of(self, factors: WriteFactors, ended: Ended) -> tuple[Rows, ...]:
        """The tokens of each affine map's update before the average, [P C, ...], of factors [P, C, ...]."""

        def rows(name: str, x: Array) -> Array:
            return _flat(self.rule.rows(self.spec, name, x, ended.seen))

        z = factors.z.astype(self.norms[0].dtype)
        pairs = zip((z, factors.a), (factors.g_h, factors.g_o), mlp_memory.GROUPS, strict=True)
        return tuple(
            Rows(rows(w, x), _flat(g), rows(b, g) if b in self.weights else None) for x, g, (w, b) in pairs
        )


def _flat(t_pcd: Array) -> Array:
    return t_pcd.reshape(-1, t_pcd.shape[-1])


def _affine(weights: mlp_memory.Weights, group: tuple[str, str]) -> Affine:
    return Affine(weights[group[0]], weights.get(group[1]))


def _by_name(maps: list[Affine]) -> mlp_memory.Weights:
    pairs = zip(mlp_memory.GROUPS, maps, strict=True)
    return {name: w for group, one in pairs for name, w in zip(group, one, strict=True) if w is not None}


def _period_norms(x_pci: Array, g_pco: Array, dtype: jnp.dtype, biases: bool) -> list[Array]:
    """Frobenius norms [P] of each period's gradient sum_t x_t g_t^T, from its tokens' inner products, and of
    the bias's, sum_t g_t."""
    x, g = x_pci.astype(dtype), g_pco.astype(dtype)
    by_outputs = jnp.einsum("pco,pdo->pcd", g, g)
    square = jnp.einsum("pci,pdi->pcd", x, x) * by_outputs
    return [root(s.sum((1, 2))) for s in ((square, by_outputs) if biases else (square,))]


def limit(bound: float, norm: Array) -> Array | None:
    """The bound on a map's size that `Bounds` sets, from its slow norm; None: off."""
    return bound * norm if bound else None
