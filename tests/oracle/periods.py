"""A level's periods: what an unfinished one has gathered, the gate at its end, the write."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.oracle.inner import (
    FAST,
    Arrays,
    Level,
    drawn_gradient,
    fresh_state,
    level_gradient,
    write_once,
)
from tests.oracle.model import Tree, layer_count, layer_of, level_normed, with_delta


@dataclass(frozen=True)
class Learning:
    """How memories are written.

    chunk: N tokens. truncate: K tokens between cuts of the outer gradient, a multiple of N; 0: N.
    schedule: the teach schedule's factor at this step. batch_mean: divide signals by the number of
    supervised tokens of the chunk, over all examples. act: `Arch.act` of the model.
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
    act: str = "gelu"


@dataclass
class Memory:
    """Fast state of one level of one layer, and the accumulator of its unfinished period."""

    delta: Arrays
    optimizer: dict[str, Arrays]
    grads: Arrays = field(default_factory=dict)
    tokens: int = 0
    counted: int = 0
    written: int = 0
    surprise: float = 0.0
    context: Any = 0.0

    def clear(self) -> None:
        """Forget the unfinished period."""
        self.grads = {k: np.zeros_like(v) for k, v in self.delta.items()}
        self.tokens, self.counted, self.written, self.surprise, self.context = 0, 0, 0, 0.0, 0.0


def fresh_memories(params: Tree, learning: Learning) -> list[dict[str, Memory]]:
    """Zero deltas, zero optimizer state, empty accumulators."""
    memories: list[dict[str, Memory]] = []
    for layer in range(layer_count(params)):
        p = layer_of(params, layer)
        memories.append({})
        for level in learning.levels:
            shapes = {n: np.shape(p["cms"][level.name][n]) for n in FAST if n in p["cms"][level.name]}
            memory = Memory({n: np.zeros(s) for n, s in shapes.items()}, fresh_state(level, shapes))
            memory.clear()
            memories[layer][level.name] = memory
    return memories


@dataclass(frozen=True)
class Write:
    """One period that came to its end, whether written or not.

    written: tokens in its gradient. surprise: mean over the tokens with a signal (`l2`) or with a target
    (`loss`, `logit_entropy`). grad_norm: sum over tensors of the gradient's norms. write_norm: of the bounded
    write, see `largest_ratio`.
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


@dataclass(frozen=True)
class Token:
    """One token as a level's write sees it.

    x: [D] the level's input. signal: [D] processed. active: the processed signal at the block's output is
    not zero. counted: enters the period's mean surprise.
    """

    x: np.ndarray
    signal: np.ndarray
    active: bool
    surprise: float
    counted: bool


def accumulate(
    memory: Memory,
    level: Level,
    p: Arrays,
    read_delta: Arrays,
    token: Token,
    learning: Learning,
    read_clip: float,
) -> None:
    """Add one token to a level's unfinished period, its gradient taken at the weights that read it."""
    memory.tokens += 1
    memory.context = memory.context + np.asarray(level_normed(p, token.x))
    if token.counted:
        memory.counted += 1
        memory.surprise += token.surprise
    dull = learning.metric == "l2" and learning.threshold is not None and token.surprise < learning.threshold
    if not token.active or dull:
        return
    memory.written += 1
    weights = with_delta(p, read_delta)
    if level.optimizer == "dgd":
        grads = drawn_gradient(level, weights, token.x, token.signal, read_clip, learning.act)
    else:
        grads = level_gradient(
            weights, token.x[None], token.signal[None], np.ones(1), read_clip, learning.act
        )
    memory.grads = {n: memory.grads[n] + grads[n] for n in memory.grads}


def close_period(memory: Memory, p: Arrays, level: Level, learning: Learning, layer: int, end: int) -> Write:
    """Write the finished period, or drop it if the gate blocks it; the accumulator is empty afterwards."""
    mean = memory.surprise / memory.counted if memory.counted else 0.0
    is_open = learning.threshold is None or mean >= learning.threshold
    applied = is_open and memory.written > 0
    hits: dict[str, Any] = {}
    size = float(sum(np.linalg.norm(g) for g in memory.grads.values()))
    event = (layer, level.name, end, memory.tokens, memory.written, mean, is_open, applied, size)
    if applied:
        memory.delta, memory.optimizer, hits = write_once(
            level,
            p,
            memory.delta,
            memory.optimizer,
            memory.grads,
            memory.context / memory.tokens,
            learning.write_clip,
            learning.delta_clip,
        )
    memory.clear()
    return Write(*event, **hits)
