"""Teach signals: the local errors that drive the memories (SPEC §2.4).

The raw signal is the gradient of the *sum* of cross-entropies, per layer at each block's output (and at
each memory level's own output), or at the head, the same for all layers. It is processed in this order:
x scale; surprise is measured; x schedule; clip per token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope_jax import trees
from hope_jax.learning.loss import TokenLoss, prediction_entropy, token_loss
from hope_jax.memory.state import WriteSignal
from hope_jax.types import NO_TARGET, Array, PyTree


class TeachRule(NamedTuple):
    """scale: `teach_scale`. clip: per-token L2 bound, 0: off. metric: of surprise (`memory.gate.METRICS`).

    batch_mean: divide by the batch's supervised tokens of the chunk, as the reference does.
    source: `per_layer` or `global`.
    """

    scale: float = 0.1
    clip: float = 0.0
    metric: str = "l2"
    batch_mean: bool = False
    source: str = "per_layer"


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


def head_signal(logits: Array, targets: Array, head_vd: Array) -> Array:
    """(softmax(logits) - onehot(target)) @ W_head: d(sum of CE)/d(input of the head), in closed form.

    logits [..., V]; targets int [...], `NO_TARGET` gives zeros; head_vd [V, D]. Returns [..., D].
    """
    supervised = targets != NO_TARGET
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    error = jax.nn.softmax(wide, axis=-1)
    error = error - jax.nn.one_hot(targets, logits.shape[-1], dtype=wide.dtype)
    return (jnp.where(supervised[..., None], error, 0) @ head_vd.astype(wide.dtype)).astype(wide.dtype)


def global_signal(
    logits: Array, targets: Array, head_vd: Array, pre_norm: Array, final_norm: Callable[[Array], Array]
) -> Array:
    """`head_signal` pulled back through the final norm: d(sum of CE)/d(last block's output)."""
    signal = head_signal(logits, targets, head_vd)
    _, pull_back = jax.vjp(final_norm, pre_norm)
    return pull_back(signal.astype(pre_norm.dtype))[0].astype(signal.dtype)


def clip_per_token(signal: Array, max_norm: float) -> Array:
    """signal / max(|signal_t| / max_norm, 1) over the last axis; max_norm 0: unchanged."""
    if not max_norm:
        return signal
    norm = trees.safe_norm(signal, axis=-1, keepdims=True)
    return signal / jnp.maximum(norm / max_norm, 1.0)


def process(
    rule: TeachRule, raw: PyTree, logits: Array, targets: Array, schedule: Array | float
) -> WriteSignal:
    """Raw cotangents -> the signal that `HopeModel.write` takes.

    raw: {"block": [L, B, n, D], memory: {level: [L, B, n, D]}}. logits [B, n, V], targets [B, n].
    schedule: [] the `TeachSchedule`'s multiplier (1 at inference).
    """
    losses = token_loss(logits, targets)
    scale = jnp.asarray(rule.scale, raw["block"].dtype)
    if rule.batch_mean:
        scale = scale / jnp.maximum(losses.supervised.sum(), 1)
    scaled = jax.tree.map(lambda t: t * scale, raw)
    surprise, counted = _surprise(rule, scaled["block"], losses, logits)
    final = jax.tree.map(lambda t: clip_per_token(t * schedule, rule.clip).astype(t.dtype), scaled)
    block = final.pop("block")
    return WriteSignal(
        block=block,
        own=final,
        surprise_n=surprise,
        counted_n=counted,
        active_n=(block != 0).any(-1),
    )


def _surprise(rule: TeachRule, scaled: Array, losses: TokenLoss, logits: Array) -> tuple[Array, Array]:
    """Surprise per layer, example and token [L, B, n], and which tokens count."""
    if rule.metric == "l2":
        return trees.safe_norm(scaled, axis=-1), (scaled != 0).any(-1)
    per_token = losses.loss if rule.metric == "loss" else prediction_entropy(logits)
    shape = scaled.shape[:-1]
    return jnp.broadcast_to(per_token, shape), jnp.broadcast_to(losses.supervised, shape)


def zero_signal(taps: dict[str, Any]) -> WriteSignal:
    """The signal of a chunk that teaches nothing. taps: as `HopeModel.init_taps` gives them."""
    block = taps["block"]
    none = jnp.zeros(block.shape[:-1], bool)
    return WriteSignal(
        block=block,
        own={name: tap for name, tap in taps.items() if name != "block"},
        surprise_n=jnp.zeros(none.shape, block.dtype),
        counted_n=none,
        active_n=none,
    )
