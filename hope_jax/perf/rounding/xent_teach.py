"""Rounding error of the cross-entropy and its cotangents: float32 and bfloat16 against float64.

python -m hope_jax.perf.rounding.xent_teach

Rows are the spread of the logits (their standard deviation; at 30 a prediction is nearly certain), columns
what the pass gives. An error is |x - x64| / |x64| in the 2-norm over one array. Every precision gets the
same values: hidden states and head are rounded to bfloat16 first, and the head is held in float32. There are
several blocks, the last one ragged.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.kernels.xent_teach.chunked import cross_entropy

SPREADS = (0.1, 1.0, 4.0, 30.0)
TOKENS, DIM, VOCAB = 200, 256, 8000
NAMES = ("loss", "entropy", "by hidden", "by head")


def _run(dtype: str, values: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Losses, entropies, and the gradients of the summed loss by hidden states and head."""

    def total(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
        found = cross_entropy(hidden, head, jnp.asarray(values[2]), 64 * VOCAB)
        return found.total, (found.loss_bt, found.entropy_bt)

    hidden = jnp.asarray(values[0], dtype)
    head = jnp.asarray(values[1], jnp.promote_types(dtype, jnp.float32))
    gradients, each = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(hidden, head)
    return [np.asarray(t, np.float64) for t in (*each, *gradients)]


def errors(spread: float, dtype: str, tokens: int = TOKENS, dim: int = DIM) -> list[float]:
    """Of `NAMES`, at logits of this spread. Needs jax_enable_x64."""
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(1, tokens, dim)), rng.normal(size=(VOCAB, dim)) / np.sqrt(dim)
    rounded = [np.asarray(jnp.asarray(t, jnp.bfloat16), np.float64) for t in (spread * hidden, head)]
    values = (rounded[0], rounded[1], rng.integers(-1, VOCAB, (1, tokens)))
    pairs = zip(_run(dtype, values), _run("float64", values), strict=True)
    return [float(np.linalg.norm(got - exact) / np.linalg.norm(exact)) for got, exact in pairs]


def main() -> None:
    """Prints the table of docs/numerics.md."""
    jax.config.update("jax_enable_x64", True)
    print("| dtype | spread | " + " | ".join(NAMES) + " |")
    print("|---" * (2 + len(NAMES)) + "|")
    for dtype in ("float32", "bfloat16"):
        for spread in SPREADS:
            cells = " | ".join(f"{error:.0e}" for error in errors(spread, dtype))
            print(f"| {dtype} | {spread:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
