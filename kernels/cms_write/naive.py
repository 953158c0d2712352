"""Oracle: dense gradients, one token and one period after the other."""

import jax.numpy as jnp
import numpy as np
from hope_jax.kernels.cms_write.gram import Affine, Map


def _bounded(weights: Affine, bound: float | None) -> Affine:
    if bound is None:
        return weights
    parts = [weights.matrix.ravel(), jnp.zeros(0) if weights.bias is None else weights.bias]
    factor = 1 / jnp.maximum(jnp.linalg.norm(jnp.concatenate(parts)) / bound, 1)
    return Affine(weights.matrix * factor, None if weights.bias is None else weights.bias * factor)


def _mix(a: float, first: Affine, b: float, second: Affine) -> Affine:
    bias = None if first.bias is None else a * first.bias + b * second.bias
    return Affine(a * first.matrix + b * second.matrix, bias)


def write_periods(one: Map, applied: np.ndarray, *, beta: float, lr: float) -> tuple[Affine, Affine | None]:
    """The delta and velocity of `gram.write_periods` for one map, step by step."""
    (x, g, b), delta, velocity = one.rows, one.delta, one.velocity
    period = len(x) // len(applied)
    for p, on in enumerate(applied):
        if not on:
            continue
        tokens = range(p * period, (p + 1) * period)
        gradient = Affine(
            sum(jnp.outer(x[t], g[t]) for t in tokens), None if b is None else sum(b[t] for t in tokens)
        )
        if velocity is not None:
            gradient = velocity = _mix(beta, velocity, 1 - beta, gradient)
        write = _bounded(_mix(-lr, gradient, 0, gradient), one.max_write)
        delta = _bounded(_mix(1, delta, 1, write), one.max_delta)
    return delta, velocity
