"""Oracle: dense gradients, one period after the other."""

import numpy as np


def write_periods(
    x: np.ndarray,
    g: np.ndarray,
    delta: np.ndarray,
    velocity: np.ndarray | None,
    applied: np.ndarray,
    *,
    beta: float,
    lr: float,
    max_write: float | None,
    max_delta: float | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The delta and velocity of `gram.write_periods`, step by step."""
    period = len(x) // len(applied)
    for p, on in enumerate(applied):
        if not on:
            continue
        gradient = np.zeros_like(delta)
        for t in range(p * period, (p + 1) * period):
            gradient += np.outer(x[t], g[t])
        u = gradient
        if velocity is not None:
            u = velocity = beta * velocity + (1 - beta) * gradient
        write = -lr * u
        if max_write is not None:
            write = write / max(float(np.linalg.norm(write)) / max_write, 1.0)
        delta = delta + write
        if max_delta is not None:
            delta = delta / max(float(np.linalg.norm(delta)) / max_delta, 1.0)
    return delta, velocity
