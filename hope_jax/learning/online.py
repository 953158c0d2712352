"""The chunk scan: read, take the teach signal, write (SPEC §4); `outer_gradient` differentiates it.

A stream is read in online chunks of N tokens. Attention, CMS and TITAN read chunk c with what chunks
before c wrote; its teach signal is taken in the same backward pass as the outer gradient; its write runs
at the start of chunk c + 1, with everything that it reads held constant but the parameters that act
through writes alone (`HopeModel.hold_for_write`). Memories that write while they read are differentiated
through their writes. Gradients through them, the attention cache and the convolution history are cut every
K tokens (K = N: at every chunk).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.xent_teach import CrossEntropy
from hope_jax.learning import teach
from hope_jax.learning.loss import read_loss
from hope_jax.learning.teach import TeachRule
from hope_jax.memory.state import WriteSignal, add_stats, zero_stats
from hope_jax.models import tapping
from hope_jax.models.lm import Carry, HopeModel, ReadOutput
from hope_jax.models.tapping import Taps
from hope_jax.types import Array, Batch, PyTree


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


def stream_loss(
    model: HopeModel, rule: OnlineRule, params: PyTree, fast: PyTree, batch: Batch
) -> StreamResult:
    """Reads and writes the batch's streams without an outer gradient (teach schedule 1: inference)."""
    state = begin(model, rule, fast, *batch.tokens.shape)
    whole, rest = split(batch, rule.chunk_size)

    def body(state: StreamState, chunk: Batch) -> tuple[StreamState, None]:
        return read_and_teach(model, rule, params, state, chunk, jnp.ones(())), None

    chunks = jax.tree.map(lambda t: t[:, 0], cut_chunks(whole, 1, rule.chunk_size))
    state, _ = jax.lax.scan(body, state, chunks)
    if rest.tokens.shape[1]:
        state = read_and_teach(model, rule, params, state, rest, jnp.ones(()))
    return finish(model, rule, params, state)


def finish(model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState) -> StreamResult:
    """Writes the last chunk, and flushes or drops partial periods."""
    fast, stats = write_pending(model, rule, params, state, last=True)
    return StreamResult(fast, stats, state.sums)


def split(batch: Batch, multiple: int) -> tuple[Batch, Batch]:
    """The longest part whose length is a multiple of `multiple`, and the rest."""
    whole = batch.tokens.shape[1] // multiple * multiple
    return Batch(*(t[:, :whole] for t in batch)), Batch(*(t[:, whole:] for t in batch))


def cut_chunks(batch: Batch, chunks_per_cut: int, chunk_size: int) -> Batch:
    """[B, T] -> [cuts, chunks per cut, B, N]."""

    def cut(t: Array) -> Array:
        return t.reshape(t.shape[0], -1, chunks_per_cut, chunk_size).transpose(1, 2, 0, 3)

    return jax.tree.map(cut, batch)


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
) -> tuple[StreamState, ReadOutput, Array]:
    """`read_chunk`, what was read, and the loss's cotangent of what the head has read, [B, n, D]."""

    def loss(taps: Any, gradient_taps: Taps, at_head: Array) -> tuple[Array, Any]:
        tapped = tapping.attach(params, params, gradient_taps)
        out, losses = read_with_loss(model, rule, tapped, state.fast, state.carry, chunk, taps, at_head)
        return losses.total, (out, losses)

    taps = model.init_taps(*chunk.tokens.shape)
    gradient_taps = model.init_gradient_taps(params, *chunk.tokens.shape, memories_only=True)
    at_head = jnp.zeros((*chunk.tokens.shape, model.spec.dim), model.spec.dtype)
    grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    (raw, factors, by_hidden), (out, losses) = grad(taps, gradient_taps, at_head)
    out = out._replace(trace=model.recorded(out.trace, factors))
    return after_read(model, rule, state, chunk, out, losses, raw, schedule), out, by_hidden


def read_with_loss(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    fast: PyTree,
    carry: Carry,
    chunk: Batch,
    taps: Any,
    at_head: Array | None = None,
) -> tuple[ReadOutput, CrossEntropy]:
    """Reads a chunk; also its cross-entropy. at_head: zeros [B, n, D], a tap at what the head reads."""
    fast, carry = model.restarted(params, fast, carry, chunk.segment_ids)
    out = model.read(params, fast, carry, chunk.tokens, chunk.segment_ids, taps, training=rule.training)
    tapped = out if at_head is None else out._replace(hidden=out.hidden + at_head)
    return out, read_loss(model, params, tapped, chunk.targets)


def for_writes(model: HopeModel, params: PyTree) -> PyTree:
    """The parameters with what each of many writes at them would find anew (`Memory.for_writes`)."""
    blocks = params["blocks"]
    found = {name: jax.vmap(memory.for_writes)(blocks[name]) for name, memory in model.memories().items()}
    return {**params, "blocks": {**blocks, **found}}


@jax.named_scope("write")
def write_pending(
    model: HopeModel, rule: OnlineRule, params: PyTree, state: StreamState, *, last: bool = False
) -> tuple[PyTree, PyTree]:
    """The memories after the pending chunk's write, and the statistics with it; both as they were if
    nothing is pending. last: the stream ends here."""

    def write(_: None) -> tuple[PyTree, PyTree]:
        fast, stats = model.write(params, state.fast, *state.pending, last=last, training=rule.training)
        return fast, add_stats_of(state.stats, stats)

    return jax.lax.cond(state.pending_exists, write, lambda _: (state.fast, state.stats), None)


def after_read(
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
