"""Streaming: a document in one call or in any split into calls gives the same logits and state.

Tokens are read as they come, with the memories of their online chunk's start. When the token after a chunk
arrives, the chunk's last target is known: the chunk is read again, its teach signal taken, its memories
written, and only then the new token is read. What crosses calls is therefore the state at the unfinished
chunk's start and that chunk's tokens; every read of an unfinished chunk starts there, padded to the chunk's
size (reads are causal, so padding changes nothing before it), and what it leaves is thrown away.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.core.types import NO_TARGET, Array, Batch, PyTree
from hope_jax.learning import chunk as chunks
from hope_jax.learning.chunk import OnlineRule, State, Sums
from hope_jax.models.lm import Carry, Fast, HopeModel

BLOCK = 16
"""Chunks that one call to the device reads and writes where a segment holds as many; else it takes one.
Two shapes are compiled, whatever the segments' lengths."""

HostArray: TypeAlias = Any
"""A numpy array on the host, where it is counted and cut; traced inside the compiled pieces."""


class Unfinished(NamedTuple):
    """The chunk that has begun, on the host; [B, N], zeros from `filled` on.

    tokens, segment_ids: int32. target_mask: bool, the token may be a target. start: int32 [] position of
    the chunk's first token in the context. filled: int32 [] tokens that have come, the same for all
    examples; 0 only before the first token, as a full chunk waits for the token after it.
    """

    tokens: HostArray
    segment_ids: HostArray
    target_mask: HostArray
    start: HostArray
    filled: HostArray


class Stream(NamedTuple):
    """What crosses calls. fast, carry: at the start of the unfinished `chunk`.

    stats: of the writes so far, memory -> level -> `WriteStats` with leaves [L, B]. sums: over the chunks
    that have been written.
    """

    fast: PyTree
    carry: Carry
    stats: PyTree
    sums: Sums
    chunk: Unfinished

    @property
    def position(self) -> int:
        """Tokens read so far."""
        return int(self.chunk.start) + int(self.chunk.filled)

    @property
    def recent(self) -> Unfinished:
        """The unfinished chunk without its padding: [B, filled], at least one token once any has come."""
        tokens, segment_ids, target_mask = (t[:, : int(self.chunk.filled)] for t in self.chunk[:3])
        return Unfinished(tokens, segment_ids, target_mask, self.chunk.start, self.chunk.filled)


