"""The block variants: compositions of attention and memories. One sequence; `lm` adds depth and batch.

Every block has one interface: `(x, fast, cache, taps, context) -> BlockRead`. It names the memories that
teach signals write in `memories(spec)`, and those that write themselves while they read in
`stream_memories(spec)`.
"""

from typing import Any, NamedTuple

from flax import linen as nn

from hope_jax.memory.state import Memory, StreamMemory, WriteStats
from hope_jax.models import layers
from hope_jax.models.attention import Attention, Cache, ReadContext, cache_rows, init_cache
from hope_jax.models.memory_layers import CmsLayer, SelfModLayer, TitanLayer, make_cms, make_titan
from hope_jax.models.spec import ModelSpec
from hope_jax.types import Array, PyTree

ATTENTION = "attn"
"""Name of attention's part of what a block carries."""


def split_cache(cache: dict[str, PyTree]) -> tuple[dict[str, PyTree], PyTree]:
    """What blocks carry, by name, as the small part that every call overwrites, and attention's keys and
    values (() without attention). Leaves may have leading axes."""
    if ATTENTION not in cache:
        return cache, ()
    attention: Cache = cache[ATTENTION]
    return {**cache, ATTENTION: attention.conv}, (attention.key, attention.value)


def join_cache(local: dict[str, PyTree], buffers: PyTree) -> dict[str, PyTree]:
    """The inverse of `split_cache`."""
    if not buffers:
        return local
    key, value = buffers
    return {**local, ATTENTION: Cache(key, value, conv=local[ATTENTION])}


class BlockRead(NamedTuple):
    """What a block leaves of one call.

    x: [n, D]. cache: what it carries besides fast state, of attention only the rows of these tokens; None
    without one.
    trace: memory name -> what its write needs. written, stats: of memories that wrote while they read, by
    name (`stats`: then by level).
    """

    x: Array
    cache: dict[str, PyTree] | None
    trace: dict[str, PyTree]
    written: dict[str, PyTree]
    stats: dict[str, dict[str, WriteStats]]


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
    def init_cache(spec: ModelSpec, capacity: int, *, whole: bool = False) -> dict[str, PyTree]:
        """What one layer carries of one example besides fast state, before the first of `capacity` tokens.
        whole: of attention all keys and values, also those that leave the window."""
        return {ATTENTION: init_cache(spec, capacity if whole else cache_rows(spec, capacity))}

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
        """The attention sublayer, and the rows that these tokens add to its cache."""
        x_nd, rows = Attention(self.spec, name="attn")(
            x_nd, context, None if cache is None else cache[ATTENTION]
        )
        return x_nd, None if cache is None else {ATTENTION: rows}

    def through_cms(
        self, x_nd: Array, fast: dict[str, PyTree], taps: dict[str, Any]
    ) -> tuple[Array, dict[str, PyTree]]:
        """The CMS's output [n, D], and its trace by name; without levels x and no trace."""
        if not self.spec.cms_levels:
            return x_nd, {}
        cms = CmsLayer(self.spec, self.training, name="cms")
        y_nd, trace = cms(x_nd, fast.get("cms"), taps.get("cms", {}))
        return y_nd, {"cms": trace}

    def add_titan(self, x_nd: Array, fast: dict[str, PyTree], taps: dict[str, Any]) -> tuple[Array, Array]:
        """x [n, D] with the TITAN memory's output added, and the memory's trace. The modern style reads the
        norm of x, the reference x itself."""
        spec = self.spec
        key_nd = layers.norm(self, spec, x_nd, prefix="titan_") if spec.modern else x_nd
        titan = TitanLayer(spec, self.training, name="titan")
        m_nd, trace = titan(key_nd, fast.get("titan"), taps.get("titan", {}))
        return x_nd + m_nd, trace


def _cms(spec: ModelSpec, *, training: bool) -> dict[str, Memory]:
    """The CMS by name; without levels there is none."""
    return {"cms": make_cms(spec, training=training)} if spec.cms_levels else {}


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
        return _cms(spec, training=training)

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
        y_nd, trace = self.through_cms(x_nd, fast, taps)
        return BlockRead(y_nd, cache, trace, {}, {})


class TransformerPlusPlusBlock(Block):
    """Attention, then SwiGLU: the strong baseline, without memories."""

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
        return BlockRead(layers.SwiGlu(self.spec, name="mlp")(x_nd), cache, {}, {}, {})


class HopeSelfModBlock(Block):
    """Self-modifying Titans, then CMS (HOPE). Without attention; the reference style has no residual around
    the self-modifying part: x reaches its output only through q."""

    @staticmethod
    def memories(spec: ModelSpec, *, training: bool = False) -> dict[str, Memory]:
        """The CMS."""
        return _cms(spec, training=training)

    @staticmethod
    def stream_memories(spec: ModelSpec) -> dict[str, StreamMemory]:
        """Self-modifying Titans."""
        return {"self_mod": spec.self_mod}

    @staticmethod
    def init_cache(spec: ModelSpec, capacity: int, *, whole: bool = False) -> dict[str, PyTree]:
        """Convolution history and the streams of unfinished chunks; no attention, so no `capacity`."""
        del capacity, whole
        return {"self_mod": spec.self_mod.init_carry(spec.dtype)}

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
        spec = self.spec
        # Vectors of norm 1, as the keys are: with norm sqrt(D) the memories' own targets feed back and
        # the writes diverge within a few hundred tokens.
        unit = spec.dim**-0.5
        z_nd = layers.norm(self, spec, x_nd, prefix="self_mod_", start=unit) if spec.modern else x_nd
        carry = None if cache is None else cache["self_mod"]
        read = SelfModLayer(spec, name="self_mod")(z_nd, fast.get("self_mod"), carry, context)
        o_nd, written, carry, stats = read
        x_nd = x_nd + o_nd if spec.modern else o_nd
        y_nd, trace = self.through_cms(x_nd, fast, taps)
        cache = None if cache is None else {"self_mod": carry}
        wrote = written is not None
        return BlockRead(
            y_nd,
            cache,
            trace,
            {"self_mod": written} if wrote else {},
            {"self_mod": stats} if wrote else {},
        )


class HopeHybridBlock(Block):
    """Attention, then TITAN memory, then CMS (the published pilot's block)."""

    @staticmethod
    def memories(spec: ModelSpec, *, training: bool = False) -> dict[str, Memory]:
        """The TITAN memory and the CMS."""
        return {"titan": make_titan(spec, training=training), **_cms(spec, training=training)}

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
        x_nd, keys = self.add_titan(x_nd, fast, taps)
        y_nd, trace = self.through_cms(x_nd, fast, taps)
        return BlockRead(y_nd, cache, {"titan": keys, **trace}, {}, {})


class TitanBlock(Block):
    """Attention, then TITAN memory: the TITAN baseline. The reference style norms their sum."""

    @staticmethod
    def memories(spec: ModelSpec, *, training: bool = False) -> dict[str, Memory]:
        """The TITAN memory."""
        return {"titan": make_titan(spec, training=training)}

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
        y_nd, keys = self.add_titan(x_nd, fast, taps)
        y_nd = y_nd if self.spec.modern else layers.norm(self, self.spec, y_nd)
        return BlockRead(y_nd, cache, {"titan": keys}, {}, {})
