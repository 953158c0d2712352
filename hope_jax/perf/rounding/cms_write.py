"""Rounding error of a chunk's writes: float32 and bfloat16 against float64.

python -m hope_jax.perf.rounding.cms_write

Rows are the chunk's size, all periods of one token; columns the decay beta of the velocity. A cell is the
error of delta and velocity after the chunk / of the gradient of a form in them by tokens and starting state,
each |x - x64| / |x64| in the 2-norm over all arrays together. Every precision gets the same values: tokens
are rounded to bfloat16 first, and bfloat16 holds only them; the state is float32, as in training. Tokens
share a direction, so that gradients add up. Bounds: `idle`, on but not reached; `active`, on writes and on
the delta, below what the writes come to.
"""

from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.kernels.cms_write import Affine, Map, Rows, write_periods

CHUNKS = (8, 16, 32, 64, 128, 256)
DECAYS = (0.5, 1 - 2**-4, 1 - 2**-7, 1 - 2**-10, 1.0)
"""Exact in float32, with their differences from 1; a level's beta is a Python number."""

INPUTS, OUTPUTS, LR = 48, 96, 0.01
Bound = Literal["idle", "active"]


@cache
def _values(chunk: int) -> Any:
    """Tokens, and starting delta and velocity, as float64."""
    rng = np.random.default_rng(chunk)
    x = rng.normal(size=(chunk, INPUTS)) + rng.normal(size=INPUTS)
    g = 0.1 * (rng.normal(size=(chunk, OUTPUTS)) + rng.normal(size=OUTPUTS))
    rounded = [np.asarray(jnp.asarray(t, jnp.bfloat16), np.float64) for t in (x, g)]
    start = [np.asarray(0.02 * rng.normal(size=(INPUTS, OUTPUTS)), np.float32) for _ in range(2)]
    return *rounded, *(np.asarray(s, np.float64) for s in start)


def _written(tokens: Any, start: Any, beta: jax.Array, limits: Any) -> Any:
    rows = Rows(*tokens, None)
    one = Map(rows, Affine(start[0], None), Affine(start[1], None), *limits)
    ((delta, velocity, found),) = write_periods((one,), jnp.ones(len(tokens[0]), bool), beta=beta, lr=LR)
    return delta.matrix, velocity.matrix, found.delta_hits


@jax.jit
def _run(tokens: Any, start: Any, beta: jax.Array, limits: Any) -> Any:
    def form(tokens: Any, start: Any) -> tuple[jax.Array, Any]:
        delta, velocity, hits = _written(tokens, start, beta, limits)
        slopes = jnp.cos(jnp.arange(delta.size, dtype=delta.dtype)).reshape(delta.shape)
        return jnp.sum(slopes * (delta + velocity)), ((delta, velocity), hits)

    gradient, ((delta, velocity), hits) = jax.grad(form, argnums=(0, 1), has_aux=True)(tokens, start)
    return (delta, velocity), gradient, hits


def error(chunk: int, beta: float, dtype: str, bound: Bound) -> tuple[float, float]:
    """Forward and gradient. Needs jax_enable_x64. Raises: ValueError if bounds act other than named."""
    x, g, *start = _values(chunk)
    size = LR * float(np.linalg.norm(x.T @ g))
    delta_size, velocity_size = (float(np.linalg.norm(s)) for s in start)
    idle = 10 * (delta_size + size + LR * chunk * velocity_size)
    limits = (idle, idle) if bound == "idle" else (0.5 * LR * velocity_size, 0.9 * delta_size)
    found = []
    for kind in ("float64", dtype):
        state = jnp.promote_types(kind, jnp.float32)
        arguments = [jnp.asarray(t, kind) for t in (x, g)], [jnp.asarray(t, state) for t in start]
        bounds = [jnp.asarray(limit, state) for limit in limits]
        *trees, hits = _run(*arguments, jnp.asarray(beta, state), bounds)
        found.append(
            [
                np.concatenate([np.asarray(t, np.float64).ravel() for t in jax.tree.leaves(tree)])
                for tree in trees
            ]
        )
    if bool(hits.any()) != (bound == "active"):
        raise ValueError(f"chunk {chunk}, beta {beta}: want {bound} bounds")
    forward, gradient = (
        float(np.linalg.norm(got - exact) / np.linalg.norm(exact)) for exact, got in zip(*found, strict=True)
    )
    return forward, gradient


def main() -> None:
    """Prints the tables of docs/kernels.md."""
    jax.config.update("jax_enable_x64", True)
    for dtype in ("float32", "bfloat16"):
        for bound in ("idle", "active"):
            print(f"\n{dtype}, bounds {bound}\n")
            print("| chunk | " + " | ".join(f"beta {beta:.3g}" for beta in DECAYS) + " |")
            print("|---" * (1 + len(DECAYS)) + "|")
            for chunk in CHUNKS:
                cells = [error(chunk, beta, dtype, bound) for beta in DECAYS]
                row = " | ".join(f"{forward:.0e} / {gradient:.0e}" for forward, gradient in cells)
                print(f"| {chunk} | {row} |", flush=True)


if __name__ == "__main__":
    main()
