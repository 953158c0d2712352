"""The block variants: compositions of attention and memories. One sequence; `lm` adds depth and batch.

Every block has one interface: `(x, fast, cache, taps, context) -> x, cache, trace`, and names the
memories that its `trace` and `fast` belong to in `memories(spec)`.
"""

from typing import Any

from flax import linen as nn

from hope_jax.memory.cms import Cms
from hope_jax.memory.state import Memory
from hope_jax.models import layers
from hope_jax.models.attention import Attention, Cache, ReadContext
from hope_jax.models.spec import ModelSpec
from hope_jax.types import Array, PyTree

BlockOutput = tuple[Array, Cache | None, dict[str, PyTree]]


def make_cms(spec: ModelSpec, *, training: bool = False) -> Cms:
    """The CMS that a spec describes."""
    return Cms(
        levels=spec.cms_levels,
        chunk_size=spec.chunk_size,
        gate_rule=spec.gate,
        bounds=spec.bounds,
        own_output=spec.own_output,
        output_clip=spec.read_clip if training else None,
        flush_partial_at_end=spec.flush_partial_at_end,
    )


class CmsParams(nn.Module):
    """Owns the parameters of one CMS level, and hands them to the pure functions of `memory.cms`."""

    spec: ModelSpec

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """The level's parameters."""
        spec, dtype = self.spec, self.spec.param_dtype
        up, down = (spec.dim, spec.cms_hidden), (spec.cms_hidden, spec.dim)
        params = {
            "ln_scale": self.param("ln_scale", nn.initializers.ones, (spec.dim,), dtype),
            "ln_bias": self.param("ln_bias", nn.initializers.zeros, (spec.dim,), dtype),
            "w_up": self.param("w_up", layers.matrix_init(spec), up, dtype),
            "w_down": self.param("w_down", layers.matrix_init(spec, residual=True), down, dtype),
        }
        if not spec.modern:
            params["b_up"] = self.param("b_up", layers.bias_init(up[0]), up[1:], dtype)
            params["b_down"] = self.param("b_down", layers.bias_init(down[0]), down[1:], dtype)
        return params


class CmsChain(nn.Module):
    """The CMS as a layer: owns the levels' parameters."""

    spec: ModelSpec
    training: bool = False

    @nn.compact
    def __call__(self, x_nd: Array, fast: PyTree, taps: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """See `Cms.read`."""
        params = {level.name: CmsParams(self.spec, name=level.name)() for level in self.spec.cms_levels}
        return make_cms(self.spec, training=self.training).read(params, fast, x_nd, taps)


class Block(nn.Module):
    """What every variant keeps: its fields, its call, and the memories that it is made of."""

    spec: ModelSpec
    training: bool = False

    @staticmethod
    def memories(spec: ModelSpec, *, training: bool = False) -> dict[str, Memory]:
        """Its memories, under the names of their parameters; the baselines have none."""
        del spec, training
        return {}

    def __call__(
        self, x_nd: Array, fast: PyTree, cache: Cache | None, taps: dict[str, Any], context: ReadContext
    ) -> BlockOutput:
        """x [n, D] -> x [n, D], the cache with these tokens entered, and what each memory's write needs.

        fast: memory name -> fast state of this layer ({}: slow weights alone). taps: memory name -> tap
        name -> zeros [n, D] added at that output.
        """
        raise NotImplementedError


class TransformerBlock(Block):
    """Attention, then an MLP: the baseline, without memories."""

    @nn.compact
    def __call__(
        self, x_nd: Array, fast: PyTree, cache: Cache | None, taps: dict[str, Any], context: ReadContext
    ) -> BlockOutput:
        """See `Block`."""
        x_nd, cache = Attention(self.spec, name="attn")(x_nd, context, cache)
        return layers.Mlp(self.spec, name="mlp")(x_nd), cache, {}


class HopeAttentionBlock(Block):
    """Attention, then the CMS in the MLP's place (HOPE-attention)."""

    @staticmethod
    def memories(spec: ModelSpec, *, training: bool = False) -> dict[str, Memory]:
        """The CMS."""
        return {"cms": make_cms(spec, training=training)}

    @nn.compact
    def __call__(
        self, x_nd: Array, fast: PyTree, cache: Cache | None, taps: dict[str, Any], context: ReadContext
    ) -> BlockOutput:
        """See `Block`."""
        x_nd, cache = Attention(self.spec, name="attn")(x_nd, context, cache)
        cms = CmsChain(self.spec, self.training, name="cms")
        y_nd, trace = cms(x_nd, fast.get("cms"), taps.get("cms", {}))
        return y_nd, cache, {"cms": trace}
