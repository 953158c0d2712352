"""Documents of a packed row as contexts of their own (`ModelSpec.reset_at_document`): where each begins.

A document begins only where an online chunk does; the rest of the last chunk of the one before it is padding.
"""

import jax
import jax.numpy as jnp

from hope_jax.core.types import Array, PyTree

NO_SEGMENT = -1
"""Document number of a position that has not been read."""


def clock(segments: Array, segment_ids: Array, position: Array, chunk_size: int) -> Array:
    """int32 [B]: tokens of its document that each example has read before the online chunk at `position`.

    segments: int32 [B, capacity] document of each token, right before `position`. segment_ids: int32 [B, n]
    of the chunk. position: int32 [] a multiple of `chunk_size`. A chunk belongs to the document of its first
    token; neighbouring chunks of one number are one document.
    """
    number_bc = jax.lax.dynamic_update_slice_in_dim(
        segments[:, ::chunk_size], segment_ids[:, :1], position // chunk_size, axis=1
    )
    chunk_at = jnp.arange(number_bc.shape[1], dtype=jnp.int32)
    begins = (number_bc != jnp.roll(number_bc, 1, axis=1)) & (chunk_at <= position // chunk_size)
    return position - chunk_size * jnp.where(begins, chunk_at, 0).max(1)


def select(examples_b: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` for the examples where `examples_b` (bool [B]) is True, else `old`; leaves [B, ...]."""

    def leaf(n: Array, o: Array) -> Array:
        return jnp.where(examples_b.reshape(-1, *(1,) * (o.ndim - 1)), n, o)

    return jax.tree.map(leaf, new, old)
