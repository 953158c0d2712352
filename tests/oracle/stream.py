"""The online loop: read a chunk, take its signals, write what is due. Loops over chunks, layers, tokens.

`examples` share one fast state (`memory.scope="batch"`); one example alone is the per-example case.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracle import teach
from tests.oracle.inner import FAST, Arrays, Level, fresh_state, level_gradient, write_once
from tests.oracle.model import (
    Arch,
    Deltas,
    Past,
    Read,
    Tree,
    cross_entropy,
    cut,
    layer_count,
    layer_of,
    level_normed,
    no_past,
    read_chunk,
    with_delta,
)


@dataclass(frozen=True)
class Learning:
    """How memories are written. chunk: N tokens. schedule: the teach schedule's factor at this step."""

    levels: tuple[Level, ...] = ()
    chunk: int = 16
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


@dataclass(frozen=True)
class Example:
    """One context: token ids, targets (negative: none), document numbers."""

    tokens: list[int]
    targets: list[int]
    segments: list[int]


@dataclass
class Memory:
    """Fast state of one level of one layer, and the accumulator of its unfinished period."""

    delta: Arrays
    optimizer: dict[str, Arrays]
    grads: Arrays = field(default_factory=dict)
    tokens: int = 0
    active: int = 0
    written: int = 0
    surprise: float = 0.0
    context: Any = 0.0

    def clear(self) -> None:
        """Forget the unfinished period."""
        self.grads = {k: np.zeros_like(v) for k, v in self.delta.items()}
        self.tokens, self.active, self.written, self.surprise, self.context = 0, 0, 0, 0.0, 0.0


@dataclass(frozen=True)
class Write:
    """One period that came to its end, whether written or not. surprise: mean over its active tokens."""

    layer: int
    level: str
    end: int
    tokens: int
    active: int
    surprise: float
    gate_hit: bool
    applied: bool
    grad_norm: float
    write_clip_hits: int = 0
    delta_clip_hits: int = 0


@dataclass
class Stream:
    """What a stream leaves. Per example: logits [T, V], losses [T], raw and processed signals by chunk."""

    logits: list[np.ndarray]
    losses: list[np.ndarray]
    memories: list[dict[str, Memory]]
    outer_gradient: Tree
    writes: list[Write]
    signals: list[list[list[dict[str, np.ndarray]]]]

    @property
    def deltas(self) -> Deltas:
        """Final fast weights, by layer, level and tensor."""
        return [{name: m.delta for name, m in layer.items()} for layer in self.memories]


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


def zero_taps(params: Tree, arch: Arch, tokens: int) -> list[dict[str, Any]]:
    """Zeros to add to each level's output and each block's output."""
    zeros = jnp.zeros((tokens, params["embed"].shape[1]))
    return [{name: zeros for name in (*arch.levels, "block")} for _ in range(layer_count(params))]


def chunk_pass(
    params: Tree, arch: Arch, example: Example, start: int, stop: int, past: list[Past], deltas: Deltas
) -> tuple[Read, list[Any], Tree, list[dict[str, Any]]]:
    """Read [start, stop), per-token losses, gradient of their sum in the parameters and at the taps."""

    def loss(theta: Tree, taps: list[dict[str, Any]]) -> tuple[Any, tuple[Any, Any]]:
        read = read_chunk(
            theta,
            arch,
            example.tokens[start:stop],
            cut(past),
            example.segments,
            len(example.tokens),
            deltas,
            taps,
        )
        losses = cross_entropy(read.logits, example.targets[start:stop])
        kept = (
            read.logits,
            read.pre_norm,
            read.level_in,
            [(p.keys, p.values, p.conv_inputs) for p in read.past],
        )
        return jnp.sum(jnp.stack(losses)), (kept, losses)

    taps = zero_taps(params, arch, stop - start)
    (outer, cotangents), (kept, losses) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, taps)
    logits, pre_norm, level_in, layers = kept
    read = Read(logits=logits, pre_norm=pre_norm, level_in=level_in, past=[Past(*entry) for entry in layers])
    return read, losses, outer, cotangents


def chunk_signals(
    params: Tree,
    arch: Arch,
    learning: Learning,
    read: Read,
    targets: list[int],
    cotangents: list[dict[str, Any]],
) -> list[dict[str, np.ndarray]]:
    """Unprocessed signals by layer: one for each level and one for the block's output."""
    layers = [{name: np.asarray(tap) for name, tap in layer.items()} for layer in cotangents]
    if learning.source == "global":
        shared = teach.global_signal(
            params, arch, np.asarray(read.pre_norm), np.asarray(read.logits), targets
        )
        layers = [{name: shared for name in layer} for layer in layers]
    if learning.delta_at == "block_output":
        layers = [{name: layer["block"] for name in layer} for layer in layers]
    return layers


def accumulate(
    memory: Memory,
    p: Arrays,
    read_delta: Arrays,
    x: np.ndarray,
    level_signal: np.ndarray,
    active: bool,
    surprise: float,
    learning: Learning,
    read_clip: float,
) -> None:
    """Add one token to a level's unfinished period, its gradient taken at the weights that read it."""
    memory.tokens += 1
    if not active:
        return
    memory.active += 1
    memory.surprise += surprise
    if learning.metric == "l2" and learning.threshold is not None and surprise < learning.threshold:
        return
    memory.written += 1
    weights = with_delta(p, read_delta)
    grads = level_gradient(weights, x[None], level_signal[None], np.ones(1), read_clip)
    memory.grads = {n: memory.grads[n] + grads[n] for n in memory.grads}
    memory.context = memory.context + np.asarray(level_normed(weights, x))


