"""The CMS of one layer: levels that read in a chain (NL Eq. 70), next to each other (74), or nested (72),
each written at the end of its period (71)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracle.layers import ACTIVATIONS, Arch, Arrays, layer_norm, mlp
from tests.oracle.writes import GROUPS, Learning, Level, Memory, Token, Write


def level_normed(p: Arrays, x: Any) -> Any:
    """LN(x) of a level; x itself where the level has no LayerNorm."""
    return layer_norm(x, p["ln_scale"], p["ln_bias"]) if "ln_scale" in p else x


def level_read(p: Arrays, x: Any, read_clip: float = 0.0, act: str = "gelu") -> Any:
    """One level at its current weights: y = x + MLP(LN(x))."""
    return x + mlp(p, level_normed(p, x), act, read_clip)


def with_delta(p: Arrays, delta: Arrays) -> Arrays:
    """A level's weights plus what has been written, a constant for the outer gradient."""
    return {k: w + jax.lax.stop_gradient(delta[k]) if k in delta else w for k, w in p.items()}


def read(p: Any, arch: Arch, x: Any, deltas: Any, taps: Any) -> tuple[Any, Arrays, Arrays]:
    """y, and the input and output of each level. taps: zeros that are added to outputs."""
    ins, outs = {}, {}
    y = x
    for name in arch.levels:
        ins[name] = x if arch.connection == "independent" else y
        y = level_read(with_delta(p[name], deltas.get(name, {})), ins[name], arch.read_clip, arch.act)
        y = outs[name] = y + taps.get(name, 0.0)
    if arch.connection == "independent":
        powers = [jnp.exp(w) for w in p["mix"]]
        y = sum(power / sum(powers) * outs[name] for power, name in zip(powers, arch.levels, strict=True))
    return y, ins, outs


@partial(jax.jit, static_argnames=("read_clip", "act"))
def level_gradient(p: Arrays, x: Any, signal: Any, read_clip: float = 0.0, act: str = "gelu") -> Arrays:
    """Gradient of <signal, y> at one token [D] in every parameter of the level (NL Eq. 71)."""
    return jax.grad(lambda weights: jnp.sum(signal * level_read(weights, x, read_clip, act)))(p)


def drawn_gradient(
    level: Level, p: Arrays, x: Any, signal: Any, read_clip: float = 0.0, act: str = "gelu"
) -> Arrays:
    """`dgd` of one token (NL Eqs. 56-57, 113-121): (W - V) / lr, so that a step of rate lr ends in V.

    V is the minimum of |z V + g|^2 / 2 + |V - W|^2 / (2 lr), z the input of an affine map (with a 1 for its
    bias) and g the loss's gradient at its output; solved as a linear system.
    """
    free = {"b_up": np.zeros(p["w_up"].shape[1]), "b_down": np.zeros(p["w_down"].shape[1]), **p}
    grad = level_gradient(free, x, signal, read_clip, act)
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


def init_name(level: Level) -> str:
    """Under nested levels: the memory of where a level starts, which the next slower level's rule writes."""
    return f"{level.name}.init"


@dataclass
class Cms:
    """The levels of one layer on their way through a stream. p: slow weights by level."""

    p: dict[str, Arrays]
    arch: Arch
    learning: Learning
    layer: int = 0

    def __post_init__(self) -> None:
        self.by_period = sorted(self.learning.levels, key=lambda level: -level.period)
        self.memories = {level.name: self.fresh(level, level) for level in self.learning.levels}
        if self.arch.connection == "nested":
            for slow, fast in zip(self.by_period, self.by_period[1:], strict=False):
                self.memories[init_name(fast)] = self.fresh(replace(slow, name=init_name(fast)), fast)

    def fresh(self, rule: Level, level: Level, delta: Arrays | None = None) -> Memory:
        """A memory at the level's slow weights plus delta. rule: whose period and inner rule it has."""
        return Memory(rule, self.p[level.name], self.learning, dict(delta or {}))

    @property
    def deltas(self) -> dict[str, Arrays]:
        """What has been written, by memory."""
        return {name: memory.delta for name, memory in self.memories.items()}

    def write_chunk(self, chunk: list[list[dict[str, Token]]], start: int, last: bool = False) -> list[Write]:
        """All writes due in a chunk that begins at token `start`: in token order, every gradient at the
        weights that read the chunk. chunk: by token, by context that shares the memories, by level."""
        names = [level.name for level in self.learning.levels]
        read_with = {name: with_delta(self.p[name], self.deltas[name]) for name in names}
        writes, end = [], start
        for contexts in chunk:
            end += 1
            for level in self.learning.levels:
                for by_level in contexts:
                    self.gather(level, by_level[level.name], read_with[level.name])
            writes += self.end_of_token(end)
        return writes + self.end_of_stream(end) if last else writes

    def gather(self, level: Level, token: Token, weights: Arrays) -> None:
        """One token joins the level's partial period, and that of its init."""
        how = (weights, token.x, token.signal, self.arch.read_clip, self.arch.act)
        for name in {level.name, init_name(level)} & set(self.memories):
            memory = self.memories[name]
            dgd = memory.level.optimizer == "dgd"
            rule = partial(drawn_gradient, memory.level) if dgd else level_gradient
            memory.gather(token, level_normed(weights, token.x), partial(rule, *how))

    def end_of_token(self, end: int) -> list[Write]:
        """All that happens at token count `end`, from the fastest level to the slowest: its own write; nested
        (NL Eq. 72): the move of the next faster level's init, that level's restart from there, and the return
        of all still faster ones to their slow weights."""
        writes, nested = [], self.arch.connection == "nested"
        for s in reversed(range(len(self.by_period))):
            slow, faster = self.by_period[s], self.by_period[s + 1 :]
            if end % slow.period != 0:
                continue
            writes.append(self.memories[slow.name].close(self.layer, end))
            for i, level in enumerate(faster if nested else ()):
                init = self.memories[init_name(level)]
                if i == 0:
                    writes.append(init.close(self.layer, end))
                else:
                    self.memories[init_name(level)] = init = self.fresh(init.level, level)
                self.memories[level.name] = self.fresh(level, level, init.delta)
        return writes

    def end_of_stream(self, end: int) -> list[Write]:
        """Write what is partial, or drop it; nothing restarts."""
        memories = self.memories.values()
        for memory in () if self.learning.flush else memories:
            memory.partial = []
        return [memory.close(self.layer, end) for memory in memories if memory.partial]
