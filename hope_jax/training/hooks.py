"""What happens between steps: small objects that the loop calls after each step."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from hope_jax.core.errors import AlarmError, DivergenceError
from hope_jax.core.files import write_atomic
from hope_jax.core.program import TrainProgram, TrainState
from hope_jax.core.types import Batch
from hope_jax.data.batches import unigram_entropy
from hope_jax.storage.checkpoint import Checkpointer, first_non_finite
from hope_jax.training.health import Guard
from hope_jax.training.idle import share_of_all, written
from hope_jax.training.metrics import Recorder

logger = logging.getLogger("hope_jax.training")

_PROFILE_SKIP = 2
_PROFILE_STEPS = 3


class StepEvent(NamedTuple):
    """A step has been dispatched.

    step: number of steps done, this one included. state: after it. last: it is the run's last.
    stopping: a signal asked to stop after it.
    """

    step: int
    state: TrainState
    last: bool
    stopping: bool


class Hook(Protocol):
    """Called after each step, in the order in which the loop lists the hooks."""

    def __call__(self, event: StepEvent) -> None:
        """Do what is due at `event.step`."""


EVALUATED = ("eval_loss", "eval_loss_no_writes", "perplexity", "unigram_entropy", "periods_written")
"""Keys of an evaluation, in the rows and in the summary of a run."""


def evaluate(program: TrainProgram, state: TrainState, batches: Sequence[Batch]) -> dict[str, Any]:
    """Mean held-out loss over all supervised tokens of `batches`, in nats; all None without tokens.

    Returns: `EVALUATED`, and `eval_writes`. `eval_loss_no_writes`: with the slow weights alone; None where no
    read sees a write (no memories, or none that is kept). `periods_written`: share of the ended periods, of
    all levels together, that were written; None where none ended. `unigram_entropy`: of the same tokens.
    `eval_writes`: as `idle.written` returns it.
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


class EvalHook:
    """Held-out loss every `every` steps (0: never) and at the end; not when stopping early."""

    def __init__(
        self, every: int, program: TrainProgram, batches: Sequence[Batch], recorder: Recorder, guard: Guard
    ) -> None:
        self._every = every
        self._program = program
        self._batches = batches
        self._recorder = recorder
        self._guard = guard

    def __call__(self, event: StepEvent) -> None:
        """Evaluate if due, and leave the numbers for the row."""
        if not self._batches or not (event.last or (self._every and event.step % self._every == 0)):
            return
        if event.stopping and not event.last:
            return
        with self._recorder.paused():
            results = evaluate(self._program, event.state, self._batches)
        alarm = self._guard.evaluated(event.step, results, self._recorder.last_writes())
        self._recorder.annotate(event.step, {**results, "alarm": alarm})


class LogHook:
    """A row every `every` steps, at the run's first and last step, and wherever something was evaluated."""

    def __init__(self, every: int, first_step: int, recorder: Recorder) -> None:
        self._every = every
        self._first_step = first_step
        self._recorder = recorder

    def __call__(self, event: StepEvent) -> None:
        """Have a row written if due."""
        due = event.step % self._every == 0 or event.last or event.step == self._first_step
        if due or self._recorder.annotated(event.step):
            self._recorder.log(event.step)


class CheckpointHook:
    """A checkpoint every `every` steps, at the end and when stopping; never one that is not finite.

    Raises: DivergenceError instead of saving a state that holds a NaN or an infinity.
    """

    def __init__(
        self, every: int, checkpointer: Checkpointer, recorder: Recorder, data_state: Callable[[], Any]
    ) -> None:
        self._every = every
        self._checkpointer = checkpointer
        self._recorder = recorder
        self._data_state = data_state

    def __call__(self, event: StepEvent) -> None:
        """Save if due."""
        if not (event.last or event.stopping or (self._every and event.step % self._every == 0)):
            return
        with self._recorder.paused():
            bad = first_non_finite(event.state)
            if bad:
                good = self._checkpointer.latest_path() or "none"
                raise DivergenceError(
                    f"{bad} is not finite after step {event.step}, though the losses were; not saved. "
                    f"Last good checkpoint: {good}. Lower optim.lr; if it is in fast, the memories' rates."
                )
            progress = self._recorder.progress()._asdict()
            self._checkpointer.save(event.step, event.state, self._data_state(), progress)


class AlarmHook:
    """Ends the run where an alarm says so, after the checkpoint that `save` writes, and says why in `note`.

    Raises: AlarmError.
    """

    def __init__(self, guard: Guard, save: CheckpointHook, checkpointer: Checkpointer, note: Path) -> None:
        self._guard = guard
        self._save = save
        self._checkpointer = checkpointer
        self._note = note

    def __call__(self, event: StepEvent) -> None:
        """Save if due, or if the run ends here."""
        alarm = self._guard.stop
        self._save(event._replace(stopping=event.stopping or alarm is not None))
        if alarm:
            error = AlarmError(
                f"stopped after step {event.step}, as eval.alarm=stop says: {alarm} The same command, with "
                f"the key changed, continues from {self._checkpointer.latest_path()}."
            )
            if jax.process_index() == 0:
                write_atomic(self._note, f"{error}\n")
            raise error


class ProfileHook:
    """A `jax.profiler` trace of a few steps, from the third one of this start, into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = 0
        self._tracing = False

    def __call__(self, event: StepEvent) -> None:
        """Start or stop the trace if due."""
        self._seen += 1
        ending = event.last or event.stopping
        if self._seen == _PROFILE_SKIP and not ending:
            jax.block_until_ready(event.state)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._seen <= _PROFILE_SKIP and ending:
            logger.warning("train.profile: no trace, as this start took only %d steps", self._seen)
        elif self._tracing and (ending or self._seen == _PROFILE_SKIP + _PROFILE_STEPS):
            jax.block_until_ready(event.state)
            jax.profiler.stop_trace()
            self._tracing = False
            logger.info("profile of %d steps in %s", self._seen - _PROFILE_SKIP, self._folder)
