"""Causal attention over the tokens of one context, with the cache that a stream carries.

One sequence: [n, D] -> [n, D]. Documents of a packed row do not see each other. The cache is one
preallocated buffer; the tokens of a call are written into it and read back through the mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.models import layers
from hope_jax.models.spec import ModelSpec
from hope_jax.types import Array


class Cache(NamedTuple):
    """What attention carries in one layer.

    key, value: [capacity, heads, K], normalised and rotated as they are used.
    conv: [window - 1, D] last inputs of the local convolution ([0, D] without one).
    """

    key: Array
    value: Array
    conv: Array


class ReadContext(NamedTuple):
    """Where the tokens of a call stand in their context.

    position: int32 [] index of the first token. segments_n: int32 [n] document of each token, 0: padding.
    cached_segments: int32 [capacity] documents of the cached tokens with this call's already entered,
    or None without a cache.
    """

    position: Array
    segments_n: Array
    cached_segments: Array | None


def init_cache(spec: ModelSpec, capacity: int) -> Cache:
    """An empty cache for one layer and one example."""
    shape = (capacity, spec.heads, spec.head_dim)
    conv = jnp.zeros((max(spec.local_conv_window - 1, 0), spec.dim), spec.dtype)
    return Cache(key=jnp.zeros(shape, spec.dtype), value=jnp.zeros(shape, spec.dtype), conv=conv)


def visible(spec: ModelSpec, context: ReadContext) -> Array:
    """bool [n, keys]: key is not later, in the same document, inside the window."""
    n = context.segments_n.shape[0]
    query_at = context.position + jnp.arange(n)
    if context.cached_segments is None:
        key_at, key_segments = query_at, context.segments_n
    else:
        key_at, key_segments = jnp.arange(context.cached_segments.shape[0]), context.cached_segments
    mask = key_at <= query_at[:, None]
    mask &= key_segments == context.segments_n[:, None]
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


def _enter(buffer: Array, new: Array, position: Array) -> Array:
    """The buffer with `new` [n, heads, K] at `position`."""
    return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), position, axis=0)


class Attention(nn.Module):
    """modern: x + W_o attn(norm(x)); reference: norm(x + W_o attn(x)), no positions."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x_nd: Array, context: ReadContext, cache: Cache | None) -> tuple[Array, Cache | None]:
        """x [n, D] -> [n, D], and the cache with these tokens entered."""
        spec = self.spec
        inputs = layers.norm(self, spec, x_nd) if spec.modern else x_nd
        conv = jnp.zeros((0, spec.dim), x_nd.dtype)
        if spec.local_conv_window:
            init = layers.conv_init(spec, spec.local_conv_window)
            taps = self.param("conv", init, (spec.local_conv_window, spec.dim), spec.param_dtype)
            inputs, conv = causal_conv(inputs, taps, None if cache is None else cache.conv)
        query, key, value = self._heads(inputs, context)
        if cache is not None:
            key = _enter(cache.key, key, context.position)
            value = _enter(cache.value, value, context.position)
            cache = Cache(key=key, value=value, conv=conv)
        out = attend(query, key, value, visible(spec, context))
        out = self._project("w_out", out.reshape(x_nd.shape), residual=True)
        y_nd = x_nd + out
        return (y_nd if spec.modern else layers.norm(self, spec, y_nd)), cache

    def _project(self, name: str, x_nd: Array, *, residual: bool = False) -> Array:
        spec = self.spec
        init = layers.matrix_init(spec, residual=residual)
        return x_nd @ self.param(name, init, (spec.dim, spec.dim), spec.param_dtype).astype(x_nd.dtype)

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
