"""Cross-entropy of what a model has read."""

import jax

from hope_jax.kernels.xent_teach import CrossEntropy, cross_entropy
from hope_jax.models.lm import EMBED, HopeModel, ReadOutput
from hope_jax.types import Array, PyTree


@jax.named_scope("head")
def read_loss(model: HopeModel, params: PyTree, out: ReadOutput, targets: Array) -> CrossEntropy:
    """Of each position's target, int [B, n]; its `total` is what is differentiated. No logits are kept."""
    del model
    return cross_entropy(out.hidden, params[EMBED], targets)