@dataclass(frozen=True)
class Streamer:
    """Reads and writes streams of one model; its methods run on the host and call compiled pieces.

    `rule.chunk_size` is N, `rule.training` as `OnlineRule` says (False for inference).
    """

    model: HopeModel
    rule: OnlineRule

    def begin(self, params: PyTree, batch_size: int, capacity: int, fast: PyTree | None = None) -> Stream:
        """The state before the first token.

        capacity: tokens that the attention cache has room for, rounded up to whole chunks; it grows by
        doubling when they are exceeded, which compiles anew. fast: memories to start from; None: fresh.
        """
        row, none = np.zeros((batch_size, self.rule.chunk_size), np.int32), np.zeros((), np.int32)
        room = self._whole_chunks(capacity)
        chunk = Unfinished(row, row.copy(), row.astype(bool), start=none, filled=none.copy())
        return _stream(self._fresh(params, fast, batch_size, room), chunk)

    def feed(
        self,
        params: PyTree,
        state: Stream,
        tokens: np.ndarray | Array,
        segment_ids: np.ndarray | Array | None = None,
        target_mask: np.ndarray | Array | None = None,
        *,
        in_place: bool = False,
    ) -> tuple[Array, Stream]:
        """Reads n more tokens of each stream; n may be 0.

        tokens: int [B, n]. segment_ids: int [B, n] document of each token, 0: padding; None: all 1.
        target_mask: bool [B, n], False: the token is no target and teaches nothing; None: all True. The
        target of position t is token t + 1, if its mask is True and it is of the same document.
        in_place: the new state takes the place of `state`, which cannot be used again.

        Returns the logits [B, n, V] and the state after these tokens.

        Raises:
          ValueError: shapes that do not fit the stream's batch or each other; under `reset_at_document`, a
            document that begins inside an online chunk.
        """
        row, known = self._joined(state.chunk, tokens, segment_ids, target_mask)
        if self.model.spec.memory.reset_at_document:
            _check_documents(row, self.rule.chunk_size)
        length, size = row.tokens.shape[1], self.rule.chunk_size
        if length == known:
            vocab = self.model.spec.vocab_size
            return jnp.zeros((len(row.tokens), 0, vocab), state.sums.loss.dtype), state
        written = (length - 1) // size
        state = self._with_room(state, int(state.chunk.start) + size * (written + 1))
        targets = _targets(row)
        logits, at = [], 0
        write = self.write_chunks_in_place if in_place else self.write_chunks
        while at < written:
            chunks = BLOCK if written - at >= BLOCK else 1
            part = slice(size * at, size * (at + chunks))
            batch = Batch(row.tokens[:, part], targets[:, part], row.segment_ids[:, part])
            read, state = write(params, state, batch)
            skip = max(known - part.start, 0)
            logits.append(read[:, skip:] if skip else read)
            at += chunks
        rest = size * written
        tokens_bn, segments_bn, mask_bn = (
            np.pad(t[:, rest:], ((0, 0), (0, rest + size - length))) for t in row[:3]
        )
        start, filled = (np.asarray(n, np.int32) for n in (state.chunk.start + rest, length - rest))
        state = state._replace(chunk=Unfinished(tokens_bn, segments_bn, mask_bn, start, filled))
        skip = max(known - rest, 0)
        logits.append(_slice(self._read(params, state), skip, length - rest - skip))
        return jnp.concatenate(logits, axis=1) if len(logits) > 1 else logits[0], state

    def last_logits(self, params: PyTree, state: Stream) -> Array:
        """Logits [B, V] after the last token that was fed.

        Raises:
          ValueError: no token has been fed.
        """
        count = int(state.chunk.filled)
        if not count:
            raise ValueError("stream: nothing has been read, so there is nothing to predict from")
        state = self._with_room(state, int(state.chunk.start) + self.rule.chunk_size)
        return _slice(self._read(params, state), count - 1, 1)[:, 0]

    def finish(self, params: PyTree, state: Stream) -> State:
        """Reads and writes the last chunk as it is, its last token without target, and flushes or drops
        partial periods. Compiles once for each length of a last chunk."""
        if not int(state.chunk.filled):
            return _state(state)._replace(carry=None)
        row, state = state.recent, self._with_room(state, state.position)
        return self._finish(params, state, Batch(row.tokens, _targets(row), row.segment_ids))

    def resized(self, state: Stream, capacity: int) -> Stream:
        """The state with an attention cache for `capacity` tokens, rounded up to whole chunks, or for those
        that it holds if they are more. `capacity` 0 leaves out all that is not filled."""
        capacity = self._whole_chunks(max(capacity, int(state.chunk.start)))
        return state._replace(carry=self._resized(state.carry, capacity))

    def _whole_chunks(self, tokens: int) -> int:
        size = self.rule.chunk_size
        return size * max(1, -(-tokens // size))

    def _joined(
        self,
        chunk: Unfinished,
        tokens: np.ndarray | Array,
        segment_ids: np.ndarray | Array | None,
        target_mask: np.ndarray | Array | None,
    ) -> tuple[Unfinished, int]:
        """The unfinished chunk's tokens and the new ones in one row, and the number of the former."""
        new, batch_size, known = np.asarray(tokens), len(chunk.tokens), int(chunk.filled)
        if new.ndim != 2 or len(new) != batch_size:
            raise ValueError(f"tokens: want shape [{batch_size}, n], got {list(new.shape)}")
        segments = np.ones_like(new) if segment_ids is None else np.asarray(segment_ids)
        mask = np.ones(new.shape, bool) if target_mask is None else np.asarray(target_mask, bool)
        for name, given in (("segment_ids", segments), ("target_mask", mask)):
            if given.shape != new.shape:
                raise ValueError(f"{name}: want the tokens' shape {list(new.shape)}, got {list(given.shape)}")
        tokens_bn, segments_bn, mask_bn = (
            np.concatenate([old[:, :known], given.astype(old.dtype)], axis=1)
            for old, given in zip(chunk[:3], (new, segments, mask), strict=True)
        )
        return Unfinished(tokens_bn, segments_bn, mask_bn, chunk.start, chunk.filled), known

    def _with_room(self, state: Stream, tokens: int) -> Stream:
        """The state with room for `tokens` tokens in its carry."""
        capacity = state.carry.segments.shape[1]
        if tokens <= capacity:
            return state
        while capacity < tokens:
            capacity *= 2
        return self.resized(state, capacity)

    @partial(jax.jit, static_argnums=(0, 3, 4))
    def _fresh(self, params: PyTree, fast: Fast | None, batch_size: int, capacity: int) -> State:
        """What the device holds of a stream before its first token."""
        fast = self.model.init_fast_state(params, batch_size) if fast is None else fast
        return chunks.begin(self.model, fast, batch_size, self.model.init_carry(batch_size, capacity))

    @partial(jax.jit, static_argnums=(0, 2))
    def _resized(self, carry: Carry, capacity: int) -> Carry:
        other = self.model.init_carry(len(carry.segments), capacity)
        return jax.tree.map(_fit, other, carry)

    @partial(jax.jit, static_argnums=0)
    def _read(self, params: PyTree, state: Stream) -> Array:
        """Logits [B, N, V] of the unfinished chunk, read from its start."""
        chunk, training = state.chunk, self.rule.training
        fast, carry = self.model.restarted(params, state.fast, state.carry, chunk.segment_ids)
        out = self.model.read(params, fast, carry, chunk.tokens, chunk.segment_ids, training=training)
        return self.model.logits(params, out.hidden)

    def _write_chunks(self, params: PyTree, state: Stream, batch: Batch) -> tuple[Array, Stream]:
        """Reads and writes whole chunks [B, m N]; their logits [B, m N, V]."""
        params = self.model.unstacked(params)
        norms = self.model.norms(params)

        def body(state: State, chunk: Batch) -> tuple[State, Array]:
            read = chunks.step(self.model, self.rule, params, norms, state, chunk, jnp.ones(()))
            return chunks.write(self.model, self.rule, params, norms, read.state), read.out.hidden

        end, hidden = jax.lax.scan(body, _state(state), chunks.whole_chunks(batch, self.rule.chunk_size))
        logits = self.model.logits(params, hidden.swapaxes(0, 1))
        return logits.reshape(*batch.tokens.shape, -1), _stream(end, state.chunk)

    write_chunks = partial(jax.jit, static_argnums=0)(_write_chunks)
    # Without a second cache and second memories beside the first.
    write_chunks_in_place = partial(jax.jit, static_argnums=0, donate_argnums=2)(_write_chunks)

    @partial(jax.jit, static_argnums=0)
    def _finish(self, params: PyTree, state: Stream, batch: Batch) -> State:
        params = self.model.unstacked(params)
        norms = self.model.norms(params)
        read = chunks.step(self.model, self.rule, params, norms, _state(state), batch, jnp.ones(()))
        return chunks.finish(self.model, self.rule, params, norms, read.state)


def _state(stream: Stream) -> State:
    """The device's part of a stream: between calls nothing is unwritten."""
    return State(stream.fast, stream.carry, None, stream.stats, stream.sums)


def _stream(state: State, chunk: Unfinished) -> Stream:
    """The inverse of `_state`."""
    assert state.carry is not None
    return Stream(state.fast, state.carry, state.stats, state.sums, chunk)


def _targets(row: Unfinished) -> HostArray:
    """The next token of each position where it is a target, int32 [B, n]; the last position has none."""
    targets = np.full(row.tokens.shape, NO_TARGET, np.int32)
    segments = row.segment_ids
    valid = row.target_mask[:, 1:] & (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    targets[:, :-1] = np.where(valid, row.tokens[:, 1:], NO_TARGET)
    return targets


def _check_documents(row: Unfinished, size: int) -> None:
    """Raises ValueError if a document begins inside a chunk; the row itself starts with one."""
    segments = row.segment_ids
    firsts = np.repeat(segments[:, ::size], size, axis=1)[:, : segments.shape[1]]
    for example, at in np.argwhere((segments != firsts) & (segments > 0))[:1]:
        raise ValueError(
            f"segment_ids: example {example} has a token of document {segments[example, at]} at position "
            f"{int(row.start) + at}, in an online chunk of {size} tokens that begins with another; fill the "
            "chunk before a new document up with padding (segment 0), or set memory.reset_at_document=False"
        )


def _fit(other: Array, old: Array) -> Array:
    """Copies as much of `old` as fits to the beginning of `other`; `old` itself where shapes are equal."""
    if other.shape == old.shape:
        return old
    part = tuple(slice(0, min(a, b)) for a, b in zip(other.shape, old.shape, strict=True))
    return other.at[part].set(old[part])


@partial(jax.jit, static_argnums=2)
def _slice(logits: Array, start: int, length: int) -> Array:
    """The slice [:, start : start + length], compiled once for each length and not for each start."""
    return jax.lax.dynamic_slice_in_dim(logits, start, length, axis=1)
