"""Layers without memory: norms, rotary positions, the MLP, and the two styles' initialisers."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax.core.types import Array, PyTree
from hope_jax.memory.initial import Entries
from hope_jax.memory.mlp_memory import ACTIVATIONS, layer_norm
from hope_jax.models.spec import ModelSpec

RMS_NORM_EPS = 1e-6
L2_NORM_EPS = 1e-6
EMBED_STD = 0.02


def embed_init(spec: ModelSpec) -> jax.nn.initializers.Initializer:
    """The tied embedding begins unit normal in the reference, with a spread of 0.02 in modern."""
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


def rotate(x_bnhk: Array, positions_n: Array, theta: float) -> Array:
    """Rotary positions: pairs (i, i + K/2) of the last axis turned by position * theta^(-2i/K).

    x_bnhk: [B, n, heads, K]. positions_n: int32 [n], absolute in the context.
    """
    half = x_bnhk.shape[-1] // 2
    wide = jnp.promote_types(x_bnhk.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(half, dtype=wide) / half)
    angle = positions_n.astype(wide)[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x_bnhk[..., :half].astype(wide), x_bnhk[..., half:].astype(wide)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x_bnhk.dtype)


def norm(module: nn.Module, spec: ModelSpec, x: Array, prefix: str = "norm_", *, start: float = 1.0) -> Array:
    """The style's norm, RMSNorm (modern) or LayerNorm (reference), with parameters declared in `module`.

    start: first value of the scale.
    """
    entries = prefixed(norm_entries(spec, start), prefix)
    return normed(*(module.param(name, *entry, spec.param_dtype) for name, entry in entries.items()), x=x)


def prefixed(entries: Entries, prefix: str = "norm_") -> Entries:
    """The same parameters under longer names."""
    return {f"{prefix}{name}": entry for name, entry in entries.items()}


def norm_entries(spec: ModelSpec, start: float = 1.0) -> Entries:
    """The parameters of the style's norm."""
    scale = {"scale": (nn.initializers.constant(start), (spec.dim,))}
    return scale if spec.modern else {**scale, "bias": (nn.initializers.zeros, (spec.dim,))}


def normed(scale: Array, bias: Array | None = None, *, x: Array) -> Array:
    """RMSNorm of x [..., D], or with a bias LayerNorm."""
    return rms_norm(x, scale) if bias is None else layer_norm(x, scale, bias)


def swiglu_hidden(spec: ModelSpec) -> int:
    """Hidden width of SwiGLU with as many parameters as the MLP: 2/3 of the MLP's, up to a multiple of 8."""
    return -(-2 * spec.mlp_hidden // 24) * 8


def mlp_entries(spec: ModelSpec) -> Entries:
    """The parameters of `mlp`."""
    dim, hidden = spec.dim, spec.mlp_hidden
    matrices = {
        "w_up": (spec.initial.matrix(), (dim, hidden)),
        "w_down": (spec.initial.matrix(residual=True), (hidden, dim)),
    }
    return {**matrices, **prefixed(norm_entries(spec))}


def mlp(params: PyTree, spec: ModelSpec, x: Array) -> Array:
    """x + W_down act(W_up norm(x)), without biases. [..., D] -> [..., D]."""
    z = _normed_by(params, x)
    hidden = ACTIVATIONS[spec.activation](z @ params["w_up"].astype(z.dtype))
    return x + hidden @ params["w_down"].astype(x.dtype)


def swiglu_entries(spec: ModelSpec) -> Entries:
    """The parameters of `swiglu`."""
    dim, hidden, matrix = spec.dim, swiglu_hidden(spec), spec.initial.matrix
    up = {name: (matrix(), (dim, hidden)) for name in ("w_gate", "w_up")}
    return {**prefixed(norm_entries(spec)), **up, "w_down": (matrix(residual=True), (hidden, dim))}


def swiglu(params: PyTree, spec: ModelSpec, x: Array) -> Array:
    """x + W_down (silu(W_gate z) * W_up z), z = norm(x), without biases. [..., D] -> [..., D]."""
    del spec
    z = _normed_by(params, x)
    gate, up, down = (params[name].astype(z.dtype) for name in ("w_gate", "w_up", "w_down"))
    return x + (jax.nn.silu(z @ gate) * (z @ up)) @ down


def _normed_by(params: PyTree, x: Array) -> Array:
    """The layer's own norm of x."""
    return normed(
        **{name: params[f"norm_{name}"] for name in ("scale", "bias") if f"norm_{name}" in params}, x=x
    )
