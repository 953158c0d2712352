"""Self-modifying Titans: the pass over a sequence with its writes, forward and through the writes.

Useful operations of a token: 72 D^2 forward (as in `hope_jax.models.flops`), twice that backward;
recomputation is not counted.

The backward's memory grows with T by what a block of `chunk_pass.BLOCK_TOKENS` saves: its first weights (all
memories together 8 D^2 and a little) and the results of the products of its tokens (about 29 D a token).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hope_jax.memory.self_mod import SelfMod
from hope_jax.perf.timing import Case, Comparison, Goal, compiled

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

    return {
        **{name: memory(dim) for name in ("k", "v", "memory")},
        **{name: memory(1) for name in ("eta", "alpha")},
        "b_alpha": jnp.full((), 7.0),
        "w_q": matrix(dim, dim),
    }


def _pass(memory: SelfMod) -> Callable[[Any, jax.Array], jax.Array]:
    """Outputs [B, T, D] of sequences [B, T, D], each with memories of its own."""

    def one(params: Any, x_td: jax.Array) -> jax.Array:
        fast = memory.init(params)
        return memory.read(params, fast, None, x_td, position=0)[0]

    return lambda params, x_btd: jax.vmap(partial(one, params))(x_btd)


def _cases(dim: int, tokens: int, batch: int, goals: dict[str, tuple[Goal, ...]]) -> tuple[Case, ...]:
    memory = SelfMod(dim=dim, online_chunk=64, local_conv_window=0)
    params = _params(dim)
    x_btd = jax.random.normal(jax.random.key(1), (batch, tokens, dim))
    run = _pass(memory)
    products = 2.0 * dim * dim * FORWARD_PRODUCTS * tokens * batch

    def loss(params: Any, x_btd: jax.Array) -> jax.Array:
        return jnp.square(run(params, x_btd)).sum()

    case = partial(compiled, tokens=tokens * batch)
    return (
        case("forward", run, params, x_btd, flops=products, goals=goals.get("forward", ())),
        case(
            "forward + backward",
            jax.grad(loss, argnums=(0, 1)),
            params,
            x_btd,
            flops=3 * products,
            goals=goals.get("backward", ()),
        ),
    )


def comparisons() -> Iterator[Comparison]:
    """The sizes of the table of goals, and a pass four times as long, for its memory."""
    reach = {
        "forward": (Goal("share", 0.6),),
        "backward": (Goal("share", 0.4), Goal("temporary_mib", 100.0)),
    }
    for dim, tokens, batch in ((512, 512, 1), (512, 512, 4), (256, 512, 1), (512, 2048, 1)):
        goals = reach if (dim, tokens) == (512, 512) else {}
        if batch > 1:
            goals = {name: tuple(g for g in of if g.measure == "share") for name, of in goals.items()}
        yield Comparison(f"self_mod/d{dim}-t{tokens}-b{batch}", partial(_cases, dim, tokens, batch, goals))
