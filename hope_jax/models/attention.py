"""Causal attention over the tokens of one context, with the cache that a stream carries.

One sequence: [n, D] -> [n, D]. Documents of a packed row do not see each other, neither in attention nor in
the convolution before it. The cache is one preallocated buffer, read through the mask beside the call's own
tokens; a call returns their rows, and `enter` writes them into the buffer, once for all layers and examples.
With a sliding window the buffer is a ring: the token at position p lies in row p mod rows, and what leaves
the window is overwritten.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.memory.tapped import multiply
from hope_jax.models import layers
from hope_jax.models.documents import NO_SEGMENT
from hope_jax.models.spec import ModelSpec
from hope_jax.types import Array


class Cache(NamedTuple):
    """What attention carries in one layer, or the rows that n tokens add to it (n in the place of rows).

    key, value: [rows, heads, K] (`cache_rows`), normalised and rotated as they are used.
    conv: [window - 1, D] last inputs of the local convolution ([0, D] without one).
    """

    key: Array
    value: Array
    conv: Array


class ReadContext(NamedTuple):
    """Where the tokens of a call stand in their context.

    position: int32 [] index of the first token. segments_n: int32 [n] document of each token, 0: padding.
    cached_segments: int32 [capacity] documents of the context's tokens, by position, read up to `position`;
    or None without a cache. clock: int32 [] the first token's index in the context of the memories, where
    that is another than attention's; None: `position`.
    """

    position: Array
    segments_n: Array
    cached_segments: Array | None
    clock: Array | None = None

    def segments_with(self, before: int) -> Array:
        """int32 [before + n]: documents of the `before` tokens before the call, and of its own."""
        at = self.position - before + jnp.arange(before, dtype=jnp.int32)
        if self.cached_segments is None:
            earlier = jnp.full_like(at, NO_SEGMENT)
        else:
            cached = jnp.take(self.cached_segments, at, mode="clip")
            earlier = jnp.where(at >= 0, cached, NO_SEGMENT)
        return jnp.concatenate([earlier, self.segments_n])


def cache_rows(spec: ModelSpec, capacity: int) -> int:
    """Rows that hold what `capacity` tokens leave to see."""
    return min(capacity, spec.sliding_window or capacity)


def init_cache(spec: ModelSpec, rows: int) -> Cache:
    """An empty cache for one layer and one example."""
    shape = (rows, spec.heads, spec.head_dim)
    conv = jnp.zeros((max(spec.local_conv_window - 1, 0), spec.dim), spec.dtype)
    return Cache(key=jnp.zeros(shape, spec.dtype), value=jnp.zeros(shape, spec.dtype), conv=conv)


def cached_positions(position: Array, rows: int) -> Array:
    """int32 [rows]: position of the token in each row before the token at `position`; negative: none yet."""
    last = position - 1
    return last - (last - jnp.arange(rows, dtype=jnp.int32)) % rows


@jax.named_scope("enter")
def enter(spec: ModelSpec, cache: Cache, rows: Cache, position: Array) -> Cache:
    """The cache with the rows of the tokens from `position` on; leaves may have leading axes alike."""
    size, tokens = cache.key.shape[-3], rows.key.shape[-3]

    def at(buffer: Array, new: Array) -> Array:
        new = new.astype(buffer.dtype)
        if size != spec.sliding_window:
            return jax.lax.dynamic_update_slice_in_dim(buffer, new, position, axis=-3)
        first = max(tokens - size, 0)
        rows_at = (position + jnp.arange(first, tokens, dtype=jnp.int32)) % size
        return buffer.at[..., rows_at, :, :].set(new[..., first:, :, :], unique_indices=True)

    return Cache(at(cache.key, rows.key), at(cache.value, rows.value), rows.conv)


def visible(spec: ModelSpec, context: ReadContext, rows: int) -> Array:
    """bool [n, rows + n]: key is not later, in the same document, inside the window. Keys: those of a cache
    of `rows` rows, then the call's own."""
    n = context.segments_n.shape[0]
    query_at = context.position + jnp.arange(n)
    key_at, key_segments = query_at, context.segments_n
    if context.cached_segments is not None:
        cached_at = cached_positions(context.position, rows)
        segments = jnp.take(context.cached_segments, cached_at, mode="clip")
        key_at = jnp.concatenate([cached_at, key_at])
        key_segments = jnp.concatenate([segments, key_segments])
    mask = (key_at >= 0) & (key_at <= query_at[:, None])
    mask &= key_segments == context.segments_n[:, None]
    if context.clock is not None:
        # The document begins here, even if an earlier one had its number.
        mask &= key_at >= context.position - context.clock
    if spec.sliding_window:
        mask &= key_at > query_at[:, None] - spec.sliding_window
    return mask


