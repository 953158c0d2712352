"""Self-modifying Titans: the pass over a sequence with its writes, forward and through the writes.

Useful operations of a token: 72 D^2 forward (as in `hope_jax.models.flops`), twice that backward;
recomputation is not counted. The backward's memory grows with T by what a block of `chunk_pass.BLOCK_TOKENS`
saves: its first weights (all memories together 8 D^2 and a little) and the results of the products of its
tokens (about 29 D a token).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.memory.self_mod import SelfMod
from hope_jax.perf.timing import Case, Comparison, Goal, compiled, with_gradients

FORWARD_PRODUCTS = 36
"""Products with a D x D matrix a token, reads and writes."""


def _params(dim: int, seed: int = 0) -> Any:
    """One layer's parameters: unit-scale random maps, slow decay, so that weights stay alive."""
    keys = iter(jax.random.split(jax.random.key(seed), 32))

    def matrix(rows: int, columns: int, gain: float = 1.0) -> jax.Array:
        return gain * jax.random.normal(next(keys), (rows, columns)) / jnp.sqrt(columns)

    def memory(out: int) -> dict[str, jax.Array]:
        weights = {"w_in": matrix(dim, dim), "w_out": matrix(out, dim, 0.5)}
        return weights if out == dim else {**weights, "w_skip": matrix(out, dim)}

    widths = {"k": dim, "v": dim, "memory": dim, "eta": 1, "alpha": 1}
    memories = {name: memory(out) for name, out in widths.items()}
    return {**memories, "b_alpha": jnp.full((), 7.0), "w_q": matrix(dim, dim)}


def _pass(memory: SelfMod) -> Callable[[Any, jax.Array], jax.Array]:
    """Outputs [B, T, D] of sequences [B, T, D], each with memories of its own."""

    def one(params: Any, x_td: jax.Array) -> jax.Array:
        return memory.read(params, memory.init(params), None, x_td, position=0)[0]

    return lambda params, x_btd: jax.vmap(partial(one, params))(x_btd)


def _cases(dim: int, tokens: int, batch: int) -> tuple[Case, ...]:
    """Goals are for the sizes of docs/kernels.md; that of the memory is for a batch of one."""
    arguments = _params(dim), jax.random.normal(jax.random.key(1), (batch, tokens, dim))
    run, goal = _pass(SelfMod(dim, online_chunk=64)), (dim, tokens) == (512, 512)
    memory = [Goal("temporary_mib", 100.0)] if batch == 1 else []
    goals = {"forward": (Goal("share", 0.6),), "forward + backward": (Goal("share", 0.4), *memory)}
    flops = 2.0 * dim * dim * FORWARD_PRODUCTS * tokens * batch
    return tuple(
        compiled(
            *(name, function, *arguments),
            flops=times * flops,
            tokens=tokens * batch,
            goals=goals[name] if goal else (),
        )
        for name, function, times in (
            ("forward", run, 1),
            ("forward + backward", with_gradients(run, (0, 1)), 3),
        )
    )


def comparisons() -> Iterator[Comparison]:
    """The sizes that have goals, a narrower pass, and one four times as long, for its memory."""
    for dim, tokens, batch in ((512, 512, 1), (512, 512, 4), (256, 512, 1), (512, 2048, 1)):
        yield Comparison(f"self_mod/d{dim}-t{tokens}-b{batch}", partial(_cases, dim, tokens, batch))
