"""Gated DeltaNet from its recurrence (arXiv 2412.06464, transposed), token by token and head by head."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tests.oracle.layers import Arrays, convolve, rms_norm, unit


@jax.jit
def step(state: Any, q: Any, k: Any, v: Any, log_alpha: Any, beta: Any) -> tuple[Any, Any]:
    """One head's o [V] at one token and its state [K, V] after it:
    S <- alpha (I - beta k k^T) S + beta k v^T, o = S^T q."""
    kept = jnp.exp(log_alpha) * (jnp.eye(len(k)) - beta * jnp.outer(k, k)) @ state
    state = kept + beta * jnp.outer(k, v)
    return state.T @ q, state


def token(heads: Sequence[Any], *given: Any) -> tuple[list[Any], list[Any]]:
    """o and state of every head at one token; given: q, k, v, log_alpha, beta of each."""
    each = [step(*one) for one in zip(heads, *given, strict=True)]
    return [o for o, _ in each], [state for _, state in each]


def read(params: Arrays, x_nd: Any, state: Any, documents: Sequence[int] | None = None) -> tuple[Any, Any]:
    """y [n, D] of a whole context that starts at `state` [heads, K, V], and the state after it."""
    stream, outs, heads = [], [], list(state)
    documents = [1] * len(x_nd) if documents is None else documents
    for t, x in enumerate(x_nd):
        stream.append(jnp.concatenate([x @ params["w_q"], x @ params["w_k"], x @ params["w_v"]]))
        mixed = jax.nn.silu(convolve(params["conv"], stream, documents[: t + 1])).reshape(3, len(heads), -1)
        q, k, v = mixed
        step_size = jax.nn.softplus(x @ params["w_alpha"] + params["dt_bias"])
        log_alpha = -jnp.exp(params["a_log"]) * step_size
        rows = (unit(q) / jnp.sqrt(q.shape[-1]), unit(k), v, log_alpha, jax.nn.sigmoid(x @ params["w_beta"]))
        o, heads = token(heads, *rows)
        normed = jnp.concatenate([rms_norm(one, params["norm_scale"]) for one in o])
        outs.append((normed * jax.nn.silu(x @ params["w_gate"])) @ params["w_out"])
    return jnp.stack(outs), jnp.stack(heads)
