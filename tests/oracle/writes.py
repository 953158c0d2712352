"""What a memory gathers over a period, the gate at its end, the inner rule, the bounds. Float64 numpy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.oracle.layers import Arrays

GROUPS = (("w_up", "b_up"), ("w_down", "b_down"))
"""Fast weights: two affine maps."""

FAST = (*GROUPS[0], *GROUPS[1])
SLOTS = {"sgd": "", "dgd": "", "preconditioned": "vs", "muon": "vs"}
"""Moments that an inner rule keeps of each tensor; of all others: `v` alone."""


@dataclass(frozen=True)
class Level:
    """One memory's period and inner rule."""

    name: str
    period: int
    lr: float = 0.1
    optimizer: str = "momentum"
    beta: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(frozen=True)
class Learning:
    """How memories are written.

    chunk: N tokens. truncate: K tokens between cuts of the outer gradient, a multiple of N; 0: N.
    schedule: the teach schedule's factor at this step. batch_mean: divide signals by the number of
    supervised tokens of the chunk, over all examples. clips: 0: off.
    """

    levels: tuple[Level, ...] = ()
    chunk: int = 16
    truncate: int = 0
    teach_scale: float = 1.0
    schedule: float = 1.0
    teach_clip: float = 0.0
    source: str = "per_layer"
    delta_at: str = "own_output"
    metric: str = "l2"
    threshold: float | None = None
    write_clip: float = 0.0
    delta_clip: float = 0.0
    flush: bool = False
    batch_mean: bool = False


@dataclass(frozen=True)
class Token:
    """One token as a memory's write sees it.

    x: [D] what the memory read. signal: [D] processed. active: the processed signal at the block's output is
    not zero. counted: enters the period's mean surprise.
    """

    x: np.ndarray
    signal: np.ndarray
    active: bool
    surprise: float
    counted: bool


@dataclass(frozen=True)
class Write:
    """One period that came to its end, whether written or not.

    written: tokens in its gradient. surprise: mean over the tokens that count. grad_norm: sum over tensors of
    the gradient's norms. clip_hits: affine maps that a bound shortened. write_norm: the bounded write's size.
    """

    layer: int
    level: str
    end: int
    tokens: int
    written: int
    surprise: float
    gate_hit: bool
    applied: bool
    grad_norm: float
    write_clip_hits: int = 0
    delta_clip_hits: int = 0
    write_norm: float = 0.0


