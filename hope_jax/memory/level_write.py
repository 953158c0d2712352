"""The writes of one level by an inner optimizer, for any memory that teach signals drive (Eqs. 70-71).

Under a linear rule many periods are written at once, and the tokens of a period that spans chunks are held
until it ends. One example and one layer; rows are tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.cms_write import Affine, Map, Rows, gram_of, root, write_periods
from hope_jax.memory import mlp_memory, period_write
from hope_jax.memory.levels import Level
from hope_jax.memory.mlp_memory import WriteFactors
from hope_jax.memory.period_write import Ended, LevelState, LevelTokens, PeriodWriter, WriteRules, settled
from hope_jax.memory.rules import velocity, with_velocity
from hope_jax.memory.state import WriteStats, own

TOKENS_AT_ONCE = 512
"""Tokens of all examples that share a state whose inner products are taken at once: their number grows with
its square, and the state is read and written once for them."""


class Held(NamedTuple):
    """The tokens of a partial period: rows [C, ...]; those after the first `ended.seen` mean nothing."""

    factors: WriteFactors
    ended: Ended


class LevelWriter(PeriodWriter):
    """The writes of one level with its inner optimizer, in closed form where the rule is linear."""

    def init(self) -> LevelState:
        """See `PeriodWriter`."""
        state = super().init()
        return measured(state) if self.rule.linear else state

    def nothing(self, before: Any = ()) -> Any:
        """See `PeriodWriter`. The rows of tokens that are held are left as they are."""
        if isinstance(before, Held):
            return before._replace(ended=self.no_tokens())
        # A chunk enters its own tokens alone, where it would be added to the whole of a gradient.
        short = self.rule.linear and self.spec.update_period <= TOKENS_AT_ONCE
        if not short or not self._spans_chunks() or self.rules.options.scope != "example":
            return super().nothing()
        (inputs, hidden), dtype = self.weights["w_up"].shape, self.rules.read_in or self.dtype
        widths = inputs, hidden, hidden, inputs
        z, g_h, a, g_o = (jnp.zeros((self.spec.update_period, width), dtype) for width in widths)
        return Held(WriteFactors(z, g_h, a, g_o), self.no_tokens())

    def hold(self, pending: Any, tokens: LevelTokens, position: Array) -> Any:
        """See `PeriodWriter`."""
        if not isinstance(pending, Held):
            return super().hold(pending, tokens, position)
        at = position % self.spec.update_period

        def enter(rows: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(rows, new.astype(rows.dtype), at, 0)

        new = tokens.factors._replace(on_delta=None, h=None, o=None)
        ended = trees.add(pending.ended, self.count(tokens))
        return Held(jax.tree.map(enter, pending.factors, new), ended)

    def written_if(self, due: Array, state: LevelState) -> tuple[LevelState, WriteStats]:
        """See `PeriodWriter`. On GPUs a conditional would copy the state: there the kernel that writes it is
        told whether to."""
        conditional = super().written_if
        if not isinstance(state.pending, Held):
            return conditional(due, state)

        def branch(due: Array, state: LevelState) -> tuple[LevelState, WriteStats]:
            new, stats = conditional(due, state)
            read_in = state.pending.factors.z.dtype
            names = () if read_in == self.dtype else mlp_memory.GROUPS
            return new._replace(rounded={n: new.delta[n].astype(read_in) for n, _ in names} or ()), stats

        found: tuple[LevelState, WriteStats] = jax.lax.platform_dependent(
            due, state, cuda=self.written_by_mask, default=branch
        )
        return found

    def written_by_mask(self, due: Array, state: LevelState) -> tuple[LevelState, WriteStats]:
        """`written_if` of a period that is held as tokens, as one write that is applied or not. A period that
        is due is full: all its rows are its own."""
        pending = state.pending
        factors, ended = jax.tree.map(lambda t: t[None], (pending.factors, pending.ended))
        ended = ended._replace(tokens=jnp.where(due, ended.tokens, 0))
        new, stats = self._write_linear(state, factors, ended)
        stats = trees.select(due, jax.tree.map(lambda t: t[0], stats), self.waiting(pending))
        ended = trees.select(due, self.no_tokens(), pending.ended)
        return new._replace(pending=pending._replace(ended=ended)), stats

    def apply(self, state: LevelState, period: Any) -> tuple[LevelState, WriteStats]:
        """See `PeriodWriter`."""
        period = gathered(period, self.weights) if isinstance(period, Held) else period
        new, stats = super().apply(state, period)
        return measured(new) if state.gram else new, stats

    def write_periods(self, state: LevelState, by_period: LevelTokens) -> tuple[LevelState, WriteStats]:
        """Takes one step for each period: many at once where the rule is linear, else one after the other."""
        periods, period = by_period.mask.shape
        if not periods or not self.rule.linear:
            return super().write_periods(state, by_period)
        size = max(TOKENS_AT_ONCE // (period * self.reduce(1)), 1)
        if periods <= size:
            return self._write_whole(state, by_period)
        # Later blocks are written at another delta than that of the read.
        by_period = by_period._replace(factors=by_period.factors._replace(on_delta=None))
        whole = periods // size * size
        blocks = jax.tree.map(lambda t: t[:whole].reshape(-1, size, *t.shape[1:]), by_period)
        state, stats = jax.lax.scan(lambda *carry: settled(self._write_whole(*carry)), state, blocks)
        stats = jax.tree.map(lambda t: t.reshape(whole), stats)
        if whole == periods:
            return state, stats
        state, more = self._write_whole(state, jax.tree.map(lambda t: t[whole:], by_period))
        return state, jax.tree.map(lambda *t: jnp.concatenate(t), stats, more)

    def _write_whole(self, state: LevelState, tokens: LevelTokens) -> tuple[LevelState, WriteStats]:
        """Whole periods at once; leaves [P, C, ...]. Examples that share the state are one after the other in
        each period."""
        ended = self.shared(self.reduce(self.count(tokens)), tokens.mask.shape[1])
        return self._write_linear(state, self.reduce.gather(tokens.factors, 1), ended)

    def _write_linear(
        self, state: LevelState, factors: WriteFactors, ended: Ended
    ) -> tuple[LevelState, WriteStats]:
        """P periods of factors [P, C, ...] in closed form (`hope_jax.kernels.cms_write`)."""
        spec, bounds = self.spec, self.rules.options
        _, applied = self.decided(ended)
        all_rows = self._rows(factors, ended)
        given = [
            Map(
                rows,
                *maps,
                bounds.write_clip * norm if bounds.write_clip else None,
                bounds.delta_clip * norm if bounds.delta_clip else None,
                state.gram[group[0]] if state.gram else None,
            )
            for (rows, _), maps, group, norm in zip(
                all_rows, _states(state), mlp_memory.GROUPS, self.norms, strict=True
            )
        ]
        written = write_periods(tuple(given), applied, beta=spec.beta, lr=spec.lr)
        deltas, velocities, found, grams, rounded = zip(*written, strict=True)
        stats = self.statistics(
            ended,
            self._gradient_norms(
                factors,
                [c.gradient_sizes if raw else None for (_, raw), c in zip(all_rows, found, strict=True)],
            ),
            [(c.write_sizes, c.write_hits) for c in found],
            [(c.delta_sizes, c.delta_hits) for c in found],
        )
        opt, delta = state.opt, mlp_memory.by_name(deltas)
        if velocity(opt) is not None:
            opt = with_velocity(opt, mlp_memory.by_name(velocities), applied.sum())
        names = [name for name, _ in mlp_memory.GROUPS]
        narrow = {name: m for name, m in zip(names, rounded, strict=True) if m is not None}
        gram = dict(zip(names, grams, strict=True)) if state.gram else ()
        return LevelState(delta, opt, state.pending, narrow or (), gram), stats

    def _rows(self, factors: WriteFactors, ended: Ended) -> list[tuple[Rows, bool]]:
        """The tokens of each affine map's update before the average, [P C, ...], of factors [P, C, ...], and
        whether they are those of a matrix's gradient."""

        def flat(t: Array) -> Array:
            return t.reshape(-1, t.shape[-1])

        def rows(x: Array, g: Array, y: Array | None, names: tuple[str, str]) -> tuple[Rows, bool]:
            new, y = self.rule.rows(self.spec, names[0], x, ended.seen, y)
            bias = None
            if names[1] in self.weights:
                bias, _ = self.rule.rows(self.spec, names[1], g, ended.seen, None)
            made = Rows(*(None if t is None else flat(t) for t in (new, g, bias, y)))
            return made, new is x and bias is None

        on_delta = factors.on_delta or (None, None)
        inputs, outputs = (factors.z.astype(self.dtype), factors.a), (factors.g_h, factors.g_o)
        return list(map(rows, inputs, outputs, on_delta, mlp_memory.GROUPS))

    def _gradient_norms(self, factors: WriteFactors, known: list[Array | None]) -> list[Array]:
        """Frobenius norms [P] of each period's gradients sum_t x_t g_t^T, from its tokens' inner products,
        and of the biases', sum_t g_t. known: of an affine map, if it is."""
        norms = []
        for x, g, (_, bias), size in zip(
            (factors.z, factors.a), (factors.g_h, factors.g_o), mlp_memory.GROUPS, known, strict=True
        ):
            if size is not None:
                norms.append(size)
                continue
            outputs, inputs = (
                jnp.einsum("pci,pdi->pcd", t, t, preferred_element_type=self.dtype) for t in (g, x)
            )
            squares = [inputs * outputs]
            norms += [root(s.sum((1, 2))) for s in (squares + [outputs] * (bias in self.weights))]
        return norms


def measured(state: LevelState) -> LevelState:
    """The state with its inner products taken anew, as one has to whose delta or average was changed by
    something else than a write."""
    pairs = zip(mlp_memory.GROUPS, _states(state), strict=True)
    return state._replace(gram={group[0]: gram_of(*maps) for group, maps in pairs})


def _states(state: LevelState) -> list[tuple[Affine, Affine | None]]:
    """Each affine map's delta and velocity."""
    deltas, average = mlp_memory.maps_of(state.delta), velocity(state.opt)
    averages = [None] * len(deltas) if average is None else mlp_memory.maps_of(average)
    return list(zip(deltas, averages, strict=True))


def gathered(held: Held, like: mlp_memory.Weights) -> Any:
    """What `LevelWriter.gather` would give of the tokens that are held."""
    there = jnp.arange(len(held.factors.z)) < held.ended.seen
    factors = jax.tree.map(lambda t: jnp.where(there[:, None], t, 0), held.factors)
    return period_write.summed(factors, held.ended, like)


def init_level(spec: Level, params: PyTree, rules: WriteRules) -> LevelState:
    """The state of a level that has written nothing. params: that level's, of one layer."""
    return LevelWriter(rules, spec, params, (), own).init()
