"""Production form: stacks of matrices, iterated on their smaller side.

With A = X X^T, S = b A + c A^2 and R = a I + S, a step is X <- R X. `_direct` takes these steps as they
stand. All R of a matrix are polynomials of the first A: they commute, so `_by_gram` iterates on the smaller
side alone, with Q = P - p I for the product P of the R's and p that of the a's,

    Q <- a Q + p S + S Q,  p <- a p,  A <- R A R,  and once at the end  X <- p X + Q X,

of which all but the last product are symmetric, and half computed. Of a 512 x 2048 matrix five quintic steps
take 1.8 times fewer operations so (2 CPU cores: `python -m hope_jax.bench newton_schulz`).

A is as accurate as the largest singular value squared; a rounding error in the direction of a small one grows
with the steps as that does, and, once negative, without bound. Where singular values are zero, p is large
and Q takes it away again from the others; the rounding errors of S that p multiplies are taken away with it
in S Q, but not in its transpose Q S, which mirrored halves are. So steps are taken in rounds, each with an A
of its own. float32 has the digits for it (docs/numerics.md), products in TF32 or bfloat16 have not. They are
what accelerators multiply float32 with unless told otherwise, so there the steps are taken as they stand. No
GPU or TPU has run either form.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from hope_jax import trees

Coefficients: TypeAlias = tuple[float, float, float]
"""a, b, c of a step X <- a X + b (X X^T) X + c (X X^T)^2 X."""

CUBIC: Coefficients = (1.5, -0.5, 0.0)
"""Newton's: converges to the nearest semi-orthogonal matrix from singular values below sqrt(3)."""

QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
"""Muon's: five steps bring singular values from 1e-2 up to between 0.7 and 1.2, and none converges."""

STRIP = 512
"""Rows of a symmetric product that are computed together: more strips save up to half of the operations,
and smaller products run further from a machine's peak."""

WHOLE_STEPS, MIRRORED_STEPS = 5, 3
"""Most steps of a round: where symmetric products are one strip, and where halves are mirrored."""


def orthogonalize(x: jax.Array, coefficients: Coefficients, steps: int, eps: float) -> jax.Array:
    """`iterate` from x / (|x|_F + eps). The gradient at a matrix of zeros is that of x / eps."""
    return iterate(x / (trees.safe_norm(x, axis=(-2, -1), keepdims=True) + eps), coefficients, steps)


def iterate(x: jax.Array, coefficients: Coefficients, steps: int) -> jax.Array:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X, `steps` times.

    x: [..., rows, columns], bfloat16 and wider, of Frobenius norms up to 1: leading axes are a batch of
    matrices, each iterated by itself. steps: at least 0. The result has x's shape and dtype.
    """
    if not steps:
        return x
    tall = x.shape[-2] > x.shape[-1]
    wide = _transposed(x) if tall else x
    rows, columns = wide.shape[-2:]
    if operations(rows, columns, coefficients, steps, by_gram=True) < operations(
        rows, columns, coefficients, steps, by_gram=False
    ):
        out = jax.lax.platform_dependent(
            wide,
            cpu=lambda t: _by_gram(t, coefficients, steps),
            default=lambda t: _direct(t, coefficients, steps),
        )
    else:
        out = _direct(wide, coefficients, steps)
    return _transposed(out) if tall else out


def operations(rows: int, columns: int, coefficients: Coefficients, steps: int, *, by_gram: bool) -> float:
    """Floating-point operations of the products for one matrix, rows <= columns."""
    large, small, squares = 2.0 * rows**2 * columns, 2.0 * rows**3, bool(coefficients[2])
    if not by_gram:
        return steps * (2 * large + squares * small)
    strips = -(-rows // STRIP)
    share = (strips + 1) / (2 * strips)
    rounds = len(_rounds(rows, steps))
    return rounds * (1 + share) * large + share * (steps * squares + 3 * (steps - rounds)) * small


def _rounds(rows: int, steps: int) -> list[int]:
    """The steps of each round, as even as they can be, the first ones first."""
    count = -(-steps // (WHOLE_STEPS if rows <= STRIP else MIRRORED_STEPS))
    return [steps // count + (i < steps % count) for i in range(count)]


def _direct(x: jax.Array, coefficients: Coefficients, steps: int) -> jax.Array:
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ _transposed(x)
        x = a * x + (b * gram + c * (gram @ gram) if c else b * gram) @ x
    return x


def _by_gram(x: jax.Array, coefficients: Coefficients, steps: int) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for count in _rounds(x.shape[-2], steps):
        wide = _round(wide, coefficients, count)
    return wide.astype(x.dtype)


def _round(x: jax.Array, coefficients: Coefficients, steps: int) -> jax.Array:
    a, b, c = coefficients

    def polynomial(gram: jax.Array) -> jax.Array:
        return b * gram + c * _symmetric_product(gram, gram) if c else b * gram

    gram = _symmetric_product(x, _transposed(x))
    change = polynomial(gram)
    scale, rest = a, change
    for _ in range(steps - 1):
        half = a * gram + _symmetric_product(gram, change)
        gram = a * half + _symmetric_product(half, change)
        change = polynomial(gram)
        rest = a * rest + scale * change + _symmetric_product(change, rest)
        scale *= a
    return scale * x + rest @ x


def _symmetric_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y where it is symmetric, [..., m, m]: strips of rows from the diagonal on, the rest mirrored."""
    starts = range(0, x.shape[-2], STRIP)
    if len(starts) == 1:
        return x @ y
    upper = [x[..., start : start + STRIP, :] @ y[..., start:] for start in starts]
    rows = []
    for i, start in enumerate(starts):
        size = upper[i].shape[-2]
        left = [
            _transposed(upper[j][..., start - before : start - before + size])
            for j, before in enumerate(starts[:i])
        ]
        rows.append(jnp.concatenate([*left, upper[i]], axis=-1))
    return jnp.concatenate(rows, axis=-2)


def _transposed(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -2, -1)
