"""Replays the teach signal at the head (`teach_*`)."""

import jax
import jax.numpy as jnp
from hope_jax.kernels.xent_teach import cross_entropy

from hope_jax.core.types import NO_TARGET
from parity_tests.golden_file import Golden
from parity_tests.targets import next_targets


def head_signal(logits: jax.Array, targets: jax.Array, head_vd: jax.Array) -> jax.Array:
    """d(sum of cross-entropies)/d(input of the head), of recorded logits [B, T, V]: under a head that is the
    identity, the cotangent of the logits."""
    identity = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    return jax.grad(lambda t: cross_entropy(t, identity, targets).total)(logits) @ head_vd


def replay(g: Golden) -> None:
    """Ours is of the summed loss; the published one is of the mean over all supervised positions."""
    targets = jnp.asarray(next_targets(g))
    signal = head_signal(jnp.asarray(g.inputs["logits"]), targets, jnp.asarray(g.weights["lm_head.weight"]))
    supervised = int((targets != NO_TARGET).sum())
    g.compare("n_active", supervised)
    g.compare("teach_signal", signal / max(supervised, 1))
