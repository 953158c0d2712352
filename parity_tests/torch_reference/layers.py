"""Layers without memory, and attention with the tokens that it remembers. Rows are tokens.

Activations may be narrower than parameters: products are taken in the activations' dtype, norms and softmax
in at least float32.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parity_tests.torch_reference.settings import Arch

Params = dict[str, Tensor]

LAYER_NORM_EPS = 1e-5
RMS_NORM_EPS = 1e-6
UNIT_NORM_EPS = 1e-6


def wide(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


def linear(x: Tensor, w: Tensor) -> Tensor:
    """x W in x's dtype, W [in, out]."""
    return x @ w.to(x.dtype)


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, biased variance."""
    centred = wide(x) - wide(x).mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return (centred / torch.sqrt(variance + LAYER_NORM_EPS) * scale + bias).to(x.dtype)


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis."""
    mean_square = (wide(x) ** 2).mean(-1, keepdim=True)
    return (wide(x) / torch.sqrt(mean_square + RMS_NORM_EPS) * scale).to(x.dtype)


def norm(arch: Arch, p: Params, x: Tensor, prefix: str = "norm_") -> Tensor:
    """The style's norm, with the parameters whose names begin with `prefix`."""
    if arch.modern:
        return rms_norm(x, p[f"{prefix}scale"])
    return layer_norm(x, p[f"{prefix}scale"], p[f"{prefix}bias"])


def length(x: Tensor) -> Tensor:
    """Euclidean norm over the last axis, with slope zero at zero."""
    square = (x**2).sum(-1)
    positive = square > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, square, 1.0)), 0.0)


def unit(x: Tensor, eps: float = UNIT_NORM_EPS) -> Tensor:
    """x / max(|x|, eps) over the last axis."""
    return (wide(x) / length(wide(x)).clamp(min=eps)[..., None]).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), exact."""
    return (wide(x) * 0.5 * (1.0 + torch.erf(wide(x) / math.sqrt(2.0)))).to(x.dtype)


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """One token's heads [heads, K]: coordinates i and i + K/2 turned by position * theta^(-2i/K)."""
    half = x.shape[-1] // 2
    a, b = wide(x[..., :half]), wide(x[..., half:])
    angle = position * theta ** (-torch.arange(half, dtype=a.dtype) / half)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


def convolve(taps: Tensor, inputs: list[Tensor], segments: list[int]) -> Tensor:
    """Causal depthwise convolution at the last of `inputs` [D], over the tokens of its document (`segments`,
    one a token); taps [W, D], the last meets that token."""
    total = torch.zeros_like(inputs[-1])
    for back in range(min(len(taps), len(inputs))):
        if segments[-1 - back] == segments[-1]:
            total = total + taps[-1 - back].to(total.dtype) * inputs[-1 - back]
    return total


@dataclass
class Cache:
    """What attention remembers, one entry a token: keys and values [heads, K] as they are used, document
    numbers, and the inputs [D] of its convolution."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def copy(self) -> "Cache":
        """A cache that can grow apart from this one."""
        return Cache(list(self.keys), list(self.values), list(self.segments), list(self.inputs))


def heads_of(p: Params, arch: Arch, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """One token's query, key and value [heads, K], normalised and rotated as the style says."""
    q, k, v = (linear(x, p[name]).reshape(arch.heads, -1) for name in ("w_q", "w_k", "w_v"))
    if arch.qk_norm == "l2":
        q, k = unit(q), unit(k)
    elif arch.qk_norm == "rms":
        q, k = rms_norm(q, p["q_scale"]), rms_norm(k, p["k_scale"])
    if arch.modern:
        q, k = rotate(q, position, arch.rope_theta), rotate(k, position, arch.rope_theta)
    return q, k, v


def attend(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """sum_j softmax_j(<q, k_j> / sqrt(K)) v_j for each head, [heads, K]."""
    scores = torch.stack([(wide(q) * wide(k)).sum(-1) for k in keys]) / math.sqrt(q.shape[-1])
    weights = torch.softmax(scores, dim=0)
    return sum(w[:, None] * wide(v) for w, v in zip(weights, values, strict=True)).to(q.dtype)


def attention(p: Params, arch: Arch, x_nd: Tensor, segments: list[int], cache: Cache) -> tuple[Tensor, Cache]:
    """The attention sublayer, token by token: x + W_o attn(norm(x)) (modern), norm(x + W_o attn(x)).

    A token sees the tokens of its own document that are not later, itself included, within the window.
    """
    cache, rows = cache.copy(), []
    for x, segment in zip(x_nd, segments, strict=True):
        position = len(cache.keys)
        cache.inputs.append(norm(arch, p, x) if arch.modern else x)
        cache.segments.append(segment)
        mixed = convolve(p["conv"], cache.inputs, cache.segments) if "conv" in p else cache.inputs[-1]
        q, k, v = heads_of(p, arch, mixed, position)
        cache.keys.append(k)
        cache.values.append(v)
        first = max(0, position + 1 - arch.window) if arch.window else 0
        seen = [j for j in range(first, position + 1) if cache.segments[j] == segment]
        out = attend(q, [cache.keys[j] for j in seen], [cache.values[j] for j in seen])
        y = x + linear(out.reshape(-1), p["w_out"])
        rows.append(y if arch.modern else norm(arch, p, y))
    return torch.stack(rows), cache


def mlp(p: Params, arch: Arch, x: Tensor) -> Tensor:
    """x + W_down gelu(W_up norm(x)), pre-norm in both styles."""
    return x + linear(gelu(linear(norm(arch, p, x), p["w_up"])), p["w_down"])


def swiglu(p: Params, arch: Arch, x: Tensor) -> Tensor:
    """x + W_down (silu(W_gate z) * W_up z), z = norm(x)."""
    z = norm(arch, p, x)
    gate = linear(z, p["w_gate"])
    return x + linear(gate * torch.sigmoid(gate) * linear(z, p["w_up"]), p["w_down"])
