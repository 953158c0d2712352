"""What the slow weights alone predict: rows read without any memory of their own."""

import jax
import jax.numpy as jnp

from hope_jax.learning.loss import read_loss
from hope_jax.models.lm import Carry, HopeModel
from hope_jax.types import Array, Batch, PyTree


def slow_loss(model: HopeModel, params: PyTree, batch: Batch) -> Array:
    """The summed cross-entropy [] of a batch [B, T]; under `reset_at_document` T is a multiple of N."""
    if not model.spec.reset_at_document:
        out = model.read(params, {}, None, batch.tokens, batch.segment_ids)
        return read_loss(model, params, out, batch.targets).total

    def body(carry: Carry, chunk: Batch) -> tuple[Carry, Array]:
        _, carry = model.restarted(params, {}, carry, chunk.segment_ids)
        out = model.read(params, {}, carry, chunk.tokens, chunk.segment_ids)
        assert out.carry is not None
        return out.carry, read_loss(model, params, out, chunk.targets).total

    # Chunk by chunk, as only a carry's convolution histories can be cut at the documents' ends.
    def cut(t: Array) -> Array:
        return jnp.moveaxis(t.reshape(t.shape[0], -1, model.spec.chunk_size), 1, 0)

    return jax.lax.scan(body, model.init_carry(*batch.tokens.shape), jax.tree.map(cut, batch))[1].sum()
