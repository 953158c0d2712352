"""The shifted sums over XLA's depthwise convolution, width 512, window 4, batches of sequences.

Useful operations: 2 W D a token forward, three times that with the gradients by inputs and taps.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp

from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.perf.timing import Case, Comparison, Goal, compiled

DIM, WINDOW = 512, 4

Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def library(x_btd: jax.Array, taps_wd: jax.Array) -> jax.Array:
    """`lax.conv_general_dilated` with as many groups as channels. [B, T, D]."""
    return jax.lax.conv_general_dilated(
        x_btd,
        taps_wd[:, None],
        window_strides=(1,),
        padding=[(taps_wd.shape[0] - 1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x_btd.shape[-1],
    )


def shifted(x_btd: jax.Array, taps_wd: jax.Array) -> jax.Array:
    """Ours, one sequence mapped over the batch. [B, T, D]."""
    return jax.vmap(lambda x_td: causal_conv(x_td, taps_wd)[0])(x_btd)


def _cases(kind: str, batch: int, tokens: int) -> tuple[Case, ...]:
    x_btd = jax.random.normal(jax.random.key(0), (batch, tokens, DIM))
    taps_wd = jax.random.normal(jax.random.key(1), (WINDOW, DIM))

    def timed(convolution: Convolution) -> Callable[..., object]:
        if kind == "forward":
            return convolution
        return jax.grad(lambda x, taps: jnp.square(convolution(x, taps)).sum(), argnums=(0, 1))

    flops = 2.0 * WINDOW * DIM * batch * tokens * (1 if kind == "forward" else 3)
    case = partial(compiled, flops=flops, tokens=batch * tokens)
    return (
        case("lax.conv_general_dilated", timed(library), x_btd, taps_wd),
        case("shifted sums", timed(shifted), x_btd, taps_wd, goals=(Goal("ratio", 1.0),)),
    )


def comparisons() -> Iterator[Comparison]:
    """An online chunk of the pilot, and longer reads, of one sequence and of six."""
    for kind in ("forward", "gradient"):
        for tokens in (32, 256, 2048):
            for batch in (1, 6):
                yield Comparison(
                    f"causal_conv/{kind}-b{batch}-t{tokens}", partial(_cases, kind, batch, tokens)
                )
