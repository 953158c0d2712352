"""Production form: one shifted multiply-add per tap, which XLA fuses into a single pass.

On 2 CPU cores 40 to 86 times faster than `lax.conv_general_dilated` forward, 2 to 43 times with gradients, at
width 512, window 4, one and six sequences of 32 to 2,048 tokens of one document (`python -m hope_jax.bench
causal_conv`). No GPU or TPU has run it.
"""

import chex
import jax
import jax.numpy as jnp


def causal_conv(
    x_td: jax.Array,
    taps_wd: jax.Array,
    history_hd: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """y_t = sum_i taps_i * x_{t - (W - 1) + i}: the last tap meets the current token.

    x_td: [T, D]. taps_wd: [W, D]. history_hd: [W - 1, D], the tokens before x; None: zeros. segments: int
    [W - 1 + T] document of each token of history and x: a tap that meets a token of another document gives
    zero; None: all are of one.
    Returns y [T, D] in x's dtype and the history [W - 1, D] for the tokens that follow.
    """
    window, tokens = taps_wd.shape[0], x_td.shape[0]
    chex.assert_shape([x_td, taps_wd], [(tokens, x_td.shape[1]), (window, x_td.shape[1])])
    if history_hd is None:
        history_hd = jnp.zeros((window - 1, x_td.shape[1]), x_td.dtype)
    padded = jnp.concatenate([history_hd.astype(x_td.dtype), x_td])
    taps = taps_wd.astype(x_td.dtype)

    def met(i: int) -> jax.Array:
        """The input that tap i meets at each token."""
        there = padded[i : i + tokens]
        if segments is None:
            return there
        return jnp.where((segments[i : i + tokens] == segments[window - 1 :])[:, None], there, 0)

    y = sum(taps[i] * met(i) for i in range(window))
    return jnp.asarray(y), padded[tokens:]
