"""Oracle: one token after the other, in plain JAX that autodiff takes as it is."""

import jax
import jax.numpy as jnp


def token(h_d: jax.Array, head_vd: jax.Array, target: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss [] and entropy [] in nats, and d loss / d h [D] = (softmax - onehot) @ W, of one token.

    A negative target: neither loss nor cotangent.
    """
    logits = head_vd @ h_d
    shifted = logits - jax.lax.stop_gradient(logits.max())
    log_p = shifted - jnp.log(jnp.exp(shifted).sum())
    p = jnp.exp(log_p)
    entropy = -(p * log_p).sum()
    if target < 0:
        return jnp.zeros_like(entropy), entropy, jnp.zeros_like(h_d)
    return -log_p[target], entropy, p @ head_vd - head_vd[target]


def cross_entropy(
    hidden_btd: jax.Array, head_vd: jax.Array, targets: list[list[int]]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Summed loss [], losses [B, T], entropies [B, T] and cotangents [B, T, D] of `targets` [B][T]."""
    rows = [
        [token(h_d, head_vd, target) for h_d, target in zip(h_td, row, strict=True)]
        for h_td, row in zip(hidden_btd, targets, strict=True)
    ]
    loss, entropy, signal = (jnp.stack([jnp.stack([t[i] for t in row]) for row in rows]) for i in range(3))
    return loss.sum(), loss, entropy, signal
