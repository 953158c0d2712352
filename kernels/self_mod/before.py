"""The matrices of a group before each chunk of a block, for the derivatives of the chunk's products.

From the weights at the block's start W_0 and what the chunks write, W' = a W - l^T r, follows for chunk c

    W_c = a_0 .. a_{c-1} W_0 - sum over chunks j < c of a_{j+1} .. a_{c-1} l_j^T r_j,

a base that all chunks share, and factors that they share but for the weights of the sum. Matrices of fewer
rows than there are factors, and all of them with momentum, are written out chunk by chunk.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from hope_jax.kernels.self_mod.chunked import Factors, advance
from hope_jax.kernels.self_mod.products import Beside, Factored, Group, Key, Matrix, matrices_of

Before: TypeAlias = dict[Key, Any]
"""Of each matrix: what all chunks share (None: nothing), or what is a chunk's own."""


def before_each(start: Group, factors: Factors) -> tuple[Before, Before]:
    """What the chunks of a block share, and their own with a leading axis of chunks. factors: of the chunks,
    with that axis too."""
    if start.momentum is not None:
        _, groups = jax.lax.scan(lambda group, one: (advance(group, one), group), start, factors)
        return dict.fromkeys(matrices_of(start)), matrices_of(groups)
    scale, weight = _decays(factors.log_total)
    shared: Before = {}
    own: Before = {}
    for i, (w, left, right) in enumerate(
        zip(start.weights.matrices(), factors.left, factors.right, strict=True)
    ):
        # Nothing is read after the last write.
        left_ro, right_ri = (t[:-1].reshape(-1, t.shape[-1]) for t in (left, right))
        if len(w) < len(left_ro):
            each = jax.vmap(
                lambda s, by, w=w, left=left_ro, right=right_ri: Factored(w, left, right, s, by).dense()
            )
            shared["weights", i], own["weights", i] = None, each(scale, weight)
        else:
            beside = jnp.concatenate([w, left_ro.T.astype(w.dtype)], 1)
            shared["weights", i], own["weights", i] = (beside, right_ri), (scale, weight)
    return shared, own


def at_chunk(shared: Before, own: Before) -> dict[Key, Matrix]:
    """The matrices before one chunk, from what is its own."""
    return {key: own[key] if of is None else Beside(*of, *own[key]) for key, of in shared.items()}


def _decays(log_total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of W_0, [chunks], and of what the chunks but the last wrote, [chunks, chunks - 1]."""
    until = jnp.cumsum(log_total)
    before = jnp.concatenate([jnp.zeros_like(until[:1]), until[:-1]])
    earlier = jnp.tril(jnp.ones((len(until), len(until)), bool), -1)[:, :-1]
    between = jnp.where(earlier, jnp.exp(jnp.where(earlier, before[:, None] - until[:-1], 0)), 0)
    return jnp.exp(before), between
