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
from flax import linen as nn

from hope_jax.core.types import Array
from hope_jax.kernels.attention import Sight, attend
from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.memory.flops import Flops, matrices
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


class Attention(nn.Module):
    """modern: x + W_o attn(norm(x)); reference: norm(x + W_o attn(x)), no positions."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x_bnd: Array, context: ReadContext, cache: Cache | None) -> tuple[Array, Cache | None]:
        """x [B, n, D] -> [B, n, D], and the cache with these tokens (None without one)."""
        spec = self.spec
        inputs = layers.norm(self, spec, x_bnd) if spec.modern else x_bnd
        conv = None if cache is None else cache.conv
        if spec.local_conv_window:
            init = spec.initial.conv(spec.local_conv_window)
            taps = self.param("conv", init, (spec.local_conv_window, spec.dim), spec.param_dtype)
            segments = context.segments_with(spec.local_conv_window - 1)
            inputs, conv = jax.vmap(causal_conv, (0, None, 0, 0))(inputs, taps, conv, segments)
        query, key, value = self._heads(inputs, context)
        if cache is None:
            out = self._attend(query, key, value, context, jnp.arange(key.shape[1], dtype=jnp.int32))
        else:
            assert conv is not None
            out, cache = self._through_cache(context, cache._replace(conv=conv), query, key, value)
        out = self._project("w_out", out.reshape(x_bnd.shape), residual=True)
        y_bnd = x_bnd + out
        return (y_bnd if spec.modern else layers.norm(self, spec, y_bnd)), cache

    def _through_cache(
        self, context: ReadContext, cache: Cache, query: Array, key: Array, value: Array
    ) -> tuple[Array, Cache]:
        """Attends to cached keys and to those of the call, and enters the latter into the cache."""
        rows, tokens, position = cache.key.shape[1], key.shape[1], context.position
        assert context.seen_segments is not None
        ring = rows < context.seen_segments.shape[1]
        keys, values = new_key, new_value = tuple(
            enter(buffer, new, position, ring=ring)
            for buffer, new in ((cache.key, key), (cache.value, value))
        )
        at = cached_positions(position + tokens, rows)
        if ring and tokens > rows - self.spec.sliding_window + 1:
            own_at = position + jnp.arange(tokens, dtype=jnp.int32)
            at = jnp.concatenate([cached_positions(position, rows), own_at])
            keys = jnp.concatenate([cache.key, key.astype(cache.key.dtype)], axis=1)
            values = jnp.concatenate([cache.value, value.astype(cache.value.dtype)], axis=1)
        out = self._attend(query, keys, values, context, at)
        return out, Cache(new_key, new_value, cache.conv)

    def _attend(self, query: Array, key: Array, value: Array, context: ReadContext, at: Array) -> Array:
        """Attends to keys at positions `at`, int32 [m]."""
        spec, own = self.spec, context.seen_segments is None
        return attend(
            query, key, value, sight(context, at), window=spec.sliding_window, aligned=own, twice=spec.twice
        )

    def _project(self, name: str, x: Array, *, residual: bool = False) -> Array:
        spec = self.spec
        init = spec.initial.matrix(residual=residual)
        return x @ self.param(name, init, (spec.dim, spec.dim), spec.param_dtype).astype(x.dtype)

    def _heads(self, inputs_bnd: Array, context: ReadContext) -> tuple[Array, Array, Array]:
        """Query, key, value [B, n, heads, K], normalised and rotated as the style says."""
        spec = self.spec
        shape = (*inputs_bnd.shape[:2], spec.heads, spec.head_dim)
        query, key, value = (self._project(name, inputs_bnd).reshape(shape) for name in ("w_q", "w_k", "w_v"))
        if spec.head_norm == "l2":
            query, key = layers.unit_norm(query), layers.unit_norm(key)
        elif spec.head_norm == "rms":
            ones = nn.initializers.ones
            query = layers.rms_norm(query, self.param("q_scale", ones, (spec.head_dim,), spec.param_dtype))
            key = layers.rms_norm(key, self.param("k_scale", ones, (spec.head_dim,), spec.param_dtype))
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
