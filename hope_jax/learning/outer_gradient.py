"""The outer gradient of a stream in mode `online`, cut every K tokens (SPEC §4).

K = N: one backward pass a chunk gives the outer gradient, the teach signal and the factors of the writes.
K > N: the teach signal of a chunk is taken in a backward pass of its own, because later chunks of the cut do
not reach into it. Where no parameter acts through writes alone, the stream is taught first (`taught_first`).
"""

from collections.abc import Callable
from typing import Any

import jax

from hope_jax import trees
from hope_jax.learning.online import (
    OnlineRule,
    StreamResult,
    StreamState,
    after_read,
    begin,
    cut_chunks,
    finish,
    for_writes,
    read_chunk,
    read_with_loss,
    split,
    write_pending,
)
from hope_jax.learning.taught_first import taught_first
from hope_jax.models import documents, tapping
from hope_jax.models.lm import HopeModel
from hope_jax.models.tapping import Taps
from hope_jax.types import Array, Batch, PyTree

GRADIENT_ROWS = 256
"""Rows, of all examples, whose share of a matrix's outer gradient is one product."""


def online_gradients(
    model: HopeModel, rule: OnlineRule, params: PyTree, fast: PyTree, batch: Batch, schedule: Array
) -> tuple[PyTree, StreamResult]:
    """The outer gradient of the *sum* of cross-entropies over the batch's streams, and what they wrote.

    batch: [B, T], T >= N. schedule: [] multiplier on the teach signal. Each supervised token weighs the
    same; divide by `sums.tokens` for the mean. A last chunk shorter than N is read and written as it is.
    """
    cut = _cut_tokens(model, rule, batch.tokens.shape[1])
    whole, rest = split(batch, cut)
    nothing = Batch(*(t[:, :0] for t in batch))
    carried = (begin(model, rule, fast, *batch.tokens.shape), trees.zeros_like(params))

    def body(carried: tuple[StreamState, PyTree], chunks: Batch) -> tuple[tuple[StreamState, PyTree], None]:
        state, gradient = carried
        if cut == rule.chunk_size:
            state, g = _cuts_of_one_chunk(model, rule, params, state, chunks, schedule)
        else:
            state, g = _cut(model, rule, params, state, chunks, nothing, schedule)
        return (state, tapping.add_gradients(gradient, g)), None

    if whole.tokens.shape[1]:
        together = cut // rule.chunk_size
        if cut == rule.chunk_size:
            together = chunks_together(whole.tokens.shape, rule.chunk_size)
        carried, _ = jax.lax.scan(body, carried, cut_chunks(whole, together, rule.chunk_size))
    state, gradient = carried
    if rest.tokens.shape[1]:
        whole, tail = split(rest, rule.chunk_size)
        size = (rest.tokens.shape[0], whole.tokens.shape[1] // rule.chunk_size, rule.chunk_size)
        chunks = jax.tree.map(lambda t: t.reshape(size).swapaxes(0, 1), whole)
        state, g = _cut(model, rule, params, state, chunks, tail, schedule)
        gradient = tapping.add_gradients(gradient, g)
    return gradient, finish(model, rule, params, state)


def _cut_tokens(model: HopeModel, rule: OnlineRule, tokens: int) -> int:
    """Tokens that are differentiated together: K, or the whole stream where every document is cut on its own
    grid (`_cut_documents`)."""
    if model.spec.reset_at_document and rule.truncate > rule.chunk_size:
        return rule.chunk_size * -(-tokens // rule.chunk_size)
    return rule.truncate


def _cut_documents(
    model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState, chunk: Batch
) -> StreamState:
    """The state before `chunk`, cut off from what made it for the examples whose document is at a multiple of
    K."""
    due_b = model.clock(state.carry, chunk.segment_ids) % rule.truncate == 0
    cache = state.carry.cache
    return state._replace(
        fast=documents.select(due_b, model.rebase(params, state.fast), state.fast),
        carry=state.carry._replace(cache=documents.select(due_b, trees.stop_gradient(cache), cache)),
    )


def _scan_chunks(
    body: Callable[[StreamState, Batch], tuple[StreamState, None]],
    state: StreamState,
    chunks: Batch,
    group: int,
) -> StreamState:
    """The state after chunks [m, B, N]. The backward pass keeps the states before each `group` of chunks and,
    of one group at a time, before each chunk."""

    def over(state: StreamState, chunks: Batch) -> tuple[StreamState, None]:
        return jax.lax.scan(jax.checkpoint(body), state, chunks)

    groups, odd = divmod(chunks.tokens.shape[0], group)
    if groups > 1:
        stacked = jax.tree.map(lambda t: t[: groups * group].reshape(groups, group, *t.shape[1:]), chunks)
        state, _ = jax.lax.scan(jax.checkpoint(over), state, stacked)
        if not odd:
            return state
        chunks = jax.tree.map(lambda t: t[groups * group :], chunks)
    return over(state, chunks)[0]


def _cut(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    state: StreamState,
    chunks: Batch,
    tail: Batch,
    schedule: Array,
) -> tuple[StreamState, PyTree]:
    """Chunks [m, B, N], and a stream's last, shorter one [B, n] (n = 0: none), between two cuts of the
    gradient: the state after them and their outer gradient."""
    ragged = tail.tokens.shape[1] > 0
    if chunks.tokens.shape[0] + ragged == 1:
        only = jax.tree.map(lambda t: t[None], tail) if ragged else chunks
        return _cuts_of_one_chunk(model, rule, params, state, only, schedule)
    if not model.spec.reset_at_document and not any(m.write_only for m in model.memories().values()):
        return taught_first(model, rule, params, state, chunks, tail, schedule)

    at_writes = trees.stop_gradient(for_writes(model, params))

    def loss(params: PyTree) -> tuple[Array, StreamState]:
        def body(state: StreamState, chunk: Batch) -> tuple[StreamState, None]:
            if model.spec.reset_at_document:
                state = _cut_documents(model, rule, params, state, chunk)
            held = trees.stop_gradient(state)
            written, stats = write_pending(model, rule, model.hold_for_write(params, at_writes), held)
            fast = {**state.fast, **{name: written[name] for name in model.memories()}}
            # The teach signal is the chunk's own: later chunks of the cut do not reach into it, so it is
            # taken in a backward pass of its own, at the same memories.
            at = trees.stop_gradient(state._replace(fast=fast, stats=stats))
            taught = trees.stop_gradient(
                read_chunk(model, rule, trees.stop_gradient(params), at, chunk, schedule)
            )
            out, losses = read_with_loss(model, rule, params, fast, state.carry, chunk, None)
            sums = taught.sums._replace(loss=state.sums.loss + losses.total)
            return taught._replace(fast=out.fast, carry=out.carry, sums=sums), None

        start = state._replace(fast=model.rebase(params, state.fast))
        end = _scan_chunks(body, start, chunks, rule.truncate // rule.chunk_size)
        if ragged:
            end, _ = body(end, tail)
        return end.sums.loss - state.sums.loss, end

    gradient, end = jax.grad(loss, has_aux=True)(params)
    return trees.stop_gradient(end), gradient


def chunks_together(shape: tuple[int, ...], chunk_size: int) -> int:
    """Of a stream [B, T] in whole chunks, how many chunks' factors of the gradient are multiplied at once: as
    many as have about `GRADIENT_ROWS` rows, and divide the number of chunks."""
    chunks = shape[1] // chunk_size
    most = max(1, GRADIENT_ROWS // (shape[0] * chunk_size))
    return max(d for d in range(1, min(most, chunks) + 1) if chunks % d == 0)


def _cuts_of_one_chunk(
    model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState, chunks: Batch, schedule: Array
) -> tuple[StreamState, PyTree]:
    """Chunks [m, B, N] with K = N: the state after them and their outer gradient. That of matrices is made of
    the rows of all chunks."""
    at_writes = trees.stop_gradient(for_writes(model, params))
    gradient_taps = model.init_gradient_taps(params, *chunks.tokens.shape[1:])

    def body(carried: tuple[StreamState, PyTree], chunk: Batch) -> tuple[Any, tuple[Taps, Array]]:
        state, plain = carried
        state, (by_plain, factors), hidden = _cut_of_one_chunk(
            model, rule, params, at_writes, gradient_taps, state, chunk, schedule
        )
        return (state, tapping.add_gradients(plain, by_plain)), (factors, hidden)

    start = (state, trees.zeros_like(tapping.without(params, gradient_taps)))
    if chunks.tokens.shape[0] > 1:
        (state, plain), made = jax.lax.scan(body, start, chunks)
    else:  # without a loop: a stream's last chunk may be shorter than what the state expects
        (state, plain), made = body(start, jax.tree.map(lambda t: t[0], chunks))
        made = jax.tree.map(lambda t: t[None], made)
    factors, hidden = made
    at_head = tapping.head_gradient(params, factors, hidden)
    return state, tapping.gradient(params, plain, factors, chunks.tokens, at_head)


def _cut_of_one_chunk(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    at_writes: PyTree,
    gradient_taps: Taps,
    state: StreamState,
    chunk: Batch,
    schedule: Array,
) -> tuple[StreamState, tuple[PyTree, Taps], Array]:
    """One backward pass gives the outer gradient (of tapped parameters as factors), the teach signal and the
    factors of the memories' writes. Also what the head has read."""

    def loss(plain: PyTree, gradient_taps: Taps, taps: Any) -> tuple[Array, Any]:
        tapped = tapping.attach(params, plain, gradient_taps)
        at = state._replace(fast=model.rebase(tapped, state.fast))
        fast, stats = write_pending(model, rule, model.hold_for_write(tapped, at_writes), at)
        out, losses = read_with_loss(model, rule, tapped, fast, state.carry, chunk, taps)
        return losses.total, (out, losses, stats)

    plain, taps = tapping.without(params, gradient_taps), model.init_taps(*chunk.tokens.shape)
    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    (by_plain, factors, raw), (out, losses, stats) = grad(plain, gradient_taps, taps)
    state, recorded = state._replace(stats=stats), model.recorded(out.trace, factors)
    state = after_read(model, rule, state, chunk, out._replace(trace=recorded), losses, raw, schedule)
    return state, (by_plain, factors), out.hidden
