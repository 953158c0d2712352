"""Products of a few rows with large matrices, in the order that XLA runs without copying the large one."""

import jax
import jax.numpy as jnp


def times_transposed(x_ni: jax.Array, m_si: jax.Array) -> jax.Array:
    """x m^T [n, S] as (m x^T)^T: the few rows are transposed, and fenced so that they stay so; a product with
    m^T on the right makes XLA:CPU copy m."""
    return jnp.matmul(m_si, jax.lax.optimization_barrier(x_ni.T)).T


def outer(x_ni: jax.Array, g_no: jax.Array) -> jax.Array:
    """sum_t x_t g_t^T [I, O]."""
    return jnp.matmul(jax.lax.optimization_barrier(x_ni.T), g_no)
