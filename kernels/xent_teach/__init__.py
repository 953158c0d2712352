"""Cross-entropy from hidden states, with its cotangents (the teach signal at the head) from the same pass."""

from hope_jax.kernels.xent_teach.chunked import BLOCK_LOGITS, CrossEntropy, cross_entropy, logits_of
