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
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import ConfigError
from hope_jax.core.files import METRICS_FILE, as_plain, dump_row, flatten, to_json
from hope_jax.training import alarms

logger = logging.getLogger("hope_jax.training")

Row = Mapping[str, Any]
Write = Callable[[Row], None]


def check_wandb(config: ExperimentConfig) -> None:
    """Raise ConfigError where `log.wandb` asks for a package that is not there."""
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "log.wandb: true, but the package wandb is not installed; run `pip install wandb`, or set "
            "--config.log.wandb=false"
        )


def open_writers(
    stack: contextlib.ExitStack,
    config: ExperimentConfig,
    workdir: Path,
    step: int,
    share_of_peak: Callable[[float], float],
) -> list[Write]:
    """What takes finished rows in step order, closed with `stack`; nothing but on the first process. step:
    after which rows will come. share_of_peak: tokens per second -> share of the matmul peak."""
    if jax.process_index() != 0:
        return []
    writers = [_jsonl(stack, workdir / METRICS_FILE), lambda row: _log(row, config, share_of_peak)]
    if config.log.tensorboard:
        writers.append(_tensorboard(stack, workdir / "tb", step))
    if config.log.wandb:
        writers.append(_wandb(stack, workdir, config))
    return writers


def _jsonl(stack: contextlib.ExitStack, path: Path) -> Write:
    """Each row is on its way to the disk at once."""
    # unbuffered: a row that does not fit must not come up again at closing
    file = stack.enter_context(path.open("ab", buffering=0))

    def write(row: Row) -> None:
        line = dump_row(row).encode()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    return write


def _log(row: Row, config: ExperimentConfig, share_of_peak: Callable[[float], float]) -> None:
    """One line: step, loss, tokens/s, time left, shares of the peak and of periods written; where evaluated,
    the held-out loss with writes and without."""
    steps, rate = config.train.steps, row["tokens_per_sec"]

    def written(share: float | None) -> list[str]:
        threshold = config.memory.surprise_threshold
        known = share is not None
        return [f"{share:.0%} of periods written (surprise_threshold={threshold})"] if known else []

    parts = [f"step {row['step']}/{steps}", f"loss {float(row['loss']):.4f}"]
    if rate is not None:
        left = datetime.timedelta(seconds=round((steps - row["step"]) * row["step_time"]))
        parts += [f"{rate:,.0f} tokens/s", f"{left} left", f"{share_of_peak(rate):.1%} of matmul peak"]
    parts += written(alarms.share_of_all(alarms.written(row.get("writes", {}), means=True)))
    if row.get("eval_loss") is not None:
        plain = row.get("eval_loss_no_writes")
        without = [] if plain is None else [f"without writes {plain:.4f}"]
        entropy = f"(unigram entropy {row['unigram_entropy']:.4f})"
        told = [f"eval loss {row['eval_loss']:.4f}", *without, *written(row.get("periods_written")), entropy]
        parts.append(" ".join(told))
    logger.info("  ".join(parts))


def _scalars(row: Row) -> dict[str, float]:
    """The finite numbers of a row by slash-separated name; write statistics as means over the layers."""
    out = {}
    for key, value in flatten(to_json(row)).items():
        numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
        if key != "step" and numbers:
            out[key.replace(".", "/")] = float(np.mean(numbers))
    return out


def _tensorboard(stack: contextlib.ExitStack, folder: Path, step: int) -> Write:
    """What an earlier start wrote after `step` is hidden. Rows are written where they come: tensorboardX's
    own `SummaryWriter` does it in a thread, which a full disk would end, and then waits for it for ever."""
    folder.mkdir(exist_ok=True)
    writer = EventsWriter(str(folder / "events"), f".{step}")
    writer.write_event(Event(step=step + 1, file_version="brain.Event:2"))
    writer.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
    writer.flush()

    def write(row: Row) -> None:
        for name, value in _scalars(row).items():
            writer.write_event(Event(step=row["step"], wall_time=time.time(), summary=scalar(name, value)))
        writer.flush()

    def close() -> None:
        with contextlib.suppress(OSError):  # nothing is outstanding but what could not be written
            writer.close()

    stack.callback(close)
    return write


def _wandb(stack: contextlib.ExitStack, workdir: Path, config: ExperimentConfig) -> Write:
    """A Weights & Biases run that belongs to the workdir, continued on resume."""
    import wandb  # optional, and slow to import

    run = wandb.init(
        project=config.log.wandb_project,
        name=workdir.name,
        id=hashlib.sha256(str(workdir).encode()).hexdigest()[:16],
        resume="allow",
        dir=str(workdir),
        config=as_plain(config),
    )
    stack.callback(run.finish)
    return lambda row: run.log(_scalars(row), step=row["step"])
