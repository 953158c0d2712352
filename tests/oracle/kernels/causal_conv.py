"""Oracle: token by token and tap by tap."""

from collections.abc import Sequence

import numpy as np


def causal_conv(
    x_td: np.ndarray,
    taps_wd: np.ndarray,
    history_hd: np.ndarray | None = None,
    segments: Sequence[int] | None = None,
) -> np.ndarray:
    """The sum of `hope_jax.kernels.causal_conv.causal_conv`, one term at a time. y [T, D]."""
    window = len(taps_wd)
    before = [np.zeros(x_td.shape[1])] * (window - 1) if history_hd is None else list(history_hd)
    stream = before + list(x_td)
    documents = [1] * len(stream) if segments is None else segments
    y = np.zeros_like(x_td)
    for t in range(len(x_td)):
        for i in range(window):
            if documents[t + i] == documents[t + window - 1]:
                y[t] += taps_wd[i] * stream[t + i]
    return y


def gradients(
    x_td: np.ndarray,
    taps_wd: np.ndarray,
    history_hd: np.ndarray,
    by_y_td: np.ndarray,
    segments: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of sum(y * by_y), by x, taps and history, one term of `causal_conv` at a time."""
    window = len(taps_wd)
    stream = list(history_hd) + list(x_td)
    by_stream = np.zeros((len(stream), x_td.shape[1]))
    by_taps = np.zeros_like(taps_wd)
    for t in range(len(x_td)):
        for i in range(window):
            if segments[t + i] == segments[t + window - 1]:
                by_stream[t + i] += by_y_td[t] * taps_wd[i]
                by_taps[i] += by_y_td[t] * stream[t + i]
    return by_stream[window - 1 :], by_taps, by_stream[: window - 1]
