"""Small pytree helpers that every floor may use."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hope_jax.core.types import Array, PyTree


def stop_gradient(tree: PyTree) -> PyTree:
    """`jax.lax.stop_gradient` on every leaf (integer leaves pass through)."""
    return jax.tree.map(jax.lax.stop_gradient, tree)


def select(keep: Array, new: PyTree, old: PyTree) -> PyTree:
    """Leaf-wise `where(keep, new, old)` for a scalar predicate."""
    return jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, old)


def add(a: PyTree, b: PyTree) -> PyTree:
    """Leaf-wise a + b."""
    return jax.tree.map(jnp.add, a, b)


def zeros_like(tree: PyTree) -> PyTree:
    """A tree of zeros of the same shapes and dtypes."""
    return jax.tree.map(jnp.zeros_like, tree)


def safe_norm(x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
    """Euclidean norm with slope zero at zero, where the root's own is infinite."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims)
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)


def cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    """Floating leaves converted to `dtype`; the others unchanged."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def stack(layers: Sequence[PyTree]) -> PyTree:
    """Trees of one structure as one, leaves [L, ...]."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def unstack(tree: PyTree, layers: int) -> tuple[PyTree, ...]:
    """The inverse of `stack`; a tuple is one already, and stays."""
    if isinstance(tree, tuple):
        return tree
    return tuple(jax.tree.map(lambda leaf: leaf[i], tree) for i in range(layers))  # noqa: B023
