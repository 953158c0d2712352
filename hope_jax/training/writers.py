"""Where a row of metrics goes: `metrics.jsonl`, the log, TensorBoard, Weights & Biases."""

import contextlib
import datetime
import errno
import hashlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError
from hope_jax.core.files import METRICS_FILE, as_plain, dump_row, flatten, to_json
from hope_jax.training.idle import share_of_all, trained

logger = logging.getLogger("hope_jax.training")

Row = Mapping[str, Any]


class Writer(Protocol):
    """Takes finished rows in step order."""

    def write(self, row: Row) -> None:
        """Take one row."""

    def close(self) -> None:
        """Flush and release."""


def scalars(row: Row) -> dict[str, float]:
    """The finite numbers of a row by slash-separated name; write statistics as means over the layers."""
    out = {}
    for key, value in flatten(to_json(row)).items():
        numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
        if key != "step" and numbers:
            out[key.replace(".", "/")] = float(np.mean(numbers))
    return out


class JsonlWriter:
    """Appends rows to `<workdir>/metrics.jsonl`, each flushed at once."""

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / METRICS_FILE
        # unbuffered: a row that does not fit must not come up again at closing
        self._file = self._path.open("ab", buffering=0)

    def write(self, row: Row) -> None:
        """Append the row. Raises: OSError with the file's name."""
        line = dump_row(row).encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Scalars in `<workdir>/tb`; what an earlier start wrote after `step` is hidden.

    Rows are written where `write` is called: tensorboardX's own `SummaryWriter` does it in a thread, which a
    full disk would end, and then waits for it for ever.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        folder = workdir / "tb"
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{step}")
        for start in (
            {"file_version": "brain.Event:2"},
            {"session_log": SessionLog(status=SessionLog.START)},
        ):
            self._writer.write_event(Event(step=step + 1, **start))
        self._writer.flush()

    def write(self, row: Row) -> None:
        """Add its scalars."""
        for name, value in scalars(row).items():
            event = Event(step=row["step"], wall_time=time.time(), summary=scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file, in which nothing is outstanding but what could not be written."""
        with contextlib.suppress(OSError):
            self._writer.close()


class WandbWriter:
    """A Weights & Biases run that belongs to the workdir, continued on resume."""

    def __init__(self, workdir: Path, config: ExperimentConfig) -> None:
        check_wandb(config)
        import wandb  # optional, and slow to import

        identity = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=config.log.wandb_project,
            name=workdir.name,
            id=identity,
            resume="allow",
            dir=str(workdir),
            config=as_plain(config),
        )

    def write(self, row: Row) -> None:
        """Log its scalars."""
        self._run.log(scalars(row), step=row["step"])

    def close(self) -> None:
        """End the W&B session."""
        self._run.finish()


class ProgressWriter:
    """One line a row in the log: step, loss, tokens/s, time left, share of the measured matmul peak, share of
    periods written; where evaluated, the held-out loss with writes and without.

    Args:
        steps: number of the run's last step.
        threshold: of surprise, below which nothing is written; None: all is.
        share_of_peak: tokens per second -> share of the peak.
    """

    def __init__(self, steps: int, threshold: float | None, share_of_peak: Callable[[float], float]) -> None:
        self._steps = steps
        self._threshold = threshold
        self._share_of_peak = share_of_peak

    def write(self, row: Row) -> None:
        """Log its line."""
        parts = [f"step {row['step']}/{self._steps}", f"loss {float(row['loss']):.4f}"]
        if row["tokens_per_sec"] is not None:
            left = datetime.timedelta(seconds=round((self._steps - row["step"]) * row["step_time"]))
            parts += [
                f"{row['tokens_per_sec']:,.0f} tokens/s",
                f"{left} left",
                f"{self._share_of_peak(row['tokens_per_sec']):.1%} of matmul peak",
            ]
        share = share_of_all(trained(row.get("writes", {})))
        if share is not None:
            parts.append(self._written(share))
        if row.get("eval_loss") is not None:
            parts.append(self._evaluated(row))
        logger.info("  ".join(parts))

    def _written(self, share: float) -> str:
        return f"{share:.0%} of periods written (surprise_threshold={self._threshold})"

    def _evaluated(self, row: Row) -> str:
        plain, share = row.get("eval_loss_no_writes"), row.get("periods_written")
        without = "" if plain is None else f" without writes {plain:.4f}"
        written = "" if share is None else f" {self._written(share)}"
        entropy = f" (unigram entropy {row['unigram_entropy']:.4f})"
        return f"eval loss {row['eval_loss']:.4f}{without}{written}{entropy}"

    def close(self) -> None:
        """Nothing is held."""


def check_wandb(config: ExperimentConfig) -> None:
    """Raise ConfigError where `log.wandb` asks for a package that is not there."""
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "log.wandb: true, but the package wandb is not installed; run `pip install wandb`, or set "
            "--config.log.wandb=false"
        )


def make_writers(
    config: ExperimentConfig, workdir: Path, step: int, share_of_peak: Callable[[float], float]
) -> list[Writer]:
    """The writers that the configuration asks for; none but on the first process."""
    if jax.process_index() != 0:
        return []
    progress = ProgressWriter(config.train.steps, config.memory.surprise_threshold, share_of_peak)
    writers: list[Writer] = [JsonlWriter(workdir), progress]
    if config.log.tensorboard:
        writers.append(TensorBoardWriter(workdir, step))
    if config.log.wandb:
        writers.append(WandbWriter(workdir, config))
    return writers
