"""The published code's own rules where they differ from ours, for replaying its golden files.

Names are production's; a level's parameters here all learn, LayerNorm included.
"""

from typing import Any

import numpy as np

from tests.oracle.cms import level_gradient
from tests.oracle.layers import Arrays
from tests.oracle.model import head_signal
from tests.oracle.writes import Level, fresh_state, inner_step


def mean_loss_signal(logits: np.ndarray, targets: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Signal of the mean loss over the batch: ours divided by the number of supervised positions."""
    active = max(int(np.sum(targets >= 0)), 1)
    pairs = zip(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), strict=True)
    rows = np.stack([head_signal(row, target, head) for row, target in pairs])
    return rows.reshape(*targets.shape, -1) / active


def squared_loss(signal: np.ndarray, mask: np.ndarray, reduction: str) -> tuple[float, float]:
    """Value of the squared surrogate (sum of masked signal squared) and the factor on its gradient."""
    divisor = max(float(mask.sum()), 1.0) if reduction == "mean" else 1.0
    return float(np.sum(mask[..., None] * signal**2) / divisor), 2.0 / divisor


def context_projection(grads: Arrays, context: np.ndarray, eps: float) -> tuple[Arrays, dict[str, Any]]:
    """Its `nl_l2_precond`: project every tensor whose torch last axis has the model's width.

    The last axis of a torch matrix [out, in] is the input axis, the first of ours. Statistics are those of
    the last parameter in its order (b_down).
    """
    width, length = context.shape[0], float(np.linalg.norm(context))
    e = context / (length + eps)
    projected = {}
    for name, g in grads.items():
        if length > 0 and g.shape[0] == width:
            projected[name] = g - (np.outer(e, e @ g) if g.ndim == 2 else e * (e @ g))
        else:
            projected[name] = g
    last = "b_down"
    return projected, {
        "ctx_norm": length,
        "proj_norm": float(np.linalg.norm(projected[last])),
        "proj_skipped": float(projected[last] is grads[last]),
    }


def update(
    level: Level,
    p: Arrays,
    delta: Arrays,
    state: dict[str, Arrays] | None,
    x: np.ndarray,
    signal: np.ndarray,
    reduction: str,
    read_clip: float = 0.0,
    act: str = "gelu",
) -> dict[str, Any]:
    """One update of one level from x, signal [B, L, D]: gradient, magnitude, next delta and state."""
    state = fresh_state(level, p) if state is None else state
    mask = (np.abs(signal).sum(-1) > 0).astype(float)
    loss, factor = squared_loss(signal, mask, reduction)
    weights, width = {n: p[n] + delta[n] for n in p}, x.shape[-1]
    tokens = zip(x.reshape(-1, width), signal.reshape(-1, width), strict=True)
    each = [level_gradient(weights, key, factor * taught, read_clip, act) for key, taught in tokens]
    grads = {n: np.asarray(sum(g[n] for g in each)) for n in p}
    stats: dict[str, Any] = {}
    directions = grads
    if level.optimizer == "nl_l2_precond":
        directions, stats = context_projection(grads, x.reshape(-1, width).mean(0), level.eps)
    u, state = inner_step(level, directions, state, None)
    return {
        "grads": grads,
        "loss": loss,
        "magnitude": float(sum(np.linalg.norm(g) for g in grads.values())),
        "delta": {n: delta[n] - level.lr * u[n] for n in p},
        "state": state,
        "stats": stats,
    }
