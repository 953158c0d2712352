"""What holds no memory. Attention and the convolution go token by token; all else does the same to each
token, a vector [D] on the last axis."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Arch:
    """What the parameters alone do not say about a model.

    levels: CMS levels in the order of reading (empty for `transformer`).
    connection: of the levels. `nested` reads as `sequential` does.
    window: tokens that a query sees, itself included; 0: all.
    read_clip: bound on the norm of a level's residual branch (published train mode); 0: off.
    act: of `ACTIVATIONS`, for CMS levels and the MLP. cms_norm: False: levels without LayerNorm.
    """

    heads: int
    style: str = "modern"
    levels: tuple[str, ...] = ()
    qk_norm: str = "rms"
    rope_theta: float = 10000.0
    window: int = 0
    read_clip: float = 0.0
    connection: str = "sequential"
    act: str = "gelu"
    cms_norm: bool = True


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    """LayerNorm over the last axis with biased variance."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-5) * scale + bias


def rms_norm(x: Any, scale: Any) -> Any:
    """RMSNorm over the last axis."""
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def norm(arch: Arch, x: Any, scale: Any, bias: Any) -> Any:
    """The style's norm."""
    return rms_norm(x, scale) if arch.style == "modern" else layer_norm(x, scale, bias)


def unit(x: Any) -> Any:
    """x over its norm on the last axis, the norm bounded below."""
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)), 1e-6)


def gelu(x: Any) -> Any:
    """Exact GELU."""
    return 0.5 * x * (1.0 + jax.scipy.special.erf(x / np.sqrt(2.0)))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"gelu": gelu, "relu": jax.nn.relu, "silu": jax.nn.silu}


def mlp(p: Arrays, x: Any, act: str, clip: float = 0.0) -> Any:
    """W_down act(W_up x [+ b_up]) [+ b_down], its norm bounded by a constant factor to `clip` (0: off)."""
    hidden = x @ p["w_up"]
    y = ACTIVATIONS[act](hidden + p["b_up"] if "b_up" in p else hidden) @ p["w_down"]
    y = y + p["b_down"] if "b_down" in p else y
    if clip > 0:
        length = jnp.sqrt(jnp.sum(jax.lax.stop_gradient(y) ** 2, axis=-1, keepdims=True))
        y = y / jnp.maximum(length / clip, 1.0)
    return y


def convolve(taps: Any, inputs: Any, documents: Any) -> Any:
    """Causal depthwise convolution at the last of the inputs [D], which the last of the taps [W, D] meets; no
    tap meets a token of another document."""
    total = jnp.zeros_like(inputs[-1])
    for back in range(min(len(taps), len(inputs))):
        met = jnp.where(documents[-1 - back] == documents[-1], inputs[-1 - back], 0.0)
        total = total + taps[-1 - back] * met
    return total


def rope(x: Any, start: int, theta: float) -> Any:
    """Heads [n, heads, Dh] rotated: coordinates i and i + Dh/2 are a pair of frequency theta^(-2i/Dh)."""
    half = x.shape[-1] // 2
    angle = (start + np.arange(len(x)))[:, None, None] * theta ** (-2.0 * np.arange(half) / x.shape[-1])
    first, second = x[..., :half], x[..., half:]
    turned = (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle))
    return jnp.concatenate(turned, axis=-1)


class Carry(NamedTuple):
    """What an attention layer has of all tokens so far: keys and values [tokens, heads, Dh] as they were
    used, and the inputs [tokens, D] of its convolution."""

    keys: Any
    values: Any
    inputs: Any


def attend(p: Arrays, arch: Arch, x: Any, carry: Carry | None, documents: Any) -> tuple[Any, Carry]:
    """Attention sublayer at the tokens x [n, D] after `carry`; with its residual. documents: of all tokens so
    far, these too."""
    start = 0 if carry is None else len(carry.keys)
    stops = range(start + 1, start + len(x) + 1)
    new = rms_norm(x, p["norm_scale"]) if arch.style == "modern" else x
    inputs = new if carry is None else jnp.concatenate([carry.inputs, new])
    if "conv" in p:
        new = jnp.stack([convolve(p["conv"], inputs[:stop], documents[:stop]) for stop in stops])
    q, k, v = ((new @ p[name]).reshape(len(x), arch.heads, -1) for name in ("w_q", "w_k", "w_v"))
    if arch.qk_norm == "rms":
        q, k = rms_norm(q, p["q_scale"]), rms_norm(k, p["k_scale"])
    elif arch.qk_norm == "l2":
        q, k = unit(q), unit(k)
    if arch.style == "modern":
        q, k = rope(q, start, arch.rope_theta), rope(k, start, arch.rope_theta)
    if carry is not None:
        k, v = jnp.concatenate([carry.keys, k]), jnp.concatenate([carry.values, v])
    rows = []
    for query, stop in zip(q, stops, strict=True):
        seen = documents[:stop] == documents[stop - 1]
        if arch.window:
            seen = seen & (np.arange(stop) >= stop - arch.window)
        scores = jnp.einsum("hd,shd->hs", query, k[:stop]) / np.sqrt(query.shape[-1])
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        rows.append(jnp.einsum("hs,shd->hd", weights, v[:stop]).reshape(-1))
    y = x + jnp.stack(rows) @ p["w_out"]
    y = layer_norm(y, p["norm_scale"], p["norm_bias"]) if arch.style == "reference" else y
    return y, Carry(k, v, inputs)
