"""The matrices of a group within a few chunks, after which all that was written meanwhile is added to them.

A write of few rows takes as long as a pass over the whole matrix. So a chunk is read with the matrices at
the block's start, and what the chunks before it wrote stays beside them as factors (`products.Factored`):

    W_c = a_0 .. a_{c-1} W_0 - sum over chunks j < c of a_{j+1} .. a_{c-1} l_j^T r_j.

Matrices of fewer rows than there are factors are written by every chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from hope_jax.kernels.self_mod.chunked import Factors
from hope_jax.kernels.self_mod.group import of_matrices
from hope_jax.kernels.self_mod.products import Factored, Group, Key, Matrix, outer


class Pending(NamedTuple):
    """What a block has written so far. Without momentum.

    at: [], chunks. scale: [], what their decays left of the first matrices. weight: [chunks], the same of
    what each chunk wrote, 0 for those to come. left, right: of each of `Stacked.matrices`, [chunks n, O] and
    [chunks n, I], zeros for chunks to come; None for a matrix that every chunk writes. narrow: those, as
    they stand; None for the others.
    """

    at: jax.Array
    scale: jax.Array
    weight: jax.Array
    left: tuple[jax.Array | None, ...]
    right: tuple[jax.Array | None, ...]
    narrow: tuple[jax.Array | None, ...]


def nothing(group: Group, like: Factors, chunks: int) -> Pending:
    """At the start of a block. like: the shapes of a chunk's factors."""
    wide = [chunks * len(left) <= len(w) for w, left in zip(group.weights.matrices(), like.left, strict=True)]

    def zeros(parts: tuple[jax.Array, ...]) -> tuple[jax.Array | None, ...]:
        return tuple(
            jnp.zeros((chunks * len(part), part.shape[1]), part.dtype) if is_wide else None
            for part, is_wide in zip(parts, wide, strict=True)
        )

    narrow = tuple(None if is_wide else w for w, is_wide in zip(group.weights.matrices(), wide, strict=True))
    dtype = like.log_total.dtype
    return Pending(
        jnp.zeros((), int),
        jnp.ones((), dtype),
        jnp.zeros(chunks, dtype),
        zeros(like.left),
        zeros(like.right),
        narrow,
    )


def matrices_now(group: Group, pending: Pending) -> dict[Key, Matrix]:
    """Before the next chunk. group: at the block's start."""
    found: dict[Key, Matrix] = {}
    for i, w in enumerate(group.weights.matrices()):
        narrow, left, right = pending.narrow[i], pending.left[i], pending.right[i]
        if narrow is not None:
            found["weights", i] = narrow
        elif left is not None and right is not None:
            found["weights", i] = Factored(w, left, right, pending.scale, pending.weight)
    return found


def entered(pending: Pending, factors: Factors) -> Pending:
    """After one more chunk."""
    decay, at = jnp.exp(factors.log_total), pending.at
    factors = jax.lax.optimization_barrier(factors)

    def put(kept: jax.Array | None, new: jax.Array) -> jax.Array | None:
        if kept is None:
            return None
        return jax.lax.dynamic_update_slice_in_dim(kept, new.astype(kept.dtype), at * len(new), 0)

    return Pending(
        at + 1,
        decay * pending.scale,
        (decay * pending.weight).at[at].set(1),
        tuple(put(*pair) for pair in zip(pending.left, factors.left, strict=True)),
        tuple(put(*pair) for pair in zip(pending.right, factors.right, strict=True)),
        tuple(
            None if w is None else decay.astype(w.dtype) * w - outer(left, right, w.dtype)
            for w, left, right in zip(pending.narrow, factors.left, factors.right, strict=True)
        ),
    )


def written(group: Group, pending: Pending) -> Group:
    """The group after the block."""
    matrices = [
        matrix.dense() if isinstance(matrix, Factored) else matrix
        for matrix in matrices_now(group, pending).values()
    ]
    return Group(of_matrices(tuple(matrices)), None)
