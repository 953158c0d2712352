"""The language model: embedding, blocks one after the other, tied head; reads and writes for a batch of
contexts.

Parameters are stacked, leaves [L, ...] below "blocks", as optimizers and files want them. Everything else
that belongs to a layer (fast state, cache, taps, trace, signal) is a tuple over layers, leaves [B, ...]: one
array a layer and matrix, which a chunk of a stream updates in place. A fast state that the batch shares
(scope "batch") has no axis B. Functions that run over many chunks take the layers out of the stack once
(`HopeModel.unstacked`); all methods take either form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.xent_teach import logits_of
from hope_jax.memory.initial import Params
from hope_jax.memory.norms import norm
from hope_jax.memory.period_write import settled
from hope_jax.memory.state import Memory, StreamMemory, Taps, WriteSignal, WriteStats
from hope_jax.models import blocks, documents, layers
from hope_jax.models.attention import ReadContext
from hope_jax.models.blocks import Call
from hope_jax.models.spec import EXAMPLES, ModelSpec

EMBED, FINAL_NORM = "embed", "final_norm"

Fast = tuple[dict[str, PyTree], ...]
"""Fast states: of each layer, by memory name; leaves [B, ...], or without B under scope "batch"."""


class Carry(NamedTuple):
    """What crosses the chunks of a stream besides the fast state.

    position: int32 [] tokens read so far, the same for all examples of a call.
    segments: int32 [B, capacity] document of each token read, by position. cache: of each layer, what its
    block carries by name, leaves [B, ...].
    """

    position: Array
    segments: Array
    cache: tuple[dict[str, PyTree], ...]


class ReadOutput(NamedTuple):
    """hidden: [B, n, D] output of the final norm, which the head reads. block_out: of each layer, [B, n, D].
    trace: of each layer, memory name -> what its write needs. carry: None without one. fast: as given,
    advanced by the memories that write while they read; stats: of those writes, by memory and level, leaves
    [L, B]."""

    hidden: Array
    block_out: tuple[Array, ...]
    trace: tuple[dict[str, PyTree], ...]
    carry: Carry | None
    fast: Fast
    stats: dict[str, dict[str, WriteStats]]


@dataclass(frozen=True)
class HopeModel:
    """Reads and writes of one architecture over a batch; pure functions of parameters and states.

    Raises:
      ValueError: `reset_at_document` with one fast state for all examples.
    """

    spec: ModelSpec

    def __post_init__(self) -> None:
        if self.spec.memory.reset_at_document and self.spec.memory.scope == "batch":
            raise ValueError(
                "reset_at_document: want scope='example', got 'batch': the documents of different examples "
                "begin at different places"
            )

    def memories(self, *, training: bool = False) -> Mapping[str, Memory]:
        """The memories of a block that teach signals write, by name."""
        return blocks.memories(self.spec, training=training, stream=False)

    def stream_memories(self) -> Mapping[str, StreamMemory]:
        """The memories of a block that write while they read, by name."""
        return blocks.memories(self.spec, stream=True)

    def level_names(self) -> dict[str, tuple[str, ...]]:
        """The levels whose writes are counted, by memory."""
        return {name: tuple(memory.periods()) for name, memory in blocks.memories(self.spec).items()}

    def init_params(self, key: Array) -> PyTree:
        """Fresh meta parameters: {"embed", "blocks" (leaves [L, ...]), "final_norm"}."""
        spec = self.spec
        # The tied embedding begins unit normal in the reference.
        embedding = jax.nn.initializers.normal(0.02 if spec.modern else 1.0)
        entries = {
            EMBED: (embedding, (spec.vocab_size, spec.dim)),
            "blocks": (blocks.entries(spec), spec.num_layers),
            FINAL_NORM: layers.norm_entries(spec, ""),
        }
        return Params(entries, spec.param_dtype).init(key)["params"]

    def unstacked(self, params: PyTree) -> PyTree:
        """The parameters with a tuple over layers below "blocks"."""
        return {**params, "blocks": self._layers(params)}

    def stacked(self, params: PyTree) -> PyTree:
        """The inverse of `unstacked`."""
        return {**params, "blocks": trees.stack(params["blocks"])}

    def _layers(self, params: PyTree) -> tuple[PyTree, ...]:
        return trees.unstack(params["blocks"], self.spec.num_layers)

    def init_fast_state(self, params: PyTree, batch_size: int) -> Fast:
        """Fast state of contexts that have written nothing."""

        def layer(params: PyTree) -> dict[str, PyTree]:
            state = {name: m.init(params[name]) for name, m in blocks.memories(self.spec).items()}
            if self.spec.memory.scope == "batch":
                return state
            return jax.tree.map(lambda t: jnp.broadcast_to(t, (batch_size, *t.shape)), state)

        return tuple(map(layer, self._layers(params)))

    def init_carry(self, batch_size: int, capacity: int) -> Carry:
        """An empty carry for `capacity` tokens of each context."""
        cache = tuple(
            blocks.init_layer_cache(self.spec, batch_size, capacity) for _ in range(self.spec.num_layers)
        )
        segments = jnp.full((batch_size, capacity), documents.NO_SEGMENT, jnp.int32)
        return Carry(position=jnp.zeros((), jnp.int32), segments=segments, cache=cache)

    def init_taps(self, batch_size: int, tokens: int) -> tuple[dict[str, Any], ...]:
        """Zeros where teach signals are taken: of each layer, "block" -> [B, n, D] at the block's output, and
        memory name -> level -> `Taps`."""
        spec, wide = self.spec, jnp.promote_types(self.spec.dtype, jnp.float32)

        def taps(output: int, hidden: int) -> Taps:
            at_hidden = jnp.zeros((batch_size, tokens, hidden), spec.dtype) if hidden else None
            return Taps(jnp.zeros((batch_size, tokens, output), wide), at_hidden)

        layer: dict[str, Any] = {"block": taps(spec.dim, 0).output}
        for name, memory in self.memories().items():
            layer[name] = {level: taps(*widths) for level, widths in memory.taps().items()}
        return (layer,) * spec.num_layers

    def read(
        self,
        params: PyTree,
        fast: Fast | dict[str, PyTree],
        carry: Carry | None,
        tokens: Array,
        segment_ids: Array,
        taps: tuple[dict[str, Any], ...] | None = None,
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
        chex.assert_rank([tokens, segment_ids], 2)
        chex.assert_equal_shape([tokens, segment_ids])
        chex.assert_type([tokens, segment_ids], int)
        spec = self.spec
        states: Fast = fast if isinstance(fast, tuple) and fast else ({},) * spec.num_layers
        context = self._context(carry, segment_ids)
        block: Any = partial(blocks.read, spec, training)
        block = jax.checkpoint(block) if spec.remat else block
        x, reads = params[EMBED][tokens].astype(spec.dtype), []
        for i, layer in enumerate(self._layers(params)):
            call = Call(
                states[i], None if carry is None else carry.cache[i], taps[i] if taps else {}, context
            )
            read = block(layer, x, call)
            x = read.x + taps[i]["block"].astype(read.x.dtype) if taps else read.x
            reads.append(read._replace(x=x))
        hidden = norm(params[FINAL_NORM], x, "")
        if carry is not None:
            assert context.seen_segments is not None
            cache = tuple(read.cache for read in reads)
            carry = Carry(carry.position + tokens.shape[1], context.seen_segments, cache)
        return ReadOutput(
            hidden,
            tuple(read.x for read in reads),
            tuple(read.trace for read in reads),
            carry,
            settled(tuple({**before, **read.written} for before, read in zip(states, reads, strict=True))),
            trees.stack([read.stats for read in reads]),
        )

    def _context(self, carry: Carry | None, segment_ids: Array) -> ReadContext:
        """Where the next tokens, of documents `segment_ids` int32 [B, n], stand. Raises: see `read`."""
        if carry is None:
            return ReadContext(jnp.zeros((), jnp.int32), segment_ids, None)
        seen_tokens = 0 if isinstance(carry.position, jax.core.Tracer) else int(carry.position)
        wanted, capacity = seen_tokens + segment_ids.shape[1], carry.segments.shape[1]
        if wanted > capacity:
            raise ValueError(
                f"carry: want room for {wanted} tokens, got {capacity}; make it with a larger capacity"
            )
        clock = self.clock(carry, segment_ids) if self.spec.memory.reset_at_document else None
        seen = jax.lax.dynamic_update_slice_in_dim(carry.segments, segment_ids, carry.position, axis=1)
        return ReadContext(carry.position, segment_ids, seen, clock)

    def logits(self, params: PyTree, hidden: Array) -> Array:
        """Logits [..., V], float32 at least, of `ReadOutput.hidden` [..., D], by the embedding. A loss needs
        none of them (`learning.chunk`)."""
        return logits_of(hidden, params[EMBED])

    def clock(self, carry: Carry, segment_ids: Array) -> Array:
        """Where the next chunk, of documents `segment_ids` int32 [B, n], begins in its context: int32 [], or
        [B] under `reset_at_document`."""
        if not self.spec.memory.reset_at_document:
            return carry.position
        return documents.clock(carry.segments, segment_ids, carry.position, self.spec.chunk_size)

    def restarted(self, params: PyTree, fast: Fast, carry: Carry, segment_ids: Array) -> tuple[Fast, Carry]:
        """The states to read the next chunk with, of documents `segment_ids` int32 [B, n]: as given, but with
        a fresh context for the examples of which it begins another document, if the spec says so.

        What they have written is forgotten, and the convolutions' histories; keys and values of other
        documents are masked, and stay. A stream's first chunk is read with the memories that are given.
        """
        if not self.spec.memory.reset_at_document:
            return fast, carry
        begins_b = (self.clock(carry, segment_ids) == 0) & (carry.position > 0)

        def layer(empty: dict[str, PyTree], state: dict[str, PyTree]) -> dict[str, PyTree]:
            return documents.select(begins_b, {name: empty[name] for name in state}, state)

        fresh = tuple(map(layer, self.init_fast_state(params, len(segment_ids)), settled(fast)))
        return fresh, carry._replace(cache=tuple(blocks.forget(begins_b, cache) for cache in carry.cache))

    def norms(self, params: PyTree) -> tuple[dict[str, PyTree], ...]:
        """Norms of the slow weights, which every write needs: of each layer, by memory name."""
        every = self.memories().items()
        return tuple({name: m.norms(layer[name]) for name, m in every} for layer in self._layers(params))

    def write(
        self,
        params: PyTree,
        norms: tuple[dict[str, PyTree], ...],
        fast: Fast,
        trace: tuple[dict[str, PyTree], ...],
        signal: tuple[WriteSignal, ...],
        position: Array,
        *,
        last: bool = False,
        training: bool = False,
    ) -> tuple[Fast, dict[str, dict[str, WriteStats]]]:
        """Writes one chunk into every memory of every layer that teach signals write.

        params: the meta parameters that read the chunk, and norms: of them. trace: of that read. signal: of
        each layer, leaves [B, n, ...]. position: int32 [] or [B] `clock` of the chunk's first token. last:
        the stream ends here. Returns the new fast state and, by memory and level, statistics with leaves [L,
        B].
        """
        chex.assert_rank(position, {0, 1})
        chex.assert_equal_shape_prefix([layer.block for layer in signal], 3)
        axis, at = self.spec.fast_axis, 0 if position.ndim else None
        written, stats = [], []
        for layer in zip(self._layers(params), norms, fast, trace, signal, strict=True):
            made = {}
            for name, memory in self.memories(training=training).items():
                own, own_norms, state, own_trace = (part[name] for part in layer[:4])
                over = jax.vmap(
                    partial(memory.write, reduce=self.spec.reduce, last=last),
                    in_axes=(None, None, axis, 0, 0, at),
                    out_axes=(axis, 0),
                    axis_name=EXAMPLES,
                )
                taught = layer[4]._replace(own=layer[4].own.get(name, {}))
                with jax.named_scope(f"{name}_write"):
                    made[name] = over(own, own_norms, state, own_trace, taught, position)
            written.append({**layer[2], **{name: state for name, (state, _) in made.items()}})
            stats.append({name: counts for name, (_, counts) in made.items()})
        return tuple(written), trees.stack(stats)

    def held_for_write(self, params: PyTree) -> PyTree:
        """The parameters, unstacked, as constants but for those that act through writes alone: writes are
        cut, yet SelfModifier and gates learn through them, to first order."""

        def layer(params: PyTree) -> PyTree:
            held = trees.stop_gradient(params)
            for name, memory in self.memories().items():
                held[name] = {**held[name], **{key: params[name][key] for key in memory.without_gradient(1)}}
            return held

        return {**trees.stop_gradient(params), "blocks": tuple(map(layer, self._layers(params)))}

    def rebase(self, params: PyTree, fast: Fast) -> Fast:
        """The fast state cut off from what wrote it, with the meta parameters trainable through it: deltas
        are held (reads add them to the parameters), whole weights move with those that they started from."""
        return self.move(trees.stop_gradient(params), params, trees.stop_gradient(fast))

    def move(self, old: PyTree, new: PyTree, fast: Fast) -> Fast:
        """The fast state after a step of the meta parameters: what it has written is now added to `new`.
        Deltas stay as they are; memories held as whole weights see `StreamMemory.move`."""

        def layer(old: PyTree, new: PyTree, state: dict[str, PyTree]) -> dict[str, PyTree]:
            every = self.stream_memories().items()
            return {**state, **{name: m.move(old[name], new[name], state[name]) for name, m in every}}

        return tuple(map(layer, self._layers(old), self._layers(new), fast))
