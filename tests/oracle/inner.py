"""One write: gradient of a level, inner optimizer, bounds. Float64 numpy but for the gradient itself."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracle.model import ACTIVATIONS, level_normed, level_read

Arrays = dict[str, Any]

FAST = ("w_up", "b_up", "w_down", "b_down")
GROUPS = (("w_up", "b_up"), ("w_down", "b_down"))


@dataclass(frozen=True)
class Level:
    """One CMS level's period and inner optimizer."""

    name: str
    period: int
    lr: float = 0.1
    optimizer: str = "momentum"
    beta: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@partial(jax.jit, static_argnames=("read_clip", "act"))
def token_gradient(p: Arrays, token: Any, direction: Any, read_clip: float, act: str) -> Arrays:
    """Gradient of <direction, y> for one token [D] with respect to every parameter of the level."""
    return jax.grad(lambda weights: jnp.sum(direction * level_read(weights, token, read_clip, act)))(p)


def level_gradient(
    p: Arrays, x: Any, signal: Any, mask: Any, read_clip: float = 0.0, act: str = "gelu"
) -> Arrays:
    """Gradient of sum_t mask_t <signal_t, y_t> with respect to every parameter of the level, token by token.

    p: the level's weights, deltas included. x, signal: [tokens, D]; mask: [tokens].
    """
    total = {k: np.zeros(np.shape(w)) for k, w in p.items()}
    for token, wanted, m in zip(np.asarray(x), np.asarray(signal), np.asarray(mask), strict=True):
        if m != 0:
            grad = token_gradient(p, token, wanted, read_clip, act)
            total = {k: total[k] + m * np.asarray(grad[k]) for k in total}
    return total


def drawn_gradient(
    level: Level, p: Arrays, x: Any, signal: Any, read_clip: float = 0.0, act: str = "gelu"
) -> Arrays:
    """`dgd` of one token [D]: (W - V) / lr, so that a step of rate lr ends in V.

    V is the minimum of |z V + g|^2 / 2 + |V - W|^2 / (2 lr), z the input of an affine map (with a 1 for its
    bias) and g the loss's gradient at its output; solved as a linear system.
    """
    free = {"b_up": np.zeros(p["w_up"].shape[1]), "b_down": np.zeros(p["w_down"].shape[1]), **p}
    grad = token_gradient(free, x, signal, read_clip, act)
    z = np.asarray(level_normed(p, x))
    a = np.asarray(ACTIVATIONS[act](z @ p["w_up"] + free["b_up"]))
    drawn = {}
    for (w, b), row in zip(GROUPS, (z, a), strict=True):
        row = np.append(row, 1.0) if b in p else row
        old = np.vstack([p[w], p[b]]) if b in p else np.asarray(p[w])
        right = old / level.lr - np.outer(row, np.asarray(grad[b]))
        new = np.linalg.solve(np.outer(row, row) + np.eye(len(row)) / level.lr, right)
        step = (old - new) / level.lr
        drawn[w] = step[: len(p[w])]
        if b in p:
            drawn[b] = step[-1]
    return drawn


def project_input_axis(g: np.ndarray, context: np.ndarray, eps: float) -> np.ndarray:
    """g [in, out] without its component along the context [in]; unchanged for a zero context."""
    length = np.linalg.norm(context)
    if length == 0:
        return g
    e = context / (length + eps)
    return g - np.outer(e, e @ g)


def direction(
    level: Level, name: str, g: np.ndarray, state: Arrays, context: np.ndarray | None
) -> np.ndarray:
    """u0 of one tensor; updates the second moment in `state` where the variant has one."""
    if level.optimizer in ("preconditioned", "muon"):
        state["s"] = level.beta2 * state["s"] + (1 - level.beta2) * g**2
        scaled = g / (np.sqrt(state["s"]) + level.eps)
        return np.tanh(scaled) if level.optimizer == "muon" else scaled
    if level.optimizer == "dmgd":
        return np.tanh(g)
    if level.optimizer == "l2_objective":
        return g + 0.1 * np.mean(g, axis=0, keepdims=True)
    if level.optimizer == "nl_l2_precond" and name == "w_up" and level.period > 1 and context is not None:
        return project_input_axis(g, context, level.eps)
    return g


