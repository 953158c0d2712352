"""Causal attention over the tokens of one context, with the cache that a stream carries.

A batch of contexts: [B, n, D] -> [B, n, D]. Documents of a packed row do not see each other, neither in
attention nor in the convolution before it. The cache is one preallocated buffer a layer: a call enters its
own keys and values, and reads the buffer through a mask. With a sliding window the buffer is a ring: the
token at position p lies in row p mod rows, and there are a chunk's rows more than the window has, so what a
chunk overwrites is out of sight of its first token. A longer call reads the ring as it was beside its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import ones

from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.attention import Sight, attend
from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.memory.flops import Flops, matrices
from hope_jax.memory.initial import Entries
from hope_jax.memory.norms import norm, rms_norm, unit_norm
from hope_jax.models import layers
from hope_jax.models.documents import NO_SEGMENT
from hope_jax.models.spec import ModelSpec


class Cache(NamedTuple):
    """What attention carries in one layer.

    key, value: [B, rows, heads, K] (`cache_rows`), normalised and rotated as they are used.
    conv: [B, window - 1, D] last inputs of the local convolution ([B, 0, D] without one).
    """

    key: Array
    value: Array
    conv: Array


class ReadContext(NamedTuple):
    """Where the tokens of a call stand in their contexts.

    position: int32 [] index of the first token. segments_bn: int32 [B, n] document of each token, 0: padding.
    seen_segments: int32 [B, capacity] documents of the contexts' tokens by position, those of the call
    included; or None without a cache. clock: int32 [B] the first token's index in the context of the
    memories, where that is another than attention's; None: `position`.
    """

    position: Array
    segments_bn: Array
    seen_segments: Array | None
    clock: Array | None = None

    def segments_with(self, before: int) -> Array:
        """int32 [B, before + n]: documents of the `before` tokens before the call, and of its own."""
        at = self.position - before + jnp.arange(before, dtype=jnp.int32)
        if self.seen_segments is None:
            earlier = jnp.full((len(self.segments_bn), before), NO_SEGMENT, jnp.int32)
        else:
            seen = jnp.take(self.seen_segments, at, axis=1, mode="clip")
            earlier = jnp.where(at >= 0, seen, NO_SEGMENT)
        return jnp.concatenate([earlier, self.segments_bn], axis=1)


def cache_rows(spec: ModelSpec, capacity: int) -> int:
    """How many rows a cache needs for `capacity` tokens: no more than the sliding window and a chunk."""
    return min(capacity, spec.sliding_window + spec.chunk_size if spec.sliding_window else capacity)


def init_cache(spec: ModelSpec, batch_size: int, capacity: int) -> Cache:
    """An empty cache of one layer, for contexts of up to `capacity` tokens."""
    shape = (batch_size, cache_rows(spec, capacity), spec.heads, spec.head_dim)
    conv = jnp.zeros((batch_size, max(spec.local_conv_window - 1, 0), spec.dim), spec.dtype)
    return Cache(key=jnp.zeros(shape, spec.dtype), value=jnp.zeros(shape, spec.dtype), conv=conv)


def cached_positions(position: Array, rows: int) -> Array:
    """int32 [rows]: position of the token in each row before the token at `position`; negative: none yet."""
    last = position - 1
    return last - (last - jnp.arange(rows, dtype=jnp.int32)) % rows


def enter(buffer: Array, new: Array, position: Array, *, ring: bool) -> Array:
    """Enters what belongs to the tokens from `position` on, [B, n, ...], into the buffer [B, rows, ...]."""
    size, tokens = buffer.shape[1], new.shape[1]
    new = new.astype(buffer.dtype)
    if not ring:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, position, axis=1)
    first = max(tokens - size, 0)
    rows_at = (position + jnp.arange(first, tokens, dtype=jnp.int32)) % size
    return buffer.at[:, rows_at].set(new[:, first:], unique_indices=True)


def sight(context: ReadContext, key_at: Array) -> Sight:
    """What the tokens of the call see of keys at positions `key_at`, int32 [m]; negative: of none."""
    own = context.segments_bn
    query_at = context.position + jnp.arange(own.shape[1], dtype=jnp.int32)
    if context.seen_segments is None:
        return Sight(query_at[None], key_at[None], own, own)
    there = key_at[None] >= 0
    if context.clock is not None:
        # The document begins here, even if an earlier one had its number.
        there &= key_at >= context.position - context.clock[:, None]
    of = jnp.take(context.seen_segments, key_at, axis=1, mode="clip")
    return Sight(query_at[None], key_at[None], own, jnp.where(there, of, NO_SEGMENT))


def entries(spec: ModelSpec) -> Entries:
    """The parameters of `read`."""
    norm, window, square = layers.norm_entries(spec), spec.local_conv_window, (spec.dim, spec.dim)
    scales = dict.fromkeys(("q_scale", "k_scale"), (ones, (spec.head_dim,)))
    return {
        **(norm if spec.modern else {}),
        **({"conv": (spec.initial.conv(window), (window, spec.dim))} if window else {}),
        **dict.fromkeys(("w_q", "w_k", "w_v"), (spec.initial.matrix(), square)),
        **(scales if spec.head_norm == "rms" else {}),
        "w_out": (spec.initial.matrix(residual=True), square),
        **({} if spec.modern else norm),
    }


def read(
    spec: ModelSpec, params: PyTree, x_bnd: Array, context: ReadContext, cache: Cache | None
) -> tuple[Array, Cache | None]:
    """x [B, n, D] -> [B, n, D], and the cache with these tokens (None without one).

    modern: x + W_o attn(norm(x)); reference: norm(x + W_o attn(x)), no positions.
    """
    inputs = norm(params, x_bnd, "norm_") if spec.modern else x_bnd
    conv = None if cache is None else cache.conv
    if "conv" in params:
        segments = context.segments_with(spec.local_conv_window - 1)
        inputs, conv = jax.vmap(causal_conv, (0, None, 0, 0))(inputs, params["conv"], conv, segments)
    query, key, value = _heads(spec, params, inputs, context)
    at = jnp.arange(key.shape[1], dtype=jnp.int32)
    if cache is not None:
        assert conv is not None
        key, value, at, cache = _beside(spec, cache._replace(conv=conv), key, value, context)
    own, window = context.seen_segments is None, spec.sliding_window
    out = attend(query, key, value, sight(context, at), window=window, aligned=own, twice=spec.twice)
    y_bnd = x_bnd + _project(params, "w_out", out.reshape(x_bnd.shape))
    return (y_bnd if spec.modern else norm(params, y_bnd, "norm_")), cache


def _beside(
    spec: ModelSpec, cache: Cache, key: Array, value: Array, context: ReadContext
) -> tuple[Array, Array, Array, Cache]:
    """Keys and values of the cache and of the call, their positions, and the cache with the latter."""
    rows, tokens, position = cache.key.shape[1], key.shape[1], context.position
    assert context.seen_segments is not None
    ring = rows < context.seen_segments.shape[1]
    new_key, new_value = (
        enter(buffer, new, position, ring=ring) for buffer, new in ((cache.key, key), (cache.value, value))
    )
    entered = Cache(new_key, new_value, cache.conv)
    if not ring or tokens <= rows - spec.sliding_window + 1:
        return new_key, new_value, cached_positions(position + tokens, rows), entered
    own_at = position + jnp.arange(tokens, dtype=jnp.int32)
    at = jnp.concatenate([cached_positions(position, rows), own_at])
    keys = jnp.concatenate([cache.key, key.astype(cache.key.dtype)], axis=1)
    values = jnp.concatenate([cache.value, value.astype(cache.value.dtype)], axis=1)
    return keys, values, at, entered


def _project(params: PyTree, name: str, x: Array) -> Array:
    return x @ params[name].astype(x.dtype)


def _heads(
    spec: ModelSpec, params: PyTree, inputs_bnd: Array, context: ReadContext
) -> tuple[Array, Array, Array]:
    """Query, key, value [B, n, heads, K], normalised and rotated as the style says."""
    shape = (*inputs_bnd.shape[:2], spec.heads, spec.head_dim)
    query, key, value = (_project(params, name, inputs_bnd).reshape(shape) for name in ("w_q", "w_k", "w_v"))
    if spec.head_norm == "l2":
        query, key = (unit_norm(t).astype(t.dtype) for t in (query, key))
    elif spec.head_norm == "rms":
        query, key = rms_norm(query, params["q_scale"]), rms_norm(key, params["k_scale"])
    if spec.modern:
        positions = context.position + jnp.arange(shape[1])
        query = layers.rotate(query, positions, spec.rope_theta)
        key = layers.rotate(key, positions, spec.rope_theta)
    return query, key, value


def flops(spec: ModelSpec, tokens: int, cut: int, chunk: int) -> list[Flops]:
    """The operations in rows of `tokens` tokens that are cut every `cut` and read in chunks: four
    projections; scores and their weighted sum over the keys that a token sees on average. Keys and values
    from before a cut have no cotangents, which is half of the backward products."""
    projections, seen = matrices(8.0 * spec.dim * spec.dim), min(tokens / 2, spec.sliding_window or tokens)

    def backward(length: int) -> float:
        return 4.0 * spec.dim * (min(length / 2, seen) + seen)

    forward, signal, both = projections.forward, projections.signal, projections.backward
    return [Flops(forward + 4.0 * spec.dim * seen, signal + backward(chunk), both + backward(cut))]
