"""What the slow weights alone predict: rows read without any memory of their own."""

import jax
import jax.numpy as jnp

from hope_jax.learning.loss import token_loss
from hope_jax.models.lm import Carry, HopeModel
from hope_jax.types import Array, Batch, PyTree


def slow_loss(model: HopeModel, params: PyTree, batch: Batch) -> Array:
    """The summed cross-entropy [] of a batch [B, T]; under `reset_at_document` T is a multiple of N."""
    if not model.spec.reset_at_document:
        out = model.read(params, {}, None, batch.tokens, batch.segment_ids)
        return token_loss(out.logits, batch.targets).loss.sum()

    def body(carry: Carry, chunk: Batch) -> tuple[Carry, Array]:
        _, carry = model.restarted(params, {}, carry, chunk.segment_ids)
        out = model.read(params, {}, carry, chunk.tokens, chunk.segment_ids)
        assert out.carry is not None
        return out.carry, token_loss(out.logits, chunk.targets).loss.sum()

    # Chunk by chunk, as only a carry's convolution histories can be cut at the documents' ends.
    def cut(t: Array) -> Array:
        return jnp.moveaxis(t.reshape(t.shape[0], -1, model.spec.chunk_size), 1, 0)

    return jax.lax.scan(body, model.init_carry(*batch.tokens.shape), jax.tree.map(cut, batch))[1].sum()
