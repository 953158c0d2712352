"""How the kernels of this folder cut matrices and tokens into blocks of sides that are powers of two."""

import jax
import jax.numpy as jnp

BLOCK, LEAST = 64, 16
"""Largest and least side of a block: a matrix unit takes no less."""


def _side(width: int) -> int:
    """The largest power of two up to `BLOCK` that divides a width."""
    return min(width & -width, BLOCK)


def sides(matrix: jax.Array) -> tuple[int, int]:
    """Of a block of the matrix [I, O]."""
    return _side(matrix.shape[0]), _side(matrix.shape[1])


def fit(matrices: tuple[jax.Array, ...]) -> bool:
    """Whether the kernels take them: float32, with sides that `LEAST` divides."""
    return matrices[0].dtype == jnp.float32 and min(sides(matrices[0])) >= LEAST


def whole_rows(*arrays: jax.Array) -> tuple[tuple[jax.Array, ...], int]:
    """Tokens [n, ...] with zeros up to a whole number of blocks, and the tokens of one."""
    tokens = len(arrays[0])
    step = BLOCK if tokens >= BLOCK else LEAST
    more = -tokens % step
    padded = tuple(jnp.pad(t, ((0, more), *[(0, 0)] * (t.ndim - 1))) for t in arrays)
    return padded, _side(tokens + more)
