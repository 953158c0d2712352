"""Teach signals: the local errors that drive the memories.

The raw signal is the gradient of the *sum* of cross-entropies, per layer at each block's output (and at
each memory level's own output), or at the head, the same for all layers: (softmax - onehot) W pulled back
through the final norm, which is the last block's own. It is processed in this order: x scale; surprise is
measured; x schedule; clip per token.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.ranges import NonNegative, Whole
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.xent_teach import CrossEntropy
from hope_jax.memory.levels import Metric
from hope_jax.memory.state import Taps, WriteSignal


@dataclass(frozen=True)
class TeachSchedule:
    """Multiplier on the teach signal over outer steps; 0 switches a part off."""

    warmup_steps: Whole = 0  # linear rise from 0 to 1
    decay_start: Whole = 0  # step at which the fall from 1 to 0 starts
    decay_duration: Whole = 0  # steps that it takes

    def __call__(self, step: Array | int) -> Array:
        """The multiplier [] at outer step `step` (from 0)."""
        value = jnp.ones((), jnp.float32)
        if self.warmup_steps:
            value = jnp.minimum(value, (step + 1) / self.warmup_steps)
        if self.decay_duration:
            done = jnp.clip((step - self.decay_start) / self.decay_duration, 0.0, 1.0)
            value = value * (1.0 - done)
        return value


@dataclass(frozen=True)
class Teach:
    """How teach signals are made."""

    scale: NonNegative = 0.1  # multiplier on the teach signal
    clip: NonNegative = 0.0  # per-token L2 bound on the teach signal; 0: off
    schedule: TeachSchedule = TeachSchedule()
    source: Literal["per_layer", "global"] = "per_layer"  # dL/d(block output) | dL/dh at the LM head
    normalize: Literal["token", "batch_mean"] = "token"  # of the summed loss | over the supervised tokens


def clip_factor(signal: Array, max_norm: float) -> Array:
    """The factor [..., 1] that clips each signal to max_norm over the last axis; max_norm 0: it is 1."""
    norm = trees.safe_norm(signal, axis=-1, keepdims=True)
    return 1 / jnp.maximum(norm / max_norm, 1.0) if max_norm else jnp.ones_like(norm)


@jax.named_scope("teach")
def process(
    rule: Teach,
    raw: tuple[PyTree, ...],
    losses: CrossEntropy,
    schedule: Array | float,
    metric: Metric = "l2",
    across: tuple[str, ...] = (),
) -> tuple[WriteSignal, ...]:
    """Raw cotangents -> the signals that `HopeModel.write` takes, of each layer.

    raw: of each layer, the cotangents of `HopeModel.init_taps`. losses: of the same n tokens.
    schedule: [] the `TeachSchedule`'s multiplier (1 at inference). metric: of surprise. across: mapped axes
    of devices that hold other examples of the batch.
    """
    scale: Array | float = rule.scale
    if rule.normalize == "batch_mean":
        supervised = losses.supervised_bt.sum()
        if across:
            supervised = jax.lax.psum(supervised, across)
        scale = rule.scale / jnp.maximum(supervised, 1).astype(losses.total.dtype)
    if rule.source == "global":
        raw = tuple({**layer, "block": raw[-1]["block"]} for layer in raw)
    surprises = {"loss": losses.loss_bt, "logit_entropy": losses.entropy_bt}

    def gain(cotangent: Array) -> Array:
        """The factor [B, n, 1] on a token's cotangents, which follows from the cotangent at the output."""
        size = jnp.asarray(scale, cotangent.dtype)
        clipped = schedule * clip_factor(cotangent * size * schedule, rule.clip)
        return size * clipped.astype(cotangent.dtype)

    def taught(at: Taps) -> Taps:
        by = gain(at.output)
        hidden = None if at.hidden is None else (by * at.hidden).astype(at.hidden.dtype)
        return Taps(by * at.output, hidden)

    def signal(layer: PyTree) -> WriteSignal:
        levels = {name: taps for name, taps in layer.items() if name != "block"}
        own = {name: {level: taught(at) for level, at in taps.items()} for name, taps in levels.items()}
        block = gain(layer["block"]) * layer["block"]
        scaled = layer["block"] * jnp.asarray(scale, block.dtype)
        surprise, counted = surprises.get(metric), losses.supervised_bt
        if surprise is None:
            surprise, counted = trees.safe_norm(scaled, axis=-1), (scaled != 0).any(-1)
        return WriteSignal(block, own, surprise, counted_n=counted, active_n=(block != 0).any(-1))

    return tuple(map(signal, raw))
