"""Reads: the forward pass of one example, token by token where tokens interact.

Parameter trees are production's (matrices [in, out], every leaf of `blocks` with a leading layer axis).
`deltas[layer][level][name]` are the fast weights' offsets; a missing entry means zero.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
Deltas = list[dict[str, dict[str, Any]]]

LAYER_NORM_EPS = 1e-5
RMS_NORM_EPS = 1e-6
UNIT_EPS = 1e-6


@dataclass(frozen=True)
class Arch:
    """What the parameters alone do not say about a model.

    levels: CMS levels in the order of reading (empty for `transformer`).
    window: tokens that a query sees, itself included; 0: all.
    read_clip: bound on the norm of a level's residual branch per token (published train mode); 0: off.
    """

    heads: int
    style: str = "modern"
    levels: tuple[str, ...] = ()
    qk_norm: str = "rms"
    rope_theta: float = 10000.0
    window: int = 0
    read_clip: float = 0.0


@dataclass(frozen=True)
class Past:
    """What one attention layer remembers: per token a key and a value [heads, Dh], and its conv inputs [D]."""

    keys: tuple[Any, ...] = ()
    values: tuple[Any, ...] = ()
    conv_inputs: tuple[Any, ...] = ()


@dataclass
class Read:
    """All that a read of one chunk shows. Lists are indexed by layer; arrays are [tokens, ...]."""

    logits: Any
    pre_norm: Any
    level_in: list[dict[str, Any]] = field(default_factory=list)
    level_out: list[dict[str, Any]] = field(default_factory=list)
    block_out: list[Any] = field(default_factory=list)
    past: list[Past] = field(default_factory=list)


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    """LayerNorm over the last axis with biased variance."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + LAYER_NORM_EPS) * scale + bias


def rms_norm(x: Any, scale: Any) -> Any:
    """RMSNorm over the last axis."""
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + RMS_NORM_EPS) * scale


def gelu(x: Any) -> Any:
    """Exact GELU."""
    return 0.5 * x * (1.0 + jax.scipy.special.erf(x / np.sqrt(2.0)))


def unit(x: Any) -> Any:
    """x over its norm on the last axis, the norm bounded below."""
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)), UNIT_EPS)


def norm(arch: Arch, scale: Any, bias: Any, x: Any) -> Any:
    """The style's norm."""
    return rms_norm(x, scale) if arch.style == "modern" else layer_norm(x, scale, bias)


def rope(x: Any, position: int, theta: float) -> Any:
    """Rotate one token's heads [heads, Dh]: coordinates i and i + Dh/2 form a pair of frequency theta^(-2i/Dh)."""
    half = x.shape[-1] // 2
    angle = position * theta ** (-2.0 * np.arange(half) / x.shape[-1])
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)],
        axis=-1,
    )


def heads_of(x: Any, heads: int) -> Any:
    """One token's [D] as [heads, Dh], heads contiguous."""
    return x.reshape(heads, -1)


def convolve(taps: Any, history: list[Any]) -> Any:
    """Causal depthwise convolution at the last token of `history`; taps [W, D], last tap = that token."""
    width = taps.shape[0]
    total = jnp.zeros_like(history[-1])
    for back in range(min(width, len(history))):
        total = total + taps[width - 1 - back] * history[-1 - back]
    return total


def query_key_value(p: Tree, arch: Arch, x: Any, position: int) -> tuple[Any, Any, Any]:
    """q, k, v of one token, each [heads, Dh], normed and rotated as the style says."""
    q, k, v = (heads_of(x @ p[name], arch.heads) for name in ("w_q", "w_k", "w_v"))
    if arch.qk_norm == "rms":
        q, k = rms_norm(q, p["q_scale"]), rms_norm(k, p["k_scale"])
    elif arch.qk_norm == "l2":
        q, k = unit(q), unit(k)
    if arch.style == "modern":
        q, k = rope(q, position, arch.rope_theta), rope(k, position, arch.rope_theta)
    return q, k, v


def attend(query: Any, keys: Any, values: Any, visible: np.ndarray) -> Any:
    """One query [heads, Dh] over keys and values [slots, heads, Dh], `visible` bool [slots]. Returns [D]."""
    outputs = []
    for h in range(query.shape[0]):
        scores = keys[:, h] @ query[h] / np.sqrt(query.shape[-1])
        weights = jnp.where(visible, jnp.exp(scores - jnp.max(jnp.where(visible, scores, -np.inf))), 0.0)
        outputs.append((weights / jnp.sum(weights)) @ values[:, h])
    return jnp.concatenate(outputs)


def attention(
    p: Tree, arch: Arch, xs: list[Any], past: Past, segments: list[int], slots: int
) -> tuple[list[Any], Past]:
    """Attention sublayer on consecutive tokens `xs` that follow `past`; residual (and post-norm) included.

    segments: document of every token of the context, past ones first. slots: length that keys are padded
    to, so that every query has the same shapes. Past entries are used as they are given.
    """
    start = len(past.keys)
    keys, values, inputs = list(past.keys), list(past.values), list(past.conv_inputs)
    queries = []
    for offset, x in enumerate(xs):
        entry = rms_norm(x, p["norm_scale"]) if arch.style == "modern" else x
        inputs.append(entry)
        mixed = convolve(p["conv"], inputs) if "conv" in p else entry
        q, k, v = query_key_value(p, arch, mixed, start + offset)
        queries.append(q)
        keys.append(k)
        values.append(v)
    blank = [jnp.zeros_like(keys[0])] * (slots - len(keys))
    all_keys, all_values = jnp.stack(keys + blank), jnp.stack(values + blank)
    outputs = []
    for offset, x in enumerate(xs):
        i = start + offset
        visible = np.zeros(slots, bool)
        for j in range(i + 1):
            visible[j] = segments[j] == segments[i] and (arch.window == 0 or i - j < arch.window)
        y = x + attend(queries[offset], all_keys, all_values, visible) @ p["w_out"]
        outputs.append(y if arch.style == "modern" else layer_norm(y, p["norm_scale"], p["norm_bias"]))
    return outputs, Past(tuple(keys), tuple(values), tuple(inputs))


