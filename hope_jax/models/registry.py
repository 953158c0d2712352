"""Block variants by the name that a configuration uses."""

from hope_jax.models.blocks import (
    Block,
    HopeAttentionBlock,
    HopeSelfModBlock,
    TransformerBlock,
    TransformerPlusPlusBlock,
)

VARIANTS: dict[str, type[Block]] = {
    "transformer": TransformerBlock,
    "transformer_pp": TransformerPlusPlusBlock,
    "hope_attention": HopeAttentionBlock,
    "hope_selfmod": HopeSelfModBlock,
}
