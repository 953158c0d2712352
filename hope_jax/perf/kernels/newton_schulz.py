"""Newton-Schulz at the pilot's matrices, over optax's (`optax.contrib.scale_by_muon`).

In a step of the pilot there are 132 of 512 x 2048, 48 of 512 x 512, and of TITAN's self-modifier 12 of
1536 x 2048 and 12 of 2048 x 2048.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import optax

from hope_jax.kernels.newton_schulz import CUBIC, QUINTIC, Coefficients, orthogonalize
from hope_jax.perf.timing import Case, Comparison, forms

EPS = 1e-8
SHAPES = ((4, 512, 512), (3, 512, 2048), (1, 1536, 2048), (1, 2048, 2048))


def _optax(coefficients: Coefficients, steps: int, x: jax.Array) -> jax.Array:
    """Through the transformation's first step: the momentum of one gradient is a multiple of it."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    optimizer = optax.contrib.scale_by_muon(
        coefficients, steps, eps=EPS, nesterov=False, weight_dimension_numbers=axes
    )
    return jnp.asarray(optimizer.update(x, optimizer.init(x))[0])


def _one_by_one(coefficients: Coefficients, steps: int, x: jax.Array) -> jax.Array:
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + EPS)
    for _ in range(steps):
        x = coefficients[0] * x + coefficients[1] * (x @ jnp.swapaxes(x, -2, -1)) @ x
    return x


def _cases(shape: tuple[int, int, int], coefficients: Coefficients, steps: int) -> tuple[Case, ...]:
    (rows, columns), quintic = sorted(shape[1:]), bool(coefficients[2])
    other = {"optax": _optax} if quintic else {"product by product": _one_by_one}
    return forms(
        {
            **{name: partial(function, coefficients, steps) for name, function in other.items()},
            "ours": lambda x: orthogonalize(x, coefficients, steps, EPS),
        },
        jax.random.normal(jax.random.key(0), shape),
        flops=shape[0] * steps * (4.0 * rows**2 * columns + 2.0 * rows**3 * quintic),
    )


def comparisons() -> Iterator[Comparison]:
    """Muon's five quintic steps over optax's, and M3's three cubic ones over their products in turn."""
    for name, coefficients, steps in (("muon", QUINTIC, 5), ("m3", CUBIC, 3)):
        for shape in SHAPES:
            size = "x".join(map(str, shape))
            yield Comparison(f"newton_schulz/{name}-{size}", partial(_cases, shape, coefficients, steps))
