"""Whether the memories of a run do harm, or nothing: alarms, judged from the numbers of its rows.

A memory that blows up answers louder than all the rest of a model, and the cross-entropy rises far above
ln V, that of a guess among all V tokens. So the held-out loss with writes is compared with the loss without
them and with ln V; the training loss, which is always with writes, with ln V alone, once it has been below.
Memories that are idle (`hope_jax.training.idle`) do no harm: their alarm never ends a run.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.memory.levels import MemoryOptions
from hope_jax.training import idle
from hope_jax.training.diagnosis import rate_key

logger = logging.getLogger("hope_jax.training")

MARGIN = 0.05
"""Nats per token by which a loss may exceed what it is held against."""
ROWS = 3
"""Consecutive rows with a training loss above ln V that make an alarm."""

Writes = Mapping[str, Mapping[str, Sequence[float]]]
"""Level -> statistic -> one number a layer."""


class LevelSize(NamedTuple):
    """What a level has written in a step: the largest over its layers.

    write, delta: of one write, and of all, over the slow weights. hits: active bounds a write.
    """

    name: str
    write: float
    delta: float
    hits: float


class Watch(NamedTuple):
    """The training loss so far. below: it has been below ln V. above: rows in a row since that are not."""

    below: bool = False
    above: int = 0


def sizes(writes: Writes) -> list[LevelSize]:
    """Of the levels that have written."""
    found = []
    for name, stats in writes.items():
        layers = range(len(stats.get("write_norm", ())))
        each = [{key: float(values[layer]) for key, values in stats.items()} for layer in layers]
        each = [layer for layer in each if layer.get("updates_applied", 0) > 0]
        if each:
            hits = max(_hits(layer) / layer["updates_applied"] for layer in each)
            write, delta = (
                max((layer[key] for layer in each), key=_order) for key in ("write_norm", "delta_norm")
            )
            found.append(LevelSize(name, write, delta, hits))
    return found


def _hits(layer: Mapping[str, float]) -> float:
    return layer["write_clip_hits"] + layer["delta_clip_hits"]


def suspect(writes: Writes) -> LevelSize | None:
    """The level whose writes are not finite, or whose bounds are hit most, or whose writes are largest."""
    return max(
        sizes(writes),
        key=lambda level: (_order(level.write) == math.inf, level.hits, level.write),
        default=None,
    )


def _order(size: float) -> float:
    """What is not finite is largest."""
    return size if math.isfinite(size) else math.inf


def remedy(level: LevelSize | None, config: ExperimentConfig) -> str:
    """What that level has written, and the key that mends it."""
    if level is None:
        return f"No memory has written. Remedy: lower optim.lr (now {config.optim.lr:g})."
    key = rate_key(level.name, config)
    cause = (
        f"Suspect: {level.name} (over the slow weights' norm, one write up to {level.write:.3g}, all writes "
        f"{level.delta:.3g}; {level.hits:.2g} active bounds a write)."
    )
    memory = config.memory
    if key == "self_modifying_titans.eta_scale" and level.name not in config.cms.levels:
        return f"{cause} Remedy: lower {key} (now {config.self_modifying_titans.eta_scale:g})."
    off = [name for name in ("write_clip", "delta_clip") if not getattr(memory, name)]
    if off:
        bounds = " and ".join(f"memory.{name}={getattr(MemoryOptions(), name):g}" for name in off)
        return f"{cause} Remedy: set {bounds} (now 0: off), or lower {key}."
    return f"{cause} Remedy: lower {key} or memory.write_clip (now {memory.write_clip:g})."


def eval_alarm(evaluated: Mapping[str, Any], writes: Writes, config: ExperimentConfig) -> str | None:
    """Held-out loss with writes above that without them, or above ln V; None: neither.

    evaluated: `eval_loss`, and `eval_loss_no_writes`, None where no read sees a write. writes: statistics of
    the step before.
    """
    loss, plain = evaluated["eval_loss"], evaluated["eval_loss_no_writes"]
    if loss is None:
        return None
    chance = math.log(config.model.vocab_size)
    worse, lost = plain is not None and not loss <= plain + MARGIN, not loss <= chance + MARGIN
    if not worse and not lost:
        return None
    lower = f"lower optim.lr (now {config.optim.lr:g})"
    if plain is None:
        return f"held-out loss {loss:.4g}, ln V {chance:.4g}: worse than a guess. Remedy: {lower}."
    measured = f"held-out loss {loss:.4g} with writes, {plain:.4g} without, ln V {chance:.4g}"
    if not worse:
        return f"{measured}: worse than a guess, with writes and without. Remedy: {lower}."
    return f"{measured}: the writes do harm. {remedy(suspect(writes), config)}"


def watched(watch: Watch, loss: float, config: ExperimentConfig) -> Watch:
    """After a row of that training loss."""
    chance = math.log(config.model.vocab_size)
    if loss <= chance:
        return Watch(below=True)
    return watch._replace(above=watch.above + 1 if watch.below and not loss <= chance + MARGIN else 0)


def train_alarm(watch: Watch, row: Mapping[str, Any], config: ExperimentConfig) -> str | None:
    """The last rows' training loss above ln V, where it had been below; None: not so."""
    if watch.above < ROWS:
        return None
    chance = math.log(config.model.vocab_size)
    head = f"training loss {float(row['loss']):.4g}, above ln V {chance:.4g} in {watch.above} rows"
    return f"{head}. {remedy(suspect(row.get('writes', {})), config)}"


def is_idle(alarm: str) -> bool:
    """Whether an alarm tells of idleness rather than of harm."""
    return alarm.startswith(idle.KIND)


class Guard:
    """The alarms of a run, as `eval.alarm` wants them. `stop`: the alarm that ends the run, once there is
    one.

    before: rows of the run so far, oldest first.
    """

    def __init__(self, config: ExperimentConfig, before: Iterable[Mapping[str, Any]] = ()) -> None:
        self._config = config
        self._watch = Watch()
        self.stop: str | None = None
        for row in before:
            self._see(row)

    def evaluated(self, step: int, results: Mapping[str, Any], writes: Writes) -> str | None:
        """The alarm of an evaluation after `step`, raised and returned: of harm, else of idleness."""
        if self._config.eval.alarm == "off":
            return None
        harm = self._raise(step, eval_alarm(results, writes, self._config))
        return harm or self._raise(step, idle.idle_alarm(step, results, writes, self._config), stops=False)

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its field `alarm`: of harm, seen in its evaluation or in the training loss, else of
        idleness, else None."""
        self._see(row)
        alarm = row.get("alarm")
        if (alarm is None or is_idle(alarm)) and self._config.eval.alarm != "off":
            alarm = self._raise(row["step"], train_alarm(self._watch, row, self._config)) or alarm
        return {**row, "alarm": alarm}

    def _see(self, row: Mapping[str, Any]) -> None:
        loss = row["loss"]
        self._watch = watched(self._watch, math.inf if loss is None else float(loss), self._config)

    def _raise(self, step: int, alarm: str | None, *, stops: bool = True) -> str | None:
        if alarm:
            logger.warning("ALARM after step %d: %s", step, alarm)
            if stops and self._config.eval.alarm == "stop":
                self.stop = alarm
        return alarm
