"""Teach signals: where they come from, how they are processed, and the surprise they carry."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracle.model import Arch, Tree, norm


def head_signal(logits: np.ndarray, targets: Any, embed: np.ndarray) -> np.ndarray:
    """dCE_t / d(vector entering the head): (softmax - onehot) @ embed, zero where unsupervised."""
    rows = []
    for row, target in zip(np.asarray(logits), targets, strict=True):
        p = np.exp(row - row.max())
        p = p / p.sum()
        if target >= 0:
            p[target] -= 1.0
        rows.append(p @ np.asarray(embed) if target >= 0 else np.zeros(np.shape(embed)[1]))
    return np.stack(rows)


def global_signal(
    params: Tree, arch: Arch, pre_norm: np.ndarray, logits: np.ndarray, targets: Any
) -> np.ndarray:
    """The head's signal pulled back through the final norm at each token's last hidden state."""
    final = params["final_norm"]
    rows = []
    for hidden, cotangent in zip(pre_norm, head_signal(logits, targets, params["embed"]), strict=True):
        _, pull = jax.vjp(lambda h: norm(arch, final["scale"], final.get("bias"), h), jnp.asarray(hidden))
        rows.append(np.asarray(pull(jnp.asarray(cotangent))[0]))
    return np.stack(rows)


def clip_tokens(signal: np.ndarray, limit: float) -> np.ndarray:
    """Each token's vector bounded to `limit` in L2; 0: off."""
    if limit <= 0:
        return signal
    rows = []
    for row in signal:
        length = np.linalg.norm(row)
        rows.append(row * min(1.0, limit / length) if length > 0 else row)
    return np.stack(rows)


def process(signal: np.ndarray, scale: float, schedule: float, limit: float) -> np.ndarray:
    """Scale, schedule, clip, in this order."""
    return clip_tokens(signal * scale * schedule, limit)


def schedule_factor(step: int, warmup_steps: int, decay_start: int, decay_duration: int) -> float:
    """Linear warm-up to 1 at the last warm-up step, then a linear decay to 0; 0 switches a part off."""
    factor = 1.0
    if warmup_steps > 0:
        factor *= min(1.0, (step + 1) / warmup_steps)
    if decay_duration > 0:
        factor *= min(1.0, max(0.0, 1.0 - (step - decay_start) / decay_duration))
    return factor


def surprise(metric: str, block_signal: np.ndarray, losses: list[Any], logits: np.ndarray) -> np.ndarray:
    """Per token: norm of the scaled signal (`l2`), cross-entropy (`loss`), or entropy of the prediction."""
    values = []
    for row, loss, scores in zip(block_signal, losses, np.asarray(logits), strict=True):
        if metric == "l2":
            values.append(np.linalg.norm(row))
        elif metric == "loss":
            values.append(float(loss))
        else:
            logp = scores - scores.max() - np.log(np.sum(np.exp(scores - scores.max())))
            values.append(-np.sum(np.exp(logp) * logp))
    return np.array(values)
