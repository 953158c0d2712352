"""Self-modifying Titans (NL Eqs. 83-93): keys, values, rates and decays come from memories that these write.

A memory is a dict of `w_in` [h, D], `w_out` [out, h], perhaps `w_skip` [out, D]. A chunk's tokens all see the
weights at its start; each memory is then written with them in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tests.oracle.layers import Arrays, convolve, gelu, unit


@dataclass(frozen=True)
class Settings:
    """The options of self-modifying Titans; those of the write first."""

    objective: str = "l2"
    stopgrad_vhat: bool = True
    rank1_precondition: bool = True
    momentum: float = 0.0
    chunk: int = 1
    chunk_memory: int = 1
    eta_scale: float = 1.0
    adaptive_q: bool = False
    use_alpha: bool = True
    value_norm: float = 0.0
    qk_norm: bool = True


def mlp(w: Arrays, x: Any) -> Any:
    """M(x) = W_out gelu(W_in x), plus W_skip x, or x where the widths are the same."""
    y = w["w_out"] @ gelu(w["w_in"] @ x)
    if "w_skip" in w:
        return y + w["w_skip"] @ x
    return y + x if y.shape == x.shape else y


@partial(jax.jit, static_argnames="settings")
def token_written(start: Arrays, now: Arrays, buffer: Arrays, token: Any, settings: Settings) -> Any:
    """One memory and its momentum after one token: W <- W (alpha I - eta k k^T) - eta m, m the momentum of
    gradients at the weights `start` of the chunk. `w_out` reads no key: it is decayed alone."""
    k, v, eta, alpha = token
    constant = mlp(start, v)

    def loss(at: Arrays) -> Any:
        target = constant if settings.stopgrad_vhat else mlp(at, v)
        return jnp.sum((mlp(at, k) - target) ** 2) if settings.objective == "l2" else -mlp(at, k) @ target

    gradient = jax.grad(loss)(start)
    buffer = {name: settings.momentum * buffer[name] + gradient[name] for name in gradient}
    forget = alpha * jnp.eye(len(k))
    if settings.rank1_precondition:
        forget = forget - eta * jnp.outer(k, k)
    kept = {name: alpha * now[name] if name == "w_out" else now[name] @ forget for name in now}
    return {name: kept[name] - eta * buffer[name] for name in now}, buffer


def written(
    start: Arrays, buffer: Arrays, tokens: Sequence[Any], settings: Settings
) -> tuple[Arrays, Arrays]:
    """One memory and its momentum after a chunk's tokens (k, v, eta, alpha)."""
    now = start
    for token in tokens:
        now, buffer = token_written(start, now, buffer, token, settings)
    return now, buffer


class Stream:
    """What a context has written, what its convolution has seen, and the tokens of its unfinished chunks."""

    def __init__(self, params: Arrays, settings: Settings) -> None:
        self.params, self.settings = params, settings
        self.weights: Arrays = {name: w for name, w in params.items() if isinstance(w, dict)}
        self.buffers: Arrays = jax.tree.map(jnp.zeros_like, self.weights)
        self.waiting: dict[str, list[Any]] = {name: [] for name in self.weights}
        self.inputs: list[Any] = []
        self.documents: list[int] = []

    def read(self, x: Any, document: int = 1) -> Any:
        """The output at one token [D]; the stream moves on by it."""
        params, w, settings = self.params, self.weights, self.settings
        self.inputs.append(x)
        self.documents.append(document)
        x = convolve(params["conv"], self.inputs, self.documents) if "conv" in params else x
        q = mlp(w["q"], x) if settings.adaptive_q else x @ params["w_q"]
        q, k = (unit(t) if settings.qk_norm else t for t in (q, mlp(w["k"], x)))
        out = mlp(w["memory"], q)
        eta = settings.eta_scale * jax.nn.softplus(mlp(w["eta"], x)[0])
        alpha = jnp.ones_like(eta)
        if settings.use_alpha:
            alpha = jax.nn.sigmoid(mlp(w["alpha"], x)[0] + params.get("b_alpha", 0.0))
        v = mlp(w["v"], x)
        v = settings.value_norm * unit(v) if settings.value_norm else v
        for tokens in self.waiting.values():
            tokens.append((k, v, eta, alpha))
        self.write(False)
        return out

    def write(self, last: bool) -> None:
        """Every memory whose chunk has ended, or with `last` all, with the tokens that wait for it."""
        for name, tokens in self.waiting.items():
            size = self.settings.chunk_memory if name == "memory" else self.settings.chunk
            if last or len(tokens) == size:
                now, buffer = written(self.weights[name], self.buffers[name], tokens, self.settings)
                self.weights, self.buffers = self.weights | {name: now}, self.buffers | {name: buffer}
                self.waiting[name] = []


def read(params: Arrays, x_nd: Any, settings: Settings, documents: Sequence[int] | None = None) -> Any:
    """Outputs [n, D] of a whole context, the memories after it, their momenta. documents: of each token."""
    stream, documents = Stream(params, settings), documents or [1] * len(x_nd)
    outs = [stream.read(x, document) for x, document in zip(x_nd, documents, strict=True)]
    return jnp.stack(outs), stream.weights, stream.buffers
