"""Production form: all matrices of a model in stacks, in bfloat16 on accelerators, each device its share."""

from collections.abc import Hashable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from hope_jax.core import trees

Coefficients: TypeAlias = tuple[float, float, float]
"""a, b, c of a step X <- a X + b (X X^T) X + c (X X^T)^2 X."""

CUBIC: Coefficients = (1.5, -0.5, 0.0)
"""Newton's: converges to the nearest semi-orthogonal matrix from singular values below sqrt(3)."""

QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
"""Muon's: five steps bring singular values from 1e-2 up to between 0.7 and 1.2, and none converges."""

Spread: TypeAlias = tuple[NamedSharding, NamedSharding]
"""Where a stack of wide matrices [M, rows, columns] lies: while it is iterated, split along M; and before and
afterwards."""


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


def iterate_all(matrices: Any, coefficients: Coefficients, steps: int, spread: Spread | None = None) -> Any:
    """`iterate` of all leaves [..., rows, columns], float32 or float64, of Frobenius norms up to 1.

    What is compiled for an accelerator iterates float32 in bfloat16, as Muon's own code does. spread: over
    devices; matrices of one shape, or its transpose, are iterated as one stack, of which each device takes
    the same number, so none repeats another's work. None: one device.
    """
    leaves, structure = jax.tree.flatten(matrices)
    wide = [jnp.swapaxes(x, -2, -1) if x.shape[-2] > x.shape[-1] else x for x in leaves]
    stacks: dict[Hashable, list[int]] = {}
    for i, x in enumerate(wide):
        stacks.setdefault((x.shape[-2:], x.dtype) if spread else i, []).append(i)
    for members in stacks.values():
        stack = jnp.concatenate([wide[i].reshape(-1, *wide[i].shape[-2:]) for i in members])
        done, begin = _iterate_stack(stack, coefficients, steps, spread), 0
        for i in members:
            end = begin + wide[i].size // stack[0].size
            wide[i], begin = done[begin:end].reshape(wide[i].shape), end
    back = [y if y.shape == x.shape else jnp.swapaxes(y, -2, -1) for x, y in zip(leaves, wide, strict=True)]
    return jax.tree.unflatten(structure, back)


def _iterate_stack(
    stack: jax.Array, coefficients: Coefficients, steps: int, spread: Spread | None
) -> jax.Array:
    """The stack [M, rows, columns] after the iteration. Devices meet in the type that is iterated."""

    def in_type(stack: jax.Array, dtype: jnp.dtype) -> jax.Array:
        x = stack.astype(dtype)
        if spread is None:
            return iterate(x, coefficients, steps).astype(stack.dtype)
        shares, rest = spread
        # Zeros, which stay zeros, fill the last devices' shares.
        x = jnp.pad(x, ((0, -len(x) % shares.mesh.size), (0, 0), (0, 0)))
        # Named before and after, or the compiler would split along M what the stack is made from, too.
        put = jax.lax.with_sharding_constraint
        x = iterate(put(put(x, rest), shares), coefficients, steps)
        return put(x, rest)[: len(stack)].astype(stack.dtype)

    own = partial(in_type, dtype=stack.dtype)
    if stack.dtype != jnp.float32:
        return own(stack)
    short = partial(in_type, dtype=jnp.dtype("bfloat16"))
    return jax.lax.platform_dependent(stack, cpu=own, default=short)
