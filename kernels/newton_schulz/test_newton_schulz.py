"""The production form against one matrix, product by product, and the iteration that Muon and optax mean by
the name."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.newton_schulz import CUBIC, QUINTIC, iterate, unit
from hope_jax.kernels.newton_schulz.batched import Coefficients
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from hope_jax.perf.rounding import newton_schulz as numerics

SHAPES = [(4, 4), (3, 17), (17, 3), (1, 5), (12, 20)]
RULES = [(QUINTIC, 5), (QUINTIC, 1), (CUBIC, 3), (CUBIC, 0), (CUBIC, 7)]


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape))


def orthogonalize(x: jax.Array, coefficients: Coefficients, steps: int, eps: float) -> jax.Array:
    return iterate(unit(x, eps), coefficients, steps)


def naive(x_rc: jax.Array, coefficients: Coefficients, steps: int, eps: float) -> jax.Array:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X from X = x / (|x|_F + eps), `steps` times. x_rc: one matrix."""
    a, b, c = coefficients
    x_rc = x_rc / (jnp.linalg.norm(x_rc) + eps)
    for _ in range(steps):
        gram_rr = x_rc @ x_rc.T
        x_rc = a * x_rc + b * gram_rr @ x_rc + c * gram_rr @ gram_rr @ x_rc
    return x_rc


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("coefficients", "steps"), RULES)
def test_matches_naive(shape: tuple[int, int], coefficients: Coefficients, steps: int) -> None:
    x, eps, towards = drawn(*shape), 1e-3, drawn(*shape, 1)[..., 0]

    def both(f: object) -> tuple[jax.Array, jax.Array]:
        rule = partial(f, coefficients=coefficients, steps=steps, eps=eps)
        return rule(x), jax.grad(lambda t: jnp.vdot(rule(t), towards))(x)

    for got, wanted in zip(both(orthogonalize), both(naive), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


def test_a_stack_is_its_matrices_one_by_one() -> None:
    stack = drawn(2, 3, 6, 9)
    wanted = [[naive(x, QUINTIC, 5, 1e-8) for x in row] for row in stack]
    np.testing.assert_allclose(orthogonalize(stack, QUINTIC, 5, 1e-8), wanted, rtol=1e-9, atol=1e-9)


def test_a_matrix_of_zeros_stays_and_has_a_gradient() -> None:
    x = jnp.stack([jnp.zeros((3, 5)), drawn(3, 5)])
    got = orthogonalize(x, QUINTIC, 5, 1e-2)
    assert not got[0].any() and got[1].any()
    slope = jax.grad(lambda t: orthogonalize(t, QUINTIC, 5, 1e-2).sum())(x)
    np.testing.assert_allclose(slope[0], QUINTIC[0] ** 5 / 1e-2, rtol=1e-12)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 0.1)])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_shorter_types(dtype: str, near: float, shape: tuple[int, int]) -> None:
    x = drawn(*shape)
    got = orthogonalize(x.astype(dtype), QUINTIC, 5, 1e-8)
    assert got.dtype == dtype
    wanted = naive(x, QUINTIC, 5, 1e-8)
    assert np.linalg.norm(np.asarray(got, np.float64) - wanted) < near * np.linalg.norm(wanted)


@pytest.mark.parametrize("smallest", [0.0, 1e-4])
def test_singular_values_that_float32_does_not_see_stay_bounded(smallest: float) -> None:
    """Where A is singular up to rounding, rounding makes it indefinite."""
    rules = {"Muon": 5e-4, "M3": 5e-6}
    errors = [numerics.error("float32", numerics.RULES[name], smallest, (40, 90)) for name in rules]
    assert all(0 < error < most for error, most in zip(errors, rules.values(), strict=True)), errors


def test_it_is_what_optax_takes_for_muon() -> None:
    """optax's Muon without steps, then ours: the momentum orthogonalised as optax does."""
    params = {"w": jnp.zeros((2, 5, 8)), "v": jnp.zeros((9, 4))}
    grads = jax.tree.map(lambda t: drawn(*t.shape), params)

    def axes(tree: object) -> object:
        return jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), tree)

    def update(steps: int) -> dict[str, jax.Array]:
        optimizer = scale_by_muon(ns_steps=steps, weight_dimension_numbers=axes)
        return dict(optimizer.update(grads, optimizer.init(params))[0])

    ours = jax.tree.map(lambda t: iterate(t, QUINTIC, 5), update(0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), ours, update(5))


def test_the_coefficients_are_those_of_optax() -> None:
    np.testing.assert_allclose(scale_by_muon().init(jnp.zeros((2, 2))).ns_coeffs, QUINTIC, rtol=1e-7)
