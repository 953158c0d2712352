"""Rounding error of a chunk's writes: float32 and bfloat16 against float64.

python -m hope_jax.perf.rounding.cms_write

Rows are the chunk's size, all periods of one token; columns the decay beta of the velocity. A cell is the
error of delta and velocity after the chunk / of the gradient of a form in them by tokens and starting state,
each |x - x64| / |x64| in the 2-norm over all arrays together. Every precision gets the same values: tokens
are rounded to bfloat16 first, and bfloat16 holds only them; the state is float32, as in training. Tokens
share a direction, so that gradients add up. Bounds: `idle`, on but not reached; `active`, on writes and on
the delta, below what the writes come to.
"""

from functools import cache, partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from hope_jax.kernels.cms_write import Affine, Map, Rows, write_periods
from hope_jax.perf.rounding import against_float64 as against

DECAYS = (0.5, 1 - 2**-4, 1 - 2**-7, 1 - 2**-10, 1.0)
"""Exact in float32, with their differences from 1; a level's beta is a Python number."""

INPUTS, OUTPUTS, LR = 48, 96, 0.01
Bound = Literal["idle", "active"]


@cache
def _values(chunk: int) -> tuple[np.ndarray, ...]:
    """Tokens, and starting delta and velocity, as float64."""
    rng = np.random.default_rng(chunk)
    x = rng.normal(size=(chunk, INPUTS)) + rng.normal(size=INPUTS)
    g = 0.1 * (rng.normal(size=(chunk, OUTPUTS)) + rng.normal(size=OUTPUTS))
    start = [(0.02 * rng.normal(size=(INPUTS, OUTPUTS))).astype(np.float32) for _ in range(2)]
    return against.bfloat16_values(x), against.bfloat16_values(g), *(s.astype(np.float64) for s in start)


def _written(tokens: Any, start: Any, beta: Any, limits: Any) -> Any:
    one = Map(Rows(*tokens, None), Affine(start[0], None), Affine(start[1], None), *limits)
    ((delta, velocity, found),) = write_periods((one,), jnp.ones(len(tokens[0]), bool), beta=beta, lr=LR)
    return (delta.matrix, velocity.matrix), found.delta_hits


def _waves(arrays: list[Any]) -> list[Any]:
    return [jnp.cos(jnp.arange(t.size, dtype=t.dtype)).reshape(t.shape) for t in arrays]


_run = against.with_gradient(_written, _waves)


def error(chunk: int, beta: float, dtype: str, bound: Bound) -> tuple[float, float]:
    """Forward and gradient. Needs jax_enable_x64. Raises: ValueError if bounds act other than named."""
    x, g, *start = _values(chunk)
    size = LR * float(np.linalg.norm(x.T @ g))
    delta_size, velocity_size = (float(np.linalg.norm(s)) for s in start)
    idle = 10 * (delta_size + size + LR * chunk * velocity_size)
    limits = (idle, idle) if bound == "idle" else (0.5 * LR * velocity_size, 0.9 * delta_size)

    def run(kind: str) -> Any:
        state = [jnp.asarray(t, against.wide(kind)) for t in (*start, beta, *limits)]
        return _run([jnp.asarray(t, kind) for t in (x, g)], state[:2], state[2], state[3:])

    (exact, _), exact_gradient = run("float64")
    (got, hits), gradient = run(dtype)
    if bool(hits.any()) != (bound == "active"):
        raise ValueError(f"chunk {chunk}, beta {beta}: want {bound} bounds")
    return against.relative(got, exact), against.relative(gradient, exact_gradient)


def main() -> None:
    """Prints the tables of docs/numerics.md."""
    against.begin()
    bounds: tuple[Bound, ...] = ("idle", "active")
    for dtype in against.DTYPES:
        for bound in bounds:
            cell = partial(error, dtype=dtype, bound=bound)
            against.print_grid(f"{dtype}, bounds {bound}", "beta {:.3g}", DECAYS, cell)


if __name__ == "__main__":
    main()
