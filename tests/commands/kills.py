"""Runs of the launch command that are killed at chosen moments and started again until they end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hope_jax.core.files import METRICS_FILE, read_rows
from hope_jax.storage import stored

ROOT = Path(__file__).parents[2]
_PATIENCE = 300.0

SMALL = (
    "model.dim=16", "model.heads=2", "model.num_layers=1", "model.mlp_multiplier=1",
    "cms.hidden_multiplier=1", "titan.hidden_multiplier=1", "memory.surprise_threshold=None",
    "cms.levels={'fast': {'update_period': 8, 'lr': 0.1}, 'slow': {'update_period': 16, 'lr': 0.1}}",
    "self_modifying_titans.chunk_size_memory=16", "train.online_chunk_size=16", "train.truncate_tokens=0",
    "data.seq_len=32", "data.batch_size=2", "optim.name=adamw", "optim.warmup_steps=0", "train.steps=12",
    "log.every=1", "log.tensorboard=False", "checkpoint.every=2", "checkpoint.keep_last=2", "eval.every=6",
    "eval.batches=1", "eval.generate_tokens=0",
)  # fmt: skip


LAUNCH = """
import sys, time
from pathlib import Path
from hope_jax import cli, launch
from hope_jax.data.batches import TrainIterator

marker, of_pipeline = Path(sys.argv.pop(1)), TrainIterator.__next__


def marked(self):
    batch = of_pipeline(self)
    if self.get_state()["next_batch"] > 6:
        marker.touch()
        time.sleep(0.2)
    return batch


TrainIterator.__next__ = marked
cli.run_command(launch.main)
"""
"""`launch`, which says in a file that it stands in the data pipeline, checkpoints behind it, and lingers."""


class Outcome(NamedTuple):
    """rows: of `metrics.jsonl` without what a clock decides. digest: of the last checkpoint."""

    rows: list[dict[str, Any]]
    digest: str


def marker_of(workdir: Path) -> Path:
    """The file that is there once the run has stood in its data pipeline behind a checkpoint."""
    return workdir.with_suffix(".loading")


def start(workdir: Path, cache: Path, overrides: Sequence[str]) -> subprocess.Popen[str]:
    """The launch command on a small run; stderr goes to `<workdir>.log`."""
    command = [
        sys.executable, "-c", LAUNCH, str(marker_of(workdir)), "--config=configs/pilot_smoke.py",
        f"--workdir={workdir}", f"--compilation_cache={cache}",
        *(f"--config.{override}" for override in (*SMALL, *overrides)),
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)


def finish(workdir: Path, cache: Path, overrides: Sequence[str]) -> Outcome:
    """Runs, or goes on, to the end."""
    process = start(workdir, cache, overrides)
    try:
        code = process.wait(_PATIENCE)
    finally:
        process.kill()
    assert code == 0, workdir.with_suffix(".log").read_text()[-3000:]
    timed = ("tokens_per_sec", "step_time")
    rows = [{k: v for k, v in row.items() if k not in timed} for row in read_rows(workdir / METRICS_FILE)]
    return Outcome(rows, stored.verify(workdir).digest)


def kill(
    workdir: Path, cache: Path, overrides: Sequence[str], moment: Callable[[Path], bool], delay: float
) -> bool:
    """Starts the run and kills it `delay` seconds after `moment` has come; False if it ended before."""
    process = start(workdir, cache, overrides)
    deadline = time.monotonic() + _PATIENCE
    try:
        while not moment(workdir):
            if process.poll() is not None:
                assert process.returncode == 0, workdir.with_suffix(".log").read_text()[-3000:]
                return False
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    return process.returncode == -signal.SIGKILL


def last_row(workdir: Path) -> int:
    """Step of the last row, 0 without one."""
    rows = read_rows(workdir / METRICS_FILE)
    return int(rows[-1]["step"]) if rows else 0


def in_a_step(random_: random.Random) -> Callable[[Path], bool]:
    """After some step more than the run has done."""
    wanted: list[int] = []

    def moment(workdir: Path) -> bool:
        if not wanted:
            wanted.append(last_row(workdir) + random_.randint(1, 3))
        return last_row(workdir) >= min(wanted[0], 11)

    return moment


def writing_a_checkpoint(random_: random.Random) -> Callable[[Path], bool]:
    """While Orbax writes one, or while it is being sealed."""
    folder_exists, unsealed = random_.random() < 0.5, ".orbax-checkpoint-tmp"
    there: set[str] | None = None

    def moment(workdir: Path) -> bool:
        nonlocal there
        folder = workdir / "checkpoints"
        names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        if there is None:
            there = names
        if folder_exists:
            return any(name.isdigit() and f"{name}.sha256" not in names for name in names - there)
        return any(unsealed in name for name in names - there)

    return moment


def loading_data(random_: random.Random) -> Callable[[Path], bool]:
    """While the loop waits for a batch, with checkpoints behind it."""
    return lambda workdir: marker_of(workdir).exists()


def starting(random_: random.Random) -> Callable[[Path], bool]:
    """At any time after the start: imports, verification, restoring, setting aside, compiling."""
    started = time.monotonic()
    wait = random_.uniform(1.0, 8.0)
    return lambda workdir: time.monotonic() - started > wait


MOMENTS = {"step": in_a_step, "checkpoint": writing_a_checkpoint, "data": loading_data}
