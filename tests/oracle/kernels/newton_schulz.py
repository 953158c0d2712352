"""Oracle: one matrix, one product after the other."""

import jax
import jax.numpy as jnp


def orthogonalize(
    x_rc: jax.Array, coefficients: tuple[float, float, float], steps: int, eps: float
) -> jax.Array:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X from X = x / (|x|_F + eps), `steps` times. x_rc: [R, C]."""
    a, b, c = coefficients
    x_rc = x_rc / (jnp.linalg.norm(x_rc) + eps)
    for _ in range(steps):
        gram_rr = x_rc @ x_rc.T
        x_rc = a * x_rc + b * gram_rr @ x_rc + c * gram_rr @ gram_rr @ x_rc
    return x_rc
