"""Block variants by the name that a configuration uses."""

from hope_jax.models.blocks import Block, HopeAttentionBlock, TransformerBlock

VARIANTS: dict[str, type[Block]] = {"transformer": TransformerBlock, "hope_attention": HopeAttentionBlock}
