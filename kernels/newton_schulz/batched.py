"""Production form: stacks of matrices, iterated on their smaller side. No GPU or TPU has run it."""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from hope_jax.core import trees

Coefficients: TypeAlias = tuple[float, float, float]
"""a, b, c of a step X <- a X + b (X X^T) X + c (X X^T)^2 X."""

CUBIC: Coefficients = (1.5, -0.5, 0.0)
"""Newton's: converges to the nearest semi-orthogonal matrix from singular values below sqrt(3)."""

QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
"""Muon's: five steps bring singular values from 1e-2 up to between 0.7 and 1.2, and none converges."""


def unit(x: jax.Array, eps: float) -> jax.Array:
    """Matrices [..., rows, columns] as `iterate` takes them: x / (|x|_F + eps), of gradient 1 / eps at 0."""
    return x / (trees.safe_norm(x, axis=(-2, -1), keepdims=True) + eps)


def iterate(x: jax.Array, coefficients: Coefficients, steps: int) -> jax.Array:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X, `steps` times.

    x: [..., rows, columns], bfloat16 and wider, of Frobenius norms up to 1: leading axes are a batch of
    matrices, each iterated by itself. steps: at least 0. The result has x's shape and dtype.
    """
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    wide = jnp.swapaxes(x, -2, -1) if tall else x
    for _ in range(steps):
        gram = wide @ jnp.swapaxes(wide, -2, -1)
        wide = a * wide + (b * gram + c * (gram @ gram) if c else b * gram) @ wide
    return jnp.swapaxes(wide, -2, -1) if tall else wide
