"""Useful floating-point operations per token, for the share of a machine's peak."""

from hope_jax.models.spec import ModelSpec


def train_flops_per_token(spec: ModelSpec, context_tokens: int) -> float:
    """Of a train step: forward, backward, and the memory writes; recomputation is not counted.

    A product with an m x n matrix costs 2mn forward and 4mn backward. Attention reads half of
    `context_tokens` on average. A CMS write pulls the signal back through W_down and adds an outer
    product per matrix; reading the context's own deltas repeats the forward product and its input's
    gradient. A TITAN write reads the memory again and pulls back through it, and reads the SelfModifier.
    Self-modifying Titans, forward with writes, are 72 D^2 (36 products with
    a D x D matrix), and twice that backward.
    """
    dim = spec.dim
    attention = 4 * dim * dim + 2 * dim * min(context_tokens / 2, spec.sliding_window or context_tokens / 2)
    if spec.block_variant == "hope_selfmod":
        attention = 36 * dim * dim
    mlp, memory = 0.0, 0.0
    if spec.block_variant in ("transformer", "transformer_pp"):
        mlp = 2 * dim * spec.mlp_hidden
    if spec.block_variant in ("hope_attention", "hope_selfmod", "hope_hybrid"):
        level = 2 * dim * spec.cms_hidden
        mlp += level * len(spec.cms_levels)
        memory += len(spec.cms_levels) * (4 * level + 3 * level)
    if spec.block_variant in ("hope_hybrid", "titan"):
        hidden = spec.titan_hidden
        titan, modifier = 2 * dim * hidden, 4 * dim * hidden + hidden * hidden
        mlp += titan
        memory += 4 * titan + 5 * titan + (2 * modifier if spec.self_modifier else 0)
    head = dim * spec.vocab_size
    return 6 * (spec.num_layers * (attention + mlp) + head) + spec.num_layers * memory
