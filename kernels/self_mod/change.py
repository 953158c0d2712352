"""How much a chunk changes each matrix of a group, as a statistic, without a pass over the matrices.

With W' = a W - l^T r and y = r W^T, of every row of W, and of all its rows together,

    |W' - W|^2 = (1 - a)^2 |W|^2 + 2 (1 - a) sum of l * y + sum of l * (r r^T) l,
    |W'|^2     = a^2 |W|^2 - 2 a sum of l * y + sum of l * (r r^T) l.

The write has computed y of the W_in's anyway, and l W of the W_out's: sum of l * y = sum of (l W) * r.
"""

import jax
import jax.numpy as jnp
from hope_jax.kernels.self_mod.chunked import Across, Factors
from hope_jax.kernels.self_mod.group import Layout, Stacked, columns
from hope_jax.kernels.self_mod.products import wide

Squares = tuple[jax.Array, ...]
"""Of `Stacked.rows` |row|^2, [R]; |W|^2, [], of each W_out."""


def squares(weights: Stacked) -> Squares:
    """Of the weights as they stand."""
    rows, *w_out = (jnp.square(wide(w)).sum(1) for w in jax.lax.stop_gradient(weights.matrices()))
    return (rows, *(w.sum() for w in w_out))


def by_factors(factors: Factors, across: Across, before: Squares) -> tuple[Squares, Squares]:
    """The squares of the change and of the weights after it, without momentum."""
    a = jnp.exp(factors.log_total)
    changes, after = [], []
    for left, right, cross, square in zip(factors.left, factors.right, across, before, strict=True):
        rows = wide(right)
        written = jnp.sum(left * ((rows @ rows.T) @ left), 0 if cross.ndim else None)
        changes.append((1 - a) ** 2 * square + 2 * (1 - a) * cross + written)
        after.append(a * a * square - 2 * a * cross + written)
    return tuple(changes), tuple(after)


def norms(layout: Layout, changes: Squares) -> jax.Array:
    """Frobenius norm [M] of the change of each of the memories' matrices, in JAX's default float."""
    rows, outs = changes[0], changes[1:]
    parts = list(outs)
    for part, (hidden, skip) in zip(layout, columns(layout), strict=True):
        parts.append(rows[hidden : hidden + part.hidden])
        if part.skip:
            parts.append(rows[skip : skip + part.out])
    # Rounding may leave a little less than nothing.
    each = [jnp.sqrt(jnp.maximum(jnp.sum(part), 0)) for part in parts]
    return jax.lax.stop_gradient(jnp.stack(each)).astype(float)
