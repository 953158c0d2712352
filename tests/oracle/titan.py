"""TITAN memory: its read, the loss that it is written with, its stream. One token at a time."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tests.oracle.layers import Arrays, gelu, layer_norm, mlp
from tests.oracle.writes import Learning, Level, Memory, Token, Write


def mem(p: Arrays, x: Any, read_clip: float = 0.0, act: str = "gelu") -> Any:
    """LN(MLP(x)) at the memory's current weights."""
    return layer_norm(mlp(p, x, act, read_clip), p["ln_scale"], p["ln_bias"])


def self_modifier(p: Arrays, key: Any, value: Any, teach: Any) -> Any:
    """The 3-layer MLP over [key, value, delta]."""
    h = jnp.concatenate([key, value, teach])
    for i in (1, 2, 3):
        h = h @ p[f"w_{i}"]
        h = h + p[f"b_{i}"] if f"b_{i}" in p else h
        h = gelu(h) if i < 3 else h
    return h


@dataclass
class Titan:
    """The memory of one layer on its way through a stream.

    p: slow weights, with those of the SelfModifier and of the Titans rule's gates. read_clip: of the MLP's
    output. correction_clip: of the SelfModifier's answer, over the length of the teach signal. 0: off.
    """

    level: Level
    learning: Learning
    p: Arrays
    read_clip: float = 0.0
    correction_clip: float = 0.0
    act: str = "gelu"

    def __post_init__(self) -> None:
        self.memory, self.position = Memory(self.level, self.p, self.learning), 0

    def weights(self) -> Arrays:
        """What it reads with now."""
        return {**self.p, **{n: self.p[n] + delta for n, delta in self.memory.delta.items()}}

    def write_chunk(self, tokens: list[Token], last: bool = False) -> list[Write]:
        """Every gradient at the weights that read the chunk; a write at each multiple of the period."""
        read_with, writes, memory = self.weights(), [], self.memory
        for token in tokens:
            of = (token.x, token.signal, self.read_clip, self.correction_clip, self.act)
            memory.gather(token, token.x, partial(gradient, read_with, *of))
            self.position += 1
            flushed = last and self.learning.flush and token is tokens[-1]
            if self.position % self.level.period == 0 or flushed:
                writes.append(memory.close(0, self.position))
        return writes


@partial(jax.jit, static_argnames=("read_clip", "correction_clip", "act"))
def gradient(p: Arrays, key: Any, teach: Any, read_clip: float, correction_clip: float, act: str) -> Arrays:
    """Of 1/2 |mem(key) - target|^2, target = mem + SelfModifier - delta, a constant."""
    value = mem(p, key, read_clip, act)
    target = value - teach
    if "self_modifier" in p:
        correction = self_modifier(p["self_modifier"], key, value, teach)
        if correction_clip:
            allowed = correction_clip * jnp.sqrt(jnp.sum(teach**2))
            correction = correction * jnp.minimum(1.0, allowed / jnp.sqrt(jnp.sum(correction**2)))
        target = target + correction
    return jax.grad(lambda at: 0.5 * jnp.sum((mem(at, key, read_clip, act) - target) ** 2))(p)
