"""Derivatives of writes, for every inner optimizer, against central differences: at states that are alive,
and where gradients, inputs or states are exactly zero."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.cms import Cms
from hope_jax.memory.levels import Level, MemoryOptions
from hope_jax.memory.period_write import WriteRules
from hope_jax.memory.rules import OPTIMIZERS
from tests.oracle import bridge

N, D, H, CHUNKS = 4, 3, 4, 3
PERIODS = {2: False, 8: True}
"""Periods, one below the chunk and one above; the second has biases. No LayerNorm: contexts can be zero."""


@cache
def compiled(period: int) -> Any:
    """(params, x, own signals by level) -> a linear form in each level's state after the last chunk: their
    sum, by level, and the sum's gradient."""
    specs = {v: Level(period, 0.1, v, beta=0.6, beta2=0.9, eps=0.05) for v in OPTIMIZERS}
    cms = Cms(specs, D, H, WriteRules(N, MemoryOptions(write_clip=0.5, delta_clip=1.5)))
    rng = np.random.default_rng(8)
    block = rng.normal(size=(CHUNKS, N, D))
    block[:, 1] = 0.0

    def states(inputs: Any) -> dict[str, Any]:
        params, x, signals = inputs

        def step(carry: Any, xs: Any) -> Any:
            (fast, position), (x, teach, block) = carry, xs
            chunk = {"x": x, "own": teach, "block": block, "surprise": jnp.ones(N)}
            fast, _ = bridge.write_levels(cms, params, fast, chunk, position)
            return (fast, position + N), None

        start = (cms.init(params), jnp.int32(0))
        return jax.lax.scan(step, start, (x, signals, jnp.asarray(block)))[0][0]

    def loss(inputs: Any) -> Any:
        by_level = {}
        for name, state in states(inputs).items():
            leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float64]
            weights = np.random.default_rng(0)
            by_level[name] = sum(jnp.sum(leaf * weights.normal(size=leaf.shape)) for leaf in leaves)
        return sum(by_level.values()), by_level

    return jax.jit(
        jax.value_and_grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0}
    )


def inputs_of(period: int, x_scale: float, signal_scale: float) -> Any:
    rng = np.random.default_rng(5)

    def level() -> dict[str, Any]:
        p = {"w_up": rng.normal(size=(D, H)), "w_down": rng.normal(size=(H, D))}
        if PERIODS[period]:
            p |= {"b_up": rng.normal(size=H), "b_down": rng.normal(size=D)}
        return p

    shape = (CHUNKS, N, D)
    params = {v: level() for v in OPTIMIZERS}
    x = {v: x_scale * rng.normal(size=shape) for v in OPTIMIZERS}
    signals = {v: signal_scale * rng.normal(size=shape) for v in OPTIMIZERS}
    return params, x, signals


POINTS = {"alive": (1.0, 0.2, 1e-6), "zero_signals": (1.0, 0.0, 1e-8), "zero_inputs": (0.0, 0.2, 1e-7)}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("period", [2, pytest.param(8, marks=pytest.mark.nightly)])
def test_gradient_is_finite_and_agrees_with_differences(period: int, point: str) -> None:
    x_scale, signal_scale, h = POINTS[point]
    inputs, run = inputs_of(period, x_scale, signal_scale), compiled(period)
    rng = np.random.default_rng(6)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), inputs)
    gradient = run(inputs)[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    ends = [run(jax.tree.map(lambda a, d, s=s: a + s * h * d, inputs, direction))[0][1] for s in (1, -1)]
    for name in OPTIMIZERS:
        along = sum(
            float((np.asarray(g) * d).sum())
            for part, towards in zip(gradient, direction, strict=True)
            for g, d in zip(*map(jax.tree.leaves, (part[name], towards[name])), strict=True)
        )
        slope = float(ends[0][name] - ends[1][name]) / (2 * h)
        assert abs(along) > 1e-3, name
        assert slope == pytest.approx(along, rel=1e-5), name
