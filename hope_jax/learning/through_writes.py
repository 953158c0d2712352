"""Mode `through_writes`: as `online`, and the outer gradient flows through every write (SPEC §4).

The backward pass is written out: the forward scan keeps each chunk's start (fast state, convolution
history), the backward scan reads and writes every chunk again and pulls the cotangents through it, teach
signal included: second order for CMS and TITAN. Keys and values are one buffer for the whole stream: a
chunk sees only its own and earlier rows, so the finished buffer serves every chunk's second reading, and
one buffer gathers its cotangent. Memory grows with the number of chunks by the saved fast states alone.
"""

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
from hope_jax.learning.outer_gradient import add_gradients
from hope_jax.models.blocks import join_cache, split_cache
from hope_jax.models.lm import Carry, HopeModel
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

    def step(params: PyTree, start: _Start, chunk: _Chunk, last: bool = False) -> tuple[_Stepped, Any]:
        return _read_and_write(model, rule, params, start, chunk, batch.segment_ids, schedule, last=last)

    def forward(carried: Any, chunk: _Chunk) -> tuple[Any, tuple[PyTree, PyTree]]:
        start, stats, sums = carried
        stepped, (new_stats, new_sums) = step(params, start, chunk)
        carried = (stepped.start, add_stats_of(stats, new_stats), trees.add(sums, new_sums))
        return carried, (start.fast, start.local)

    zero = jnp.zeros((), jnp.promote_types(model.spec.dtype, jnp.float32))
    carried = (start, zero_write_stats(model, batch.tokens.shape[0]), Sums(zero, zero, zero, zero))
    carried, saved = jax.lax.scan(forward, carried, chunks)
    end, stats, sums = carried

    def end_loss(params: PyTree, floats: list[Array]) -> tuple[Array, Any]:
        stepped, extra = step(params, _merge(end, floats), last, last=True)
        return stepped.loss, (stepped.start.fast, extra)

    (gradient, cotangent), (final_fast, (new_stats, new_sums)) = jax.grad(
        end_loss, argnums=(0, 1), has_aux=True
    )(params, _floats(end))

    def backward(carried: tuple[PyTree, list[Array]], xs: Any) -> tuple[tuple[PyTree, list[Array]], None]:
        gradient, cotangent = carried
        (fast, local), chunk = xs
        at = _Start(fast, local, end.buffers)

        def forward(params: PyTree, floats: list[Array]) -> tuple[Array, list[Array]]:
            stepped, _ = step(params, _merge(at, floats), chunk)
            return stepped.loss, _floats(stepped.start)

        (loss, _), pull = jax.vjp(forward, params, _floats(at))
        by_params, cotangent = pull((jnp.ones_like(loss), cotangent))
        return (add_gradients(gradient, by_params), cotangent), None

    carried_back, _ = jax.lax.scan(backward, (gradient, cotangent), (saved, chunks), reverse=True)
    gradient, cotangent = carried_back
    # Memories held as whole weights start from the meta parameters.
    _, pull = jax.vjp(lambda p: _floats(start._replace(fast=model.rebase(p, fast))), params)
    gradient = add_gradients(gradient, pull(cotangent)[0])
    return gradient, StreamResult(final_fast, add_stats_of(stats, new_stats), trees.add(sums, new_sums))


def _read_and_write(
    model: HopeModel,
    rule: OnlineRule,
    params: PyTree,
    start: _Start,
    chunk: _Chunk,
    segments: Array,
    schedule: Array,
    *,
    last: bool,
) -> tuple[_Stepped, tuple[PyTree, Sums]]:
    """Reads a chunk, takes its teach signal, writes it; nothing is cut. Also statistics and sums.

    segments: documents of the whole stream [B, T]; the causal mask hides those to come.
    """
    batch = chunk.batch
    carry = Carry(chunk.position, segments, join_cache(start.local, start.buffers))
    before, carry = model.restarted(params, start.fast, carry, batch.segment_ids)

    def loss_of(taps: Any) -> tuple[Array, Any]:
        out = model.read(params, before, carry, batch.tokens, batch.segment_ids, taps, training=rule.training)
        losses = read_loss(model, params, out, batch.targets)
        return losses.total, (out, losses)

    taps = model.init_taps(*batch.tokens.shape)
    (loss, (out, losses)), raw = jax.value_and_grad(loss_of, has_aux=True)(taps)
    signal = teach.process(rule.teach, raw, losses, schedule)
    clock = model.clock(carry, batch.segment_ids)
    fast, stats = model.write(params, out.fast, out.trace, signal, clock, last=last, training=rule.training)
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
