"""Rounding error of self-modifying memories: float32 and bfloat16 against float64, forward and gradient.

python -m hope_jax.perf.rounding.self_mod

Two cases, each over chunk sizes and decays. *chunk*: one chunk written into one group from given tokens, its
keys independent with eta up to 0.1, or nearly parallel (cosine about 0.96) with eta 0.5, where powers of the
chunk's triangular system grow. *pass*: a whole layer, generators and M_memory, over `PASS_TOKENS` tokens with
writes, which shows how errors travel through the writes.

An error is |x - x64| / |x64| in the 2-norm over one array, the largest over a case's arrays: written weights
(and outputs) forward; gradients in all weights and tokens (pass: weights and inputs) of a fixed linear
function of those. A cell where float64 itself is not finite reads "diverges". All precisions get the same
values, for which keys, values and inputs are rounded to bfloat16 first; in bfloat16 these are held and
multiplied in it, weights stay float32. float64 agrees with the loop over tokens to 1e-9 (`test_self_mod.py`).
A decay of d is alpha = d at every token of a chunk, alpha around d in a pass.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.kernels.self_mod import Rule, Tokens, chunk_pass, layout_of, stack, write_chunk
from hope_jax.memory.self_mod import SelfMod
from hope_jax.perf.rounding import against_float64 as against

Keys: TypeAlias = Literal["independent", "correlated"]
KEYS: tuple[Keys, ...] = ("independent", "correlated")

CHUNK_DECAYS = (0.5, 0.9, 0.99, 0.999, 1.0)
PASS_DECAYS = (0.99, 0.999, 1.0)
"""At 0.9 and below nothing is left of a pass's first weights at its end (4e-24): no error is to be seen."""
CHUNKS = (8, 16, 32, 64, 128, 256)
DIM, PASS_TOKENS, PASS_ETA = 64, 512, 1e-3


def _matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape) / np.sqrt(shape[-1])


def _group(dim: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    square = {name: {"w_in": _matrix(rng, dim, dim), "w_out": _matrix(rng, dim, dim)} for name in ("k", "v")}
    eta = {"w_in": _matrix(rng, dim, dim), "w_out": _matrix(rng, 1, dim), "w_skip": _matrix(rng, 1, dim)}
    return {**square, "eta": eta}


def _tokens(size: int, alpha: float, keys: Keys, dim: int) -> Tokens:
    rng = np.random.default_rng(1)
    k, v = rng.normal(size=(2, size, dim))
    eta = rng.uniform(size=size) * 0.1
    if keys == "correlated":
        k, eta = 0.2 * k + rng.normal(size=dim), np.full(size, 0.5)
    k = against.bfloat16_values(k / np.linalg.norm(k, axis=1, keepdims=True))
    return Tokens(k, against.bfloat16_values(v / np.sqrt(dim)), eta, np.full(size, np.log(alpha)))


def _with_gradient(function: Callable[..., Any]) -> Any:
    """A compiled (a, b) -> (what the function makes of them, gradients by a and b of a linear form of it)."""

    def form(*arguments: Any) -> tuple[jax.Array, Any]:
        made, rng = function(*arguments), np.random.default_rng(2)
        parts = [jnp.vdot(t, jnp.asarray(rng.normal(size=t.shape), t.dtype)) for t in jax.tree.leaves(made)]
        return sum(parts[1:], parts[0]), made

    return jax.jit(jax.grad(form, argnums=(0, 1), has_aux=True))


def _write(group: Any, tokens: Tokens) -> Any:
    return write_chunk(stack(group), layout_of(group), tokens, Rule())


_chunk = _with_gradient(_write)


def _errors(run: Callable[..., Any], dtype: str, weights: Any, rows: Any) -> tuple[float, float]:
    """Of outputs and of gradients. Weights and rows of one axis are held in at least float32.

    Raises: FloatingPointError if float64 is not finite itself.
    """

    def outcome(kind: str) -> Any:
        wide = against.wide(kind)
        held = jax.tree.map(lambda t: jnp.asarray(t, wide if np.ndim(t) < 2 else kind), rows)
        return run(jax.tree.map(lambda w: jnp.asarray(w, wide), weights), held)

    wanted = outcome("float64")
    if not all(np.isfinite(t).all() for t in jax.tree.leaves(wanted)):
        raise FloatingPointError("the float64 run diverges: nothing to compare with")
    gradient, made = (max(jax.tree.leaves(e)) for e in jax.tree.map(against.relative, outcome(dtype), wanted))
    return made, gradient


def chunk_error(size: int, alpha: float, dtype: str, keys: Keys, dim: int = DIM) -> tuple[float, float]:
    """Errors (forward, gradient) of one chunk of `size` tokens. Needs jax_enable_x64."""
    return _errors(_chunk, dtype, _group(dim), _tokens(size, alpha, keys, dim))


@cache
def _pass(size: int, use_alpha: bool) -> Callable[..., tuple[Any, Any]]:
    layer = SelfMod(
        chunk_size=size,
        chunk_size_memory=size,
        eta_scale=PASS_ETA,
        use_alpha=use_alpha,
        local_conv_window=0,
        dim=DIM,
        online_chunk=size,
    )

    def run(params: Any, x: jax.Array) -> Any:
        out, state, _, _ = layer.read(params, layer.init(params), None, x, position=0)
        assert state is not None
        return out, state.weights

    return _with_gradient(run)


def pass_error(size: int, alpha: float, dtype: str, tokens: int = PASS_TOKENS) -> tuple[float, float]:
    """Errors (forward, gradient) of a layer whose memories are all written every `size` tokens; alpha 1:
    without decay. Needs jax_enable_x64."""
    rng, params = np.random.default_rng(0), _group(DIM)
    params["memory"] = {"w_in": _matrix(rng, DIM, DIM), "w_out": _matrix(rng, DIM, DIM)}
    params["w_q"] = _matrix(rng, DIM, DIM)
    if alpha < 1:
        params["alpha"] = {name: 0.1 * w for name, w in params["eta"].items()}
        params["b_alpha"] = np.log(alpha / (1 - alpha))
    x = against.bfloat16_values(np.random.default_rng(3).normal(size=(tokens, DIM)))
    return _errors(_pass(size, alpha < 1), dtype, params, x)


def _cell(error: Callable[..., tuple[float, float]], *case: Any) -> str:
    try:
        return "{:.0e} / {:.0e}".format(*error(*case))
    except FloatingPointError:
        return "diverges"


def main() -> None:
    """Prints the tables of docs/numerics.md."""
    against.begin()
    chunk_pass.WIDE = DIM  # the form that wide memories take
    for dtype in against.DTYPES:
        tables: dict[str, Any] = {
            f"chunk, {keys} keys": (CHUNK_DECAYS, partial(chunk_error, keys=keys)) for keys in KEYS
        }
        for title, (decays, error) in {**tables, "pass": (PASS_DECAYS, pass_error)}.items():
            print(f"\n{dtype}, {title}: error forward / gradient\n")
            rows = ([str(c), *(_cell(partial(error, dtype=dtype), c, d) for d in decays)] for c in CHUNKS)
            against.print_table(["chunk", *map("decay {:g}".format, decays)], rows)


if __name__ == "__main__":
    main()
