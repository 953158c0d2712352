"""The outer gradient of `online` with K > N where no parameter acts through writes alone.

No gradient goes through the writes of teach signals, so a cut's chunks are first read, taught and written in
order. That pass leaves all that the outer gradient needs: the states that each chunk was read with, and the
loss's cotangent of what the head has read. The chunks are then differentiated from the last to the first,
each from its own states, with the cotangents of the states that it left to the next one. Compared with
`jax.grad` of a second, rematerialised scan, every chunk is read once less.
"""

from typing import Any, NamedTuple

import jax

from hope_jax import trees
from hope_jax.kernels.xent_teach import cross_entropy
from hope_jax.learning.online import OnlineRule, StreamState, for_writes, read_and_signal, write_pending
from hope_jax.models import tapping
from hope_jax.models.lm import Carry, HopeModel
from hope_jax.models.tapping import Taps
from hope_jax.types import Array, Batch, PyTree


class _Read(NamedTuple):
    """A chunk's read. memories: what teach signals had written, held tokens apart. carry: before it. streams:
    memories that write while they read, before it. hidden, by_hidden: [B, n, D] what the head has read, and
    the loss's cotangent of it."""

    memories: PyTree
    carry: Carry
    streams: PyTree
    hidden: Array
    by_hidden: Array


def taught_first(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    state: StreamState,
    chunks: Batch,
    tail: Batch,
    schedule: Array,
) -> tuple[StreamState, PyTree]:
    """Chunks [m, B, N], and a stream's last, shorter one [B, n] (n = 0: none), between two cuts: the state
    after them and their outer gradient."""
    at_writes, names = for_writes(model, params), tuple(model.stream_memories())

    def teach(state: StreamState, chunk: Batch) -> tuple[StreamState, _Read]:
        fast, stats = write_pending(model, rule, at_writes, state)
        at = state._replace(fast=fast, stats=stats)
        taught, out, by_hidden = read_and_signal(model, rule, params, at, chunk, schedule)
        memories = {name: fast[name] for name in model.memories()}
        streams = {name: fast[name] for name in names}
        return taught, _Read(memories, at.carry, streams, out.hidden, by_hidden)

    held, rebased = jax.vjp(lambda p: _streams(model.rebase(p, state.fast), names), params)
    end, reads = jax.lax.scan(teach, state._replace(fast={**state.fast, **held}), chunks)
    parts = [(chunks, reads)]
    if tail.tokens.shape[1]:
        end, last = teach(end, tail)
        parts.append(jax.tree.map(lambda t: t[None], (tail, last)))

    later = trees.zeros_like((_streams(end.fast, names), end.carry.cache))
    gradient = trees.zeros_like(params)
    for part, part_reads in reversed(parts):
        later, found = _backward(model, rule, params, end.fast, part, part_reads, later)
        gradient = tapping.add_gradients(gradient, found)
    (by_start,) = rebased(later[0])
    return trees.stop_gradient(end), tapping.add_gradients(gradient, by_start)


def _backward(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    last_fast: PyTree,
    chunks: Batch,
    reads: _Read,
    later: tuple[PyTree, PyTree],
) -> tuple[tuple[PyTree, PyTree], PyTree]:
    """Chunks [m, B, n], last to first: cotangents of the states (streams, cache) before them, from
    those `later` of the states after them, and the outer gradient at given states."""
    taps = model.init_gradient_taps(params, *chunks.tokens.shape[1:], head=False)
    plain = tapping.without(params, taps)

    def body(carried: tuple[PyTree, PyTree], xs: tuple[Batch, _Read]) -> tuple[Any, Taps]:
        (later, by_plain), (chunk, read) = carried, xs

        def reread(plain: PyTree, taps: Taps, streams: PyTree, cache: PyTree) -> Any:
            tapped = tapping.attach(params, plain, taps)
            fast = {**streams, **read.memories}
            carry = read.carry._replace(cache=cache)
            out = model.read(tapped, fast, carry, chunk.tokens, chunk.segment_ids, training=rule.training)
            assert out.carry is not None
            return (_streams(out.fast, streams), out.carry.cache), out.hidden

        _, pull = jax.vjp(reread, plain, taps, read.streams, read.carry.cache)
        more, factors, *before = pull((later, read.by_hidden))
        return (tuple(before), tapping.add_gradients(by_plain, more)), factors

    start = (later, trees.zeros_like(plain))
    (before, by_plain), factors = jax.lax.scan(body, start, (chunks, reads), reverse=True)
    by_head = _head_gradient(params[tapping.EMBED], reads.hidden, chunks)
    return before, tapping.gradient(params, by_plain, factors, chunks.tokens, by_head)


def _head_gradient(head: Array, hidden: Array, chunks: Batch) -> Array:
    """[V, D] of chunks [m, B, n] from what their reads gave the head, [m, B, n, D]."""

    def joined(t: Array) -> Array:
        return t.swapaxes(0, 1).reshape(t.shape[1], -1, *t.shape[3:])

    return jax.grad(lambda w: cross_entropy(joined(hidden), w, joined(chunks.targets)).total)(head)


def _streams(fast: PyTree, names: Any) -> PyTree:
    return {name: fast[name] for name in names}
