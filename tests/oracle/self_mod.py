"""Self-modifying Titans token by token (Eqs. 83-93): a loop over tokens, one update at a time.

Weights are dicts of float64 arrays, `w_in` [h, D], `w_out` [out, h], perhaps `w_skip` [out, D]. A chunk's
tokens all see the weights at its start; each memory is then written with them in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Settings:
    """The options of self-modifying Titans."""

    chunk: int
    chunk_memory: int
    eta_scale: float
    adaptive_q: bool = False
    use_alpha: bool = True
    rank1: bool = True
    objective: str = "l2"
    stopgrad_vhat: bool = True
    momentum: float = 0.0
    value_norm: float = 0.0
    qk_norm: bool = True


@dataclass
class Stream:
    """What a context has written, and the tokens of its unfinished chunks (k, v, eta, alpha)."""

    weights: dict[str, Any]
    buffers: dict[str, Any]
    waiting: list[Any] = field(default_factory=list)
    waiting_memory: list[Any] = field(default_factory=list)
    past: list[Any] = field(default_factory=list)
    seen: int = 0


def mlp(w: dict[str, Any], x: Any) -> Any:
    """W_out gelu(W_in x), plus W_skip x, or x where the widths are the same."""
    y = w["w_out"] @ jax.nn.gelu(w["w_in"] @ x, approximate=False)
    if "w_skip" in w:
        return y + w["w_skip"] @ x
    return y + x if y.shape == x.shape else y


def unit(x: Any) -> Any:
    """x / |x|."""
    return x / jnp.sqrt(jnp.sum(x**2))


@partial(jax.jit, static_argnames="settings")
def token_written(
    start: dict[str, Any], now: dict[str, Any], buffer: dict[str, Any], token: Any, settings: Settings
) -> Any:
    """One memory and its momentum after one token, the gradient at its weights before the chunk."""
    k, v, eta, alpha = token
    constant = mlp(start, v)

    def loss(at: dict[str, Any]) -> Any:
        target = constant if settings.stopgrad_vhat else mlp(at, v)
        error = mlp(at, k) - target
        return jnp.sum(error**2) if settings.objective == "l2" else -jnp.sum(mlp(at, k) * target)

    gradient = jax.grad(loss)(start)
    buffer = {name: settings.momentum * buffer[name] + gradient[name] for name in gradient}
    forget = alpha * jnp.eye(len(k))
    if settings.rank1:
        forget = forget - eta * jnp.outer(k, k)
    kept = {name: alpha * now[name] if name == "w_out" else now[name] @ forget for name in now}
    return {name: kept[name] - eta * buffer[name] for name in now}, buffer


def written(stream: Stream, names: list[str], tokens: list[Any], settings: Settings) -> None:
    """These memories of the stream are written with a chunk's tokens."""
    for name in names:
        start = now = stream.weights[name]
        buffer = stream.buffers[name]
        for token in tokens:
            now, buffer = token_written(start, now, buffer, token, settings)
        stream.weights = {**stream.weights, name: now}
        stream.buffers = {**stream.buffers, name: buffer}


def read_token(params: dict[str, Any], stream: Stream, x: Any, settings: Settings, document: int = 1) -> Any:
    """The output at one token; the stream moves on by it."""
    if "conv" in params:
        window = len(params["conv"])
        stream.past = [*stream.past, (document, x)][-window:]
        taps = params["conv"][window - len(stream.past) :]
        x = sum(tap * earlier for tap, (of, earlier) in zip(taps, stream.past, strict=True) if of == document)
    w = stream.weights
    q = mlp(w["q"], x) if settings.adaptive_q else x @ params["w_q"]
    of_norm_1 = unit if settings.qk_norm else lambda x: x
    out = mlp(w["memory"], of_norm_1(q))
    eta = settings.eta_scale * jax.nn.softplus(mlp(w["eta"], x)[0])
    alpha = jnp.ones_like(eta)
    if settings.use_alpha:
        alpha = jax.nn.sigmoid(mlp(w["alpha"], x)[0] + params.get("b_alpha", 0.0))
    v = mlp(w["v"], x)
    v = settings.value_norm * unit(v) if settings.value_norm else v
    token = (of_norm_1(mlp(w["k"], x)), v, eta, alpha)
    stream.waiting.append(token)
    stream.waiting_memory.append(token)
    stream.seen += 1
    if stream.seen % settings.chunk == 0:
        written(stream, [name for name in w if name != "memory"], stream.waiting, settings)
        stream.waiting = []
    if stream.seen % settings.chunk_memory == 0:
        written(stream, ["memory"], stream.waiting_memory, settings)
        stream.waiting_memory = []
    return out


def begin(params: dict[str, Any]) -> Stream:
    """A context that has written nothing."""
    weights = {name: w for name, w in params.items() if isinstance(w, dict)}
    return Stream(weights, jax.tree.map(jnp.zeros_like, weights))


def read(
    params: dict[str, Any], x_nd: Any, settings: Settings, documents: Sequence[int] | None = None
) -> Any:
    """Outputs [n, D] of a whole context, the memories after it, and their momentum. documents: of each token;
    None: all are of one."""
    together = None if documents is None else [documents]
    outs, weights, buffers = read_together(params, x_nd[None], settings, together)
    return outs[0], weights, buffers


def read_together(
    params: dict[str, Any], x_bnd: Any, settings: Settings, documents: Sequence[Sequence[int]] | None = None
) -> Any:
    """As `read` for contexts [B, n, D] that share their memories: after every token these are the mean of
    what the contexts made of them. Outputs [B, n, D]."""
    documents = np.ones(x_bnd.shape[:2], int) if documents is None else documents
    streams, outs = [begin(params) for _ in x_bnd], []
    for t in range(x_bnd.shape[1]):
        rows = zip(streams, x_bnd, documents, strict=True)
        outs.append([read_token(params, stream, x[t], settings, of[t]) for stream, x, of in rows])
        shared = [
            jax.tree.map(lambda *w: sum(w) / len(w), *made)
            for made in ([s.weights for s in streams], [s.buffers for s in streams])
        ]
        for stream in streams:
            stream.weights, stream.buffers = shared
    return jnp.stack([jnp.stack(row) for row in outs], 1), *shared
