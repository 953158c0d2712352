"""Oracle: the recursion of the equations, token by token, with JAX's gradients of the inner loss.

A memory is a dict: `w_in` [h, D], `w_out` [out, h] and perhaps `w_skip` [out, D]. Everything is for one group
of memories, which share one stream of tokens, of one example.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

Memory = dict[str, jax.Array]
Group = dict[str, Memory]


def read(memory: Memory, x: jax.Array) -> jax.Array:
    """M(x) = skip(x) + W_out gelu(W_in x) for one token x [D]; skip is W_skip, the identity, or nothing."""
    out = memory["w_out"] @ jax.nn.gelu(memory["w_in"] @ x, approximate=False)
    if "w_skip" in memory:
        return out + memory["w_skip"] @ x
    return out + x if out.shape == x.shape else out


def token_gradient(
    start: Memory, k: jax.Array, v: jax.Array, objective: Literal["l2", "dot"], stopgrad_vhat: bool
) -> Memory:
    """Gradient of the inner loss at the chunk's first weights.

    A detached target is computed outside the loss rather than stopped inside it, so that a derivative of
    the written weights still goes through it.
    """
    constant = read(start, v)

    def loss(memory: Memory) -> jax.Array:
        target = constant if stopgrad_vhat else read(memory, v)
        if objective == "l2":
            return jnp.sum((read(memory, k) - target) ** 2)
        return -jnp.sum(read(memory, k) * target)

    return jax.grad(loss)(start)


@functools.partial(jax.jit, static_argnames=("objective", "stopgrad_vhat", "rank1_precondition", "momentum"))
def write_token(
    start: Memory,
    now: Memory,
    buffer: Memory,
    k: jax.Array,
    v: jax.Array,
    eta: jax.Array,
    alpha: jax.Array,
    *,
    objective: Literal["l2", "dot"],
    stopgrad_vhat: bool,
    rank1_precondition: bool,
    momentum: float,
) -> tuple[Memory, Memory]:
    """One token's write of one memory: W (alpha I - eta k k^T) - eta m with m = momentum m + gradient."""
    gradient = token_gradient(start, k, v, objective, stopgrad_vhat)
    buffer = {name: momentum * buffer[name] + gradient[name] for name in gradient}
    retain = alpha * jnp.eye(len(k)) - (eta * jnp.outer(k, k) if rank1_precondition else 0.0)
    written = {name: now[name] @ retain - eta * buffer[name] for name in now if name != "w_out"}
    written["w_out"] = alpha * now["w_out"] - eta * buffer["w_out"]
    return written, buffer


def write_chunk(
    weights: Group,
    buffers: Group,
    k: jax.Array,
    v: jax.Array,
    eta: jax.Array,
    alpha: jax.Array,
    live: Any = None,
    **rule: Any,
) -> tuple[Group, Group]:
    """The written weights and momentum buffers of every memory of the group.

    k, v: [C, D]; eta, alpha: [C]; live: bool [C], tokens that are there (None: all). rule: the options of
    `write_token`.
    """
    now, buffer = weights, buffers
    for t in range(len(k)):
        if live is not None and not live[t]:
            continue
        steps = {
            name: write_token(weights[name], now[name], buffer[name], k[t], v[t], eta[t], alpha[t], **rule)
            for name in weights
        }
        now = {name: step[0] for name, step in steps.items()}
        buffer = {name: step[1] for name, step in steps.items()}
    return now, buffer
