"""What happens after each step: profile, evaluate, log, save or stop, where it is due."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.errors import AlarmError, DivergenceError
from hope_jax.core.files import ALARM_FILE, write_atomic
from hope_jax.core.program import TrainProgram, TrainState
from hope_jax.core.types import Batch
from hope_jax.data.batches import TrainIterator, unigram_entropy
from hope_jax.storage.checkpoint import Checkpointer, first_non_finite
from hope_jax.training.alarms import Guard, share_of_all, written
from hope_jax.training.metrics import Recorder

logger = logging.getLogger("hope_jax.training")

_PROFILE_SKIP, _PROFILE_STEPS = 2, 3

EVALUATED = ("eval_loss", "eval_loss_no_writes", "perplexity", "unigram_entropy", "periods_written")
"""Keys of an evaluation, in the rows and in the summary of a run."""


class Run(NamedTuple):
    """What all steps of this start share. start: number of the last step before it. peak: FLOP/s of the
    machine's matmul."""

    program: TrainProgram
    config: ExperimentConfig
    workdir: Path
    start: int
    peak: float
    iterator: TrainIterator
    eval_batches: Sequence[Batch]
    recorder: Recorder
    checkpointer: Checkpointer
    guard: Guard


def after_step(run: Run, step: int, state: TrainState, stopping: bool) -> None:
    """Evaluation before logging, so that its numbers join the step's row; both before the checkpoint, so that
    the row is on disk when the checkpoint that it belongs to is.

    step: has been dispatched. state: after it. stopping: a signal asked to stop after it.
    Raises: AlarmError, after a checkpoint. DivergenceError: instead of one.
    """
    config, recorder, last = run.config, run.recorder, step == run.config.train.steps
    if config.train.profile and jax.process_index() == 0:
        _profile(run, step, state, last or stopping)
    if run.eval_batches and (last or (not stopping and _is_due(step, config.eval.every))):
        with recorder.paused():
            results = evaluate(run.program, state, run.eval_batches)
        alarm = run.guard.evaluated(step, results, recorder.last_writes())
        recorder.annotate(step, {**results, "alarm": alarm})
    first = config.train.step_offset + 1
    if _is_due(step, config.log.every) or last or step == first or recorder.annotated(step):
        recorder.log(step)
    alarm = run.guard.stop
    if last or stopping or alarm or _is_due(step, config.checkpoint.every):
        _save(run, step, state)
    if alarm:
        error = AlarmError(
            f"stopped after step {step}, as eval.alarm=stop says: {alarm} The same command, with the key "
            f"changed, continues from {run.checkpointer.latest_path()}."
        )
        if jax.process_index() == 0:
            write_atomic(run.workdir / ALARM_FILE, f"{error}\n")
        raise error


def _is_due(step: int, every: int) -> bool:
    """0: never."""
    return every > 0 and step % every == 0


def _save(run: Run, step: int, state: TrainState) -> None:
    """A checkpoint, but of a state that holds a NaN or an infinity."""
    with run.recorder.paused():
        bad = first_non_finite(state)
        if bad:
            good = run.checkpointer.latest_path() or "none"
            raise DivergenceError(
                f"{bad} is not finite after step {step}, though the losses were; not saved. "
                f"Last good checkpoint: {good}. Lower optim.lr; if it is in fast, the memories' rates."
            )
        progress = run.recorder.progress()._asdict()
        run.checkpointer.save(step, state, run.iterator.get_state(), progress)


def _profile(run: Run, step: int, state: TrainState, ending: bool) -> None:
    """A `jax.profiler` trace of a few steps, from the third one of this start."""
    seen, folder = step - run.start, run.workdir / "profile"
    if seen == _PROFILE_SKIP and not ending:
        jax.block_until_ready(state)
        jax.profiler.start_trace(str(folder))
    elif seen <= _PROFILE_SKIP and ending:
        logger.warning("train.profile: no trace, as this start took only %d steps", seen)
    elif seen == _PROFILE_SKIP + _PROFILE_STEPS or (ending and seen < _PROFILE_SKIP + _PROFILE_STEPS):
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        logger.info("profile of %d steps in %s", seen - _PROFILE_SKIP, folder)


def evaluate(program: TrainProgram, state: TrainState, batches: Sequence[Batch]) -> dict[str, Any]:
    """Mean held-out loss over all supervised tokens of `batches`, in nats; all None without tokens.

    Returns: `EVALUATED`, and `eval_writes`. `eval_loss_no_writes`: with the slow weights alone; None where no
    read sees a write (no memories, or none that is kept). `periods_written`: share of the ended periods, of
    all levels together, that were written; None where none ended. `unigram_entropy`: of the same tokens.
    `eval_writes`: as `alarms.written` returns it.
    """
    sums: list[dict[str, Any]] = jax.device_get([dict(program.eval_step(state, batch)) for batch in batches])
    tokens = math.fsum(float(s["tokens"]) for s in sums)
    if tokens == 0:
        return {**dict.fromkeys(EVALUATED), "eval_writes": {}}
    loss, plain = (_per_token(sums, key, tokens) for key in ("loss_sum", "loss_sum_no_writes"))
    assert loss is not None
    levels = written(jax.tree.map(lambda *each: sum(each), *(s["writes"] for s in sums)))
    return {
        "eval_loss": loss,
        "eval_loss_no_writes": plain,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "unigram_entropy": unigram_entropy([np.asarray(batch.targets) for batch in batches]),
        "periods_written": share_of_all(levels),
        "eval_writes": levels,
    }


def _per_token(sums: Sequence[Mapping[str, Any]], key: str, tokens: float) -> float | None:
    """The mean of what all batches have summed under `key`; None if they have not."""
    return math.fsum(float(s[key]) for s in sums) / tokens if key in sums[0] else None
