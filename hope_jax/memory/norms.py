"""Norms over the last axis; statistics in at least float32."""

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree


def layer_norm(x: Array, scale: Array, bias: Array, eps: float = 1e-5) -> Array:
    """LayerNorm with biased variance, in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    normed = (wide - mean) * jax.lax.rsqrt(variance + eps) * scale + bias
    return normed.astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float = 1e-6) -> Array:
    """x / rms(x) * scale, in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return (normed * scale).astype(x.dtype)


def unit_norm(x: Array, eps: float = 1e-6, size: float = 1.0) -> Array:
    """size x / max(|x|, eps), in at least float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return size * wide / jnp.maximum(trees.safe_norm(wide, axis=-1, keepdims=True), eps)


def norm(params: PyTree, x: Array, prefix: str) -> Array:
    """RMSNorm of x [..., D], or with a bias LayerNorm; x itself without parameters of the prefix."""
    scale, bias = params.get(f"{prefix}scale"), params.get(f"{prefix}bias")
    if scale is None:
        return x
    return rms_norm(x, scale) if bias is None else layer_norm(x, scale, bias)
