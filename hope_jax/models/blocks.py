"""The block variants: compositions of attention and memories. One sequence; `lm` adds depth and batch.

Every block has one interface: `(x, fast, cache, taps, context) -> BlockRead`. It names the memories that
teach signals write in `memories(spec)`, and those that write themselves while they read in
`stream_memories(spec)`.
"""

from typing import Any, NamedTuple

from flax import linen as nn

from hope_jax.memory.cms import Cms
from hope_jax.memory.state import Memory, StreamMemory, WriteStats
from hope_jax.models import layers
from hope_jax.models.attention import Attention, ReadContext, init_cache
from hope_jax.models.spec import ModelSpec
from hope_jax.types import Array, PyTree


class BlockRead(NamedTuple):
    """What a block leaves of one call.

    x: [n, D]. cache: what it carries besides fast state, with these tokens entered; None without one.
    trace: memory name -> what its write needs. written, stats: of memories that wrote while they read, by
    name (`stats`: then by level).
    """

    x: Array
    cache: dict[str, PyTree] | None
    trace: dict[str, PyTree]
    written: dict[str, PyTree]
    stats: dict[str, dict[str, WriteStats]]


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
        """Its memories that teach signals write, under the names of their parameters."""
        del spec, training
        return {}

    @staticmethod
    def stream_memories(spec: ModelSpec) -> dict[str, StreamMemory]:
        """Its memories that write while they read, under the names of their parameters."""
        del spec
        return {}

    @staticmethod
    def init_cache(spec: ModelSpec, capacity: int) -> dict[str, PyTree]:
        """What one layer carries of one example besides fast state, before the first of `capacity` tokens."""
        return {"attn": init_cache(spec, capacity)}

    def __call__(
        self,
        x_nd: Array,
        fast: dict[str, PyTree],
        cache: dict[str, PyTree] | None,
        taps: dict[str, Any],
        context: ReadContext,
    ) -> BlockRead:
        """Reads n tokens [n, D].

        fast: memory name -> fast state of this layer ({}: slow weights alone). taps: memory name -> tap
        name -> zeros [n, D] added at that output.
        """
        raise NotImplementedError

    def attend(
        self, x_nd: Array, context: ReadContext, cache: dict[str, PyTree] | None
    ) -> tuple[Array, dict[str, PyTree] | None]:
        """The attention sublayer, and the cache with these tokens entered."""
        x_nd, entered = Attention(self.spec, name="attn")(
            x_nd, context, None if cache is None else cache["attn"]
        )
        return x_nd, None if cache is None else {"attn": entered}


class TransformerBlock(Block):
    """Attention, then an MLP: the baseline, without memories."""

    @nn.compact
    def __call__(
        self,
        x_nd: Array,
        fast: dict[str, PyTree],
        cache: dict[str, PyTree] | None,
        taps: dict[str, Any],
        context: ReadContext,
    ) -> BlockRead:
        """See `Block`."""
        x_nd, cache = self.attend(x_nd, context, cache)
        return BlockRead(layers.Mlp(self.spec, name="mlp")(x_nd), cache, {}, {}, {})


class HopeAttentionBlock(Block):
    """Attention, then the CMS in the MLP's place (HOPE-attention)."""

    @staticmethod
    def memories(spec: ModelSpec, *, training: bool = False) -> dict[str, Memory]:
        """The CMS."""
        return {"cms": make_cms(spec, training=training)}

    @nn.compact
    def __call__(
        self,
        x_nd: Array,
        fast: dict[str, PyTree],
        cache: dict[str, PyTree] | None,
        taps: dict[str, Any],
        context: ReadContext,
    ) -> BlockRead:
        """See `Block`."""
        x_nd, cache = self.attend(x_nd, context, cache)
        cms = CmsChain(self.spec, self.training, name="cms")
        y_nd, trace = cms(x_nd, fast.get("cms"), taps.get("cms", {}))
        return BlockRead(y_nd, cache, {"cms": trace}, {}, {})
