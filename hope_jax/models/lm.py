"""The language model: embedding, scanned blocks, tied head; reads and writes for a batch of contexts.

The modules are written for one sequence; `HopeModel` maps them over the batch, so that a fast state per
example is right by construction. Layouts: everything that belongs to a layer and an example (fast state,
cache, trace, taps, signals) has axes [L, B, ...], layers first, which is what the scan over layers
reads without a transpose.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax import trees
from hope_jax.kernels.xent_teach import logits_of
from hope_jax.memory.state import Memory, StreamMemory, WriteSignal, WriteStats
from hope_jax.models import documents, layers, tapping
from hope_jax.models.attention import ReadContext, enter
from hope_jax.models.blocks import ATTENTION, BlockRead, join_cache, split_cache
from hope_jax.models.registry import VARIANTS
from hope_jax.models.spec import EXAMPLES, ModelSpec
from hope_jax.types import Array, PyTree


class Carry(NamedTuple):
    """What crosses the chunks of a stream besides the fast state.

    position: int32 [] tokens read so far, the same for all examples of a call.
    segments: int32 [B, capacity] document of each token read, by position. cache: what the blocks carry, by
    name (`Block.init_cache`), leaves [L, B, ...].
    """

    position: Array
    segments: Array
    cache: dict[str, PyTree]


class ReadOutput(NamedTuple):
    """hidden [B, n, D] output of the final norm, which the head reads; block_out [L, B, n, D];
    trace: memory name -> what its write needs, leaves [L, B, n, ...]; carry: None without one.
    fast: as given, advanced by the memories that write while they read; stats: of those writes, by memory and
    level, leaves [L, B]."""

    hidden: Array
    block_out: Array
    trace: dict[str, PyTree]
    carry: Carry | None
    fast: dict[str, PyTree]
    stats: dict[str, dict[str, WriteStats]]


class Lm(nn.Module):
    """One sequence: tokens [n] -> what the head reads, [n, D]."""

    spec: ModelSpec
    training: bool = False

    @nn.compact
    def __call__(
        self,
        tokens_n: Array,
        fast: dict[str, PyTree],
        cache: dict[str, PyTree] | None,
        taps: dict[str, Any],
        context: ReadContext,
    ) -> tuple[Array, BlockRead]:
        """Output of the final norm, and what the blocks leave, stacked: leaves [L, ...]."""
        spec = self.spec
        embed = self.param("embed", layers.embed_init(spec), (spec.vocab_size, spec.dim), spec.param_dtype)
        x_nd = tapping.look_up(embed, tokens_n, spec.dtype)
        read_blocks = nn.scan(
            _read_block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, 0, nn.broadcast),
            out_axes=0,
            length=spec.num_layers,
        )
        block = VARIANTS[spec.block_variant](spec, self.training, name="blocks")
        pre_norm, blocks = read_blocks(block, x_nd, fast, cache, taps, context)
        return layers.FinalNorm(spec, name="final_norm")(pre_norm), blocks


def _read_block(
    block: nn.Module,
    x_nd: Array,
    fast: PyTree,
    cache: dict[str, PyTree] | None,
    taps: dict[str, Any],
    context: ReadContext,
) -> tuple[Array, BlockRead]:
    """The body of the scan over layers: one block, then the tap at its output."""
    read = block(x_nd, fast, cache, taps, context)
    if "block" in taps:
        read = read._replace(x=read.x + taps["block"].astype(read.x.dtype))
    return read.x, read


def check_capacity(carry: Carry, tokens: int) -> None:
    """Raises ValueError if `tokens` more do not fit into the carry, as far as its position is known."""
    capacity = carry.segments.shape[1]
    seen = 0 if isinstance(carry.position, jax.core.Tracer) else int(carry.position)
    if seen + tokens > capacity:
        raise ValueError(
            f"carry: want room for {seen + tokens} tokens, got {capacity}; make it with a larger capacity"
        )


@dataclass(frozen=True)
class HopeModel:
    """Reads and writes of one architecture over a batch; pure functions of parameters and states.

    Raises:
      ValueError: `reset_at_document` with one fast state for all examples.
    """

    spec: ModelSpec

    def __post_init__(self) -> None:
        if self.spec.reset_at_document and self.spec.scope == "batch":
            raise ValueError(
                "reset_at_document: want scope='example', got 'batch': the documents of different examples "
                "begin at different places"
            )

    @property
    def _fast_axis(self) -> int | None:
        return 1 if self.spec.scope == "example" else None

    def memories(self, *, training: bool = False) -> Mapping[str, Memory]:
        """The memories of a block that teach signals write, by name."""
        return VARIANTS[self.spec.block_variant].memories(self.spec, training=training)

    def stream_memories(self) -> Mapping[str, StreamMemory]:
        """The memories of a block that write while they read, by name."""
        return VARIANTS[self.spec.block_variant].stream_memories(self.spec)

    def level_names(self) -> dict[str, tuple[str, ...]]:
        """The levels whose writes are counted, by memory."""
        memories: dict[str, Memory | StreamMemory] = {**self.memories(), **self.stream_memories()}
        return {name: memory.level_names() for name, memory in memories.items()}

    def init_params(self, key: Array) -> PyTree:
        """Fresh meta parameters: {"embed", "blocks" (leaves [L, ...]), "final_norm"}."""
        context = ReadContext(jnp.zeros((), jnp.int32), jnp.ones((1,), jnp.int32), None)
        variables = Lm(self.spec).init(key, jnp.zeros((1,), jnp.int32), {}, None, {}, context)
        return variables["params"]

    def init_fast_state(self, params: PyTree, batch_size: int) -> dict[str, PyTree]:
        """Fast state of contexts that have written nothing: leaves [L, B, ...] ([L, ...] under scope
        "batch"), by memory name."""
        memories: dict[str, Memory | StreamMemory] = {**self.memories(), **self.stream_memories()}
        fast = {name: jax.vmap(memory.init)(params["blocks"][name]) for name, memory in memories.items()}
        if self.spec.scope == "batch":
            return fast
        return jax.tree.map(
            lambda t: jnp.broadcast_to(t[:, None], (t.shape[0], batch_size, *t.shape[1:])), fast
        )

    def init_carry(self, batch_size: int, capacity: int, *, whole: bool = False) -> Carry:
        """An empty carry for `capacity` tokens of each context. whole: attention keeps all of their keys and
        values, also those that leave a sliding window."""
        layer = VARIANTS[self.spec.block_variant].init_cache(self.spec, capacity, whole=whole)
        stacked = jax.tree.map(
            lambda t: jnp.zeros((self.spec.num_layers, batch_size, *t.shape), t.dtype), layer
        )
        segments = jnp.full((batch_size, capacity), documents.NO_SEGMENT, jnp.int32)
        return Carry(position=jnp.zeros((), jnp.int32), segments=segments, cache=stacked)

    def init_taps(self, batch_size: int, tokens: int) -> dict[str, Any]:
        """Zeros [L, B, n, D] at each block's output and at each output that a memory learns from."""
        shape = (self.spec.num_layers, batch_size, tokens, self.spec.dim)
        dtype = jnp.promote_types(self.spec.dtype, jnp.float32)
        taps: dict[str, Any] = {"block": jnp.zeros(shape, dtype)}
        for name, memory in self.memories().items():
            taps[name] = {tap: jnp.zeros(shape, dtype) for tap in memory.taps()}
        return taps

    def init_gradient_taps(
        self,
        params: PyTree,
        batch_size: int,
        tokens: int,
        *,
        memories_only: bool = False,
        head: bool = True,
    ) -> tapping.Taps:
        """Taps for a read of [batch_size, tokens] of the parameters whose gradient comes as factors.

        memories_only: of what reads use of memories that teach signals write. head: of the embedding there.
        """
        write_only = {name: memory.write_only for name, memory in self.memories().items()}
        others = set() if memories_only else set(params["blocks"]) - set(self.stream_memories())
        modules = {**dict.fromkeys(others, ()), **write_only}
        shape = (batch_size, tokens)
        embed, dtype = not memories_only, self.spec.dtype
        # A write comes after a whole chunk, whatever is read then.
        written = None if memories_only else self.spec.chunk_size
        return tapping.init_taps(params, modules, shape, dtype, written=written, embed=embed, head=head)

    def recorded(self, trace: dict[str, PyTree], factors: tapping.Taps) -> dict[str, PyTree]:
        """The trace of a read whose memories were tapped, for `write`."""
        return {
            name: memory.recorded(trace[name], factors.blocks[name])
            for name, memory in self.memories().items()
        }

    def read(
        self,
        params: PyTree,
        fast: dict[str, PyTree],
        carry: Carry | None,
        tokens: Array,
        segment_ids: Array,
        taps: dict[str, Any] | None = None,
        *,
        training: bool = False,
    ) -> ReadOutput:
        """Reads n tokens of each context with the memories as they stand.

        tokens, segment_ids: int32 [B, n]. carry None: a context that begins and ends with this call.
        `fast` may be {}: the memories' slow weights alone. Under `reset_at_document` a call with a carry is
        one online chunk, and `restarted` gives the states to read it with.

        Raises:
          ValueError: the tokens do not fit into the carry. Inside `jit` the position is not known, and
            only a call that is longer than the whole cache is found.
        """
        module = Lm(self.spec, training)
        clock = None
        if carry is None:
            carry_axes = None
            position, segments, cache = jnp.zeros((), jnp.int32), jnp.zeros((0,), jnp.int32), None
        else:
            check_capacity(carry, tokens.shape[1])
            position, cache = carry.position, carry.cache
            if self.spec.reset_at_document:
                clock = self.clock(carry, segment_ids)
            segments = jax.lax.dynamic_update_slice_in_dim(carry.segments, segment_ids, position, axis=1)
            carry_axes = 0

        def one(
            params: PyTree,
            tokens_n: Array,
            fast: PyTree,
            cache: Any,
            taps: Any,
            segments_n: Array,
            seen: Any,
            clock: Any,
        ) -> Any:
            context = ReadContext(position, segments_n, None if carry is None else seen, clock)
            return module.apply({"params": params}, tokens_n, fast, cache, taps, context)

        block_axes: dict[str, Any] = {**dict.fromkeys(BlockRead._fields, 1), "written": self._fast_axis}
        hidden, blocks = jax.vmap(
            one,
            in_axes=(tapping.example_axes(params), 0, self._fast_axis, 1, 1, 0, carry_axes, 0),
            out_axes=(0, BlockRead(**block_axes)),
            axis_name=EXAMPLES,
        )(params, tokens, fast, cache, taps or {}, segment_ids, segments, clock)
        if carry is not None:
            cache = blocks.cache
            if ATTENTION in cache:
                buffers = enter(self.spec, carry.cache[ATTENTION], cache[ATTENTION], position)
                cache = {**cache, ATTENTION: buffers}
            carry = Carry(position + tokens.shape[1], segments, cache)
        return ReadOutput(hidden, blocks.x, blocks.trace, carry, {**fast, **blocks.written}, blocks.stats)

    def head(self, params: PyTree) -> Array:
        """The matrix [V, D] that makes logits of what is read: the embedding."""
        return tapping.embedding(params)

    def logits(self, params: PyTree, hidden: Array) -> Array:
        """Logits [..., V], float32 at least, of `ReadOutput.hidden` [..., D]. A loss needs none of them
        (`learning.loss`)."""
        return logits_of(hidden, self.head(params))

    def clock(self, carry: Carry, segment_ids: Array) -> Array:
        """Where the next chunk, of documents `segment_ids` int32 [B, n], begins in its context: int32 [], or
        [B] under `reset_at_document`."""
        if not self.spec.reset_at_document:
            return carry.position
        return documents.clock(carry.segments, segment_ids, carry.position, self.spec.chunk_size)

    def restarted(
        self, params: PyTree, fast: dict[str, PyTree], carry: Carry, segment_ids: Array
    ) -> tuple[dict[str, PyTree], Carry]:
        """The states to read the next chunk with, of documents `segment_ids` int32 [B, n]: as given, but with
        a fresh context for the examples of which it begins another document, if the spec says so.

        What they have written is forgotten, and the convolutions' histories; keys and values of other
        documents are masked, and stay. A stream's first chunk is read with the memories that are given.
        """
        if not self.spec.reset_at_document:
            return fast, carry
        begins_b = (self.clock(carry, segment_ids) == 0) & (carry.position > 0)
        empty = self.init_fast_state(tapping.values(params), len(segment_ids))
        fast = {name: documents.select(begins_b, empty[name], state) for name, state in fast.items()}
        local, buffers = split_cache(carry.cache)
        local = documents.select(begins_b, trees.zeros_like(local), local)
        return fast, carry._replace(cache=join_cache(local, buffers))

    def write(
        self,
        params: PyTree,
        fast: dict[str, PyTree],
        trace: dict[str, PyTree],
        signal: WriteSignal,
        position: Array,
        *,
        last: bool = False,
        training: bool = False,
    ) -> tuple[dict[str, PyTree], dict[str, dict[str, WriteStats]]]:
        """Writes one chunk into every memory of every layer.

        params: the meta parameters that read the chunk. trace: of that read. signal: leaves [L, B, n, ...].
        position: int32 [] or [B] `clock` of the chunk's first token. last: the stream ends here.
        Returns the new fast state and, by memory and level, statistics with leaves [L, B].
        """
        memories = self.memories(training=training)
        if not memories:
            return fast, {}

        def layer(position: Array, _: None, xs: Any) -> tuple[None, Any]:
            layer_params, layer_fast, layer_trace, layer_signal = xs
            written = {
                name: jax.named_scope(f"{name}_write")(memory.write)(
                    layer_params[name],
                    layer_fast[name],
                    layer_trace[name],
                    layer_signal._replace(
                        own=layer_signal.own.get(name, {}), gain=layer_signal.gain.get(name, {})
                    ),
                    position=position,
                    reduce=self.spec.reduce,
                    last=last,
                )
                for name, memory in memories.items()
            }
            return None, ({k: w[0] for k, w in written.items()}, {k: w[1] for k, w in written.items()})

        own_params = {name: params["blocks"][name] for name in memories}

        def one(own_params: PyTree, fast: PyTree, trace: PyTree, signal: WriteSignal, position: Array) -> Any:
            over = (own_params, fast, trace, signal)
            return jax.lax.scan(partial(layer, position), None, over)[1]

        axis = self._fast_axis
        before = {name: fast[name] for name in memories}
        written, stats = jax.vmap(
            one,
            in_axes=(tapping.block_axes(own_params), axis, 1, 1, 0 if position.ndim else None),
            out_axes=(axis, 1),
            axis_name=EXAMPLES,
        )(own_params, before, trace, signal, position)
        return {**fast, **written}, stats

    def hold_for_write(self, params: PyTree, held: PyTree) -> PyTree:
        """The constant parameters `held` (`online.for_writes`) with those of `params` that act through writes
        alone (SPEC §4: writes are cut, yet SelfModifier and gates learn through them, to first order)."""
        blocks = dict(held["blocks"])
        for name, memory in self.memories().items():
            live = {key: params["blocks"][name][key] for key in memory.write_only if key in blocks[name]}
            blocks[name] = {**blocks[name], **live}
        return {**held, "blocks": blocks}

    def rebase(self, params: PyTree, fast: dict[str, PyTree]) -> dict[str, PyTree]:
        """The fast state cut off from what wrote it, with the meta parameters trainable through it: deltas
        are held (reads add them to the parameters), whole weights see `StreamMemory.rebase`."""
        held = trees.stop_gradient(fast)
        for name, memory in self.stream_memories().items():
            over_layers = jax.vmap(memory.rebase)
            if self.spec.scope == "example":
                over_layers = jax.vmap(over_layers, in_axes=(None, 1), out_axes=1)
            held = {**held, name: over_layers(params["blocks"][name], fast[name])}
        return held

    def move(self, old: PyTree, new: PyTree, fast: dict[str, PyTree]) -> dict[str, PyTree]:
        """The fast state after a step of the meta parameters, under scope "batch": what it has written is now
        added to `new`. Deltas stay as they are; memories held as whole weights see `StreamMemory.move`."""
        moved = {
            name: jax.vmap(memory.move)(old["blocks"][name], new["blocks"][name], fast[name])
            for name, memory in self.stream_memories().items()
        }
        return {**fast, **moved}
