"""Teach signals: the local errors that drive the memories (SPEC §2.4).

The raw signal is the gradient of the *sum* of cross-entropies, per layer at each block's output (and at
each memory level's own output), or at the head, the same for all layers: (softmax - onehot) W pulled back
through the final norm, which is the last block's own. It is processed in this order: x scale; surprise is
measured; x schedule; clip per token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.kernels.xent_teach import CrossEntropy
from hope_jax.memory.state import WriteSignal
from hope_jax.types import Array, PyTree


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


def clip_per_token(signal: Array, max_norm: float) -> Array:
    """The signal times its `clip_factor`."""
    return signal * clip_factor(signal, max_norm)


@jax.named_scope("teach")
def process(rule: TeachRule, raw: PyTree, losses: CrossEntropy, schedule: Array | float) -> WriteSignal:
    """Raw cotangents -> the signal that `HopeModel.write` takes.

    raw: {"block": [L, B, n, D], memory: {level: [L, B, n, D]}}. losses: of the same n tokens.
    schedule: [] the `TeachSchedule`'s multiplier (1 at inference).
    """
    if rule.source == "global":
        raw = {**raw, "block": jnp.broadcast_to(raw["block"][-1:], raw["block"].shape)}
    scale = jnp.asarray(rule.scale, raw["block"].dtype)
    if rule.batch_mean:
        supervised = losses.supervised_bt.sum()
        if rule.across:
            supervised = jax.lax.psum(supervised, rule.across)
        scale = scale / jnp.maximum(supervised, 1)
    scaled = jax.tree.map(lambda t: t * scale, raw)
    surprise, counted = _surprise(rule, scaled["block"], losses)
    factor = jax.tree.map(lambda t: (schedule * clip_factor(t * schedule, rule.clip)).astype(t.dtype), scaled)
    final = jax.tree.map(jnp.multiply, scaled, factor)
    gain = jax.tree.map(lambda f: (scale * f)[..., 0], factor)
    block, _ = final.pop("block"), gain.pop("block")
    return WriteSignal(
        block=block,
        own=final,
        gain=gain,
        surprise_n=surprise,
        counted_n=counted,
        active_n=(block != 0).any(-1),
    )


def _surprise(rule: TeachRule, scaled: Array, losses: CrossEntropy) -> tuple[Array, Array]:
    """Surprise per layer, example and token [L, B, n], and which tokens count."""
    if rule.metric == "l2":
        return trees.safe_norm(scaled, axis=-1), (scaled != 0).any(-1)
    per_token = losses.loss_bt if rule.metric == "loss" else losses.entropy_bt
    shape = scaled.shape[:-1]
    return jnp.broadcast_to(per_token, shape), jnp.broadcast_to(losses.supervised_bt, shape)


def zero_signal(taps: dict[str, Any]) -> WriteSignal:
    """The signal of a chunk that teaches nothing. taps: as `HopeModel.init_taps` gives them."""
    block = taps["block"]
    none = jnp.zeros(block.shape[:-1], bool)
    own = {name: tap for name, tap in taps.items() if name != "block"}
    return WriteSignal(
        block=block,
        own=own,
        gain=jax.tree.map(lambda t: t[..., 0], own),
        surprise_n=jnp.zeros(none.shape, block.dtype),
        counted_n=none,
        active_n=none,
    )
