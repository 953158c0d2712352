"""The chunk scan: read, take the teach signal, write; with the outer gradient on the way (SPEC §4).

A stream is read in online chunks of N tokens. Attention, CMS and TITAN read chunk c with what chunks
before c wrote; its teach signal is taken in the same backward pass as the outer gradient; its write runs
at the start of chunk c + 1, with everything that it reads held constant but the parameters that act
through writes alone (`HopeModel.hold_for_write`). Memories that write while they read are differentiated
through their writes. Gradients through them, the attention cache and the convolution history are cut every
K tokens (K = N: at every chunk).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.xent_teach import CrossEntropy
from hope_jax.learning import teach
from hope_jax.learning.loss import read_loss
from hope_jax.learning.teach import TeachRule
from hope_jax.memory.state import WriteSignal, add_stats, zero_stats
from hope_jax.models import documents, tapping
from hope_jax.models.lm import Carry, HopeModel, ReadOutput
from hope_jax.models.tapping import Taps
from hope_jax.types import Array, Batch, PyTree

GRADIENT_ROWS = 256
"""Rows, of all examples, whose share of a matrix's outer gradient is one product."""


class OnlineRule(NamedTuple):
    """chunk_size: N tokens. truncate: K tokens, a multiple of N. teach: how signals are made.

    training: reads and writes as the style does while it trains (the reference bounds its residuals).
    """

    chunk_size: int
    truncate: int
    teach: TeachRule
    training: bool = True


class Sums(NamedTuple):
    """Over a stream and its batch, float [] each: `loss` in nats and `tokens` supervised; `teach_norm`
    and `teach_tokens`: sum of |delta_t| over layers and active tokens, and their number."""

    loss: Array
    tokens: Array
    teach_norm: Array
    teach_tokens: Array


class PendingWrite(NamedTuple):
    """A chunk that has been read and not yet written. position: int32 [] or [B] of its first token in the
    memories' context (`HopeModel.clock`)."""

    trace: PyTree
    signal: WriteSignal
    position: Array


class StreamState(NamedTuple):
    """What crosses chunks. `stats`: memory -> level -> `WriteStats` with leaves [L, B].
    pending_exists: bool [], False before the first chunk."""

    fast: PyTree
    carry: Carry
    pending: PendingWrite
    pending_exists: Array
    stats: PyTree
    sums: Sums


class StreamResult(NamedTuple):
    """fast: after the last write. stats: leaves [L, B]. sums: over the stream."""

    fast: PyTree
    stats: PyTree
    sums: Sums


def begin(model: HopeModel, rule: OnlineRule, fast: PyTree, batch_size: int, tokens: int) -> StreamState:
    """The state before the first token of a stream of `tokens` tokens that starts with memories `fast`."""
    taps = model.init_taps(batch_size, rule.chunk_size)
    tokens_bn = jnp.zeros((batch_size, rule.chunk_size), jnp.int32)

    def recorded(key: Array) -> PyTree:
        params = model.init_params(key)
        trace = model.read(params, {}, None, tokens_bn, tokens_bn).trace
        taps = model.init_gradient_taps(params, *tokens_bn.shape, memories_only=True)
        return model.recorded(trace, taps)

    trace = jax.eval_shape(recorded, jax.random.key(0))
    carry = model.init_carry(batch_size, tokens)
    pending = PendingWrite(
        trace=jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), trace),
        signal=teach.zero_signal(taps),
        position=model.clock(carry, tokens_bn),
    )
    zero = jnp.zeros((), taps["block"].dtype)
    return StreamState(
        fast=fast,
        carry=carry,
        pending=pending,
        pending_exists=jnp.zeros((), bool),
        stats=zero_write_stats(model, batch_size),
        sums=Sums(zero, zero, zero, zero),
    )


def zero_write_stats(model: HopeModel, batch_size: int) -> PyTree:
    """Statistics of no write, for every memory and level: leaves [L, B]."""
    shape = (model.spec.num_layers, batch_size)
    return {
        name: {level: jax.tree.map(lambda t: jnp.broadcast_to(t, shape), zero_stats()) for level in levels}
        for name, levels in model.level_names().items()
    }


