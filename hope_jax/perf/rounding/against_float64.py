"""What the tables of rounding errors share: equal values in every precision, errors, gradients, Markdown."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16")
CHUNKS = (8, 16, 32, 64, 128, 256)


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


def with_gradient(function: Callable[..., Any], slopes: Callable[[list[Any]], list[Any]]) -> Any:
    """A compiled (a, b, *others) -> (what the function makes of them, gradients by a and b of a form of it).

    slopes: floating arrays made -> the form's slope in each.
    """

    def form(*arguments: Any) -> tuple[jax.Array, Any]:
        made = function(*arguments)
        leaves = [t for t in jax.tree.leaves(made) if jnp.issubdtype(t.dtype, jnp.floating)]
        parts = [jnp.vdot(t, slope) for t, slope in zip(leaves, slopes(leaves), strict=True)]
        return sum(parts[1:], parts[0]), made

    def both(*arguments: Any) -> tuple[Any, Any]:
        gradient, made = jax.grad(form, argnums=(0, 1), has_aux=True)(*arguments)
        return made, gradient

    return jax.jit(both)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As Markdown, each row as soon as it is known."""
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def print_grid(title: str, decay: str, decays: Sequence[float], error: Callable[[int, float], Any]) -> None:
    """Errors forward / of the gradient by chunk size and decay. decay: the columns' format. error:
    (chunk, decay) -> both; a FloatingPointError says that float64 is not finite itself."""

    def cell(*case: Any) -> str:
        try:
            return "{:.0e} / {:.0e}".format(*error(*case))
        except FloatingPointError:
            return "diverges"

    print(f"\n{title}\n")
    rows = ([str(chunk), *(cell(chunk, value) for value in decays)] for chunk in CHUNKS)
    print_table(["chunk", *map(decay.format, decays)], rows)
