"""The Gram and the dual form against the oracle, values and gradients: bounds off, idle, active; with and
without velocity and biases; skipped periods."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.cms_write import Affine, Map, Rows, dual, naive, write_periods

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
            (w.delta, w.velocity, w.found.write_sizes, w.found.delta_sizes)
            for w in write_periods(maps, jnp.asarray(applied), **RATES)
        ]

    def slow(maps: Any) -> Any:
        return [naive.write_periods(one, applied, **RATES) for one in maps]

    assert_same(quick(fast)(maps), quick(slow)(maps), 1e-12)
    gradients = [quick(jax.grad(lambda maps, f=f: value_of(f(maps))))(maps) for f in (fast, slow)]
    assert_same(*gradients, 1e-9)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_counts_the_bounds_that_act(bounds: Any) -> None:
    maps = maps_of(8, bounds, velocity=True, biases=True)
    applied = jnp.arange(8) % 3 != 1
    for one in (written.found for written in write_periods(maps, applied, **RATES)):
        assert bool(one.write_hits.any()) == (bounds[0] == 0.5)
        assert bool(one.delta_hits.any()) == (bounds[1] == 1.0)
        assert not (one.write_hits & ~applied).any()
        assert not (one.delta_hits & ~applied).any()


@pytest.mark.parametrize(("periods", "period", "bounds", "velocity", "biases"), cases(((2, 3), (6, 1))))
def test_dual_form_matches_naive_over_chunks(
    periods: int, period: int, bounds: Any, velocity: bool, biases: bool
) -> None:
    tokens, chunks = periods * period, 3
    start = maps_of(tokens * chunks, bounds, velocity=velocity, biases=biases)
    applied = np.arange(periods) % 3 != 1
    limits = tuple(dual.Limits(one.max_write, one.max_delta) for one in start)

    def chunk_of(rows: Rows, i: int) -> Rows:
        return jax.tree.map(lambda t: t[i * tokens : (i + 1) * tokens], rows)

    def fast(rows: tuple[Rows, ...]) -> Any:
        held = tuple(
            dual.empty(tokens * chunks + 2, *size, jnp.float64, bias=biases, velocity=velocity)
            for size in SIZES
        )
        for i in range(chunks):
            parts = tuple(chunk_of(one, i) for one in rows)
            new, found = dual.write_periods(held, parts, i * tokens, jnp.asarray(applied), limits, **RATES)
            held = tuple(dual.enter(*each, i * tokens) for each in zip(held, new, strict=True))
        sizes = [(c.write_sizes, c.delta_sizes) for c in found]
        reads = [(dual.read(d, r.x_ni), dual.pull_back(d, r.g_no)) for d, r in zip(held, rows, strict=True)]
        return [dual.dense(d) for d in held], reads, sizes

    def slow(rows: tuple[Rows, ...]) -> Any:
        ends, sizes = [], []
        for one, now in zip(start, rows, strict=True):
            state = jax.tree.map(jnp.zeros_like, (one.delta, one.velocity))
            for i in range(chunks):
                piece = one._replace(rows=chunk_of(now, i), delta=state[0], velocity=state[1])
                *state, write_sizes, delta_sizes = naive.write_periods(piece, applied, **RATES)
            ends.append(tuple(state))
            sizes.append((write_sizes, delta_sizes))
        reads = [
            (r.x_ni @ d.matrix + (0 if d.bias is None else d.bias), r.g_no @ d.matrix.T)
            for (d, _), r in zip(ends, rows, strict=True)
        ]
        return ends, reads, sizes

    rows = tuple(one.rows for one in start)
    assert_same(quick(fast)(rows), quick(slow)(rows), 1e-11)
    gradients = [quick(jax.grad(lambda rows, f=f: value_of(f(rows))))(rows) for f in (fast, slow)]
    assert_same(*gradients, 1e-9)


def test_form_is_chosen_by_what_it_holds() -> None:
    """Tokens are held where they take no more numbers than the matrix: up to 0.8 d at hidden 4 d."""
    assert [dual.form_by_size(tokens, 256, 1024) for tokens in (64, 204, 205)] == ["dual", "dual", "dense"]
