"""Teach signals: the local errors that drive the memories (SPEC §2.4).

The raw signal is the gradient of the *sum* of cross-entropies, per layer at each block's output (and at
each memory level's own output), or at the head, the same for all layers: (softmax - onehot) W pulled back
through the final norm, which is the last block's own. It is processed in this order: x scale; surprise is
measured; x schedule; clip per token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope_jax.core import trees
from hope_jax.core.types import Array, PyTree
from hope_jax.kernels.xent_teach import CrossEntropy
from hope_jax.memory.state import Taps, WriteSignal


class TeachRule(NamedTuple):
    """scale: `teach_scale`. clip: per-token L2 bound, 0: off. metric: of surprise (`memory.gate.METRICS`).

    batch_mean: divide by the batch's supervised tokens of the chunk, as the reference does.
    across: mapped axes of devices that hold other examples of the batch.
    source: `per_layer` or `global`.
    """

    scale: float = 0.1
    clip: float = 0.0
    metric: str = "l2"
    batch_mean: bool = False
    source: str = "per_layer"
    across: tuple[str, ...] = ()


class TeachSchedule(NamedTuple):
    """Multiplier over outer steps: up linearly over `warmup_steps`, then down to 0 from `decay_start`
    over `decay_duration` steps; 0 switches a part off."""

    warmup_steps: int = 0
    decay_start: int = 0
    decay_duration: int = 0

    def __call__(self, step: Array | int) -> Array:
        """The multiplier [] at outer step `step` (from 0)."""
        value = jnp.ones((), jnp.float32)
        if self.warmup_steps:
            value = jnp.minimum(value, (step + 1) / self.warmup_steps)
        if self.decay_duration:
            done = jnp.clip((step - self.decay_start) / self.decay_duration, 0.0, 1.0)
            value = value * (1.0 - done)
        return value


def clip_factor(signal: Array, max_norm: float) -> Array:
    """1 / max(|signal_t| / max_norm, 1) over the last axis [..., 1]; max_norm 0: 1."""
    norm = trees.safe_norm(signal, axis=-1, keepdims=True)
    return 1 / jnp.maximum(norm / max_norm, 1.0) if max_norm else jnp.ones_like(norm)


@jax.named_scope("teach")
def process(
    rule: TeachRule, raw: tuple[PyTree, ...], losses: CrossEntropy, schedule: Array | float
) -> tuple[WriteSignal, ...]:
    """Raw cotangents -> the signals that `HopeModel.write` takes, of each layer.

    raw: of each layer, the cotangents of `HopeModel.init_taps`. losses: of the same n tokens.
    schedule: [] the `TeachSchedule`'s multiplier (1 at inference).
    """
    scale: Array | float = rule.scale
    if rule.batch_mean:
        supervised = losses.supervised_bt.sum()
        if rule.across:
            supervised = jax.lax.psum(supervised, rule.across)
        scale = rule.scale / jnp.maximum(supervised, 1).astype(losses.total.dtype)
    if rule.source == "global":
        raw = tuple({**layer, "block": raw[-1]["block"]} for layer in raw)
    return tuple(_signal(rule, layer, losses, scale, schedule) for layer in raw)


def _signal(
    rule: TeachRule, raw: PyTree, losses: CrossEntropy, scale: Array | float, schedule: Array | float
) -> WriteSignal:
    """Of one layer."""

    def gain(cotangent: Array) -> Array:
        """[B, n, 1] what a token's cotangents are multiplied with, from that at the output."""
        size = jnp.asarray(scale, cotangent.dtype)
        clipped = schedule * clip_factor(cotangent * size * schedule, rule.clip)
        return size * clipped.astype(cotangent.dtype)

    def taught(at: Taps) -> Taps:
        by = gain(at.output)
        return Taps(by * at.output, None if at.hidden is None else by * at.hidden)

    own = {
        name: {k: taught(at) for k, at in levels.items()} for name, levels in raw.items() if name != "block"
    }
    block = gain(raw["block"]) * raw["block"]
    surprise, counted = _surprise(rule, raw["block"] * jnp.asarray(scale, block.dtype), losses)
    active = (block != 0).any(-1)
    return WriteSignal(block=block, own=own, surprise_n=surprise, counted_n=counted, active_n=active)


def _surprise(rule: TeachRule, scaled: Array, losses: CrossEntropy) -> tuple[Array, Array]:
    """Surprise per example and token [B, n], and which tokens count."""
    if rule.metric == "l2":
        return trees.safe_norm(scaled, axis=-1), (scaled != 0).any(-1)
    return (losses.loss_bt if rule.metric == "loss" else losses.entropy_bt), losses.supervised_bt
