"""Reads: the forward pass of one example, token by token where tokens interact.

Parameter trees are production's (matrices [in, out], every leaf of `blocks` with a leading layer axis).
`deltas[layer][level][name]` are the fast weights' offsets; a missing entry means zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
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
    connection: of the levels. `nested` reads as `sequential` does.
    window: tokens that a query sees, itself included; 0: all.
    read_clip: bound on the norm of a level's residual branch per token (published train mode); 0: off.
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Past:
    """What one attention layer remembers of the tokens before: keys and values [tokens, heads, Dh] as they
    were used, and the inputs of its convolution [tokens, D], all of them."""

    keys: Any
    values: Any
    conv_inputs: Any


@jax.tree_util.register_dataclass
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


def relu(x: Any) -> Any:
    """max(x, 0)."""
    return jnp.where(x > 0, x, 0.0)


def silu(x: Any) -> Any:
    """x times the logistic function of x."""
    return x / (1.0 + jnp.exp(-x))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"gelu": gelu, "relu": relu, "silu": silu}


def unit(x: Any) -> Any:
    """x over its norm on the last axis, the norm bounded below."""
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)), UNIT_EPS)


def norm(arch: Arch, scale: Any, bias: Any, x: Any) -> Any:
    """The style's norm."""
    return rms_norm(x, scale) if arch.style == "modern" else layer_norm(x, scale, bias)


def rope(x: Any, start: int, theta: float) -> Any:
    """Rotate heads [tokens, heads, Dh]: coordinates i and i + Dh/2 are a pair of frequency theta^(-2i/Dh)."""
    half = x.shape[-1] // 2
    position = start + np.arange(x.shape[0])
    angle = position[:, None, None] * theta ** (-2.0 * np.arange(half) / x.shape[-1])
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)],
        axis=-1,
    )


def convolve(taps: Any, history: Any, mask: Any) -> Any:
    """Causal depthwise convolution at the last rows of `history`, as many as `mask` (of `visible`) has; taps
    [W, D], the last one meets the current token; zeros before the first row and for other documents."""
    rows, tokens = [], mask.shape[0]
    for i, t in enumerate(range(history.shape[0] - tokens, history.shape[0])):
        total = jnp.zeros_like(history[t])
        for back in range(min(taps.shape[0], t + 1)):
            met = jnp.where(mask[i, t - back], history[t - back], 0.0)
            total = total + taps[taps.shape[0] - 1 - back] * met
        rows.append(total)
    return jnp.stack(rows)


def query_key_value(p: Tree, arch: Arch, x: Any, start: int) -> tuple[Any, Any, Any]:
    """q, k, v of consecutive tokens, [tokens, heads, Dh], heads contiguous, normed and rotated by style."""
    q, k, v = ((x @ p[name]).reshape(x.shape[0], arch.heads, -1) for name in ("w_q", "w_k", "w_v"))
    if arch.qk_norm == "rms":
        q, k = rms_norm(q, p["q_scale"]), rms_norm(k, p["k_scale"])
    elif arch.qk_norm == "l2":
        q, k = unit(q), unit(k)
    if arch.style == "modern":
        q, k = rope(q, start, arch.rope_theta), rope(k, start, arch.rope_theta)
    return q, k, v


