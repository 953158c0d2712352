"""Constants and clocks as the recorded configurations mean them."""

from collections.abc import Mapping
from typing import Any

import jax

from hope_jax.learning.teach import clip_factor
from hope_jax.memory.levels import Level
from hope_jax.memory.rules import OPTIMIZERS
from parity_tests.golden_file import Golden

PUBLISHED_VARIANTS = ("preconditioned", "muon", "dmgd", "l2_objective", "nl_l2_precond", "momentum")


def inner_level(
    g: Golden, optimizer: Mapping[str, Any] | None, default_lr: float, tokens: int, **defaults: float
) -> Level:
    """A level with a recorded inner optimizer, for writes of `tokens` tokens.

    optimizer: {"lr", "params": {"variant", ...}}; None: the published defaults. An unknown variant is plain
    momentum there. A period of one token would switch `nl_l2_precond` off here, not in the published code.
    """
    rest = dict((optimizer or {}).get("params") or {})
    name = rest.pop("variant", "preconditioned")
    if name not in PUBLISHED_VARIANTS:
        g.differ("unknown_optimizer")
        name = "momentum"
    assert name in OPTIMIZERS
    return Level(max(tokens, 2), (optimizer or {}).get("lr", default_lr), name, **{**defaults, **rest})


def context_axes(weights: Mapping[str, Any], width: int) -> dict[str, int]:
    """What the published projection takes: every tensor whose torch last axis (our first) has D entries."""
    return {name: 0 for name, value in weights.items() if value.shape[0] == width}


def due(level: Mapping[str, Any], step: int, last: int) -> bool:
    """The published clock: whether a level is due at `step`; last: its last update, -1 without one."""
    jitter = level.get("jitter", 0)
    wait = level["update_period"] + (step % (jitter + 1) if jitter > 0 else 0)
    return step >= level.get("warmup_steps", 0) and (last < 0 or step - last >= wait)


def block_signal(config: Mapping[str, Any], teach: jax.Array) -> jax.Array:
    """The signal [..., D] of a block: scaled, then clipped per token."""
    scaled = config.get("teach_scale", 1.0) * teach
    return scaled * clip_factor(scaled, config.get("teach_clip", 0.0))
