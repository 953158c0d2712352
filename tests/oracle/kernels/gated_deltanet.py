"""Gated DeltaNet token by token and head by head, from the recurrence (arXiv 2412.06464, transposed)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def token(state: Any, q: Any, k: Any, v: Any, log_alpha: Any, beta: Any) -> tuple[Any, Any]:
    """One head's o [V] at one token and its state [K, V] after it."""
    kept = jnp.exp(log_alpha) * (jnp.eye(len(k)) - beta * jnp.outer(k, k)) @ state
    state = kept + beta * jnp.outer(k, v)
    return state.T @ q, state


def recurrence(q: Any, k: Any, v: Any, log_alpha: Any, beta: Any, state: Any) -> tuple[Any, Any]:
    """o [n, heads, V] and the state after the last token. q, k: [n, heads, K]; v: [n, heads, V]; log_alpha,
    beta: [n, heads]; state: [heads, K, V]."""
    rows = [jnp.unstack(t) for t in (q, k, v, log_alpha, beta)]
    heads, outs = jnp.unstack(state), []
    for row in zip(*rows, strict=True):
        each = zip(heads, *(jnp.unstack(t) for t in row), strict=True)
        o, heads = zip(*(token(*one) for one in each), strict=True)
        outs.append(jnp.stack(o))
    return jnp.stack(outs), jnp.stack(heads)


def silu(x: Any) -> Any:
    """x sigmoid(x)."""
    return x / (1 + jnp.exp(-x))


def convolved(stream: list[Any], taps: Any, documents: Sequence[int]) -> Any:
    """Of the last of the tokens so far: those of its document among the last w, the last tap at itself."""
    total = jnp.zeros_like(stream[-1])
    for back in range(min(len(taps), len(stream))):
        if documents[len(stream) - 1 - back] == documents[len(stream) - 1]:
            total = total + taps[len(taps) - 1 - back] * stream[-1 - back]
    return total


def layer(
    params: dict[str, Any],
    x_nd: Any,
    heads: int,
    state: Any = None,
    documents: Sequence[int] | None = None,
    eps: float = 1e-6,
) -> tuple[Any, Any]:
    """y [n, D] of a whole context that starts at `state` (None: zeros), and the state after it."""
    dim = x_nd.shape[1]
    size = dim // heads
    documents = [1] * len(x_nd) if documents is None else documents
    stream: list[Any] = []
    if state is None:
        state = jnp.zeros((heads, size, size))
    outs = []
    for x in x_nd:
        stream.append(jnp.concatenate([x @ params["w_q"], x @ params["w_k"], x @ params["w_v"]]))
        mixed = silu(convolved(stream, params["conv"], documents))
        step = jnp.log1p(jnp.exp(x @ params["w_alpha"] + params["dt_bias"]))
        log_alpha, beta = -jnp.exp(params["a_log"]) * step, 1 / (1 + jnp.exp(-x @ params["w_beta"]))
        o, after = [], []
        for h in range(heads):
            q, k, v = (mixed[part * dim + h * size :][:size] for part in range(3))
            q, k = q / jnp.sqrt(q @ q) / jnp.sqrt(size), k / jnp.sqrt(k @ k)
            read, one = token(state[h], q, k, v, log_alpha[h], beta[h])
            o.append(read / jnp.sqrt(jnp.mean(read**2) + eps) * params["norm_scale"])
            after.append(one)
        state = jnp.stack(after)
        outs.append((jnp.concatenate(o) * silu(x @ params["w_gate"])) @ params["w_out"])
    return jnp.stack(outs), state


def value(results: Any) -> Any:
    """A function of every number, with a slope at each."""
    return sum(jnp.sum(jnp.sin(leaf + jnp.arange(leaf.size).reshape(leaf.shape) % 7)) for leaf in results)
