"""The online loop over chunks: read, teach, write; and the outer gradient.

`examples` share one fast state (`memory.scope="batch"`); one example alone is the per-example case.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracle.cms import Cms
from tests.oracle.layers import Arch, Carry, norm
from tests.oracle.model import Deltas, Read, Tree, blocks_of, cross_entropy, head_signal, predict, read
from tests.oracle.writes import Learning, Token, Write

compiled = partial(jax.jit, static_argnames="arch", compiler_options={"xla_backend_optimization_level": 0})


@dataclass(frozen=True)
class Example:
    """One context: token ids, targets (negative: none), document numbers."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    segments: tuple[int, ...]

    def part(self, start: int, stop: int) -> list[np.ndarray]:
        """Tokens and targets of [start, stop), and the documents of all tokens so far."""
        return [
            np.array(t) for t in (self.tokens[start:stop], self.targets[start:stop], self.segments[:stop])
        ]


@dataclass
class Chunk:
    """What one example makes of one chunk. signals: raw, by layer and tap. gradient: of its summed loss."""

    read: Read
    losses: np.ndarray
    signals: list[dict[str, np.ndarray]]
    gradient: Tree


@dataclass
class Stream:
    """What a stream leaves: levels by layer, chunks by example, the deltas that read each chunk, writes."""

    layers: list[Cms]
    chunks: list[list[Chunk]]
    deltas: list[Deltas] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    outer_gradient: Tree = None


def online(params: Tree, arch: Arch, learning: Learning, examples: list[Example]) -> Stream:
    """Stream examples that share one fast state. A whole sequence as one chunk is mode `two_pass`."""
    layers = [Cms(p.get("cms", {}), arch, learning, i) for i, p in enumerate(blocks_of(params))]
    out, total = Stream(layers, [[] for _ in examples]), len(examples[0].tokens)
    for start in range(0, total, learning.chunk):
        stop = min(start + learning.chunk, total)
        out.deltas.append([dict(layer.deltas) for layer in layers])
        for example, chunks in zip(examples, out.chunks, strict=True):
            carry = chunks[-1].read.carry if chunks else None
            part = example.part(start, stop)
            chunks.append(read_and_teach(params, arch, learning, part, carry, out.deltas[-1]))
        supervised = sum(target >= 0 for example in examples for target in example.targets[start:stop])
        scale = learning.teach_scale / (max(supervised, 1) if learning.batch_mean else 1)
        for i, layer in enumerate(layers):
            tokens = [
                [
                    token_of(learning, scale, chunks[-1], i, t, example.targets[start + t])
                    for chunks, example in zip(out.chunks, examples, strict=True)
                ]
                for t in range(stop - start)
            ]
            out.writes += layer.write_chunk(tokens, start, last=stop == total)
    out.outer_gradient = outer_gradient(params, arch, learning, examples, out)
    return out


def read_and_teach(
    params: Tree, arch: Arch, learning: Learning, part: Any, carry: list[Carry] | None, deltas: Deltas
) -> Chunk:
    """Read one chunk after `carry`, and take its teach signal."""
    shown, losses, gradient, signals = chunk_pass(params, arch, part, carry, deltas)
    if learning.source == "global":
        shared = global_signal(params, arch, shown, part[1])
        signals = [dict.fromkeys(layer, shared) for layer in signals]
    if learning.delta_at == "block_output":
        signals = [dict.fromkeys(layer, layer["block"]) for layer in signals]
    return Chunk(*jax.tree.map(np.asarray, (shown, losses, signals, gradient)))


@compiled
def chunk_pass(params: Tree, arch: Arch, part: Any, carry: Any, deltas: Deltas) -> Any:
    """A read, its losses, and the gradients of their sum in the parameters and at the taps."""
    tokens, targets, documents = part

    def loss(theta: Tree, taps: Any) -> Any:
        shown = read(theta, arch, tokens, documents, deltas, carry, taps)
        losses = cross_entropy(shown.logits, targets)
        return jnp.sum(losses), (shown, losses)

    zeros = jnp.zeros((len(tokens), params["embed"].shape[1]))
    taps = [dict.fromkeys((*arch.levels, "block"), zeros) for _ in blocks_of(params)]
    gradients, shown = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, taps)
    return *shown, *gradients


