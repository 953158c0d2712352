"""Products of a few rows with large matrices, in the form that XLA runs without copying the large one."""

import jax


def times_transposed(x_ni: jax.Array, m_si: jax.Array) -> jax.Array:
    """x m^T [n, S] as one product over the last axis of both. Written `x @ m.T`, with m taken out of a stack,
    XLA:CPU transposes the slice while it copies it; with x transposed in its place the product is slower."""
    return jax.lax.dot_general(x_ni, m_si, (((1,), (1,)), ((), ())))
