"""Self-modifying Titans token by token (Eqs. 83-93): a loop over tokens, one update at a time.

Weights are dicts of float64 arrays, `w_in` [h, D], `w_out` [out, h], perhaps `w_skip` [out, D]. A chunk's
tokens all see the weights at its start; each memory is then written with them in order.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Settings:
    """The options of SPEC §2.3; momentum is left to the kernel's own oracle."""

    chunk: int
    chunk_memory: int
    eta_scale: float
    adaptive_q: bool = False
    use_alpha: bool = True
    rank1: bool = True
    objective: str = "l2"
    stopgrad_vhat: bool = True


@dataclass
class Stream:
    """What a context has written, and the tokens of its unfinished chunks (k, v, eta, alpha)."""

    weights: dict[str, Any]
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
def updated(w: dict[str, Any], tokens: list[Any], settings: Settings) -> dict[str, Any]:
    """One memory after a chunk's tokens, all gradients at its weights before the chunk."""

    def loss(at: dict[str, Any], k: Any, v: Any, target: Any) -> Any:
        target = target if settings.stopgrad_vhat else mlp(at, v)
        error = mlp(at, k) - target
        return jnp.sum(error**2) if settings.objective == "l2" else -jnp.sum(mlp(at, k) * target)

    now = dict(w)
    for k, v, eta, alpha in tokens:
        gradient = jax.grad(loss)(w, k, v, mlp(w, v))
        forget = alpha * jnp.eye(len(k))
        if settings.rank1:
            forget = forget - eta * jnp.outer(k, k)
        now = {
            name: (alpha * now[name] if name == "w_out" else now[name] @ forget) - eta * gradient[name]
            for name in now
        }
    return now


def read_token(params: dict[str, Any], stream: Stream, x: Any, settings: Settings) -> Any:
    """The output at one token; the stream moves on by it."""
    if "conv" in params:
        window = len(params["conv"])
        stream.past = [*stream.past, x][-window:]
        taps = params["conv"][window - len(stream.past) :]
        x = sum(tap * earlier for tap, earlier in zip(taps, stream.past, strict=True))
    w = stream.weights
    q = mlp(w["q"], x) if settings.adaptive_q else x @ params["w_q"]
    out = mlp(w["memory"], unit(q))
    eta = settings.eta_scale * jax.nn.softplus(mlp(w["eta"], x)[0])
    alpha = 1.0
    if settings.use_alpha:
        alpha = jax.nn.sigmoid(mlp(w["alpha"], x)[0] + params.get("b_alpha", 0.0))
    token = (unit(mlp(w["k"], x)), mlp(w["v"], x), eta, alpha)
    stream.waiting.append(token)
    stream.waiting_memory.append(token)
    stream.seen += 1
    if stream.seen % settings.chunk == 0:
        generators = [name for name in w if name != "memory"]
        w = {**w, **{name: updated(w[name], stream.waiting, settings) for name in generators}}
        stream.waiting = []
    if stream.seen % settings.chunk_memory == 0:
        w = {**w, "memory": updated(w["memory"], stream.waiting_memory, settings)}
        stream.waiting_memory = []
    stream.weights = w
    return out


def read(params: dict[str, Any], x_nd: Any, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Outputs [n, D] of a whole context, and the memories after it."""
    stream = Stream({name: w for name, w in params.items() if isinstance(w, dict)})
    outs = [read_token(params, stream, x, settings) for x in x_nd]
    return jnp.stack(outs), stream.weights
