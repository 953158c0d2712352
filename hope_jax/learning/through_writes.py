"""Mode `through_writes`: as `online`, and the outer gradient flows through every write (SPEC §4).

The backward pass is written out: the forward scan keeps each chunk's start (fast state, convolution
history), the backward scan reads and writes every chunk again and pulls the cotangents through it, teach
signal included: second order for CMS and TITAN. Keys and values are one buffer for the whole stream: a
chunk sees only its own and earlier rows, so the finished buffer serves every chunk's second reading, and
one buffer gathers its cotangent. Memory grows with the number of chunks by the saved fast states alone.

Gradients of matrices leave a chunk as the factors of both products that they take part in, that of the read
and that of its teach signal, and are multiplied for many chunks at once (`models.tapping`). The norms of a
memory's matrices, which bounds ask for at every write, are measured once and differentiated as numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.learning import teach
from hope_jax.learning.loss import read_loss
from hope_jax.learning.online import (
    OnlineRule,
    StreamResult,
    Sums,
    add_stats_of,
    sums_of,
    zero_write_stats,
)
from hope_jax.learning.outer_gradient import chunks_together
from hope_jax.memory import tapped
from hope_jax.memory.tapped import Factors, Measured
from hope_jax.models import tapping
from hope_jax.models.blocks import join_cache, split_cache
from hope_jax.models.lm import Carry, HopeModel
from hope_jax.models.tapping import Taps
from hope_jax.types import Array, Batch, PyTree


class _Start(NamedTuple):
    """What a chunk starts from. local: of the carry, what is small and overwritten. buffers: keys and values
    of the whole stream, or () without attention."""

    fast: PyTree
    local: PyTree
    buffers: PyTree


class _Chunk(NamedTuple):
    """One chunk [B, n], and the position of its first token."""

    batch: Batch
    position: Array


class _Stepped(NamedTuple):
    """loss: [] summed. start: of the next chunk."""

    loss: Array
    start: _Start


class _Weights(NamedTuple):
    """Parameters, for a chunk. read: of reads. write: those of each memory, as its writes use them."""

    read: PyTree
    write: dict[str, PyTree]


class _Live(NamedTuple):
    """Parameters whose gradient is not asked for as factors. plain: see `tapping.without`. head: the
    embedding as the head. write: of each memory the matrices that reads have taps of, `Measured`, as writes
    use them, and None for its other parameters."""

    plain: PyTree
    head: Array
    write: dict[str, PyTree]


class _OuterTaps(NamedTuple):
    """See `tapping.attach_outer`."""

    outer: Taps
    pulled: Taps


def through_writes_gradients(
    model: HopeModel, rule: OnlineRule, params: PyTree, fast: PyTree, batch: Batch, schedule: Array
) -> tuple[PyTree, StreamResult]:
    """The outer gradient of the *sum* of cross-entropies with nothing cut, and what the streams wrote.

    Arguments and results as of `outer_gradient.online_gradients`; `rule.truncate` has no part in it.
    """
    size, tokens = rule.chunk_size, batch.tokens.shape[1]
    before_last = (tokens - 1) // size
    chunks, last = _cut(batch, before_last, size)
    local, buffers = split_cache(model.init_carry(batch.tokens.shape[0], tokens, whole=True).cache)
    start = _Start(fast, local, buffers)
    step = partial(_read_and_write, model, rule, batch.segment_ids, schedule)
    taps = _taps(model, params, batch.tokens.shape[0], size)
    untapped = _untapped(model, params, taps)

    def forward(carried: Any, chunk: _Chunk) -> tuple[Any, tuple[PyTree, PyTree]]:
        start, stats, sums = carried
        stepped, (new_stats, new_sums) = step(untapped, start, chunk)
        carried = (stepped.start, add_stats_of(stats, new_stats), trees.add(sums, new_sums))
        return carried, (start.fast, start.local)

    zero = jnp.zeros((), jnp.promote_types(model.spec.dtype, jnp.float32))
    carried = (start, zero_write_stats(model, batch.tokens.shape[0]), Sums(zero, zero, zero, zero))
    carried, saved = jax.lax.scan(forward, carried, chunks)
    end, stats, sums = carried

    def end_loss(params: PyTree, floats: list[Array]) -> tuple[Array, Any]:
        stepped, extra = step(_untapped(model, params, taps), _merge(end, floats), last, last=True)
        return stepped.loss, (stepped.start.fast, extra)

    (gradient, cotangent), (final_fast, (new_stats, new_sums)) = jax.grad(
        end_loss, argnums=(0, 1), has_aux=True
    )(params, _floats(end))
    gradient, cotangent = _backward(
        model, step, params, taps, (saved, chunks), end.buffers, (gradient, cotangent)
    )
    # Memories held as whole weights start from the meta parameters.
    _, pull = jax.vjp(lambda p: _floats(start._replace(fast=model.rebase(p, fast))), params)
    gradient = tapping.add_gradients(gradient, pull(cotangent)[0])
    return gradient, StreamResult(final_fast, add_stats_of(stats, new_stats), trees.add(sums, new_sums))


def _backward(
    model: HopeModel,
    step: Callable[..., Any],
    params: PyTree,
    taps: _OuterTaps,
    starts_and_chunks: tuple[Any, _Chunk],
    buffers: PyTree,
    after: tuple[PyTree, list[Array]],
) -> tuple[PyTree, list[Array]]:
    """The gradient of chunks [m, ...] and all that comes after them, and the cotangent of what they start
    from. after: the same of what comes after them alone."""
    count, batch_size, size = starts_and_chunks[1].batch.tokens.shape
    if not count:
        return after
    live = _live(model, params, taps)

    def of_group(carried: tuple[PyTree, list[Array]], group: Any) -> tuple[tuple[PyTree, list[Array]], None]:
        gradient, cotangent = carried

        def of_chunk(carried: tuple[_Live, list[Array]], xs: Any) -> tuple[Any, _OuterTaps]:
            by_live, cotangent = carried
            (fast, local), chunk = xs
            at = _Start(fast, local, buffers)

            def forward(live: _Live, taps: _OuterTaps, floats: list[Array]) -> tuple[Array, list[Array]]:
                stepped, _ = step(_tapped(params, live, taps), _merge(at, floats), chunk)
                return stepped.loss, _floats(stepped.start)

            (loss, _), pull = jax.vjp(forward, live, taps, _floats(at))
            more, factors, cotangent = pull((jnp.ones_like(loss), cotangent))
            return (tapping.add_gradients(by_live, more), cotangent), factors

        nothing = trees.zeros_like(live)
        (by_live, cotangent), factors = jax.lax.scan(of_chunk, (nothing, cotangent), group, reverse=True)
        by_params = _joined(params, by_live, factors, group[1].batch.tokens)
        return (tapping.add_gradients(gradient, by_params), cotangent), None

    together = chunks_together((batch_size, count * size), size)
    if together == count:
        return of_group(after, starts_and_chunks)[0]
    groups = jax.tree.map(lambda t: t.reshape(count // together, together, *t.shape[1:]), starts_and_chunks)
    return jax.lax.scan(of_group, after, groups, reverse=True)[0]


def _taps(model: HopeModel, params: PyTree, batch_size: int, size: int) -> _OuterTaps:
    """Taps of one chunk for all that gives its gradient as factors."""
    outer = model.init_gradient_taps(params, batch_size, size, head=False)
    write_only = {name: memory.write_only for name, memory in model.memories().items()}
    return _OuterTaps(outer, tapping.read_alone(outer, write_only))


def _live(model: HopeModel, params: PyTree, taps: _OuterTaps) -> _Live:
    """The parameters whose gradient the taps do not give."""

    def matrix(tap: Factors | None, w: PyTree) -> Measured | None:
        return None if tap is None else tapped.measured(w)

    of_reads, blocks = taps.pulled.blocks, params["blocks"]
    write = {name: tapped.over(matrix, of_reads[name], blocks[name]) for name in model.memories()}
    return _Live(tapping.without(params, taps.outer), params[tapping.EMBED], write)


def _untapped(model: HopeModel, params: PyTree, taps: _OuterTaps) -> _Weights:
    """The parameters without taps."""
    return _weights(params, _live(model, params, taps), taps)


def _tapped(params: PyTree, live: _Live, taps: _OuterTaps) -> _Weights:
    """The parameters with taps."""
    return _weights(tapping.attach_outer(params, live.plain, live.head, *taps), live, taps)


def _weights(read: PyTree, live: _Live, taps: _OuterTaps) -> _Weights:
    """With the matrices of `live` for writes."""

    def written(tap: Factors | None, w: Any, measured: Measured | None) -> Any:
        return w if tap is None else measured

    blocks = taps.pulled.blocks
    write = {
        name: tapped.over(written, blocks[name], read["blocks"][name], matrices)
        for name, matrices in live.write.items()
    }
    return _Weights(read, write)


def _joined(params: PyTree, live: _Live, factors: _OuterTaps, tokens: Array) -> PyTree:
    """The gradient of all parameters from what was asked for; factors with a leading axis of chunks."""
    both = tapping.both_products(*factors)
    gradient = tapping.gradient(params, live.plain, both, tokens, live.head)
    blocks, of_reads = dict(gradient["blocks"]), factors.pulled.blocks

    def added(tap: Factors | None, g: Array, by_write: Measured | None, w: Array) -> Array:
        return g if tap is None or by_write is None else g + tapped.pull_measured(w, by_write)

    for name, by_write in live.write.items():
        blocks[name] = tapped.over(added, of_reads[name], blocks[name], by_write, params["blocks"][name])
    return {**gradient, "blocks": blocks}


def _read_and_write(
    model: HopeModel,
    rule: OnlineRule,
    segments: Array,
    schedule: Array,
    weights: _Weights,
    start: _Start,
    chunk: _Chunk,
    *,
    last: bool = False,
) -> tuple[_Stepped, tuple[PyTree, Sums]]:
    """Reads a chunk, takes its teach signal and the factors of its writes from the same backward pass, and
    writes it; nothing is cut. Also statistics and sums.

    segments: documents of the whole stream [B, T]; the causal mask hides those to come.
    """
    batch, params = chunk.batch, weights.read
    carry = Carry(chunk.position, segments, join_cache(start.local, start.buffers))
    before, carry = model.restarted(params, start.fast, carry, batch.segment_ids)

    def loss_of(taps: Any, inner: Taps) -> tuple[Array, Any]:
        at = tapping.with_inner(params, inner)
        out = model.read(at, before, carry, batch.tokens, batch.segment_ids, taps, training=rule.training)
        losses = read_loss(model, at, out, batch.targets)
        return losses.total, (out, losses)

    taps = model.init_taps(*batch.tokens.shape)
    inner = model.init_gradient_taps(tapping.values(params), *batch.tokens.shape, memories_only=True)
    inner_gradient = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (loss, (out, losses)), (raw, factors) = inner_gradient(taps, inner)
    signal = teach.process(rule.teach, raw, losses, schedule)
    clock = model.clock(carry, batch.segment_ids)
    writing = {**params, "blocks": {**params["blocks"], **weights.write}}
    trace = model.recorded(out.trace, factors)
    fast, stats = model.write(writing, out.fast, trace, signal, clock, last=last, training=rule.training)
    assert out.carry is not None
    local, buffers = split_cache(out.carry.cache)
    extra = trees.stop_gradient(({**out.stats, **stats}, sums_of(losses, signal)))
    return _Stepped(loss, _Start(fast, local, buffers)), extra


def _cut(batch: Batch, before_last: int, size: int) -> tuple[_Chunk, _Chunk]:
    """The chunks before the last, stacked, and the last, which may be shorter than `size`."""
    whole = before_last * size
    stacked = jax.tree.map(
        lambda t: t[:, :whole].reshape(t.shape[0], before_last, size).swapaxes(0, 1), batch
    )
    positions = jnp.arange(before_last, dtype=jnp.int32) * size
    last = jax.tree.map(lambda t: t[:, whole:], batch)
    return _Chunk(stacked, positions), _Chunk(last, jnp.int32(whole))


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _floats(tree: PyTree) -> list[Array]:
    """The floating leaves, which cotangents belong to (optimizers also count their steps)."""
    return [leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]


def _merge(tree: PyTree, floats: list[Array]) -> Any:
    """The tree with its floating leaves replaced."""
    replacement = iter(floats)
    return jax.tree.map(lambda leaf: next(replacement) if _is_float(leaf) else leaf, tree)
