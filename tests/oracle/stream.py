"""The online loop: read a chunk, take its signals, write what is due. Loops over chunks, layers, tokens.

`examples` share one fast state (`memory.scope="batch"`); one example alone is the per-example case.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracle import teach
from tests.oracle.cms_connections import end_of_stream, end_of_token, fresh_nested, gather
from tests.oracle.model import (
    Arch,
    Deltas,
    Past,
    Read,
    Tree,
    cross_entropy,
    layer_count,
    layer_of,
    read_chunk,
    visible,
)
from tests.oracle.periods import Learning, Memory, Token, Write, close_period, fresh_memories

QUICK = {"xla_backend_optimization_level": 0}
"""Long loops compile slowly; nothing here needs to run fast."""


class Part(NamedTuple):
    """Consecutive tokens of a context: tokens and targets int [n], mask of `model.visible`."""

    tokens: np.ndarray
    targets: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Example:
    """One context: token ids, targets (negative: none), document numbers."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    segments: tuple[int, ...]

    def part(self, start: int, stop: int) -> Part:
        """Its tokens [start, stop)."""
        mask = visible(self.segments, start, stop)
        return Part(np.array(self.tokens[start:stop]), np.array(self.targets[start:stop]), mask)


@dataclass(frozen=True)
class Cut:
    """Where the outer gradient was cut last: attention's memory there, and the deltas that read each chunk
    since."""

    start: int
    pasts: list[list[Past] | None]
    deltas: list[Deltas]


@dataclass
class Stream:
    """What a stream leaves. Per example: logits [T, V], losses [T].

    signals: unprocessed, by chunk, example, layer and tap. reads: of the first example, by chunk.
    """

    logits: list[np.ndarray]
    losses: list[np.ndarray]
    memories: list[dict[str, Memory]]
    outer_gradient: Tree
    writes: list[Write]
    signals: list[list[list[dict[str, np.ndarray]]]]
    reads: list[Read]

    @property
    def deltas(self) -> Deltas:
        """Final fast weights, by layer, level and tensor."""
        return [{name: m.delta for name, m in layer.items()} for layer in self.memories]


def zero_taps(params: Tree, arch: Arch, tokens: int) -> list[dict[str, Any]]:
    """Zeros to add to each level's output and each block's output."""
    zeros = jnp.zeros((tokens, params["embed"].shape[1]))
    return [dict.fromkeys((*arch.levels, "block"), zeros) for _ in range(layer_count(params))]


@partial(jax.jit, static_argnames="arch", compiler_options=QUICK)
def chunk_pass(
    params: Tree,
    arch: Arch,
    part: Part,
    past: list[Past] | None,
    deltas: Deltas,
) -> tuple[Read, Any, Tree, list[dict[str, Any]]]:
    """Read one chunk after `past`; gradient of its summed loss in the parameters and at the taps."""

    def loss(theta: Tree, taps: list[dict[str, Any]]) -> tuple[Any, tuple[Read, Any]]:
        read = read_chunk(theta, arch, part.tokens, past, part.mask, deltas, taps)
        losses = cross_entropy(read.logits, part.targets)
        return jnp.sum(losses), (read, losses)

    taps = zero_taps(params, arch, part.tokens.shape[0])
    (outer, cotangents), (read, losses) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, taps)
    return read, losses, outer, cotangents


@partial(jax.jit, static_argnames="arch", compiler_options=QUICK)
def cut_gradient(
    params: Tree,
    arch: Arch,
    parts: list[Part],
    past: list[Past] | None,
    deltas: list[Deltas],
) -> Tree:
    """Gradient of the summed loss of the chunks between two cuts, attention's memory not cut between them.

    past: before the first. deltas: those that read each chunk.
    """

    def loss(theta: Tree) -> Any:
        total, seen = jnp.zeros(()), past
        for part, read_with in zip(parts, deltas, strict=True):
            read = read_chunk(theta, arch, part.tokens, seen, part.mask, read_with)
            total = total + jnp.sum(cross_entropy(read.logits, part.targets))
            seen = read.past
        return total

    return jax.grad(loss)(params)


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
        layers = [dict.fromkeys(layer, shared) for layer in layers]
    if learning.delta_at == "block_output":
        layers = [dict.fromkeys(layer, layer["block"]) for layer in layers]
    return layers


def signal_scale(learning: Learning, examples: list[Example], span: tuple[int, int]) -> float:
    """What multiplies a raw signal before its surprise is measured."""
    if not learning.batch_mean:
        return learning.teach_scale
    supervised = sum(target >= 0 for e in examples for target in e.targets[span[0] : span[1]])
    return learning.teach_scale / max(supervised, 1)


def token_of(
    arch: Arch, learning: Learning, scale: float, read: Read, loss: Any, target: int, by_layer: Any, at: Any
) -> Token:
    """The token at (layer, level, index in the chunk) with its signal processed and its surprise measured."""
    layer, level, t = at
    block = by_layer[layer]["block"][t : t + 1]
    amount = teach.surprise(learning.metric, block * scale, loss[t : t + 1], read.logits[t : t + 1])
    process = partial(teach.process, scale=scale, schedule=learning.schedule, limit=learning.teach_clip)
    return Token(
        x=np.asarray(read.level_in[layer][level][t]),
        signal=process(by_layer[layer][level][t : t + 1])[0],
        active=bool(np.any(process(block) != 0)),
        surprise=float(amount[0]),
        counted=bool(np.any(block != 0)) if learning.metric == "l2" else target >= 0,
    )


