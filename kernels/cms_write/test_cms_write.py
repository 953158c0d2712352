"""The Gram form against one period after the other, values and gradients: bounds off, idle, active; with and
without velocity and biases; skipped periods."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.cms_write import Affine, Map, Rows, write_periods

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SIZES = ((7, 5), (4, 9))
"""Inputs and outputs of two maps: one narrows, one widens."""

RATES = {"beta": 0.9, "lr": 0.2}
BOUNDS = [(None, None), (1e3, 1e3), (0.5, 1.0), (None, 1.0), (0.5, None)]
CASES = [(b, velocity, biases) for b in BOUNDS for velocity in (True, False) for biases in (True, False)]
CORE = [*((b, True, True) for b in BOUNDS), ((0.5, 1.0), False, False)]


def cases(periods: tuple[tuple[int, int], ...]) -> list[Any]:
    """(periods, period, bounds, velocity, biases), those of the first number of periods in `CORE` always."""
    return [
        pytest.param(*p, *case, marks=() if case in CORE and p == periods[0] else pytest.mark.nightly)
        for p in periods
        for case in CASES
    ]


def maps_of(tokens: int, bounds: Any, *, velocity: bool, biases: bool) -> tuple[Map, ...]:
    rng = np.random.default_rng(tokens)

    def affine(inputs: int, outputs: int, scale: float) -> Affine:
        bias = jnp.asarray(scale * rng.normal(size=outputs)) if biases else None
        return Affine(jnp.asarray(scale * rng.normal(size=(inputs, outputs))), bias)

    def rows(inputs: int, outputs: int) -> Rows:
        x, g, b = (jnp.asarray(rng.normal(size=(tokens, width))) for width in (inputs, outputs, outputs))
        return Rows(x, g, b if biases else None)

    limits = [None if bound is None else jnp.asarray(bound) for bound in bounds]
    return tuple(
        Map(rows(*size), affine(*size, 0.1), affine(*size, 1.0) if velocity else None, *limits)
        for size in SIZES
    )


def size(weights: Affine) -> jnp.ndarray:
    parts = [weights.matrix.ravel(), jnp.zeros(0) if weights.bias is None else weights.bias]
    return jnp.linalg.norm(jnp.concatenate(parts))


def bounded(weights: Affine, bound: float | None) -> Affine:
    if bound is None:
        return weights
    factor = 1 / jnp.maximum(size(weights) / bound, 1)
    return Affine(weights.matrix * factor, None if weights.bias is None else weights.bias * factor)


def mix(a: float, first: Affine, b: float, second: Affine) -> Affine:
    bias = None if first.bias is None else a * first.bias + b * second.bias
    return Affine(a * first.matrix + b * second.matrix, bias)


def one_by_one(
    one: Map, applied: np.ndarray, *, beta: float, lr: float
) -> tuple[Affine, Affine | None, jnp.ndarray, jnp.ndarray]:
    """The delta and velocity of `write_periods` for one map, one period after the other. Also, by period [P],
    the norms of the bounded write and of delta after it."""
    (x, g, b, _), delta, velocity = one[:3]
    period, write_sizes, delta_sizes = len(x) // len(applied), [], []
    for p, on in enumerate(applied):
        if not on:
            write_sizes.append(jnp.zeros(()))
            delta_sizes.append(size(delta))
            continue
        tokens = range(p * period, (p + 1) * period)
        gradient = Affine(
            sum(jnp.outer(x[t], g[t]) for t in tokens), None if b is None else sum(b[t] for t in tokens)
        )
        if velocity is not None:
            gradient = velocity = mix(beta, velocity, 1 - beta, gradient)
        write = bounded(mix(-lr, gradient, 0, gradient), one.max_write)
        delta = bounded(mix(1, delta, 1, write), one.max_delta)
        write_sizes.append(size(write))
        delta_sizes.append(size(delta))
    return delta, velocity, jnp.stack(write_sizes), jnp.stack(delta_sizes)


def value_of(tree: Any) -> jax.Array:
    """A form in every entry, so that its gradient is no accident of symmetry."""
    leaves = jax.tree.leaves(tree)
    return sum(jnp.sum(jnp.sin(leaf + jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves)


def assert_same(got: Any, want: Any, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), got, want)


@pytest.mark.parametrize(
    ("periods", "period", "bounds", "velocity", "biases"), cases(((4, 3), (1, 6), (8, 1)))
)
def test_matches_naive(periods: int, period: int, bounds: Any, velocity: bool, biases: bool) -> None:
    maps = maps_of(periods * period, bounds, velocity=velocity, biases=biases)
    applied = np.arange(periods) % 3 != 1

    def fast(maps: Any) -> Any:
        return [
            (delta, velocity, found.write_sizes, found.delta_sizes)
            for delta, velocity, found, *_ in write_periods(maps, jnp.asarray(applied), **RATES)
        ]

    def slow(maps: Any) -> Any:
        return [one_by_one(one, applied, **RATES) for one in maps]

    assert_same(quick(fast)(maps), quick(slow)(maps), 1e-12)
    gradients = [quick(jax.grad(lambda maps, f=f: value_of(f(maps))))(maps) for f in (fast, slow)]
    assert_same(*gradients, 1e-9)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_counts_the_bounds_that_act(bounds: Any) -> None:
    maps = maps_of(8, bounds, velocity=True, biases=True)
    applied = jnp.arange(8) % 3 != 1
    for _, _, one, *_ in write_periods(maps, applied, **RATES):
        assert bool(one.write_hits.any()) == (bounds[0] == 0.5)
        assert bool(one.delta_hits.any()) == (bounds[1] == 1.0)
        assert not (one.write_hits & ~applied).any()
        assert not (one.delta_hits & ~applied).any()


@pytest.mark.parametrize("bounds", [(1e3, 1e3), (0.05, 1.0)])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_float32_stays_near_float64(beta: float, bounds: Any) -> None:
    """States and gradients over 256 periods of one token, from equal values; bounds idle and active."""
    drawn = maps_of(256, bounds, velocity=True, biases=True)

    def outcome(dtype: str) -> list[np.ndarray]:
        def form(maps: Any) -> tuple[jax.Array, Any]:
            written = write_periods(maps, jnp.ones(256, bool), beta=beta, lr=0.01)
            states = [one[:2] for one in written]
            slopes = jax.tree.map(
                lambda t: jnp.cos(jnp.arange(t.size, dtype=t.dtype)).reshape(t.shape), states
            )
            parts = jax.tree.map(jnp.vdot, states, slopes)
            return sum(jax.tree.leaves(parts)), (states, [one[2].delta_hits for one in written])

        maps = jax.tree.map(lambda t: t.astype("float32").astype(dtype), drawn)
        gradient, (states, hits) = quick(jax.grad(form, has_aux=True))(maps)
        assert any(bool(hit.any()) for hit in hits) == (bounds[1] < 1e3)
        trees = (states, [(one.rows, one.delta, one.velocity) for one in gradient])
        return [np.concatenate([np.float64(t).ravel() for t in jax.tree.leaves(tree)]) for tree in trees]

    for got, exact in zip(outcome("float32"), outcome("float64"), strict=True):
        assert np.linalg.norm(got - exact) < 2e-6 * np.linalg.norm(exact)
