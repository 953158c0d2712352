"""Oracle: dense gradients, one token and one period after the other."""

import jax.numpy as jnp
import numpy as np
from hope_jax.kernels.cms_write.gram import Affine, Map


def _size(weights: Affine) -> jnp.ndarray:
    parts = [weights.matrix.ravel(), jnp.zeros(0) if weights.bias is None else weights.bias]
    return jnp.linalg.norm(jnp.concatenate(parts))


def _bounded(weights: Affine, bound: float | None) -> Affine:
    if bound is None:
        return weights
    factor = 1 / jnp.maximum(_size(weights) / bound, 1)
    return Affine(weights.matrix * factor, None if weights.bias is None else weights.bias * factor)


def _mix(a: float, first: Affine, b: float, second: Affine) -> Affine:
    bias = None if first.bias is None else a * first.bias + b * second.bias
    return Affine(a * first.matrix + b * second.matrix, bias)


def write_periods(
    one: Map, applied: np.ndarray, *, beta: float, lr: float
) -> tuple[Affine, Affine | None, jnp.ndarray, jnp.ndarray]:
    """The delta and velocity of `gram.write_periods` for one map, step by step. Also, by period [P], the
    norms of the bounded write and of delta after it."""
    (x, g, b), delta, velocity = one.rows, one.delta, one.velocity
    period, write_sizes, delta_sizes = len(x) // len(applied), [], []
    for p, on in enumerate(applied):
        if not on:
            write_sizes.append(jnp.zeros(()))
            delta_sizes.append(_size(delta))
            continue
        tokens = range(p * period, (p + 1) * period)
        gradient = Affine(
            sum(jnp.outer(x[t], g[t]) for t in tokens), None if b is None else sum(b[t] for t in tokens)
        )
        if velocity is not None:
            gradient = velocity = _mix(beta, velocity, 1 - beta, gradient)
        write = _bounded(_mix(-lr, gradient, 0, gradient), one.max_write)
        delta = _bounded(_mix(1, delta, 1, write), one.max_delta)
        write_sizes.append(_size(write))
        delta_sizes.append(_size(delta))
    return delta, velocity, jnp.stack(write_sizes), jnp.stack(delta_sizes)
