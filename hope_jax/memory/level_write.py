"""The writes of one level by an inner optimizer, for any memory that teach signals drive (Eqs. 70-71).

A memory gives the factors of its gradient, token by token; here they are summed over a period and passed once
through the level's inner optimizer. One example and one layer; rows are tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.cms_write import Affine, Map, Rows, root, write_periods
from hope_jax.memory import mlp_memory
from hope_jax.memory.levels import Level
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.period_write import (
    Ended,
    LevelState,
    LevelTokens,
    PeriodWriter,
    WriteRules,
    settled,
)
from hope_jax.memory.rules import RULES, make_inner_optimizer, velocity, with_velocity
from hope_jax.memory.state import Reduce, WriteStats, own

TOKENS_AT_ONCE = 512
"""Tokens of all examples that share a state whose inner products are taken at once: their number grows with
its square, and the state is read and written once for them."""


class Gathered(NamedTuple):
    """The sums over the tokens of a period and over all examples that share the fast state.

    grad: summed gradient of the fast weights. context: [D] sum of LN(x).
    """

    grad: PyTree
    context: Array
    ended: Ended


class LevelWriter(PeriodWriter):
    """The writes of one level with its inner optimizer: theta_l <- theta_l - eta_l u."""

    def __init__(
        self, rules: WriteRules, spec: Level, params: PyTree, norms: tuple[Array, ...], reduce: Reduce
    ) -> None:
        super().__init__(rules, spec, params, norms, reduce)
        self.optimizer, self.rule = make_inner_optimizer(spec), RULES[spec.optimizer]

    def init_opt(self) -> PyTree:
        """See `PeriodWriter`."""
        return self.optimizer.init(self.weights)

    def write(
        self, state: LevelState, tokens: LevelTokens, position: Array, last: bool
    ) -> tuple[LevelState, WriteStats]:
        """See `PeriodWriter`."""
        if self.rule.at_outputs is not None:
            biases = "b_up" in self.weights
            factors = self.rule.at_outputs(tokens.factors, self.spec.lr, tokens.mask, biases)
            tokens = tokens._replace(factors=factors)
        return super().write(state, tokens, position, last)

    def nothing(self) -> Gathered:
        """See `PeriodWriter`."""
        w_up = self.weights["w_up"]
        context = jnp.zeros(w_up.shape[0], w_up.dtype)
        return Gathered(trees.zeros_like(self.weights), context, self.no_tokens())

    def join(self, first: Gathered, second: Gathered) -> Gathered:
        """Adds the sums of both."""
        return trees.add(first, second)

    def gather(self, tokens: LevelTokens) -> Gathered:
        """The summed gradient and the counts of a period, or of a part of one."""
        grad = mlp_memory.write_gradient(tokens.factors, self.weights)
        context = tokens.factors.z.astype(self.dtype).sum(0)
        total = self.reduce(Gathered(grad, context, self.count(tokens)))
        return total._replace(ended=self.shared(total.ended, len(tokens.mask)))

    def proposed(self, state: LevelState, period: Gathered) -> tuple[PyTree, PyTree, PyTree]:
        """One step of the inner optimizer; see `PeriodWriter`."""
        context = period.context / jnp.maximum(period.ended.seen, 1)
        update, opt = self.optimizer.update(period.grad, state.opt, context=context)
        return jax.tree.map(lambda u: -self.spec.lr * u, update), opt, period.grad

    def write_periods(self, state: LevelState, by_period: LevelTokens) -> tuple[LevelState, WriteStats]:
        """Takes one step for each period: many at once where the rule is linear, else one after the other."""
        periods, period = by_period.mask.shape
        if not periods or not self.rule.linear:
            return super().write_periods(state, by_period)
        size = max(TOKENS_AT_ONCE // (period * self.reduce(1)), 1)
        if periods <= size:
            return self._write_linear(state, by_period)
        # Later blocks are written at another delta than that of the read.
        by_period = by_period._replace(factors=by_period.factors._replace(on_delta=None))
        whole = periods // size * size
        blocks = jax.tree.map(lambda t: t[:whole].reshape(-1, size, *t.shape[1:]), by_period)
        state, stats = jax.lax.scan(lambda *carry: settled(self._write_linear(*carry)), state, blocks)
        stats = jax.tree.map(lambda t: t.reshape(whole), stats)
        if whole == periods:
            return state, stats
        state, more = self._write_linear(state, jax.tree.map(lambda t: t[whole:], by_period))
        return state, jax.tree.map(lambda *t: jnp.concatenate(t), stats, more)

    def _write_linear(self, state: LevelState, tokens: LevelTokens) -> tuple[LevelState, WriteStats]:
        """Some whole periods at once (`hope_jax.kernels.cms_write`); leaves [P, C, ...]. Examples that share
        the state are one after the other in each period."""
        spec, bounds, before = self.spec, self.rules.options, velocity(state.opt)
        ended = self.shared(self.reduce(self.count(tokens)), tokens.mask.shape[1])
        tokens = self.reduce.gather(tokens, 1)
        _, applied = self.decided(ended)
        maps = [
            Map(
                rows,
                _affine(state.delta, group),
                None if before is None else _affine(before, group),
                bounds.write_clip * norm if bounds.write_clip else None,
                bounds.delta_clip * norm if bounds.delta_clip else None,
            )
            for rows, group, norm in zip(
                self._rows(tokens.factors, ended), mlp_memory.GROUPS, self.norms, strict=True
            )
        ]
        written = write_periods(tuple(maps), applied, beta=spec.beta, lr=spec.lr)
        deltas, velocities, found, rounded = zip(*written, strict=True)
        stats = self.statistics(
            ended,
            self._gradient_norms(tokens.factors),
            [(c.write_sizes, c.write_hits) for c in found],
            [(c.delta_sizes, c.delta_hits) for c in found],
        )
        opt, delta = state.opt, _by_name(deltas)
        if before is not None:
            opt = with_velocity(opt, _by_name(velocities), applied.sum())
        names = (name for name, _ in mlp_memory.GROUPS)
        narrow = {name: m for name, m in zip(names, rounded, strict=True) if m is not None}
        return LevelState(delta, opt, state.pending, narrow or ()), stats

    def _rows(self, factors: WriteFactors, ended: Ended) -> tuple[Rows, ...]:
        """The tokens of each affine map's update before the average, [P C, ...], of factors [P, C, ...]."""

        def flat(t: Array) -> Array:
            return t.reshape(-1, t.shape[-1])

        def rows(x: Array, g: Array, y: Array | None, names: tuple[str, str]) -> Rows:
            x, y = self.rule.rows(self.spec, names[0], x, ended.seen, y)
            bias = None
            if names[1] in self.weights:
                bias, _ = self.rule.rows(self.spec, names[1], g, ended.seen, None)
            return Rows(*(None if t is None else flat(t) for t in (x, g, bias, y)))

        on_delta = factors.on_delta or (None, None)
        inputs, outputs = (factors.z.astype(self.dtype), factors.a), (factors.g_h, factors.g_o)
        return tuple(map(rows, inputs, outputs, on_delta, mlp_memory.GROUPS))

    def _gradient_norms(self, factors: WriteFactors) -> list[Array]:
        """Frobenius norms [P] of each period's gradients sum_t x_t g_t^T, from its tokens' inner products,
        and of the biases', sum_t g_t."""
        norms = []
        for x, g, (_, bias) in zip(
            (factors.z, factors.a), (factors.g_h, factors.g_o), mlp_memory.GROUPS, strict=True
        ):
            wide_x, wide_g = x.astype(self.dtype), g.astype(self.dtype)
            outputs = jnp.einsum("pco,pdo->pcd", wide_g, wide_g)
            squares = [jnp.einsum("pci,pdi->pcd", wide_x, wide_x) * outputs]
            norms += [root(s.sum((1, 2))) for s in (squares + [outputs] * (bias in self.weights))]
        return norms


def init_level(spec: Level, params: PyTree, chunk_size: int) -> LevelState:
    """The state of a level that has written nothing. params: that level's, of one layer."""
    return LevelWriter(WriteRules(chunk_size), spec, params, (), own).init()


def _affine(weights: mlp_memory.Weights, group: tuple[str, str]) -> Affine:
    return Affine(weights[group[0]], weights.get(group[1]))


def _by_name(maps: tuple[Affine, ...]) -> mlp_memory.Weights:
    pairs = zip(mlp_memory.GROUPS, maps, strict=True)
    return {name: w for group, one in pairs for name, w in zip(group, one, strict=True) if w is not None}
