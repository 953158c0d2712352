"""Cross-entropy per token, and the entropy of the prediction."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.types import NO_TARGET, Array


class TokenLoss(NamedTuple):
    """Per token, over any leading axes.

    loss: cross-entropy in nats, 0 where there is no target. supervised: bool, has a target.
    """

    loss: Array
    supervised: Array


def token_loss(logits: Array, targets: Array) -> TokenLoss:
    """Cross-entropy of each position's target in at least float32; logits [..., V], targets int [...]."""
    supervised = targets != NO_TARGET
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = jnp.take_along_axis(wide, jnp.where(supervised, targets, 0)[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(wide, axis=-1) - chosen
    return TokenLoss(loss=jnp.where(supervised, loss, 0), supervised=supervised)


def prediction_entropy(logits: Array) -> Array:
    """Entropy in nats of softmax(logits) over the last axis."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
    return -(jnp.exp(log_p) * log_p).sum(-1)
