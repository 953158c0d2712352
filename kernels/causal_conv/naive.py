"""Oracle: token by token and tap by tap."""

import numpy as np


def causal_conv(x_td: np.ndarray, taps_wd: np.ndarray, history_hd: np.ndarray | None = None) -> np.ndarray:
    """The sum of `hope_jax.kernels.causal_conv.causal_conv`, one term at a time. y [T, D]."""
    window = len(taps_wd)
    before = [np.zeros(x_td.shape[1])] * (window - 1) if history_hd is None else list(history_hd)
    stream = before + list(x_td)
    y = np.zeros_like(x_td)
    for t in range(len(x_td)):
        for i in range(window):
            y[t] += taps_wd[i] * stream[t + i]
    return y
