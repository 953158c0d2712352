"""Rounding error of Newton-Schulz: float32 and bfloat16 against float64.

python -m hope_jax.perf.rounding.newton_schulz

Rows are the smallest singular value of a matrix whose largest is 1, geometrically spaced (0: of rank one).
Columns are Muon's five quintic steps and M3's three cubic ones. An error is |x - x64| / |x64| in the
Frobenius norm. All get the values of the shorter type.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.kernels.newton_schulz import CUBIC, QUINTIC, iterate
from hope_jax.kernels.newton_schulz.batched import Coefficients
from hope_jax.perf.rounding.against_float64 import DTYPES, begin, print_table, relative

SHAPES = ((384, 512), (640, 768))
SMALLEST = (1.0, 1e-2, 1e-4, 1e-6, 0.0)
RULES: dict[str, tuple[Coefficients, int]] = {"Muon": (QUINTIC, 5), "M3": (CUBIC, 3)}


def error(dtype: str, rule: tuple[Coefficients, int], smallest: float, shape: tuple[int, int]) -> float:
    """Of one rule. Needs jax_enable_x64."""
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    values = np.geomspace(1, smallest, shape[0]) if smallest else np.eye(shape[0])[0]
    x64 = (left * values) @ right
    x = jnp.asarray(x64 / np.linalg.norm(x64), dtype)
    exact = x.astype(jnp.float64)
    scale = jnp.linalg.norm(exact)
    got = jax.jit(iterate, static_argnums=(1, 2))(x / scale.astype(dtype), *rule)
    return relative(got, iterate(exact / scale, *rule))


def main() -> None:
    """Prints the table of docs/numerics.md."""
    begin()
    rows = (
        [dtype, "{} x {}".format(*shape), f"{smallest:g}"]
        + [f"{error(dtype, rule, smallest, shape):.0e}" for rule in RULES.values()]
        for dtype, shape, smallest in itertools.product(DTYPES, SHAPES, SMALLEST)
    )
    print_table(["dtype", "size", "smallest", *RULES], rows)


if __name__ == "__main__":
    main()
