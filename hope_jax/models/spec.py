"""The architecture as plain values: what the models floor knows of a configuration."""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax.numpy as jnp

from hope_jax.core.ranges import Count, Positive, Range, Whole
from hope_jax.memory.cms import CmsOptions
from hope_jax.memory.initial import Initial
from hope_jax.memory.levels import MemoryOptions
from hope_jax.memory.self_mod import SelfMod, SelfModifyingTitans
from hope_jax.memory.state import Reduce, own
from hope_jax.memory.titan import TitanOptions

BlockVariant = Literal[
    "transformer",
    "transformer_pp",
    "hope_attention",
    "hope_selfmod",
    "hope_hybrid",
    "titan",
    "gated_deltanet",
]
"""Keys of `models.blocks.BLOCKS`."""

READ_CLIP = 1.0
"""The reference style bounds each memory's residual branch by this norm while training."""

EXAMPLES = "examples"
"""Name of the mapped batch axis: the examples that share a fast state under scope="batch"."""


@dataclass(frozen=True)
class Architecture:
    """What the model is made of; its memories have groups of their own."""

    block_variant: BlockVariant = "hope_attention"  # what a block is made of
    style: Literal["modern", "reference"] = "modern"  # pre-norm, RoPE, qk-norm | the published post-norm
    vocab_size: Annotated[int, Range(2)] = 32000  # embedding rows; at least the tokenizer's ids
    dim: Count = 512  # width of the residual stream
    num_layers: Count = 12  # blocks
    heads: Count = 8  # attention heads; dim / heads is even
    mlp_multiplier: Count = 4  # hidden width of the transformer's MLP over dim
    activation: Literal["gelu", "relu", "silu"] = "gelu"  # of MLP, CMS and TITAN; SwiGLU has silu
    qk_norm: Literal["style", "none", "l2", "rms"] = "style"  # style: rms if modern, none if reference
    rope_theta: Positive = 10000.0  # RoPE's base (modern style)
    sliding_window: Whole = 0  # tokens that attention sees; 0: all
    local_conv_window: Whole = 0  # causal depthwise convolution before attention, within documents; 0: off


@dataclass(frozen=True)
class ModelSpec(Architecture):
    """Everything that shapes parameters, reads and writes; hashable.

    chunk_size: tokens of an online chunk (N). per_layer: False: all layers are taught by the head's signal.
    across: mapped axes of devices, beside that of the batch, whose examples share a fast state under
    scope="batch". remat: a backward pass reads each layer again, instead of keeping what the read left there.
    twice: reads are differentiated twice, which not every form of attention can be. dtype: of activations and
    matmuls; parameters and fast state have at least float32.
    """

    chunk_size: int = 16
    cms: CmsOptions = CmsOptions()
    titan: TitanOptions = TitanOptions()
    self_modifying_titans: SelfModifyingTitans = SelfModifyingTitans()
    memory: MemoryOptions = MemoryOptions()
    per_layer: bool = True
    across: tuple[str, ...] = ()
    remat: bool = False
    twice: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @property
    def modern(self) -> bool:
        """True for the `modern` style."""
        return self.style == "modern"

    @property
    def param_dtype(self) -> jnp.dtype:
        """The dtype of parameters and fast state."""
        return jnp.promote_types(self.dtype, jnp.float32)

    @property
    def own_output(self) -> bool:
        """CMS levels and the TITAN memory learn from their own output's cotangent, not the block's (nor the
        head's, which is one for all outputs)."""
        return self.cms.delta_at == "own_output" and self.per_layer

    @property
    def head_norm(self) -> str:
        """The norm of queries and keys: none, l2 or rms."""
        return {"style": "rms" if self.modern else "none"}.get(self.qk_norm, self.qk_norm)

    @property
    def self_mod(self) -> SelfMod:
        """Self-modifying Titans, of the variants that have them."""
        own = self.self_modifying_titans
        near_one = own.alpha_init == "near_one" or (own.alpha_init == "style" and self.modern)
        return SelfMod(**vars(own), dim=self.dim, online_chunk=self.chunk_size, alpha_near_one=near_one)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.dim // self.heads

    @property
    def initial(self) -> Initial:
        """How parameters begin."""
        return Initial(self.modern, self.num_layers, self.param_dtype)

    @property
    def fast_axis(self) -> int | None:
        """The axis of the examples in a layer's fast states; None: they share one."""
        return 0 if self.memory.scope == "example" else None

    @property
    def reduce(self) -> Reduce:
        """How writes are summed over the examples that share a fast state."""
        return own if self.memory.scope == "example" else Reduce((EXAMPLES, *self.across))
