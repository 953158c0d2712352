"""Block variants by the name that a configuration uses."""

from hope_jax.models.blocks import (
    Block,
    HopeAttentionBlock,
    HopeHybridBlock,
    HopeSelfModBlock,
    TitanBlock,
    TransformerBlock,
    TransformerPlusPlusBlock,
)

VARIANTS: dict[str, type[Block]] = {
    "transformer": TransformerBlock,
    "transformer_pp": TransformerPlusPlusBlock,
    "hope_attention": HopeAttentionBlock,
    "hope_selfmod": HopeSelfModBlock,
    "hope_hybrid": HopeHybridBlock,
    "titan": TitanBlock,
}
