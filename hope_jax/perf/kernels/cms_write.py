"""CMS writes of one level over a sequence, from its inputs and teach signal to its new state.

Width 256, hidden 4 times that, chunks of 32 in a scan; the inner optimizer averages with beta 0.9, both
bounds are on, statistics are not taken. `dense`: periods one after the other, each with its gradient matrices
and a step of the inner optimizer. `gram`: the closed form. With gradients: of a scalar of the written state,
by inputs, teach signals and starting state, through the writes.

Useful operations of a token: 4 products with a D x H matrix forward (pre-activation, pull-back through
W_down, an outer product a matrix), twice that backward. Not counted: the split of a read into slow weights
and delta, what the velocity and the bounds need, recomputation.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.memory import mlp_memory
from hope_jax.memory.level_write import LevelWriter, init_level
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.period_write import LevelState, LevelTokens, PeriodWriter, WriteRules
from hope_jax.memory.state import own
from hope_jax.perf.timing import Case, Comparison, Goal, forms

CHUNK, TOKENS, DIM, PRODUCTS = 32, 256, 256, 4


class _Dense(LevelWriter):
    """Periods one after the other."""

    def write_periods(self, state: LevelState, by_period: Any) -> Any:
        return PeriodWriter.write_periods(self, state, by_period)


def _written(
    writer: type[LevelWriter], spec: LevelSpec, params: Any, state: LevelState, *given: Any
) -> LevelState:
    """The state after one sequence. given: delta and average to begin with, x and teach signal [T, D]."""
    norms, active = mlp_memory.group_norms(params), jnp.ones(CHUNK, bool)
    delta, ema, *streams = given
    state = state._replace(delta=delta, opt=(*state.opt[:-1], state.opt[-1]._replace(ema=ema)))

    def step(state: LevelState, xs: Any) -> tuple[LevelState, None]:
        factors = mlp_memory.write_factors(params, state.delta, mlp_memory.normalise(params, xs[0]), xs[1])
        tokens = LevelTokens(factors, active, jnp.ones(CHUNK), active)
        one = writer(WriteRules(CHUNK), spec, params, norms, own)
        return one.write(state, tokens, jnp.int32(0), False)[0], None

    return jax.lax.scan(step, state, [t.reshape(-1, CHUNK, t.shape[-1]) for t in streams])[0]


def _cases(period: int, batch: int, gradients: bool, goals: tuple[Goal, ...]) -> tuple[Case, ...]:
    spec = LevelSpec("level", period, 0.03, "momentum", 0.9)
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w_up": jax.random.normal(keys[0], (DIM, 4 * DIM)) / DIM**0.5,
        "w_down": jax.random.normal(keys[1], (4 * DIM, DIM)) / (4 * DIM) ** 0.5,
        "ln_scale": jnp.ones(DIM),
        "ln_bias": jnp.zeros(DIM),
    }
    state = jax.tree.map(lambda s: jnp.stack([s] * batch), init_level(spec, params, CHUNK))
    x = jax.random.normal(keys[2], (batch, TOKENS, DIM))
    teach = 0.1 * jax.random.normal(keys[3], x.shape)
    axes = (None, 0, 0, 0, 0, 0)
    return forms(
        {
            name: jax.vmap(partial(_written, writer, spec), in_axes=axes)
            for name, writer in {"dense": _Dense, "gram": LevelWriter}.items()
        },
        *(params, state, state.delta, state.opt[-1].ema, x, teach),
        flops=2.0 * DIM * 4 * DIM * PRODUCTS * TOKENS * batch,
        tokens=TOKENS * batch,
        goals=goals,
        by=(2, 3, 4, 5) if gradients else (),
    )


REACH = {1: (6.0, 8.0), 8: (3.0, 4.0)}
"""Period -> times the dense scan's speed, forward and with gradients."""


def comparisons() -> Iterator[Comparison]:
    """Both forms, by period and batch. The dense scan's gradients at period 1 take 2.4 GB an example: there
    batches are of one."""
    for gradients, kind in enumerate(("forward", "gradients")):
        for period, batch in ((1, 1), (8, 1), (32, 1), (1, 4), (8, 4)):
            if gradients and period == 1 and batch > 1:
                continue
            ratio = REACH[period][gradients] if period in REACH else None
            goals = (Goal("ratio", ratio), Goal("share", 0.5)) if ratio else ()
            build = partial(_cases, period, batch, bool(gradients), goals)
            yield Comparison(f"cms_write/{kind}-p{period}-b{batch}", build)
