"""Newton-Schulz at the pilot's matrices, over optax's (`optax.contrib.scale_by_muon`).

In a step of the pilot there are 132 of 512 x 2048, 48 of 512 x 512, and of TITAN's self-modifier 12 of
1536 x 2048 and 12 of 2048 x 2048.
"""

from collections.abc import Iterator
from functools import partial, reduce

import jax
import jax.numpy as jnp
import optax

from hope_jax.kernels.newton_schulz import CUBIC, QUINTIC, Coefficients, orthogonalize
from hope_jax.perf.timing import Case, Comparison, compiled

EPS = 1e-8
SHAPES = ((4, 512, 512), (3, 512, 2048), (1, 1536, 2048), (1, 2048, 2048))


def _optax(x: jax.Array, coefficients: Coefficients, steps: int) -> jax.Array:
    """Through the transformation's first step: the momentum of one gradient is a multiple of it."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    optimizer = optax.contrib.scale_by_muon(
        coefficients, steps, eps=EPS, nesterov=False, weight_dimension_numbers=axes
    )
    return jnp.asarray(optimizer.update(x, optimizer.init(x))[0])


def _cases(shape: tuple[int, int, int], coefficients: Coefficients, steps: int) -> tuple[Case, ...]:
    x = jax.random.normal(jax.random.key(0), shape)
    (rows, columns), rule = sorted(shape[1:]), (coefficients, steps)
    large, small = 2.0 * rows**2 * columns, 2.0 * rows**3 * bool(coefficients[2])
    case = partial(compiled, flops=shape[0] * steps * (2 * large + small))
    return (
        case("optax", lambda t: _optax(t, *rule), x)
        if coefficients[2]
        else case("product by product", lambda t: _one_by_one(t, *rule), x),
        case("ours", lambda t: orthogonalize(t, *rule, EPS), x),
    )


def _one_by_one(x: jax.Array, coefficients: Coefficients, steps: int) -> jax.Array:
    def step(x: jax.Array) -> jax.Array:
        return coefficients[0] * x + coefficients[1] * (x @ jnp.swapaxes(x, -2, -1)) @ x

    return reduce(
        lambda x, _: step(x), range(steps), x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + EPS)
    )


def comparisons() -> Iterator[Comparison]:
    """Muon's five quintic steps over optax's, and M3's three cubic ones over their products in turn."""
    for name, coefficients, steps in (("muon", QUINTIC, 5), ("m3", CUBIC, 3)):
        for shape in SHAPES:
            size = "x".join(map(str, shape))
            yield Comparison(f"newton_schulz/{name}-{size}", partial(_cases, shape, coefficients, steps))
