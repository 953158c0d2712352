"""Layers without memory: norms, rotary positions, the MLP, and the two styles' initialisers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax.memory.mlp_memory import ACTIVATIONS, layer_norm
from hope_jax.memory.tapped import multiply
from hope_jax.models.spec import ModelSpec
from hope_jax.types import Array

Init = Callable[..., Array]
"""(key, shape, dtype) -> array."""

RMS_NORM_EPS = 1e-6
L2_NORM_EPS = 1e-6
EMBED_STD = 0.02


def matrix_init(spec: ModelSpec, *, residual: bool = False) -> Init:
    """Of a [in, out] matrix: uniform +-1/sqrt(fan_in) in the reference; normal of that scale in modern,
    smaller by sqrt(2 * layers) where the output is added to the residual stream."""
    if not spec.modern:
        return jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    scale = 1.0 / (2 * spec.num_layers) if residual else 1.0
    return jax.nn.initializers.variance_scaling(scale, "fan_in", "normal")


def bias_init(fan_in: int) -> Init:
    """The reference's bias: uniform +-1/sqrt(fan_in) of the matrix that it belongs to."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(jnp.asarray(fan_in, dtype))

    return init


def transposed_init(init: Init) -> Init:
    """The same distribution for a matrix (out, in)."""

    def transposed(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return init(key, shape[::-1], dtype).T

    return transposed


def conv_init(spec: ModelSpec, window: int) -> Init:
    """Of the depthwise convolution [window, D]: torch's uniform in the reference, identity in modern."""
    if not spec.modern:
        return bias_init(window)

    def identity(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        del key
        return jnp.zeros(shape, dtype).at[-1].set(1.0)

    return identity


def embed_init(spec: ModelSpec) -> Init:
    """Of the tied embedding: unit normal in the reference, std 0.02 in modern."""
    return jax.nn.initializers.normal(EMBED_STD if spec.modern else 1.0)


def rms_norm(x: Array, scale: Array, eps: float = RMS_NORM_EPS) -> Array:
    """x / rms(x) * scale over the last axis; statistics in at least float32, result in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return (normed * scale).astype(x.dtype)


def unit_norm(x: Array, eps: float = L2_NORM_EPS) -> Array:
    """x / max(|x|, eps) over the last axis."""
    square = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))).sum(-1, keepdims=True)
    # Below eps the bound is constant: select before the root, whose slope at zero is infinite.
    norm = jnp.where(square > eps**2, jnp.sqrt(jnp.maximum(square, eps**2)), eps)
    return (x / norm).astype(x.dtype)


def rotate(x_nhk: Array, positions_n: Array, theta: float) -> Array:
    """Rotary positions: pairs (i, i + K/2) of the last axis turned by position * theta^(-2i/K).

    x_nhk: [n, heads, K]. positions_n: int32 [n], absolute in the context.
    """
    half = x_nhk.shape[-1] // 2
    wide = jnp.promote_types(x_nhk.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(half, dtype=wide) / half)
    angle = positions_n.astype(wide)[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x_nhk[..., :half].astype(wide), x_nhk[..., half:].astype(wide)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x_nhk.dtype)


def norm(module: nn.Module, spec: ModelSpec, x: Array, prefix: str = "norm_", *, start: float = 1.0) -> Array:
    """The style's norm, RMSNorm (modern) or LayerNorm (reference), with parameters declared in `module`.

    start: first value of the scale.
    """
    scale = module.param(f"{prefix}scale", nn.initializers.constant(start), (spec.dim,), spec.param_dtype)
    if spec.modern:
        return rms_norm(x, scale)
    bias = module.param(f"{prefix}bias", nn.initializers.zeros, (spec.dim,), spec.param_dtype)
    return layer_norm(x, scale, bias)


class FinalNorm(nn.Module):
    """The norm before the head."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The style's norm of [..., D]."""
        return norm(self, self.spec, x, prefix="")


class SwiGlu(nn.Module):
    """x + W_down (silu(W_gate z) * W_up z), z = norm(x), without biases. One sequence, [n, D] -> [n, D].

    The hidden width is 2/3 of the MLP's, rounded up to a multiple of 8: as many parameters.
    """

    spec: ModelSpec

    @nn.compact
    def __call__(self, x_nd: Array) -> Array:
        """x [n, D] -> [n, D]."""
        spec = self.spec
        hidden = -(-2 * spec.mlp_hidden // 24) * 8
        z = norm(self, spec, x_nd)

        def project(name: str, v: Array, columns: int, *, residual: bool = False) -> Array:
            init, shape = matrix_init(spec, residual=residual), (v.shape[-1], columns)
            return multiply(v, self.param(name, init, shape, spec.param_dtype))

        gated = jax.nn.silu(project("w_gate", z, hidden)) * project("w_up", z, hidden)
        return x_nd + project("w_down", gated, spec.dim, residual=True)


class Mlp(nn.Module):
    """x + W_down act(W_up norm(x)), without biases. One sequence, [n, D] -> [n, D]."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x_nd: Array) -> Array:
        """x [n, D] -> [n, D]."""
        spec = self.spec
        up_shape, down_shape = (spec.dim, spec.mlp_hidden), (spec.mlp_hidden, spec.dim)
        w_up = self.param("w_up", matrix_init(spec), up_shape, spec.param_dtype)
        w_down = self.param("w_down", matrix_init(spec, residual=True), down_shape, spec.param_dtype)
        z = norm(self, spec, x_nd)
        hidden = ACTIVATIONS[spec.activation](multiply(z, w_up))
        return x_nd + multiply(hidden, w_down)