def write_chunk(
    params: Tree,
    arch: Arch,
    learning: Learning,
    memories: list[dict[str, Memory]],
    span: tuple[int, int],
    examples: list[Example],
    reads: list[Read],
    losses: list[np.ndarray],
    signals: list[list[dict[str, np.ndarray]]],
) -> list[Write]:
    """All writes due at the end of a chunk: in token order, gradients at the chunk-start weights."""
    start, stop = span
    scale = signal_scale(learning, examples, span)
    events = []
    for layer in range(layer_count(params)):
        weights = layer_of(params, layer)["cms"] if learning.levels else {}
        mine, nested = memories[layer], arch.connection == "nested"
        read_deltas = {name: memory.delta for name, memory in mine.items()}
        for t in range(stop - start):
            for level in learning.levels:
                p, read_delta = weights[level.name], read_deltas[level.name]
                for example, read, loss, by_layer in zip(examples, reads, losses, signals, strict=True):
                    at = (layer, level.name, t)
                    target = example.targets[start + t]
                    token = token_of(arch, learning, scale, read, loss, target, by_layer, at)
                    gather(mine, level, p, read_delta, token, learning, arch.read_clip)
            end = start + t + 1
            if nested:
                events += end_of_token(mine, weights, learning, layer, end)
                continue
            for level in learning.levels:
                if end % level.period == 0:
                    p = weights[level.name]
                    events.append(close_period(mine[level.name], p, level, learning, layer, end))
    return events


def online(
    params: Tree,
    arch: Arch,
    learning: Learning,
    examples: list[Example],
    memories: list[dict[str, Memory]] | None = None,
) -> Stream:
    """Stream examples that share one fast state. The outer gradient is that of the summed cross-entropy over
    the number of supervised tokens, cut at every chunk, or at every `truncate` tokens."""
    if memories is None and arch.connection == "nested":
        layers = range(layer_count(params))
        memories = [fresh_nested(learning.levels, layer_of(params, layer)["cms"]) for layer in layers]
    memories = fresh_memories(params, learning) if memories is None else memories
    total = len(examples[0].tokens)
    pasts: list[list[Past] | None] = [None for _ in examples]
    out = Stream([], [], memories, jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)), params), [], [], [])
    reads_of: list[list[Read]] = [[] for _ in examples]
    losses_of: list[list[np.ndarray]] = [[] for _ in examples]
    cut = Cut(0, pasts, [])
    for start in range(0, total, learning.chunk):
        stop = min(start + learning.chunk, total)
        reads, losses, signals = [], [], []
        deltas = [{name: dict(m.delta) for name, m in layer.items()} for layer in memories]
        cut.deltas.append(deltas)
        for example, past in zip(examples, pasts, strict=True):
            part = example.part(start, stop)
            read, loss, outer, taps = chunk_pass(params, arch, part, past, deltas)
            if not learning.truncate:
                out.outer_gradient = add(out.outer_gradient, outer)
            reads.append(jax.tree.map(np.asarray, read))
            losses.append(np.asarray(loss))
            signals.append(chunk_signals(params, arch, learning, read, part.targets, taps))
        for b, read in enumerate(reads):
            reads_of[b].append(read)
            losses_of[b].append(losses[b])
        pasts = [read.past for read in reads]
        out.signals.append(signals)
        out.writes += write_chunk(
            params, arch, learning, memories, (start, stop), examples, reads, losses, signals
        )
        if learning.truncate and (stop % learning.truncate == 0 or stop == total):
            out.outer_gradient = add(
                out.outer_gradient, gradient_of_cut(params, arch, learning, examples, cut, stop)
            )
            cut = Cut(stop, pasts, [])
    if arch.connection == "nested":
        for layer, mine in enumerate(memories):
            out.writes += end_of_stream(mine, layer_of(params, layer)["cms"], learning, layer, total)
    elif learning.flush:
        out.writes += flush(params, learning, memories, total)
    supervised = sum(target >= 0 for example in examples for target in example.targets)
    out.outer_gradient = jax.tree.map(lambda g: g / max(supervised, 1), out.outer_gradient)
    out.logits = [np.concatenate([read.logits for read in reads]) for reads in reads_of]
    out.reads = reads_of[0]
    out.losses = [np.concatenate(rows) for rows in losses_of]
    return out


def gradient_of_cut(
    params: Tree, arch: Arch, learning: Learning, examples: list[Example], cut: Cut, end: int
) -> Tree:
    """Outer gradient of all examples from the last cut to `end`."""
    total: Tree = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)), params)
    starts = range(cut.start, end, learning.chunk)
    for example, past in zip(examples, cut.pasts, strict=True):
        parts = [example.part(start, min(start + learning.chunk, end)) for start in starts]
        total = add(total, cut_gradient(params, arch, parts, past, cut.deltas))
    return total


def add(total: Tree, new: Tree) -> Tree:
    """Sum of two trees."""
    return jax.tree.map(lambda a, b: a + np.asarray(b), total, new)


def flush(params: Tree, learning: Learning, memories: list[dict[str, Memory]], end: int) -> list[Write]:
    """Write every unfinished period that holds tokens."""
    events = []
    for layer, by_level in enumerate(memories):
        for level in learning.levels:
            if by_level[level.name].tokens:
                p = layer_of(params, layer)["cms"][level.name]
                events.append(close_period(by_level[level.name], p, level, learning, layer, end))
    return events


def online_stream(params: Tree, arch: Arch, learning: Learning, example: Example) -> Stream:
    """One example with its own fast state."""
    return online(params, arch, learning, [example])


def two_pass(params: Tree, arch: Arch, learning: Learning, example: Example) -> Stream:
    """The whole sequence as one chunk: every read and every gradient at the weights of the start."""
    whole = replace(learning, chunk=len(example.tokens))
    return online_stream(params, arch, whole, example)
