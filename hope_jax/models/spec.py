"""The architecture as plain values: what the models floor knows of a configuration."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.memory.cms import Bounds
from hope_jax.memory.gate import GateRule
from hope_jax.memory.initial import Initial
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.self_mod import SelfMod
from hope_jax.memory.state import Reduce, own

EXAMPLES = "examples"
"""Name of the mapped batch axis: the examples that share a fast state under scope="batch"."""


class ModelSpec(NamedTuple):
    """Everything that shapes parameters, reads and writes; hashable.

    style: `modern` (pre-norm, RoPE, qk-norm, no biases) or `reference` (the published post-norm one).
    activation: of the transformer's MLP, the CMS levels and the TITAN memory, a name of
    `mlp_memory.ACTIVATIONS`. cms_norm: False: CMS levels have no LayerNorm.
    qk_norm: none | l2 | rms. sliding_window, local_conv_window: tokens; 0: off.
    cms_levels: in chain order; none: the CMS is the identity. chunk_size: tokens of an online chunk (N).
    cms_connection: sequential | independent | nested.
    own_output: CMS levels and the TITAN memory learn from their own output's cotangent, not the block's.
    scope: whose memory a fast state is: `example` or `batch`.
    across: mapped axes of devices, beside that of the batch, whose examples share a fast state under
    scope="batch".
    reset_at_document: each document of a packed row is a context of its own (`models.documents`).
    read_clip: bound on each CMS level's residual branch while training;
    None: off.
    titan_level: of the TITAN memory, in the variants that have one. titan_hidden: width of its MLP and of the
    SelfModifier's. self_modifier: False: its writes are steps along the teach signal alone. correction_clip:
    see `Titan`.
    self_mod: self-modifying Titans, of the variants that have them.
    dtype: of activations and matmuls. param_dtype: of parameters and fast state.
    """

    block_variant: str
    style: str
    vocab_size: int
    dim: int
    num_layers: int
    heads: int
    mlp_hidden: int
    cms_hidden: int
    cms_levels: tuple[LevelSpec, ...]
    chunk_size: int
    activation: str = "gelu"
    qk_norm: str = "rms"
    rope_theta: float = 10000.0
    sliding_window: int = 0
    local_conv_window: int = 0
    cms_connection: str = "sequential"
    cms_norm: bool = True
    own_output: bool = True
    gate: GateRule = GateRule()
    bounds: Bounds = Bounds()
    flush_partial_at_end: bool = False
    titan_level: LevelSpec = LevelSpec("titan", 8, 0.0)
    titan_hidden: int = 0
    self_modifier: bool = True
    correction_clip: float = 0.0
    self_mod: SelfMod = SelfMod(dim=0, online_chunk=1)
    scope: str = "example"
    across: tuple[str, ...] = ()
    reset_at_document: bool = False
    read_clip: float | None = None
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @property
    def modern(self) -> bool:
        """True for the `modern` style."""
        return self.style == "modern"

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
        return 0 if self.scope == "example" else None

    @property
    def reduce(self) -> Reduce:
        """How writes are summed over the examples that share a fast state."""
        return own if self.scope == "example" else partial(jax.lax.psum, axis_name=(EXAMPLES, *self.across))
