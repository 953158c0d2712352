"""The shifted sums over XLA's depthwise convolution, width 512, window 4, batches of sequences.

Useful operations: 2 W D a token forward, three times that with the gradients by inputs and taps.
"""

from collections.abc import Iterator
from functools import partial

import jax

from hope_jax.kernels.causal_conv import causal_conv
from hope_jax.perf.timing import Case, Comparison, Goal, forms

DIM, WINDOW = 512, 4


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
    return forms(
        {"lax.conv_general_dilated": library, "shifted sums": shifted},
        *(x_btd, taps_wd),
        flops=2.0 * WINDOW * DIM * batch * tokens,
        tokens=batch * tokens,
        goals=(Goal("ratio", 1.0),),
        by=(0, 1) if kind == "gradient" else (),
    )


def comparisons() -> Iterator[Comparison]:
    """An online chunk of the pilot, and longer reads, of one sequence and of six."""
    for kind in ("forward", "gradient"):
        for tokens in (32, 256, 2048):
            for batch in (1, 6):
                build = partial(_cases, kind, batch, tokens)
                yield Comparison(f"causal_conv/{kind}-b{batch}-t{tokens}", build)
