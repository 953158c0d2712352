"""TITAN memory, token by token: its read, the loss that it is written with, both write rules. One example."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracle.inner import FAST, Arrays, Level, bound, fresh_state, largest_ratio, write_once
from tests.oracle.model import ACTIVATIONS, gelu, layer_norm


@dataclass(frozen=True)
class Token:
    """One token of a chunk: key, delta [D], surprise, and whether it has a teach signal."""

    key: np.ndarray
    teach: np.ndarray
    surprise: float
    active: bool


@dataclass(frozen=True)
class Rules:
    """chunk: N. metric: surprise that `threshold` is for. clips: bounds, 0: off. read_clip: of the branch.
    correction_clip: of the SelfModifier's answer, over the length of delta. act: of the memory's MLP."""

    chunk: int
    metric: str = "l2"
    threshold: float | None = None
    write_clip: float = 0.0
    delta_clip: float = 0.0
    read_clip: float = 0.0
    flush: bool = False
    correction_clip: float = 0.0
    act: str = "gelu"


def mem(p: Arrays, x: Any, read_clip: float = 0.0, act: str = "gelu") -> Any:
    """LN(W_down act(W_up x [+ b_up]) [+ b_down]) of one token [D]."""
    hidden = x @ p["w_up"]
    out = ACTIVATIONS[act](hidden + p["b_up"] if "b_up" in p else hidden) @ p["w_down"]
    out = out + p["b_down"] if "b_down" in p else out
    if read_clip:
        length = jnp.sqrt(jnp.sum(jax.lax.stop_gradient(out) ** 2))
        out = out / jnp.maximum(length / read_clip, 1.0)
    return layer_norm(out, p["ln_scale"], p["ln_bias"])


def self_modifier(p: Arrays, key: Any, value: Any, teach: Any) -> Any:
    """The 3-layer MLP over [key, value, delta]."""
    h = jnp.concatenate([key, value, teach])
    for i in (1, 2, 3):
        h = h @ p[f"w_{i}"]
        h = h + p[f"b_{i}"] if f"b_{i}" in p else h
        h = gelu(h) if i < 3 else h
    return h


def token_loss(weights: Arrays, p: Arrays, target: Any, key: Any, rules: Rules) -> Any:
    """1/2 |mem(key) - target|^2 at the fast weights `weights`."""
    return 0.5 * jnp.sum((mem({**p, **weights}, key, rules.read_clip, rules.act) - target) ** 2)


def token_gradient(p: Arrays, delta: Arrays, token: Token, rules: Rules) -> Arrays:
    """Gradient of the token's loss in the fast weights, at p + delta."""
    weights = {name: p[name] + delta[name] for name in delta}
    grads = _gradient(p, weights, token.key, token.teach, rules)
    return {name: np.asarray(g) for name, g in grads.items()}


@partial(jax.jit, static_argnames="rules")
def _gradient(p: Arrays, weights: Arrays, key: Any, teach: Any, rules: Rules) -> Arrays:
    value = mem({**p, **weights}, key, rules.read_clip, rules.act)
    target = value - teach
    if "self_modifier" in p:
        correction = self_modifier(p["self_modifier"], key, value, teach)
        if rules.correction_clip:
            allowed = rules.correction_clip * jnp.sqrt(jnp.sum(teach**2))
            correction = correction * jnp.minimum(1.0, allowed / jnp.sqrt(jnp.sum(correction**2)))
        target = target + correction
    return jax.grad(token_loss)(weights, p, target, key, rules)


def gates(p: Arrays, key: np.ndarray, lr: float) -> tuple[float, float, float]:
    """alpha, eta, theta of a token."""

    def raw(name: str) -> float:
        return float(key @ p[f"w_{name}"] + p[f"b_{name}"])

    def sigmoid(x: float) -> float:
        return 1.0 / (1.0 + np.exp(-x))

    return sigmoid(raw("alpha")), sigmoid(raw("eta")), lr * np.log1p(np.exp(raw("theta")))


@dataclass
class Stream:
    """A memory on its way through a stream; `write_chunk` takes the tokens as they come."""

    level: Level
    rules: Rules
    p: Arrays

    def __post_init__(self) -> None:
        self.delta = {n: np.zeros_like(self.p[n]) for n in FAST if n in self.p}
        self.state = fresh_state(self.level, {n: w.shape for n, w in self.delta.items()})
        self.momentum = {n: np.zeros_like(w) for n, w in self.delta.items()}
        self.position, self.applied, self.gathered, self.write_norm = 0, 0, [], 0.0

    def write_chunk(self, tokens: list[Token], last: bool = False) -> None:
        """All gradients at the weights that read the chunk; a write at each multiple of the period."""
        read_with = self.delta
        for token in tokens:
            grads = token_gradient(self.p, read_with, token, self.rules)
            self.gathered.append((token, grads))
            self.position += 1
            if self.position % self.level.period == 0:
                self.close()
        if last and self.rules.flush and self.gathered:
            self.close()

    def close(self) -> None:
        """The write of the tokens gathered, if their surprise lets it."""
        gathered, self.gathered = self.gathered, []
        rules, counted = self.rules, [t.surprise for t, _ in gathered if t.active]
        surprise = sum(counted) / max(len(counted), 1)
        on = [
            (t, g)
            for t, g in gathered
            if t.active and (rules.threshold is None or rules.metric != "l2" or t.surprise >= rules.threshold)
        ]
        if not on or (rules.threshold is not None and surprise < rules.threshold):
            return
        self.applied += 1
        if self.level.optimizer == "titans":
            self.titans(on)
            return
        total = {n: sum(g[n] for _, g in on) for n in self.delta}
        context = np.mean([t.key for t, _ in gathered], axis=0)
        self.delta, self.state, sizes = write_once(
            self.level, self.p, self.delta, self.state, total, context, rules.write_clip, rules.delta_clip
        )
        self.write_norm += sizes["write_norm"]

    def titans(self, on: list[tuple[Token, Arrays]]) -> None:
        """S <- eta S - theta g, M <- (1 - alpha) M + S, token after token."""
        memory = {n: self.p[n] + self.delta[n] for n in self.delta}
        for token, g in on:
            alpha, eta, theta = gates(self.p["gates"], token.key, self.level.lr)
            self.momentum = {n: eta * self.momentum[n] - theta * g[n] for n in memory}
            memory = {n: (1 - alpha) * memory[n] + self.momentum[n] for n in memory}
        step = {n: memory[n] - self.p[n] - self.delta[n] for n in memory}
        step, _ = bound(step, self.p, self.rules.write_clip)
        self.write_norm += largest_ratio(step, self.p)
        delta = {n: self.delta[n] + step[n] for n in step}
        self.delta, _ = bound(delta, self.p, self.rules.delta_clip)
