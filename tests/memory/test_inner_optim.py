"""Every inner optimizer against its recurrence, step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.rules import OPTIMIZERS, make_inner_optimizer
from tests.close import assert_close
from tests.oracle import bridge, cases
from tests.oracle.writes import FAST, Level, fresh_state, inner_step

STEPS = 3


def draws(biases: bool) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Gradients of one level's fast weights and a context, for each step."""
    draw = cases.Draw(7)
    return [
        (
            {n: g for n, g in cases.level_params(draw, biases).items() if n in FAST},
            draw.rng.normal(size=cases.DIM),
        )
        for _ in range(STEPS)
    ]


@pytest.mark.parametrize("variant", OPTIMIZERS)
@pytest.mark.parametrize("biases", [False, True])
def test_updates_and_state_match_recurrence(variant: str, biases: bool) -> None:
    level = Level("level", 4, optimizer=variant, beta=0.8, beta2=0.95, eps=1e-3)
    optimizer = make_inner_optimizer(bridge.level_of(level))
    steps = draws(biases)
    state = optimizer.init(jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.asarray, steps[0][0])))
    wanted_state = fresh_state(level, steps[0][0])
    for grads, context in steps:
        update, state = optimizer.update(
            jax.tree.map(jnp.asarray, grads), state, context=jnp.asarray(context)
        )
        wanted, wanted_state = inner_step(level, grads, wanted_state, context)
        assert_close(update, wanted, variant, 1e-12)
        bridge.assert_same_optimizer(level, state, wanted_state, variant)


def test_context_projection_leaves_nothing_along_the_context() -> None:
    level = Level("level", 4, optimizer="nl_l2_precond", beta=0.0, eps=0.0)
    grads, context = draws(False)[0]
    optimizer = make_inner_optimizer(bridge.level_of(level))
    update, _ = optimizer.update(grads, optimizer.init(grads), context=jnp.asarray(context))
    np.testing.assert_allclose(context @ update["w_up"], 0, atol=1e-12)
    np.testing.assert_array_equal(update["w_down"], grads["w_down"])


@pytest.mark.parametrize("variant", OPTIMIZERS)
def test_derivative_at_zero_gradient_context_and_state(variant: str) -> None:
    """Finite, and the slope of the update along a direction away from zero."""
    level = Level("level", 4, optimizer=variant, beta=0.8, beta2=0.95, eps=1e-2)
    optimizer = make_inner_optimizer(bridge.level_of(level))
    towards = jax.tree.map(jnp.asarray, draws(True)[0])
    form = jax.tree.map(jnp.asarray, draws(True)[1][0])

    def value(inputs: Any) -> jax.Array:
        grads, context = inputs
        update, _ = optimizer.update(grads, optimizer.init(grads), context=context)
        return sum(jnp.vdot(form[name], u) for name, u in update.items())

    slopes = jax.grad(value)(jax.tree.map(jnp.zeros_like, towards))
    along = sum(float(jnp.vdot(s, t)) for s, t in zip(*map(jax.tree.leaves, (slopes, towards)), strict=True))
    h = 1e-8
    ahead, back = (value(jax.tree.map(lambda t, s=s: s * h * t, towards)) for s in (1, -1))
    assert abs(along) > 0.1
    assert float(ahead - back) / (2 * h) == pytest.approx(along, rel=1e-5)


@pytest.mark.parametrize(("period", "context_scale"), [(1, 1.0), (4, 0.0)])
def test_context_projection_is_skipped(period: int, context_scale: float) -> None:
    """A period of one token, and a zero context, leave the gradient as it is."""
    level = Level("level", period, optimizer="nl_l2_precond", beta=0.0)
    grads, context = draws(False)[0]
    optimizer = make_inner_optimizer(bridge.level_of(level))
    update, _ = optimizer.update(grads, optimizer.init(grads), context=jnp.asarray(context * context_scale))
    assert_close(update, grads, "update", 0.0)


def test_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"optimizer: .*got 'adam'"):
        make_inner_optimizer(bridge.level_of(Level("level", 4, optimizer="adam")))
