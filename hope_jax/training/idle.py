"""Whether the memories of a run are idle: which share of their periods they write, and what that changes."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hope_jax.config.chunks import levels_of, online_chunk
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.training.diagnosis import rate_key

KIND = "idle memories"
"""How an alarm of this kind begins."""
SHARE = 0.1
"""A level that writes a smaller share of its periods hardly writes."""
EFFECT = 0.001
"""Nats per token, or share of a loss below 1; where writes change the held-out loss by less, they change
nothing."""

Written = Mapping[str, Mapping[str, list[float]]]
"""Level -> `periods` that ended, `periods_written` (their share that was written), `surprise_value` (their
mean surprise) -> one number a layer."""


def written(writes: Mapping[str, Mapping[str, Any]]) -> Written:
    """Of sums over periods (`TrainProgram.eval_step`): the levels of which a period has ended."""
    found = {}
    for name, sums in writes.items():
        periods, applied, surprise = (
            np.asarray(sums[key], float) for key in ("periods", "updates_applied", "surprise_value")
        )
        if periods.size and periods.min() > 0:
            found[name] = {
                "periods": periods.tolist(),
                "periods_written": (applied / periods).tolist(),
                "surprise_value": (surprise / periods).tolist(),
            }
    return found


def trained(writes: Mapping[str, Mapping[str, Any]]) -> Written:
    """Of the statistics of a training step, in which `surprise_value` is a mean already."""
    sums = {
        name: {**stats, "surprise_value": np.multiply(stats["surprise_value"], stats["periods"])}
        for name, stats in writes.items()
        if {"periods", "updates_applied", "surprise_value"} <= stats.keys()
    }
    return written(sums)


def share_of_all(levels: Written) -> float | None:
    """Periods that were written over those that ended, of all levels and layers; None where none ended."""
    ended = sum(sum(level["periods"]) for level in levels.values())
    pairs = [pair for level in levels.values() for pair in zip(*_counts(level), strict=True)]
    return sum(periods * share for periods, share in pairs) / ended if ended else None


def _counts(level: Mapping[str, list[float]]) -> tuple[list[float], list[float]]:
    return level["periods"], level["periods_written"]


class _Level(NamedTuple):
    name: str
    share: float
    surprise: list[float]


def idle_alarm(
    step: int, evaluated: Mapping[str, Any], writes: Mapping[str, Any], config: ExperimentConfig
) -> str | None:
    """Levels that hardly write, or writes that change nothing; None: neither, or so intended.

    Intended is a rate or a teach scale of 0. Nothing is said before the warm-ups are over, nor where no read
    sees a write. evaluated: see `hooks.evaluate`. writes: statistics of the step before, which count for
    memories that an evaluation reads and does not write.
    """
    loss, plain = evaluated["eval_loss"], evaluated["eval_loss_no_writes"]
    warm_up = max(config.teach.schedule.warmup_steps, config.optim.warmup_steps)
    if loss is None or plain is None or step <= warm_up:
        return None
    found: Written = evaluated.get("eval_writes", {})
    if config.memory.lifetime == "persistent":
        found = {**trained(writes), **found}
    levels = [
        _Level(name, float(np.mean(level["periods_written"])), level["surprise_value"])
        for name, level in found.items()
        if _rate(name, config) > 0
    ]
    measured = f"held-out loss {loss:.5g} with writes, {plain:.5g} without"
    hardly = [level for level in levels if level.share < SHARE and _is_taught(level.name, config)]
    if hardly and config.memory.surprise_threshold is not None:
        return f"{KIND}: {_hardly(hardly, config.memory.surprise_threshold)} {measured.capitalize()}."
    if levels and abs(loss - plain) < EFFECT * min(1.0, plain):
        return f"{KIND}: {measured}: the writes of {_names(levels)} change nothing. {_louder(levels, config)}"
    return None


def _hardly(levels: list[_Level], threshold: float) -> str:
    shares = ", ".join(f"{level.name} {level.share:.1%}" for level in levels)
    means = [value for level in levels for value in level.surprise]
    return (
        f"share of their periods that they write: {shares}. Their mean surprise is {min(means):.3g} to "
        f"{max(means):.3g} by layer, memory.surprise_threshold={threshold:g}. Remedy: lower "
        f"memory.surprise_threshold below {min(means):.2g}, or set it to None (all periods are written); "
        "`python -m hope_jax.calibrate` prints the quantiles of the surprise."
    )


def _louder(levels: list[_Level], config: ExperimentConfig) -> str:
    chunk, persistent = online_chunk(config), config.memory.lifetime == "persistent"
    if chunk >= config.data.seq_len and not persistent:
        return (
            f"A row of {config.data.seq_len} tokens is one online chunk, so no read sees a write. Remedy: "
            f"lower train.online_chunk_size (now {chunk})."
        )
    rates = {rate_key(level.name, config): _rate(level.name, config) for level in levels}
    keys = ", ".join(f"{key} (now {rate:g})" for key, rate in rates.items())
    scale = f" or teach.scale (now {config.teach.scale:g})"
    taught = any(_is_taught(level.name, config) for level in levels)
    return f"Remedy: raise {keys}{scale if taught else ''}."


def _names(levels: Iterable[_Level]) -> str:
    return ", ".join(level.name for level in levels)


def _is_taught(name: str, config: ExperimentConfig) -> bool:
    """Whether teach signals write the level: those of self-modifying Titans write themselves."""
    return rate_key(name, config).removesuffix(".lr") in dict(levels_of(config))


def _rate(name: str, config: ExperimentConfig) -> float:
    """With which a level writes; 0 where its signal is scaled to nothing."""
    level = dict(levels_of(config)).get(rate_key(name, config).removesuffix(".lr"))
    if level is None:
        return config.self_modifying_titans.eta_scale
    return level.lr if config.teach.scale else 0.0
