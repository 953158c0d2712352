"""The small C x C algebra of chunks of tokens: inverse of a unit-triangular matrix, exact products."""

import jax
import jax.numpy as jnp

BLOCK = 8
"""Width up to which a unit-triangular matrix is inverted by powers; wider ones by blocks, because those
powers grow until float32 loses the result."""


def unit_lower_inverse(lower: jax.Array) -> jax.Array:
    """(I + L)^{-1} of a strictly lower L [C, C].

    Up to `BLOCK` by powers, L being nilpotent: (I - L)(I + L^2)(I + L^4). Above, by 2 x 2 blocks.
    """
    width = lower.shape[0]
    eye = jnp.eye(width, dtype=lower.dtype)
    if width > BLOCK:
        half = (width + 1) // 2
        a, d = unit_lower_inverse(lower[:half, :half]), unit_lower_inverse(lower[half:, half:])
        corner = -exact(exact(d, lower[half:, :half]), a)
        return jnp.block([[a, jnp.zeros((half, width - half), lower.dtype)], [corner, d]])
    inverse, power, degree = eye - lower, lower, 2
    while degree < width:
        power = exact(power, power)
        inverse = exact(inverse, eye + power)
        degree *= 2
    return inverse


def exact(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product a b in full precision, which accelerators lower by default; for the small C x C algebra."""
    return jnp.matmul(a, b, precision="highest")