def visible(segments: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    """bool [stop - start, stop]: which tokens are of the document of each of [start, stop) and not later,
    pair by pair."""
    mask = np.zeros((stop - start, stop), bool)
    for i in range(start, stop):
        for j in range(i + 1):
            mask[i - start, j] = segments[i] == segments[j]
    return mask


def within(window: int, mask: Any) -> Any:
    """The mask without the keys that are as far back as `window` (0: any)."""
    stop = mask.shape[1]
    queries = np.arange(stop - mask.shape[0], stop)[:, None]
    return mask & (queries - np.arange(stop) < window) if window else mask


def attention(p: Tree, arch: Arch, x: Any, past: Past | None, mask: Any) -> tuple[Any, Past]:
    """Attention sublayer on consecutive tokens x [n, D] after `past`; residual (and post-norm) included.

    mask: of `visible`. Past entries are used as they are given.
    """
    seen = within(arch.window, mask)
    start = 0 if past is None else past.keys.shape[0]
    entries = rms_norm(x, p["norm_scale"]) if arch.style == "modern" else x
    inputs = entries if past is None else jnp.concatenate([past.conv_inputs, entries])
    mixed = convolve(p["conv"], inputs, mask) if "conv" in p else entries
    queries, keys, values = query_key_value(p, arch, mixed, start)
    if past is not None:
        keys, values = jnp.concatenate([past.keys, keys]), jnp.concatenate([past.values, values])
    heads = []
    for h in range(arch.heads):
        scores = jnp.where(seen, queries[:, h] @ keys[:, h].T / np.sqrt(queries.shape[-1]), -np.inf)
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        heads.append(weights / jnp.sum(weights, axis=-1, keepdims=True) @ values[:, h])
    y = x + jnp.concatenate(heads, axis=-1) @ p["w_out"]
    if arch.style == "reference":
        y = layer_norm(y, p["norm_scale"], p["norm_bias"])
    return y, Past(keys, values, inputs)


def level_normed(p: Tree, x: Any) -> Any:
    """LN(x) of a CMS level; x itself where the level has no LayerNorm."""
    return layer_norm(x, p["ln_scale"], p["ln_bias"]) if "ln_scale" in p else x


def level_read(p: Tree, x: Any, read_clip: float = 0.0, act: str = "gelu") -> Any:
    """One CMS level at its current weights: y = x + W_down act(W_up LN(x) [+ b_up]) [+ b_down]."""
    hidden = level_normed(p, x) @ p["w_up"]
    branch = ACTIVATIONS[act](hidden + p["b_up"] if "b_up" in p else hidden) @ p["w_down"]
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
    return x + ACTIVATIONS[arch.act](normed @ p["w_up"]) @ p["w_down"]


def cms(
    p: Tree, arch: Arch, x: Any, deltas: dict[str, Any], taps: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The CMS of one layer: y, and each level's input and output. Eq. 70, or 74 if independent."""
    ins, outs = {}, {}
    y = x
    for name in arch.levels:
        ins[name] = x if arch.connection == "independent" else y
        y = level_read(with_delta(p[name], deltas.get(name)), ins[name], arch.read_clip, arch.act)
        y = outs[name] = y + taps[name] if name in taps else y
    if arch.connection == "independent":
        powers = [jnp.exp(w) for w in p["mix"]]
        y = sum(power / sum(powers) * outs[name] for power, name in zip(powers, arch.levels, strict=True))
    return y, ins, outs


def layer_of(params: Tree, layer: int) -> Tree:
    """Parameters of one block."""
    return jax.tree.map(lambda leaf: leaf[layer], params["blocks"])


def layer_count(params: Tree) -> int:
    """Number of blocks."""
    return int(params["blocks"]["attn"]["w_q"].shape[0])


def read_chunk(
    params: Tree,
    arch: Arch,
    tokens: Any,
    past: list[Past] | None,
    mask: Any,
    deltas: Deltas | None = None,
    taps: list[dict[str, Any]] | None = None,
) -> Read:
    """Read consecutive tokens after `past`. mask: of `visible`.

    taps[layer] maps each level's name, and "block", to zeros [tokens, D] that are added to that level's
    output and to the block's output: their gradients are the teach signals.
    """
    result = Read(logits=None, pre_norm=None)
    y = params["embed"][jnp.asarray(tokens)]
    for layer in range(layer_count(params)):
        p = layer_of(params, layer)
        y, kept = attention(p["attn"], arch, y, past[layer] if past else None, mask)
        result.past.append(kept)
        result.level_in.append({})
        result.level_out.append({})
        if "mlp" in p:
            y = mlp(p["mlp"], arch, y)
        if arch.levels:
            y, ins, outs = cms(
                p["cms"], arch, y, deltas[layer] if deltas else {}, taps[layer] if taps else {}
            )
            result.level_in[layer], result.level_out[layer] = ins, outs
        y = y + taps[layer]["block"] if taps else y
        result.block_out.append(y)
    result.pre_norm = y
    result.logits = logits_of(params, arch, result.pre_norm)
    return result


def logits_of(params: Tree, arch: Arch, hidden: Any) -> Any:
    """Final norm and tied head."""
    final = params["final_norm"]
    return norm(arch, final["scale"], final.get("bias"), hidden) @ params["embed"].T


def forward(
    params: Tree,
    arch: Arch,
    tokens: list[int],
    segments: tuple[int, ...] | None = None,
    deltas: Deltas | None = None,
) -> Read:
    """Read a whole example at once."""
    segments = (1,) * len(tokens) if segments is None else segments
    mask = visible(segments, 0, len(tokens))
    return read_chunk(params, arch, tokens, None, mask, deltas)


def cross_entropy(logits: Any, targets: Any) -> Any:
    """Per token -log softmax(logits)[target]; 0 where the target is negative. [n]."""
    targets = jnp.asarray(targets)
    chosen = logits[np.arange(logits.shape[0]), jnp.maximum(targets, 0)]
    return jnp.where(targets >= 0, jax.scipy.special.logsumexp(logits, axis=-1) - chosen, 0.0)
