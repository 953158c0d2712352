"""Block variants by the name that a configuration uses."""

from hope_jax.models.blocks import HopeAttentionBlock, TransformerBlock

VARIANTS = {"transformer": TransformerBlock, "hope_attention": HopeAttentionBlock}