def delta_momentum(level: Level, g: np.ndarray, m: np.ndarray) -> np.ndarray:
    """m <- m (beta I - g^T g) - lr g of the paper's matrices [out, in]; a bias [out] has one input.

    Ours are [in, out].
    """
    columns = g[:, None] if g.ndim == 1 else g.T
    forget = level.beta * np.eye(columns.shape[1]) - columns.T @ columns
    following = (m[:, None] if m.ndim == 1 else m.T) @ forget - level.lr * columns
    return following[:, 0] if g.ndim == 1 else following.T


def fresh_state(level: Level, names_shapes: dict[str, tuple[int, ...]]) -> dict[str, Arrays]:
    """Zero first moment v (and second moment s where the variant has one) for each tensor."""
    keys = {"sgd": (), "dgd": (), "titans": (), "preconditioned": ("v", "s"), "muon": ("v", "s")}.get(
        level.optimizer, ("v",)
    )
    return {name: {k: np.zeros(shape) for k in keys} for name, shape in names_shapes.items()}


def inner_step(
    level: Level, grads: Arrays, state: dict[str, Arrays], context: np.ndarray | None
) -> tuple[Arrays, dict[str, Arrays]]:
    """Each tensor's u and next state: v <- beta v + (1 - beta) u0, u = v, no bias correction; for
    `delta_momentum` its own rule. `dgd` is in the gradients (`drawn_gradient`)."""
    updates, following = {}, {}
    for name, g in grads.items():
        slot = dict(state[name])
        if level.optimizer == "delta_momentum":
            # Production keeps n, m = -lr n.
            updates[name] = -delta_momentum(level, g, -level.lr * slot["v"]) / level.lr
            following[name] = {"v": updates[name]}
            continue
        u = direction(level, name, g, slot, context)
        if "v" in slot:
            u = slot["v"] = level.beta * slot["v"] + (1 - level.beta) * u
        updates[name], following[name] = u, slot
    return updates, following


def group_norm(tensors: Arrays, group: tuple[str, ...]) -> float:
    """Frobenius norm of the tensors of a group together."""
    return float(np.sqrt(sum(np.sum(np.square(tensors[n])) for n in group if n in tensors)))


def largest_ratio(tensors: Arrays, p: Arrays) -> float:
    """The largest norm of a group, each relative to that of its slow weights."""
    return max(group_norm(tensors, group) / group_norm(p, group) for group in GROUPS)


def bound(tensors: Arrays, p: Arrays, limit: float) -> tuple[Arrays, int]:
    """Each group rescaled to at most `limit` (0: off) times its slow weights' norm; how many were."""
    bounded, hits = dict(tensors), 0
    for group in GROUPS if limit > 0 else ():
        size, allowed = group_norm(tensors, group), limit * group_norm(p, group)
        if size > allowed:
            hits += 1
            bounded.update({n: tensors[n] * (allowed / size) for n in group if n in tensors})
    return bounded, hits


def write_once(
    level: Level,
    p: Arrays,
    delta: Arrays,
    state: dict[str, Arrays],
    grads: Arrays,
    context: np.ndarray | None,
    write_clip: float,
    delta_clip: float,
) -> tuple[Arrays, dict[str, Arrays], dict[str, float]]:
    """delta <- bounded(delta - bounded(lr u)). p: slow weights, whose norms set the bounds. Also the hits of
    both bounds, and the size of the bounded write."""
    u, state = inner_step(level, grads, state, context)
    step, write_hits = bound({n: -level.lr * u[n] for n in u}, p, write_clip)
    delta, delta_hits = bound({n: delta[n] + step[n] for n in step}, p, delta_clip)
    sizes = {
        "write_clip_hits": write_hits,
        "delta_clip_hits": delta_hits,
        "write_norm": largest_ratio(step, p),
    }
    return delta, state, sizes
