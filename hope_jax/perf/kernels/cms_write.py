"""CMS writes of one level over a sequence, from its inputs and teach signal to its new state.

Width 256, hidden 4 times that, chunks of 32 in a scan; the inner optimizer averages with beta 0.9, both
bounds are on, statistics are not taken. `dense`: periods one after the other, each with its gradient matrices
and a step of the inner optimizer. `gram`: the closed form. With gradients: of a scalar of the written state,
by inputs, teach signals and starting state, through the writes.

Useful operations of a token: 4 products with a D x H matrix forward (pre-activation, pull-back through
W_down, an outer product a matrix), twice that backward. Not counted: the split of a read into slow weights
and delta, what the velocity and the bounds need, recomputation.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.memory import mlp_memory
from hope_jax.memory.level_write import LevelWriter, init_level
from hope_jax.memory.levels import Level
from hope_jax.memory.period_write import LevelState, LevelTokens, PeriodWriter, WriteRules
from hope_jax.memory.state import own
from hope_jax.perf.timing import Case, Comparison, Goal, compiled

CHUNK, TOKENS, PRODUCTS = 32, 256, 4


class _Dense(LevelWriter):
    """Periods one after the other."""

    def write_periods(self, state: LevelState, by_period: Any) -> Any:
        return PeriodWriter.write_periods(self, state, by_period)


def _chunks(*streams: jax.Array) -> Any:
    return jax.tree.map(lambda t: t.reshape(-1, CHUNK, t.shape[-1]), streams)


def _with_matrices(
    writer: type[LevelWriter], spec: Level, params: Any, state: Any, x: Any, teach: Any
) -> Any:
    """The state after one sequence [T, D]."""
    norms = mlp_memory.group_norms(params)

    def step(state: LevelState, xs: Any) -> tuple[LevelState, None]:
        x, teach = xs
        factors = mlp_memory.write_factors(params, state.delta, mlp_memory.normalise(params, x), teach)
        active = jnp.ones(CHUNK, bool)
        one = writer(WriteRules(CHUNK), spec, params, norms, own)
        tokens = LevelTokens(factors, active, jnp.ones(CHUNK), active)
        state, _ = one.write(state, tokens, jnp.int32(0), False)
        return state, None

    return jax.lax.scan(step, state, _chunks(x, teach))[0]


def _arguments(spec: Level, dim: int, tokens: int, batch: int) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w_up": jax.random.normal(keys[0], (dim, 4 * dim)) / dim**0.5,
        "w_down": jax.random.normal(keys[1], (4 * dim, dim)) / (4 * dim) ** 0.5,
        "ln_scale": jnp.ones(dim),
        "ln_bias": jnp.zeros(dim),
    }
    state = jax.tree.map(lambda s: jnp.stack([s] * batch), init_level(spec, params, CHUNK))
    x = jax.random.normal(keys[2], (batch, tokens, dim))
    return params, state, x, 0.1 * jax.random.normal(keys[3], x.shape)


def _gradients(write: Callable[..., Any]) -> Callable[..., Any]:
    def value(arrays: Any, params: Any, state: LevelState) -> jax.Array:
        delta, ema, x, teach = arrays
        count = state.opt[-1]
        state = state._replace(delta=delta, opt=(*state.opt[:-1], count._replace(ema=ema)))
        leaves = jax.tree.leaves(write(params, state, x, teach))
        return jnp.asarray(sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves if leaf.dtype == x.dtype))

    def run(params: Any, state: LevelState, x: jax.Array, teach: jax.Array) -> Any:
        return jax.grad(value)((state.delta, state.opt[-1].ema, x, teach), params, state)

    return run


FORMS: dict[str, Callable[..., Any]] = {
    "dense": partial(_with_matrices, _Dense),
    "gram": partial(_with_matrices, LevelWriter),
}


def _cases(
    forms: tuple[str, ...],
    period: int,
    *,
    gradients: bool,
    dim: int = 256,
    tokens: int = TOKENS,
    batch: int = 1,
    goals: tuple[Goal, ...] = (),
) -> tuple[Case, ...]:
    spec = Level(period, 0.03, "momentum", 0.9)
    arguments = _arguments(spec, dim, tokens, batch)
    flops = 2.0 * dim * 4 * dim * PRODUCTS * tokens * batch * (3 if gradients else 1)

    def case(form: str) -> Case:
        write = jax.vmap(partial(FORMS[form], spec), in_axes=(None, 0, 0, 0))
        run = _gradients(write) if gradients else write
        reach = () if form == forms[0] else goals
        return compiled(form, run, *arguments, flops=flops, tokens=tokens * batch, goals=reach)

    return tuple(case(form) for form in forms)


REACH = {1: (6.0, 8.0), 8: (3.0, 4.0)}
"""Period -> times the dense scan's speed, forward and with gradients."""


def comparisons() -> Iterator[Comparison]:
    """Both forms, by period and batch. The dense scan's gradients at period 1 take 2.4 GB an example: there
    batches are of one."""
    for kind, gradients in (("forward", False), ("gradients", True)):
        for period, batch in ((1, 1), (8, 1), (32, 1), (1, 4), (8, 4)):
            if gradients and period == 1 and batch > 1:
                continue
            goals: tuple[Goal, ...] = ()
            if period in REACH:
                goals = (Goal("ratio", REACH[period][gradients]), Goal("share", 0.5))
            build = partial(_cases, ("dense", "gram"), period, gradients=gradients, batch=batch, goals=goals)
            yield Comparison(f"cms_write/{kind}-p{period}-b{batch}", build)
