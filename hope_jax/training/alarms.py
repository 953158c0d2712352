"""What is wrong with a run, judged from the numbers of its rows, and the key that mends it.

Divergence: a loss or gradient is not finite. Harm: a memory that blows up answers louder than all the rest of
a model, and the cross-entropy rises far above ln V, that of a guess among all V tokens. So the held-out loss
with writes is compared with the loss without them and with ln V; the training loss, which is always with
writes, with ln V alone, once it has been below. Idleness: memories hardly write, or change nothing; that
alarm never ends a run.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.config.chunks import online_chunk
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.memory.levels import MemoryOptions

logger = logging.getLogger("hope_jax.training")

MARGIN = 0.05
"""Nats per token by which a loss may exceed what it is held against."""
ROWS = 3
"""Consecutive rows with a training loss above ln V that make an alarm."""
IDLE = "idle memories"
"""How an alarm of this kind begins."""
SHARE = 0.1
"""A level that writes a smaller share of its periods hardly writes."""
EFFECT = 0.001
"""Nats per token, or share of a loss below 1; where writes change the held-out loss by less, they change
nothing."""
_GROWTH, _RECENT = 5.0, 8
"""A signal made a run diverge if in the last rows it reached this many times its median before them."""

Row = Mapping[str, Any]
Writes = Mapping[str, Mapping[str, Any]]
"""Level -> statistic -> one number a layer."""


def written(writes: Writes, *, means: bool = False) -> Writes:
    """Of sums over periods (`TrainProgram.eval_step`): of each level of which a period has ended, `periods`,
    `periods_written` (their share that was written) and `surprise_value` (their mean surprise). means: of the
    statistics of a training step, in which `surprise_value` is a mean already."""
    keys, found = ("periods", "updates_applied", "surprise_value"), {}
    for name, stats in writes.items():
        periods, applied, surprise = (np.asarray(stats.get(key, ()), float) for key in keys)
        if 0 < periods.size == applied.size == surprise.size and periods.min() > 0:
            values = {"periods": periods, "periods_written": applied / periods}
            values["surprise_value"] = surprise if means else surprise / periods
            found[name] = {key: value.tolist() for key, value in values.items()}
    return found


def share_of_all(levels: Writes) -> float | None:
    """Periods that were written over those that ended, of all levels and layers; None where none ended."""
    if not levels:
        return None
    keys = ("periods", "periods_written")
    ended, shares = (np.concatenate([level[key] for level in levels.values()]) for key in keys)
    return float(np.average(shares, weights=ended))


class _Rate(NamedTuple):
    """The inner rate of a level. taught: teach signals write it; those of self-modifying Titans write
    themselves. value: 0 where its signal is scaled to nothing."""

    key: str
    value: float
    taught: bool


def _rate(level: str, config: ExperimentConfig) -> _Rate:
    name, levels = level.removesuffix(".init"), config.cms.levels
    if name in levels:
        key, own = f"cms.levels.{name}.lr", levels[name].lr
    elif name == "titan":
        key, own = "titan.level.lr", config.titan.level.lr
    else:
        return _Rate("self_modifying_titans.eta_scale", config.self_modifying_titans.eta_scale, False)
    return _Rate(key, own if config.teach.scale else 0.0, True)


def _remedy(writes: Writes, config: ExperimentConfig) -> str:
    """What the suspect level has written, and the key that mends it: the level whose writes are not finite,
    or whose bounds are hit most, or whose writes are largest, in any of its layers."""
    found = []
    keys = ("updates_applied", "write_norm", "delta_norm", "write_clip_hits", "delta_clip_hits")
    for name, stats in writes.items():
        if "write_norm" not in stats:
            continue
        layers = np.array([stats[key] for key in keys], float)
        applied, write, delta, *hits = layers[:, layers[0] > 0]
        if applied.size:
            bounded = sum(hits) / applied
            found.append((name, float(write.max()), float(delta.max()), float(bounded.max())))
    if not found:
        return f"No memory has written. Remedy: lower optim.lr (now {config.optim.lr:g})."
    level, one, all_of_them, bounds_hit = max(found, key=lambda f: (not math.isfinite(f[1]), f[3], f[1]))
    rate, memory = _rate(level, config), config.memory
    cause = (
        f"Suspect: {level} (over the slow weights' norm, one write up to {one:.3g}, all writes "
        f"{all_of_them:.3g}; {bounds_hit:.2g} active bounds a write)."
    )
    off = [name for name in ("write_clip", "delta_clip") if not getattr(memory, name)]
    if not rate.taught:
        return f"{cause} Remedy: lower {rate.key} (now {rate.value:g})."
    if off:
        bounds = " and ".join(f"memory.{name}={getattr(MemoryOptions(), name):g}" for name in off)
        return f"{cause} Remedy: set {bounds} (now 0: off), or lower {rate.key}."
    return f"{cause} Remedy: lower {rate.key} or memory.write_clip (now {memory.write_clip:g})."


def eval_alarm(evaluated: Row, writes: Writes, config: ExperimentConfig) -> str | None:
    """Held-out loss with writes above that without them, or above ln V; None: neither. evaluated:
    `eval_loss`, and `eval_loss_no_writes`, None where no read sees a write. writes: statistics of the step
    before."""
    loss, plain = evaluated["eval_loss"], evaluated["eval_loss_no_writes"]
    chance = math.log(config.model.vocab_size)
    lower = f"lower optim.lr (now {config.optim.lr:g})"
    if loss is None:
        return None
    if plain is not None and not loss <= plain + MARGIN:
        harm = f"the writes do harm. {_remedy(writes, config)}"
    elif loss <= chance + MARGIN:
        return None
    elif plain is None:
        return f"held-out loss {loss:.4g}, ln V {chance:.4g}: worse than a guess. Remedy: {lower}."
    else:
        harm = f"worse than a guess, with writes and without. Remedy: {lower}."
    return f"held-out loss {loss:.4g} with writes, {plain:.4g} without, ln V {chance:.4g}: {harm}"


def idle_alarm(step: int, evaluated: Row, writes: Writes, config: ExperimentConfig) -> str | None:
    """Levels that hardly write, or writes that change nothing; None: neither, or so intended.

    Intended is a rate or a teach scale of 0. Nothing is said before the warm-ups are over, nor where no read
    sees a write. evaluated: see `hooks.evaluate`. writes: statistics of the step before, which count for
    memories that an evaluation reads and does not write.
    """
    loss, plain = evaluated["eval_loss"], evaluated["eval_loss_no_writes"]
    warm_up = max(config.teach.schedule.warmup_steps, config.optim.warmup_steps)
    if loss is None or plain is None or step <= warm_up:
        return None
    of_training = written(writes, means=True) if config.memory.lifetime == "persistent" else {}
    found = {**of_training, **evaluated.get("eval_writes", {})}
    rates = {name: rate for name in found if (rate := _rate(name, config)).value > 0}
    shares = {name: float(np.mean(found[name]["periods_written"])) for name in rates if rates[name].taught}
    hardly = {name: share for name, share in shares.items() if share < SHARE}
    measured = f"held-out loss {loss:.5g} with writes, {plain:.5g} without"
    threshold = config.memory.surprise_threshold
    if hardly and threshold is not None:
        means = [value for name in hardly for value in found[name]["surprise_value"]]
        return (
            f"{IDLE}: share of their periods that they write: "
            f"{', '.join(f'{name} {share:.1%}' for name, share in hardly.items())}. Their mean surprise is "
            f"{min(means):.3g} to {max(means):.3g} by layer, memory.surprise_threshold={threshold:g}. "
            f"Remedy: lower memory.surprise_threshold below {min(means):.2g}, or set it to None (all periods "
            "are written); `python -m hope_jax.calibrate` prints the quantiles of the surprise. "
            f"{measured.capitalize()}."
        )
    if rates and abs(loss - plain) < EFFECT * min(1.0, plain):
        names = ", ".join(rates)
        return f"{IDLE}: {measured}: the writes of {names} change nothing. {_louder(rates.values(), config)}"
    return None


def _louder(rates: Iterable[_Rate], config: ExperimentConfig) -> str:
    chunk = online_chunk(config)
    if chunk >= config.data.seq_len and config.memory.lifetime != "persistent":
        return (
            f"A row of {config.data.seq_len} tokens is one online chunk, so no read sees a write. Remedy: "
            f"lower train.online_chunk_size (now {chunk})."
        )
    keys = ", ".join(dict.fromkeys(f"{rate.key} (now {rate.value:g})" for rate in rates))
    taught = any(rate.taught for rate in rates)
    scale = f" or teach.scale (now {config.teach.scale:g})" if taught else ""
    return f"Remedy: raise {keys}{scale}."


def is_idle(alarm: str) -> bool:
    """Whether an alarm tells of idleness rather than of harm."""
    return alarm.startswith(IDLE)


class Guard:
    """The alarms of a run, as `eval.alarm` wants them. before: rows of the run so far, oldest first. stop:
    the alarm that ends the run, once there is one."""

    def __init__(self, config: ExperimentConfig, before: Iterable[Row] = ()) -> None:
        self._config = config
        self._chance = math.log(config.model.vocab_size)
        self._below = False  # whether the training loss has been below ln V
        self._above = 0  # rows in a row since that are not
        self.stop: str | None = None
        for row in before:
            self._see(row)

    def evaluated(self, step: int, results: Row, writes: Writes) -> str | None:
        """The alarm of an evaluation after `step`, raised and returned: of harm, else of idleness."""
        if self._config.eval.alarm == "off":
            return None
        harm = self._raise(step, eval_alarm(results, writes, self._config))
        return harm or self._raise(step, idle_alarm(step, results, writes, self._config), stops=False)

    def row(self, row: Row) -> dict[str, Any]:
        """The row with its field `alarm`: of harm, seen in its evaluation or in the training loss, else of
        idleness, else None."""
        self._see(row)
        alarm = row.get("alarm")
        idle = alarm is None or is_idle(alarm)
        if idle and self._above >= ROWS and self._config.eval.alarm != "off":
            head = (
                f"training loss {float(row['loss']):.4g}, above ln V {self._chance:.4g} in {self._above} rows"
            )
            alarm = self._raise(row["step"], f"{head}. {_remedy(row.get('writes', {}), self._config)}")
        return {**row, "alarm": alarm}

    def _see(self, row: Row) -> None:
        loss = math.inf if row["loss"] is None else float(row["loss"])
        self._below |= loss <= self._chance
        self._above = self._above + 1 if self._below and not loss <= self._chance + MARGIN else 0

    def _raise(self, step: int, alarm: str | None, *, stops: bool = True) -> str | None:
        if alarm:
            logger.warning("ALARM after step %d: %s", step, alarm)
            if stops and self._config.eval.alarm == "stop":
                self.stop = alarm
        return alarm


def _growth(values: Iterable[float]) -> tuple[float, float, float]:
    """(recent peak / earlier median, that median, that peak) over the finite values; growth 0 if too few."""
    finite = [float(v) for v in values if math.isfinite(v)]
    earlier, recent = finite[:-_RECENT] or finite[:-1], finite[-_RECENT:]
    if not earlier:
        return 0.0, 0.0, 0.0
    median, peak = float(np.median(earlier)), max(recent)
    return peak / max(median, 1e-30), median, peak


def _what_grew(rows: Sequence[Row], config: ExperimentConfig) -> tuple[str, str] | None:
    """Cause and remedy of the first signal that grew, in the order in which one drives the next."""
    for level in sorted({level for row in rows for level in row.get("writes", {})}):
        norms = [row["writes"][level]["grad_norm"] for row in rows if level in row.get("writes", {})]
        by_layer = [_growth(layer) for layer in zip(*norms, strict=True)]
        layer = int(np.argmax([growth for growth, _, _ in by_layer]))
        growth, median, peak = by_layer[layer]
        if growth >= _GROWTH:
            return (
                f"the writes of {level} blew up (gradient norm in layer {layer}: {median:.3g} -> {peak:.3g})",
                f"lower {_rate(level, config).key} or memory.write_clip (now {config.memory.write_clip:g})",
            )
    teach, optim = config.teach, config.optim
    lower = f"lower optim.lr (now {optim.lr:g})"
    remedies = {
        "teach_signal_norm": f"lower teach.scale (now {teach.scale:g}) or set teach.clip "
        f"(now {teach.clip:g}; 0 is off)",
        "grad_norm": f"{lower} or optim.grad_clip (now {optim.grad_clip:g}; 0 is off)",
        "loss": f"{lower} or lengthen optim.warmup_steps (now {optim.warmup_steps})",
    }
    for name, remedy in remedies.items():
        growth, median, peak = _growth(row[name] for row in rows if name in row)
        if growth >= _GROWTH:
            return f"{name} grew from {median:.3g} to {peak:.3g}", remedy
    return None


def explain_divergence(
    step: int, rows: Sequence[Row], config: ExperimentConfig, checkpoint: Path | None
) -> str:
    """The message of a `DivergenceError`. step: first one whose loss or gradient norm is not finite. rows: up
    to that step, oldest first (`loss`, `grad_norm`, `lr`, `writes`, ...). checkpoint: the last good one, if
    any."""
    bad, grew = rows[-1], _what_grew(rows, config)
    if grew:
        cause, remedy = grew
    elif len(rows) == 1:
        cause = "it was so from the first step, so the initial weights or the batch are at fault"
        remedy = "try train.compute_dtype=float32, and check the data"
    else:
        cause = f"nothing grew before it (learning rate {float(bad['lr']):.3g})"
        remedy = (
            f"lower optim.lr (now {config.optim.lr:g}), or try train.compute_dtype=float32 "
            f"(now {config.train.compute_dtype})"
        )
    kept = f"Last good checkpoint: {checkpoint}." if checkpoint else "No checkpoint had been written yet."
    again = " The same command then goes on from the checkpoint." if checkpoint else ""
    return (
        f"training diverged at step {step}: loss {float(bad['loss']):g}, gradient norm "
        f"{float(bad['grad_norm']):g}. {kept} Likely cause: {cause}. Remedy: {remedy}.{again}"
    )