def close_period(memory: Memory, p: Arrays, level: Level, learning: Learning, layer: int, end: int) -> Write:
    """Write the finished period, or drop it if the gate blocks it; the accumulator is empty afterwards."""
    mean = memory.surprise / memory.active if memory.active else 0.0
    gate_hit = memory.active > 0 and (learning.threshold is None or mean >= learning.threshold)
    applied = gate_hit and memory.written > 0
    hits: dict[str, int] = {}
    size = float(np.sqrt(sum(np.sum(g**2) for g in memory.grads.values())))
    event = (layer, level.name, end, memory.tokens, memory.active, mean, gate_hit, applied, size)
    if applied:
        memory.delta, memory.optimizer, hits = write_once(
            level,
            p,
            memory.delta,
            memory.optimizer,
            memory.grads,
            memory.context / memory.written,
            learning.write_clip,
            learning.delta_clip,
        )
    memory.clear()
    return Write(*event, **hits)


def write_chunk(
    params: Tree,
    arch: Arch,
    learning: Learning,
    memories: list[dict[str, Memory]],
    span: tuple[int, int],
    reads: list[Read],
    losses: list[list[Any]],
    signals: list[list[dict[str, np.ndarray]]],
) -> list[Write]:
    """All writes due at the end of a chunk: in token order, gradients at the chunk-start weights."""
    start, stop = span
    events = []
    for layer in range(layer_count(params)):
        weights = layer_of(params, layer)["cms"]
        for level in learning.levels:
            memory = memories[layer][level.name]
            read_delta = memory.delta
            for t in range(stop - start):
                for read, loss, by_layer in zip(reads, losses, signals, strict=True):
                    block = by_layer[layer]["block"] * learning.teach_scale
                    amount = teach.surprise(
                        learning.metric, block[t : t + 1], loss[t : t + 1], read.logits[t : t + 1]
                    )
                    args = (learning.teach_scale, learning.schedule, learning.teach_clip)
                    accumulate(
                        memory,
                        weights[level.name],
                        read_delta,
                        np.asarray(read.level_in[layer][level.name][t]),
                        teach.process(by_layer[layer][level.name][t : t + 1], *args)[0],
                        bool(np.any(teach.process(by_layer[layer]["block"][t : t + 1], *args) != 0)),
                        float(amount[0]),
                        learning,
                        arch.read_clip,
                    )
                if (start + t + 1) % level.period == 0:
                    events.append(
                        close_period(memory, weights[level.name], level, learning, layer, start + t + 1)
                    )
    return events


def online(
    params: Tree,
    arch: Arch,
    learning: Learning,
    examples: list[Example],
    memories: list[dict[str, Memory]] | None = None,
) -> Stream:
    """Stream examples that share one fast state. The outer gradient is that of the summed cross-entropy over
    the number of supervised tokens, cut at every chunk."""
    memories = fresh_memories(params, learning) if memories is None else memories
    total = len(examples[0].tokens)
    pasts = [no_past(params) for _ in examples]
    gradient = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    out = Stream([], [], memories, None, [], [])
    logits: list[list[Any]] = [[] for _ in examples]
    losses: list[list[Any]] = [[] for _ in examples]
    for start in range(0, total, learning.chunk):
        stop = min(start + learning.chunk, total)
        reads, chunk_losses, signals = [], [], []
        deltas = [{name: m.delta for name, m in layer.items()} for layer in memories]
        for b, example in enumerate(examples):
            read, loss, outer, taps = chunk_pass(params, arch, example, start, stop, pasts[b], deltas)
            gradient = jax.tree.map(lambda a, g: a + np.asarray(g), gradient, outer)
            signals.append(chunk_signals(params, arch, learning, read, example.targets[start:stop], taps))
            pasts[b] = read.past
            reads.append(read)
            chunk_losses.append(loss)
            logits[b].append(np.asarray(read.logits))
            losses[b].append(np.array([float(x) for x in loss]))
        out.signals.append(signals)
        out.writes += write_chunk(
            params, arch, learning, memories, (start, stop), reads, chunk_losses, signals
        )
    if learning.flush:
        out.writes += flush(params, learning, memories, total)
    supervised = sum(target >= 0 for example in examples for target in example.targets)
    out.outer_gradient = jax.tree.map(lambda g: g / max(supervised, 1), gradient)
    out.logits = [np.concatenate(rows) for rows in logits]
    out.losses = [np.concatenate(rows) for rows in losses]
    return out


def flush(params: Tree, learning: Learning, memories: list[dict[str, Memory]], end: int) -> list[Write]:
    """Write every unfinished period that holds tokens."""
    events = []
    for layer, by_level in enumerate(memories):
        for level in learning.levels:
            if by_level[level.name].tokens:
                p = layer_of(params, layer)["cms"][level.name]
                events.append(close_period(by_level[level.name], p, level, learning, layer, end))
    return events


def online_stream(
    params: Tree, arch: Arch, learning: Learning, tokens: list[int], targets: list[int], segments: list[int]
) -> Stream:
    """One example with its own fast state."""
    return online(params, arch, learning, [Example(tokens, targets, segments)])


def two_pass(
    params: Tree, arch: Arch, learning: Learning, tokens: list[int], targets: list[int], segments: list[int]
) -> Stream:
    """The whole sequence as one chunk: every read and every gradient at the weights of the start."""
    whole = Learning(**{**learning.__dict__, "chunk": len(tokens)})
    return online_stream(params, arch, whole, tokens, targets, segments)
