"""The nested connection of the CMS: slower levels learn where faster ones start (Eq. 72).

Reads are those of the sequential CMS. For writes the levels s = 1 .. k are ordered by falling period C_s,
whatever their order in the chain; C_{s+1} divides C_s. With g_{s,t} the gradient of token t with respect to
level s's weights at the weights that read it, and opt_s level s's inner optimizer, after token count n:

    n a multiple of C_s:      w_s <- w_s - eta_s opt_s(sum of the last C_s g_{s,t})
                              init_{s+1} <- init_{s+1} - eta_s opt_s(sum of the last C_s g_{s+1,t}),
                              w_{s+1} <- init_{s+1}, its optimizer state cleared
    then, for r > s + 1:      init_r, w_r <- theta_r, their optimizer states cleared

w_s are the weights that read; both w_s and init_s start from theta_s. First order: the gradients are taken
where the tokens were read and are not pulled back through the writes of level s+1. The slowest level has no
init and is written as in the sequential CMS.

docs/memory.md says how what the equation leaves open is decided ("The nested connection").
"""

import itertools
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.memory.cms import Cms
from hope_jax.memory.level_write import LevelWriter, init_level
from hope_jax.memory.levels import Level
from hope_jax.memory.period_write import LevelState, LevelTokens, settled
from hope_jax.memory.rules import RULES
from hope_jax.memory.state import Reduce, WriteStats, add_stats, total_stats, zero_stats


@dataclass(frozen=True)
class NestedCms(Cms):
    """The constants of a nested CMS; fields as of `Cms`, `levels` in the order in which they read.

    Raises:
      ValueError: a period is not a multiple of the next shorter one, or equal to it.
    """

    def __post_init__(self) -> None:
        by_period = sorted(self.levels.items(), key=lambda item: -item[1].update_period)
        for (slow, slower), (fast, faster) in itertools.pairwise(by_period):
            if slower.update_period == faster.update_period or slower.update_period % faster.update_period:
                raise ValueError(
                    "levels: in a nested CMS each period is a larger multiple of the next shorter one; got "
                    f"{slower.update_period} ({slow}) over {faster.update_period} ({fast})"
                )

    def slower(self, level: Level) -> tuple[Level, ...]:
        """The levels of longer period, the next one first."""
        longer = [other for other in self.levels.values() if other.update_period > level.update_period]
        return tuple(sorted(longer, key=lambda other: other.update_period))

    def periods(self) -> dict[str, int]:
        """Of the levels, and as NAME.init of the moves of each init."""
        slower = {f"{name}.init": self.slower(level) for name, level in self.levels.items()}
        return {**super().periods(), **{name: of[0].update_period for name, of in slower.items() if of}}

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """The state of a context that has written nothing. `params`: one layer's, by level name."""
        return {name: self._fresh(level, params[name]) for name, level in self.levels.items()}

    def _needs_outputs(self, level: Level) -> bool:
        """Its init is written with the optimizer of the next slower level."""
        return any(RULES[other.optimizer].at_outputs for other in (level, *self.slower(level)[:1]))

    def _fresh(self, level: Level, params: PyTree) -> PyTree:
        state, slower = init_level(level, params, self.rules), self.slower(level)
        return state._replace(gram=(), init=init_level(slower[0], params, self.rules)) if slower else state

    def _write_level(
        self,
        name: str,
        level: Level,
        params: PyTree,
        norms: tuple[Array, ...],
        state: PyTree,
        tokens: LevelTokens,
        position: Array,
        reduce: Reduce,
        *,
        last: bool,
    ) -> tuple[PyTree, dict[str, WriteStats]]:
        slower, rules = self.slower(level), self.rules
        # Its pieces are written one after the other, and into the init too: not at the delta of the read.
        tokens = tokens._replace(factors=tokens.factors._replace(on_delta=None))
        weights = LevelWriter(rules, level, params, norms, reduce)
        if not slower:
            state, stats = weights.write(state, tokens, position, last)
            return state, {name: stats}
        moves = LevelWriter(rules, slower[0], params, norms, reduce)
        until = partial(_until_restart, weights, moves, slower, self._fresh(level, params))
        # Pieces that hold no restart but, perhaps, at their end.
        period = slower[0].update_period
        whole, rest = (0, 1) if period > rules.chunk_size else divmod(len(tokens.mask), period)
        total: Stats = zero_stats(), zero_stats()
        if whole:
            pieces = jax.tree.map(lambda t: t[: whole * period].reshape(whole, period, *t.shape[1:]), tokens)
            starts = position + period * jnp.arange(whole, dtype=jnp.int32)
            state, stacked = jax.lax.scan(
                lambda state, xs: until(state, *xs, last=False), state, (pieces, starts)
            )
            total = total_stats(stacked[0]), total_stats(stacked[1])
        if rest:
            tail = jax.tree.map(lambda t: t[whole * period :], tokens)
            state, more = until(state, tail, position + whole * period, last=last)
            total = add_stats(total[0], more[0]), add_stats(total[1], more[1])
        return state, {name: total[0], f"{name}.init": total[1]}


Stats = tuple[WriteStats, WriteStats]
"""The statistics of a level's own writes, and those of the moves of its init."""


def _until_restart(
    weights: LevelWriter,
    moves: LevelWriter,
    slower: tuple[Level, ...],
    fresh: LevelState,
    state: LevelState,
    tokens: LevelTokens,
    position: Array,
    *,
    last: bool,
) -> tuple[LevelState, Stats]:
    """Writes tokens among which the level does not restart, or only at their end.

    weights: writes with the level's own optimizer. moves: with that of the next slower level, which sees the
    init as a level of its own period. slower: the slower levels, the next one first. fresh: the state at
    theta.
    """
    level, stats = settled(weights.write(state._replace(init=()), tokens, position, last))
    init, moved = settled(moves.write(state.init, tokens, position, last))
    end = position + len(tokens.mask)
    if len(slower) > 1:
        cleared = end % slower[1].update_period == 0
        init = trees.select(cleared, fresh.init, init)
        moved = moved._replace(delta_norm=jnp.where(cleared, 0, moved.delta_norm))
    due = end % slower[0].update_period == 0
    level = trees.select(due, fresh._replace(delta=init.delta, init=()), level)
    stats = stats._replace(delta_norm=jnp.where(due, moved.delta_norm, stats.delta_norm))
    return level._replace(init=init), (stats, moved)
