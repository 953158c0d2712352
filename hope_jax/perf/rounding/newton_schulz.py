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

from hope_jax.kernels.newton_schulz import CUBIC, QUINTIC, Coefficients, iterate

SHAPES = ((384, 512), (640, 768))
SMALLEST = (1.0, 1e-2, 1e-4, 1e-6, 0.0)
RULES: dict[str, tuple[Coefficients, int]] = {"Muon": (QUINTIC, 5), "M3": (CUBIC, 3)}


def error(dtype: str, rule: tuple[Coefficients, int], smallest: float, shape: tuple[int, int]) -> float:
    """Of one rule. Needs jax_enable_x64."""
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    values = np.geomspace(1, smallest, shape[0]) if smallest else np.eye(shape[0])[0]
    x64 = (left * values) @ right
    x = jnp.asarray(x64 / np.linalg.norm(x64), dtype)
    wanted = np.asarray(iterate(x.astype(jnp.float64) / jnp.linalg.norm(x.astype(jnp.float64)), *rule))
    scale = jnp.linalg.norm(x.astype(jnp.float64)).astype(dtype)
    got = np.asarray(jax.jit(iterate, static_argnums=(1, 2))(x / scale, *rule), np.float64)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def main() -> None:
    """Prints the table of docs/numerics.md."""
    jax.config.update("jax_enable_x64", True)
    print("| dtype | size | smallest | " + " | ".join(RULES) + " |")
    print("|---" * (3 + len(RULES)) + "|")
    for dtype, shape, smallest in itertools.product(("float32", "bfloat16"), SHAPES, SMALLEST):
        errors = [error(dtype, rule, smallest, shape) for rule in RULES.values()]
        figures = " | ".join(f"{e:.0e}" for e in errors)
        print(f"| {dtype} | {shape[0]} x {shape[1]} | {smallest:g} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