@compiled
def cut_gradient(params: Tree, arch: Arch, parts: Any, carry: Any, deltas: list[Deltas]) -> Tree:
    """The gradient of the chunks between two cuts, attention's memory not cut between them."""

    def loss(theta: Tree) -> Any:
        total, seen = jnp.zeros(()), carry
        for (tokens, targets, documents), read_with in zip(parts, deltas, strict=True):
            shown = read(theta, arch, tokens, documents, read_with, seen)
            total, seen = total + jnp.sum(cross_entropy(shown.logits, targets)), shown.carry
        return total

    return jax.grad(loss)(params)


def outer_gradient(
    params: Tree, arch: Arch, learning: Learning, examples: list[Example], stream: Stream
) -> Tree:
    """That of the summed cross-entropy, over the number of supervised tokens. What has been written is a
    constant, and attention's memory is cut at every chunk, or every `truncate` tokens."""
    gradients, count = [], learning.truncate // learning.chunk
    for example, chunks in zip(examples, stream.chunks, strict=True):
        total = len(example.tokens)
        starts = range(0, total, learning.chunk)
        parts = [example.part(start, min(start + learning.chunk, total)) for start in starts]
        for i in range(0, len(chunks), count or 1):
            if not count:
                gradients.append(chunks[i].gradient)
                continue
            carry, cut = chunks[i - 1].read.carry if i else None, slice(i, i + count)
            gradients.append(cut_gradient(params, arch, parts[cut], carry, stream.deltas[cut]))
    supervised = sum(target >= 0 for example in examples for target in example.targets)
    return jax.tree.map(lambda *each: sum(map(np.asarray, each)) / max(supervised, 1), *gradients)


def global_signal(params: Tree, arch: Arch, shown: Read, targets: Any) -> Any:
    """The head's signal pulled back through the final norm at each token's last hidden state."""
    final, rows = params["final_norm"], []
    for hidden, logits, target in zip(shown.pre_norm, shown.logits, targets, strict=True):
        _, pull = jax.vjp(lambda h: norm(arch, h, final["scale"], final.get("bias")), jnp.asarray(hidden))
        rows.append(pull(jnp.asarray(head_signal(logits, target, params["embed"])))[0])
    return jnp.stack(rows)


def process(signal: np.ndarray, scale: float, schedule: float, limit: float) -> np.ndarray:
    """A token's signal [D] scaled, scheduled, and clipped to `limit` (0: off), in this order."""
    signal = signal * scale * schedule
    length = np.linalg.norm(signal)
    return signal * min(1.0, limit / length) if limit > 0 and length > 0 else signal


def surprise(metric: str, block_signal: np.ndarray, logits: np.ndarray, target: int) -> float:
    """Of a token: its scaled signal's norm (`l2`), its loss, or the entropy of its prediction."""
    loss, entropy = predict(logits, target)
    return float({"l2": np.linalg.norm(block_signal), "loss": loss, "logit_entropy": entropy}[metric])


def token_of(
    learning: Learning, scale: float, chunk: Chunk, layer: int, t: int, target: int
) -> dict[str, Token]:
    """A chunk's token t as each level of a layer sees it."""
    clean = partial(process, scale=scale, schedule=learning.schedule, limit=learning.teach_clip)
    signals = {name: signal[t] for name, signal in chunk.signals[layer].items()}
    block = signals["block"]
    active = bool(np.any(clean(block) != 0))
    amount = surprise(learning.metric, scale * block, chunk.read.logits[t], target)
    counted = bool(np.any(block != 0)) if learning.metric == "l2" else target >= 0
    return {
        name: Token(x[t], clean(signals[name]), active, amount, counted)
        for name, x in chunk.read.level_in[layer].items()
    }
