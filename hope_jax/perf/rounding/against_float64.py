"""What the tables of rounding errors share: equal values in every precision, errors, Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16")


def begin() -> None:
    """Has JAX know float64, which every module here compares with."""
    jax.config.update("jax_enable_x64", True)


def bfloat16_values(x: np.ndarray) -> np.ndarray:
    """The nearest values that bfloat16 holds, as float64."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def wide(dtype: str) -> Any:
    """The type of what stays in float32 where tokens are shorter."""
    return jnp.promote_types(dtype, jnp.float32)


def relative(got: Any, wanted: Any) -> float:
    """|x - x64| / |x64| in the 2-norm, over all arrays of a tree together."""
    got, wanted = (
        np.concatenate([np.asarray(t, np.float64).ravel() for t in jax.tree.leaves(tree)])
        for tree in (got, wanted)
    )
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As Markdown, each row as soon as it is known."""
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
