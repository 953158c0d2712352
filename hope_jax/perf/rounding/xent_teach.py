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
from hope_jax.perf.rounding.against_float64 import DTYPES, begin, bfloat16_values, print_table, relative, wide

SPREADS = (0.1, 1.0, 4.0, 30.0)
TOKENS, DIM, VOCAB = 200, 256, 8000
NAMES = ("loss", "entropy", "by hidden", "by head")


def errors(spread: float, dtype: str, tokens: int = TOKENS, dim: int = DIM) -> list[float]:
    """Of `NAMES`, at logits of this spread. Needs jax_enable_x64."""
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(1, tokens, dim)), rng.normal(size=(VOCAB, dim)) / np.sqrt(dim)
    hidden, head = bfloat16_values(spread * hidden), bfloat16_values(head)
    targets = jnp.asarray(rng.integers(-1, VOCAB, (1, tokens)))

    def total(hidden: jax.Array, head: jax.Array) -> tuple[jax.Array, Any]:
        found = cross_entropy(hidden, head, targets, 64 * VOCAB)
        return found.total, (found.loss_bt, found.entropy_bt)

    def run(dtype: str) -> list[Any]:
        given = jnp.asarray(hidden, dtype), jnp.asarray(head, wide(dtype))
        gradients, each = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(*given)
        return [*each, *gradients]

    return [relative(got, exact) for got, exact in zip(run(dtype), run("float64"), strict=True)]


def main() -> None:
    """Prints the table of docs/numerics.md."""
    begin()
    cases = ((dtype, spread) for dtype in DTYPES for spread in SPREADS)
    rows = ([dtype, f"{spread:g}", *(f"{e:.0e}" for e in errors(spread, dtype))] for dtype, spread in cases)
    print_table(["dtype", "spread", *NAMES], rows)


if __name__ == "__main__":
    main()