def online_gradients(
    model: HopeModel, rule: OnlineRule, params: PyTree, fast: PyTree, batch: Batch, schedule: Array
) -> tuple[PyTree, StreamResult]:
    """The outer gradient of the *sum* of cross-entropies over the batch's streams, and what they wrote.

    batch: [B, T], T >= N. schedule: [] multiplier on the teach signal. Each supervised token weighs the
    same; divide by `sums.tokens` for the mean. A last chunk shorter than N is read and written as it is.
    """
    cut = _cut_tokens(model, rule, batch.tokens.shape[1])
    whole, rest = _split(batch, cut)
    nothing = Batch(*(t[:, :0] for t in batch))
    carried = (begin(model, rule, fast, *batch.tokens.shape), trees.zeros_like(params))

    def body(carried: tuple[StreamState, PyTree], chunks: Batch) -> tuple[tuple[StreamState, PyTree], None]:
        state, gradient = carried
        if cut == rule.chunk_size:
            state, g = _cuts_of_one_chunk(model, rule, params, state, chunks, schedule)
        else:
            state, g = _cut(model, rule, params, state, chunks, nothing, schedule)
        return (state, trees.add(gradient, g)), None

    if whole.tokens.shape[1]:
        together = cut // rule.chunk_size
        if cut == rule.chunk_size:
            together = _chunks_together(whole.tokens.shape, rule.chunk_size)
        carried, _ = jax.lax.scan(body, carried, _chunks(whole, together, rule.chunk_size))
    state, gradient = carried
    if rest.tokens.shape[1]:
        whole, tail = _split(rest, rule.chunk_size)
        size = (rest.tokens.shape[0], whole.tokens.shape[1] // rule.chunk_size, rule.chunk_size)
        chunks = jax.tree.map(lambda t: t.reshape(size).swapaxes(0, 1), whole)
        state, g = _cut(model, rule, params, state, chunks, tail, schedule)
        gradient = trees.add(gradient, g)
    return gradient, finish(model, rule, params, state)


def stream_loss(
    model: HopeModel, rule: OnlineRule, params: PyTree, fast: PyTree, batch: Batch
) -> StreamResult:
    """Reads and writes the batch's streams without an outer gradient (teach schedule 1: inference)."""
    state = begin(model, rule, fast, *batch.tokens.shape)
    whole, rest = _split(batch, rule.chunk_size)

    def body(state: StreamState, chunk: Batch) -> tuple[StreamState, None]:
        return read_and_teach(model, rule, params, state, chunk, jnp.ones(())), None

    state, _ = jax.lax.scan(body, state, jax.tree.map(lambda t: t[:, 0], _chunks(whole, 1, rule.chunk_size)))
    if rest.tokens.shape[1]:
        state = read_and_teach(model, rule, params, state, rest, jnp.ones(()))
    return finish(model, rule, params, state)


def finish(model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState) -> StreamResult:
    """Writes the last chunk, and flushes or drops partial periods."""
    fast, stats = write_pending(model, rule, params, state, last=True)
    return StreamResult(fast, stats, state.sums)


def _split(batch: Batch, multiple: int) -> tuple[Batch, Batch]:
    """The longest part whose length is a multiple of `multiple`, and the rest."""
    whole = batch.tokens.shape[1] // multiple * multiple
    return Batch(*(t[:, :whole] for t in batch)), Batch(*(t[:, whole:] for t in batch))


def _chunks(batch: Batch, chunks_per_cut: int, chunk_size: int) -> Batch:
    """[B, T] -> [cuts, chunks per cut, B, N]."""

    def cut(t: Array) -> Array:
        return t.reshape(t.shape[0], -1, chunks_per_cut, chunk_size).transpose(1, 2, 0, 3)

    return jax.tree.map(cut, batch)


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

    def loss(params: PyTree) -> tuple[Array, StreamState]:
        def body(state: StreamState, chunk: Batch) -> tuple[StreamState, None]:
            if model.spec.reset_at_document:
                state = _cut_documents(model, rule, params, state, chunk)
            held = trees.stop_gradient(state)
            written, stats = write_pending(model, rule, model.hold_for_write(params), held)
            fast = {**state.fast, **{name: written[name] for name in model.memories()}}
            # The teach signal is the chunk's own: later chunks of the cut do not reach into it, so it is
            # taken in a backward pass of its own, at the same memories.
            at = trees.stop_gradient(state._replace(fast=fast, stats=stats))
            taught = trees.stop_gradient(
                read_chunk(model, rule, trees.stop_gradient(params), at, chunk, schedule)
            )
            out, losses = _read(model, rule, params, fast, state.carry, chunk, None)
            sums = taught.sums._replace(loss=state.sums.loss + losses.total)
            return taught._replace(fast=out.fast, carry=out.carry, sums=sums), None

        start = state._replace(fast=model.rebase(params, state.fast))
        end = _scan_chunks(body, start, chunks, rule.truncate // rule.chunk_size)
        if ragged:
            end, _ = body(end, tail)
        return end.sums.loss - state.sums.loss, end

    gradient, end = jax.grad(loss, has_aux=True)(params)
    return trees.stop_gradient(end), gradient


def _chunks_together(shape: tuple[int, ...], chunk_size: int) -> int:
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
    gradient_taps = model.init_gradient_taps(params, *chunks.tokens.shape[1:])

    def body(carried: tuple[StreamState, PyTree], chunk: Batch) -> tuple[Any, tuple[Taps, Array]]:
        state, plain = carried
        state, (by_plain, factors), hidden = _cut_of_one_chunk(
            model, rule, params, gradient_taps, state, chunk, schedule
        )
        return (state, trees.add(plain, by_plain)), (factors, hidden)

    start = (state, trees.zeros_like(tapping.without(params, gradient_taps)))
    if chunks.tokens.shape[0] > 1:
        (state, plain), made = jax.lax.scan(body, start, chunks)
    else:  # without a loop: a stream's last chunk may be shorter than what the state expects
        (state, plain), made = body(start, jax.tree.map(lambda t: t[0], chunks))
        made = jax.tree.map(lambda t: t[None], made)
    factors, hidden = made
    return state, tapping.gradient(params, plain, factors, chunks.tokens, hidden)


def _cut_of_one_chunk(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
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
        fast, stats = write_pending(model, rule, model.hold_for_write(tapped), at)
        out, losses = _read(model, rule, tapped, fast, state.carry, chunk, taps)
        return losses.total, (out, losses, stats)

    plain, taps = tapping.without(params, gradient_taps), model.init_taps(*chunk.tokens.shape)
    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    (by_plain, factors, raw), (out, losses, stats) = grad(plain, gradient_taps, taps)
    state, recorded = state._replace(stats=stats), model.recorded(out.trace, factors)
    state = _after_read(model, rule, state, chunk, out._replace(trace=recorded), losses, raw, schedule)
    return state, (by_plain, factors), out.hidden


def read_and_teach(
    model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState, chunk: Batch, schedule: Array
) -> StreamState:
    """One chunk without an outer gradient: write what is pending, read, take the teach signal."""
    fast, stats = write_pending(model, rule, params, state)
    return read_chunk(model, rule, params, state._replace(fast=fast, stats=stats), chunk, schedule)


def read_chunk(
    model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState, chunk: Batch, schedule: Array
) -> StreamState:
    """Reads a chunk with the memories as they stand and takes its teach signal; its write is pending."""
    return read_and_signal(model, rule, params, state, chunk, schedule)[0]


def read_and_signal(
    model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState, chunk: Batch, schedule: Array
) -> tuple[StreamState, ReadOutput]:
    """`read_chunk`, and what was read."""

    def loss(taps: Any, gradient_taps: Taps) -> tuple[Array, Any]:
        tapped = tapping.attach(params, params, gradient_taps)
        out, losses = _read(model, rule, tapped, state.fast, state.carry, chunk, taps)
        return losses.total, (out, losses)

    taps = model.init_taps(*chunk.tokens.shape)
    gradient_taps = model.init_gradient_taps(params, *chunk.tokens.shape, memories_only=True)
    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (raw, factors), (out, losses) = grad(taps, gradient_taps)
    out = out._replace(trace=model.recorded(out.trace, factors))
    return _after_read(model, rule, state, chunk, out, losses, raw, schedule), out


def _read(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    fast: PyTree,
    carry: Carry,
    chunk: Batch,
    taps: Any,
) -> tuple[ReadOutput, CrossEntropy]:
    fast, carry = model.restarted(params, fast, carry, chunk.segment_ids)
    out = model.read(params, fast, carry, chunk.tokens, chunk.segment_ids, taps, training=rule.training)
    return out, read_loss(model, params, out, chunk.targets)


def write_pending(
    model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState, *, last: bool = False
) -> tuple[PyTree, PyTree]:
    """The memories after the pending chunk's write, and the statistics with it; both as they were if
    nothing is pending. last: the stream ends here."""

    def write(_: None) -> tuple[PyTree, PyTree]:
        fast, stats = model.write(params, state.fast, *state.pending, last=last, training=rule.training)
        return fast, add_stats_of(state.stats, stats)

    return jax.lax.cond(state.pending_exists, write, lambda _: (state.fast, state.stats), None)


def _after_read(
    model: HopeModel,
    rule: OnlineRule,
    state: StreamState,
    chunk: Batch,
    out: ReadOutput,
    losses: CrossEntropy,
    raw: PyTree,
    schedule: Array,
) -> StreamState:
    """The state with this chunk's write pending."""
    signal = teach.process(rule.teach, raw, losses, schedule)
    clock = model.clock(state.carry, chunk.segment_ids)
    assert out.carry is not None
    return state._replace(
        fast=trees.stop_gradient(out.fast),
        carry=trees.stop_gradient(out.carry),
        stats=trees.stop_gradient(add_stats_of(state.stats, out.stats)),
        pending=trees.stop_gradient(PendingWrite(out.trace, signal, clock)),
        pending_exists=jnp.ones((), bool),
        sums=trees.add(state.sums, sums_of(losses, signal)),
    )


def sums_of(losses: CrossEntropy, signal: WriteSignal) -> Sums:
    """The sums of one chunk."""
    dtype = losses.total.dtype
    return Sums(
        loss=losses.total,
        tokens=losses.supervised_bt.sum().astype(dtype),
        teach_norm=trees.safe_norm(signal.block, axis=-1).sum().astype(dtype),
        teach_tokens=signal.active_n.sum().astype(dtype),
    )


def add_stats_of(total: PyTree, new: PyTree) -> PyTree:
    """The statistics of `total` with those of the memories in `new` added."""
    added = {
        name: {level: add_stats(total[name][level], stats) for level, stats in levels.items()}
        for name, levels in new.items()
    }
    return {**total, **added}
