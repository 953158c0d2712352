"""Layers without memory: norms, rotary positions, the MLP, and the two styles' initialisers."""

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant, zeros

from hope_jax.core.types import Array, PyTree
from hope_jax.memory.initial import Entries
from hope_jax.memory.mlp_memory import ACTIVATIONS
from hope_jax.memory.norms import norm
from hope_jax.models.spec import ModelSpec


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


def norm_entries(spec: ModelSpec, prefix: str = "norm_", *, start: float = 1.0) -> Entries:
    """The parameters of the style's norm, RMSNorm (modern) or LayerNorm (reference). start: first value of
    the scale."""
    scale = {f"{prefix}scale": (constant(start), (spec.dim,))}
    return scale if spec.modern else {**scale, f"{prefix}bias": (zeros, (spec.dim,))}


def mlp_hidden(spec: ModelSpec, gated: bool) -> int:
    """Hidden width of the MLP, or of SwiGLU with as many parameters: 2/3 of it, up to a multiple of 8."""
    width = spec.mlp_multiplier * spec.dim
    return -(-2 * width // 24) * 8 if gated else width


def mlp_entries(spec: ModelSpec, gated: bool) -> Entries:
    """The parameters of `mlp`."""
    norm, up = norm_entries(spec), (spec.dim, mlp_hidden(spec, gated))
    gate = {**norm, "w_gate": (spec.initial.matrix(), up)} if gated else {}
    down = {"w_down": (spec.initial.matrix(residual=True), up[::-1])}
    return {**gate, "w_up": (spec.initial.matrix(), up), **down, **norm}


def mlp(params: PyTree, spec: ModelSpec, x: Array) -> Array:
    """x + W_down act(W_up z), or with a gate (SwiGLU) x + W_down (silu(W_gate z) * W_up z), of z = norm(x),
    without biases. [..., D] -> [..., D]."""
    z = norm(params, x, "norm_")
    gate = jax.nn.silu(z @ params["w_gate"].astype(z.dtype)) if "w_gate" in params else None
    up = z @ params["w_up"].astype(z.dtype)
    hidden = ACTIVATIONS[spec.activation](up) if gate is None else gate * up
    return x + hidden @ params["w_down"].astype(x.dtype)