def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """softmax(q k^T / sqrt(K)) v over the visible keys.

    query: [n, heads, K]; key, value: [keys, heads, K]; mask: bool [n, keys]. Returns [n, heads, K].
    """
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[None])
    # The library takes the softmax in float32 whatever the inputs are; parity needs it in float64.
    logits = jnp.einsum("nhk,mhk->hnm", query, key) / jnp.sqrt(jnp.asarray(query.shape[-1], query.dtype))
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
    return jnp.einsum("hnm,mhk->nhk", weights, value)


@jax.checkpoint
def attend_cached(query: Array, cache: Cache, rows: Cache, mask: Array) -> Array:
    """`attend` over cached and own tokens. Computed again in the backward pass: what it would keep grows with
    the cache, in every layer."""
    key = jnp.concatenate([cache.key, rows.key.astype(cache.key.dtype)])
    value = jnp.concatenate([cache.value, rows.value.astype(cache.value.dtype)])
    return attend(query, key, value, mask)


class Attention(nn.Module):
    """modern: x + W_o attn(norm(x)); reference: norm(x + W_o attn(x)), no positions."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x_nd: Array, context: ReadContext, cache: Cache | None) -> tuple[Array, Cache | None]:
        """x [n, D] -> [n, D], and the rows that these tokens add to the cache (None without one)."""
        spec = self.spec
        inputs = layers.norm(self, spec, x_nd) if spec.modern else x_nd
        conv = jnp.zeros((0, spec.dim), x_nd.dtype)
        if spec.local_conv_window:
            init = layers.conv_init(spec, spec.local_conv_window)
            taps = self.param("conv", init, (spec.local_conv_window, spec.dim), spec.param_dtype)
            history = None if cache is None else cache.conv
            segments = context.segments_with(spec.local_conv_window - 1)
            inputs, conv = causal_conv(inputs, taps, history, segments)
        query, key, value = self._heads(inputs, context)
        mask = visible(spec, context, 0 if cache is None else cache.key.shape[0])
        if cache is None:
            out, rows = attend(query, key, value, mask), None
        else:
            rows = Cache(key=key, value=value, conv=conv)
            out = attend_cached(query, cache, rows, mask)
        out = self._project("w_out", out.reshape(x_nd.shape), residual=True)
        y_nd = x_nd + out
        return (y_nd if spec.modern else layers.norm(self, spec, y_nd)), rows

    def _project(self, name: str, x_nd: Array, *, residual: bool = False) -> Array:
        spec = self.spec
        init = layers.matrix_init(spec, residual=residual)
        return multiply(x_nd, self.param(name, init, (spec.dim, spec.dim), spec.param_dtype))

    def _heads(self, inputs_nd: Array, context: ReadContext) -> tuple[Array, Array, Array]:
        """Query, key, value [n, heads, K], normalised and rotated as the style says."""
        spec = self.spec
        shape = (inputs_nd.shape[0], spec.heads, spec.head_dim)
        query, key, value = (self._project(name, inputs_nd).reshape(shape) for name in ("w_q", "w_k", "w_v"))
        if spec.qk_norm == "l2":
            query, key = layers.unit_norm(query), layers.unit_norm(key)
        elif spec.qk_norm == "rms":
            ones = nn.initializers.ones
            query = layers.rms_norm(query, self.param("q_scale", ones, (spec.head_dim,), spec.param_dtype))
            key = layers.rms_norm(key, self.param("k_scale", ones, (spec.head_dim,), spec.param_dtype))
        if spec.modern:
            positions = context.position + jnp.arange(shape[0])
            query = layers.rotate(query, positions, spec.rope_theta)
            key = layers.rotate(key, positions, spec.rope_theta)
        return query, key, value