def level_normed(p: Tree, x: Any) -> Any:
    """LN(x) of a CMS level; x itself where the level has no LayerNorm."""
    return layer_norm(x, p["ln_scale"], p["ln_bias"]) if "ln_scale" in p else x


def level_read(p: Tree, x: Any, read_clip: float = 0.0) -> Any:
    """One CMS level at its current weights: y = x + W_down gelu(W_up LN(x) [+ b_up]) [+ b_down]."""
    hidden = level_normed(p, x) @ p["w_up"]
    branch = gelu(hidden + p["b_up"] if "b_up" in p else hidden) @ p["w_down"]
    branch = branch + p["b_down"] if "b_down" in p else branch
    if read_clip > 0:
        length = jnp.sqrt(jnp.sum(jax.lax.stop_gradient(branch) ** 2, axis=-1, keepdims=True))
        branch = branch / jnp.maximum(length / read_clip, 1.0)
    return x + branch


def with_delta(p: Tree, delta: dict[str, Any] | None) -> Tree:
    """A level's weights plus its fast weights, which are constants for the outer gradient."""
    delta = delta or {}
    return {k: w + jax.lax.stop_gradient(delta[k]) if k in delta else w for k, w in p.items()}


def mlp(p: Tree, arch: Arch, x: Any) -> Any:
    """The transformer's MLP sublayer, pre-norm in both styles."""
    normed = norm(arch, p["norm_scale"], p.get("norm_bias"), x)
    return x + gelu(normed @ p["w_up"]) @ p["w_down"]


def layer_of(params: Tree, layer: int) -> Tree:
    """Parameters of one block."""
    return jax.tree.map(lambda leaf: leaf[layer], params["blocks"])


def layer_count(params: Tree) -> int:
    """Number of blocks."""
    return int(params["blocks"]["attn"]["w_q"].shape[0])


def read_chunk(
    params: Tree,
    arch: Arch,
    tokens: list[int],
    past: list[Past],
    segments: list[int],
    slots: int,
    deltas: Deltas | None = None,
    taps: list[dict[str, Any]] | None = None,
) -> Read:
    """Read consecutive tokens after `past`.

    taps[layer] maps each level's name, and "block", to zeros [tokens, D] that are added to that level's
    output and to the block's output: their gradients are the teach signals.
    """
    result = Read(logits=None, pre_norm=None)
    x = [params["embed"][token] for token in tokens]
    for layer in range(layer_count(params)):
        p = layer_of(params, layer)
        attended, kept = attention(p["attn"], arch, x, past[layer], segments, slots)
        y = jnp.stack(attended)
        result.past.append(kept)
        result.level_in.append({})
        result.level_out.append({})
        if "mlp" in p:
            y = mlp(p["mlp"], arch, y)
        for name in arch.levels:
            result.level_in[layer][name] = y
            y = level_read(
                with_delta(p["cms"][name], deltas[layer].get(name) if deltas else None), y, arch.read_clip
            )
            y = y + taps[layer][name] if taps else y
            result.level_out[layer][name] = y
        y = y + taps[layer]["block"] if taps else y
        result.block_out.append(y)
        x = list(y)
    result.pre_norm = jnp.stack(x)
    result.logits = logits_of(params, arch, result.pre_norm)
    return result


def logits_of(params: Tree, arch: Arch, hidden: Any) -> Any:
    """Final norm and tied head."""
    final = params["final_norm"]
    return norm(arch, final["scale"], final.get("bias"), hidden) @ params["embed"].T


def no_past(params: Tree) -> list[Past]:
    """The memory of attention before the first token."""
    return [Past() for _ in range(layer_count(params))]


def cut(past: list[Past]) -> list[Past]:
    """The same memory with no gradient through it."""
    return [
        replace(
            p,
            keys=tuple(jax.lax.stop_gradient(k) for k in p.keys),
            values=tuple(jax.lax.stop_gradient(v) for v in p.values),
            conv_inputs=tuple(jax.lax.stop_gradient(c) for c in p.conv_inputs),
        )
        for p in past
    ]


def forward(
    params: Tree,
    arch: Arch,
    tokens: list[int],
    segments: list[int] | None = None,
    deltas: Deltas | None = None,
) -> Read:
    """Read a whole example at once."""
    segments = [1] * len(tokens) if segments is None else segments
    return read_chunk(params, arch, tokens, no_past(params), segments, len(tokens), deltas)


def cross_entropy(logits: Any, targets: list[int]) -> list[Any]:
    """Per token -log softmax(logits)[target]; 0 where the target is negative."""
    losses = []
    for row, target in zip(logits, targets, strict=True):
        losses.append(jax.scipy.special.logsumexp(row) - row[target] if target >= 0 else jnp.zeros(()))
    return losses
