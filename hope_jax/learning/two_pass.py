"""Mode `two_pass`: read the whole sequence, take the outer gradient and the teach signal, write afterwards.

The sequence is one chunk (N = T). The caller steps the meta parameters between the two passes; the write
uses those that read, and its deltas are then read with the stepped ones.
"""

from typing import Any

import jax

from hope_jax import trees
from hope_jax.learning.loss import token_loss
from hope_jax.learning.online import OnlineRule, PendingWrite, Sums, make_signal
from hope_jax.models.lm import HopeModel
from hope_jax.types import Array, Batch, PyTree


def read_pass(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    fast: PyTree,
    batch: Batch,
    schedule: Array,
    position: Array,
) -> tuple[PyTree, PendingWrite, Sums]:
    """The outer gradient of the sum of cross-entropies, the write to come, and the sums.

    batch: [B, T]. position: int32 [] tokens that the memories' context has seen before this sequence.
    """

    def loss(params: PyTree, taps: Any) -> tuple[Array, Any]:
        out = model.read(params, fast, None, batch.tokens, batch.segment_ids, taps, training=rule.training)
        losses = token_loss(out.logits, batch.targets)
        return losses.loss.sum(), (out, losses)

    taps = model.init_taps(*batch.tokens.shape)
    (gradient, raw), (out, losses) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, taps)
    signal = make_signal(model, rule.teach, params, batch, out, raw, schedule)
    dtype = losses.loss.dtype
    sums = Sums(
        loss=losses.loss.sum(),
        tokens=losses.supervised.sum().astype(dtype),
        teach_norm=trees.safe_norm(signal.block, axis=-1).sum().astype(dtype),
        teach_tokens=signal.active_n.sum().astype(dtype),
    )
    return gradient, PendingWrite(out.trace, signal, position), sums
