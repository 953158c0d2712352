"""Replays the teach signal at the head (`teach_*`)."""

import jax.numpy as jnp

from hope_jax.learning.teach import head_signal
from hope_jax.types import NO_TARGET
from parity_tests.golden_file import Golden
from parity_tests.targets import next_targets


def replay(g: Golden) -> None:
    """Ours is of the summed loss; the published one is of the mean over all supervised positions."""
    targets = jnp.asarray(next_targets(g))
    signal = head_signal(jnp.asarray(g.inputs["logits"]), targets, jnp.asarray(g.weights["lm_head.weight"]))
    supervised = int((targets != NO_TARGET).sum())
    g.compare("n_active", supervised)
    g.compare("teach_signal", signal / max(supervised, 1))