@dataclass
class Memory:
    """What one context has written into one memory, and its partial period.

    p: slow weights. state: moments by tensor. partial: each token of the period, the key that its first
    matrix read, and the gradient of its loss in the fast weights (None: not to be learnt from).
    """

    level: Level
    p: Arrays
    learning: Learning
    delta: Arrays = field(default_factory=dict)
    state: dict[str, Arrays] = field(init=False)
    partial: list[tuple[Token, Any, Arrays | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.delta:
            self.delta = {n: np.zeros(np.shape(self.p[n])) for n in FAST if n in self.p}
        self.state = fresh_state(self.level, self.delta)

    def gather(self, token: Token, key: Any, gradient: Callable[[], Arrays]) -> None:
        """A token joins the partial period; its gradient too, if it has something to teach. Under `l2` the
        gate holds for each token as well."""
        dull = self.learning.metric == "l2" and token.surprise < (self.learning.threshold or 0.0)
        grads = gradient() if token.active and not dull else None
        self.partial.append((token, np.asarray(key), grads and {n: np.asarray(grads[n]) for n in self.delta}))

    def gradient(self) -> Arrays:
        """Of the partial period: the sum over its tokens."""
        each = [grads for _, _, grads in self.partial if grads is not None]
        return {n: sum((g[n] for g in each), np.zeros_like(w)) for n, w in self.delta.items()}

    def close(self, layer: int, end: int) -> Write:
        """Write the period that has ended, unless the gate blocks it: NL Eq. 71 with an inner rule."""
        partial, total, rule = self.partial, self.gradient(), self.learning
        taught = [(key, grads) for _, key, grads in partial if grads is not None]
        counted = [token.surprise for token, _, _ in partial if token.counted]
        surprise = sum(counted) / max(len(counted), 1)
        is_open = rule.threshold is None or surprise >= rule.threshold
        applied, self.partial, sizes = is_open and bool(taught), [], ()
        if applied and self.level.optimizer == "titans":
            step = self.titans(taught)
        elif applied:
            context = np.mean([key for _, key, _ in partial], axis=0)
            u, self.state = inner_step(self.level, total, self.state, context)
            step = {n: -self.level.lr * u[n] for n in u}
        if applied:
            step, write_hits = bound(step, self.p, rule.write_clip)
            moved = {n: self.delta[n] + step[n] for n in step}
            self.delta, delta_hits = bound(moved, self.p, rule.delta_clip)
            sizes = (write_hits, delta_hits, largest_ratio(step, self.p))
        norms = float(sum(np.linalg.norm(g) for g in total.values()))
        counts = (len(partial), len(taught), surprise)
        return Write(layer, self.level.name, end, *counts, is_open, applied, norms, *sizes)

    def titans(self, taught: list[tuple[Any, Arrays]]) -> Arrays:
        """The Titans paper's rule, token after token: S <- eta S - theta g, M <- (1 - alpha) M + S."""
        memory = start = {n: self.p[n] + self.delta[n] for n in self.delta}
        for key, g in taught:
            alpha, eta, theta = gates(self.p["gates"], key, self.level.lr)
            self.state = {n: {"v": eta * self.state[n]["v"] - theta * g[n]} for n in memory}
            memory = {n: (1 - alpha) * memory[n] + self.state[n]["v"] for n in memory}
        return {n: memory[n] - start[n] for n in memory}


def gates(p: Arrays, key: np.ndarray, lr: float) -> tuple[float, float, float]:
    """alpha, eta, theta of a token under the Titans rule."""
    alpha, eta, theta = (np.exp(key @ p[f"w_{name}"] + p[f"b_{name}"]) for name in ("alpha", "eta", "theta"))
    return alpha / (1 + alpha), eta / (1 + eta), lr * np.log1p(theta)


def fresh_state(level: Level, tensors: Arrays) -> dict[str, Arrays]:
    """Zero first moment v and second moment s of each tensor, where the inner rule keeps them."""
    slots = SLOTS.get(level.optimizer, "v")
    return {name: {slot: np.zeros(np.shape(w)) for slot in slots} for name, w in tensors.items()}


def inner_step(
    level: Level, grads: Arrays, state: dict[str, Arrays], context: np.ndarray | None
) -> tuple[Arrays, dict[str, Arrays]]:
    """Each tensor's u and next state: v <- beta v + (1 - beta) u0, u = v, no bias correction; for
    `delta_momentum` its own rule. `dgd` is in the gradients (`cms.drawn_gradient`)."""
    updates, following = {}, {}
    for name, g in grads.items():
        slot = dict(state[name])
        if level.optimizer == "delta_momentum":
            # Production keeps n, m = -lr n.
            u = slot["v"] = -delta_momentum(level, g, -level.lr * slot["v"]) / level.lr
        else:
            u = direction(level, name, g, slot, context)
            if "v" in slot:
                u = slot["v"] = level.beta * slot["v"] + (1 - level.beta) * u
        updates[name], following[name] = u, slot
    return updates, following


def direction(level: Level, name: str, g: np.ndarray, slot: Arrays, context: np.ndarray | None) -> np.ndarray:
    """u0 of one tensor under the published rules; the second moment in `slot` moves on where there is one."""
    if level.optimizer in ("preconditioned", "muon"):
        slot["s"] = level.beta2 * slot["s"] + (1 - level.beta2) * g**2
        scaled = g / (np.sqrt(slot["s"]) + level.eps)
        return np.tanh(scaled) if level.optimizer == "muon" else scaled
    if level.optimizer == "dmgd":
        return np.tanh(g)
    if level.optimizer == "l2_objective":
        return g + 0.1 * np.mean(g, axis=0, keepdims=True)
    if level.optimizer == "nl_l2_precond" and name == "w_up" and level.period > 1 and np.any(context):
        e = context / (np.linalg.norm(context) + level.eps)
        return g - np.outer(e, e @ g)
    return g


def delta_momentum(level: Level, g: np.ndarray, m: np.ndarray) -> np.ndarray:
    """NL Eqs. 48-49: m <- m (beta I - g^T g) - lr g of the paper's matrices [out, in]; a bias [out] has one
    input. Ours are [in, out]."""
    columns = g[:, None] if g.ndim == 1 else g.T
    forget = level.beta * np.eye(columns.shape[1]) - columns.T @ columns
    following = (m[:, None] if m.ndim == 1 else m.T) @ forget - level.lr * columns
    return following[:, 0] if g.ndim == 1 else following.T


def group_norm(tensors: Arrays, group: tuple[str, ...]) -> float:
    """Frobenius norm of the tensors of an affine map together."""
    return float(np.sqrt(sum(np.sum(np.square(tensors[n])) for n in group if n in tensors)))


def largest_ratio(tensors: Arrays, p: Arrays) -> float:
    """The largest norm of an affine map, each relative to that of its slow weights."""
    return max(group_norm(tensors, group) / group_norm(p, group) for group in GROUPS)


def bound(tensors: Arrays, p: Arrays, limit: float) -> tuple[Arrays, int]:
    """Each affine map at most `limit` (0: off) times as long as its slow weights; how many were shortened."""
    bounded, hits = dict(tensors), 0
    for group in GROUPS if limit > 0 else ():
        size, allowed = group_norm(tensors, group), limit * group_norm(p, group)
        if size > allowed:
            hits += 1
            bounded.update({n: tensors[n] * (allowed / size) for n in group if n in tensors})
    return bounded, hits
