"""Metrics of a run: collected on the device, fetched late, written at log steps.

The loop does not wait for the numbers of the steps that it has just dispatched. A thread notes the time at
which the device finished an interval of them; it is fetched one interval later, so the device always has work
queued. Evaluations and checkpoints drain what is outstanding and stop the clock while they run.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from hope_jax.core.errors import DivergenceError
from hope_jax.core.types import PyTree

Metrics = Mapping[str, PyTree]
Row = dict[str, Any]

_MAX_PENDING = 64
"""Steps after which an interval is fetched though no row is due: bounds how far the host runs ahead, and
how late a non-finite loss is noticed."""
_HISTORY = 64
"""Rows that are remembered for the diagnosis of a divergence."""


class Progress(NamedTuple):
    """Totals of a run, carried through its checkpoints (seconds of wall clock). tokens: supervised tokens
    trained on. steady_tokens, steady_seconds: those of the steps outside compilation, evaluation and saving.
    train_seconds: everything. compile_seconds: first step, last start."""

    tokens: float = 0.0
    steady_tokens: float = 0.0
    steady_seconds: float = 0.0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0


class _Interval(NamedTuple):
    """row: one is due for its last step. done_at: when the device finished it."""

    steps: list[int]
    metrics: list[Metrics]
    row: bool
    done_at: Future[float]


def _finished_at(metrics: Metrics) -> float:
    """Waits for the device."""
    jax.block_until_ready(metrics)
    return time.perf_counter()


class Recorder:
    """Turns the metrics of steps into rows. progress: totals of the run so far. write_row: called with each
    finished row, in step order. explain: (first step whose loss or gradient norm is not finite, rows up to
    it, oldest first) -> message of the `DivergenceError` that is raised."""

    def __init__(
        self,
        progress: Progress,
        write_row: Callable[[Row], None],
        explain: Callable[[int, list[Row]], str],
    ) -> None:
        self._progress, self._write_row, self._explain = progress, write_row, explain
        self._started_at = self._last_done = time.perf_counter()
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._steps: list[int] = []
        self._metrics: list[Metrics] = []
        self._queue: deque[_Interval] = deque()
        self._latest: tuple[int, dict[str, Any]] | None = None
        self._notes: dict[int, Row] = {}
        self._history: deque[Row] = deque(maxlen=_HISTORY)
        self._begin_row()

    def add(self, step: int, metrics: Metrics) -> None:
        """Take the device metrics of `step`; does not wait."""
        self._steps.append(step)
        self._metrics.append(metrics)
        if len(self._steps) >= _MAX_PENDING:
            self._collect(row=False, lag=1)

    def annotate(self, step: int, values: Row) -> None:
        """Add fields (an evaluation) to the row of `step`."""
        self._notes.setdefault(step, {}).update(values)

    def annotated(self, step: int) -> bool:
        """Whether `step` has fields that only its row will keep."""
        return step in self._notes

    def last_writes(self) -> Mapping[str, Any]:
        """Write statistics, by level, of the last step that was fetched."""
        return self._latest[1].get("writes", {}) if self._latest else {}

    def log(self, step: int) -> None:
        """Have a row written for `step`, the last one added: one interval later, or at the next drain."""
        if not self._steps and self._latest is not None and self._latest[0] == step:
            self._emit(*self._latest)
        else:
            self._collect(row=True, lag=1)

    def drain(self) -> None:
        """Wait for everything that was added and write the rows that are due.
        Raises: DivergenceError at the first step whose loss or gradient norm is not finite."""
        self._collect(row=False, lag=0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Drain, and keep the time inside the block out of the throughput."""
        self.drain()
        yield
        self._last_done = time.perf_counter()

    def finish_first_step(self) -> None:
        """Drain, and book the time since the start as compilation rather than as throughput."""
        self.drain()
        p = self._progress
        self._progress = p._replace(
            compile_seconds=self._last_done - self._started_at,
            steady_tokens=p.steady_tokens - self._row_tokens,
            steady_seconds=p.steady_seconds - self._row_seconds,
        )
        self._begin_row()

    def progress(self) -> Progress:
        """Totals up to now; call it drained."""
        total = self._progress.train_seconds + time.perf_counter() - self._started_at
        return self._progress._replace(train_seconds=total)

    def close(self) -> None:
        """Give up the thread."""
        self._watcher.shutdown(wait=False, cancel_futures=True)

    def _begin_row(self) -> None:
        self._row_tokens = self._row_seconds = 0.0
        self._row_steps = 0

    def _collect(self, row: bool, lag: int) -> None:
        """Ends the interval and fetches all but the last `lag`. row: one is due for its last step."""
        if self._steps:
            done_at = self._watcher.submit(_finished_at, self._metrics[-1])
            self._queue.append(_Interval(self._steps, self._metrics, row, done_at))
            self._steps, self._metrics = [], []
        while len(self._queue) > lag:
            interval = self._queue.popleft()
            self._latest = (interval.steps[-1], self._fetch(interval))
            if interval.row:
                self._emit(*self._latest)

    def _fetch(self, interval: _Interval) -> dict[str, Any]:
        """Waits for the device, books tokens and seconds, and returns the metrics of the last step."""
        done_at = interval.done_at.result()
        per_step = jax.device_get([(m["loss"], m["grad_norm"], m["tokens"]) for m in interval.metrics])
        loss, grad_norm, counts = (np.asarray(column) for column in zip(*per_step, strict=True))
        finite = np.isfinite(loss) & np.isfinite(grad_norm)
        if not finite.all():
            first = int(np.argmin(finite))
            steps = [
                {**jax.device_get(dict(metrics)), "step": step}
                for step, metrics in zip(interval.steps[: first + 1], interval.metrics, strict=False)
            ]
            raise DivergenceError(self._explain(interval.steps[first], [*self._history, *steps]))
        tokens, seconds = float(counts.sum(dtype=np.float64)), max(done_at - self._last_done, 0.0)
        self._last_done = done_at
        self._row_tokens += tokens
        self._row_seconds += seconds
        self._row_steps += len(interval.steps)
        p = self._progress
        self._progress = p._replace(
            tokens=p.tokens + tokens,
            steady_tokens=p.steady_tokens + tokens,
            steady_seconds=p.steady_seconds + seconds,
        )
        return jax.device_get(dict(interval.metrics[-1]))

    def _emit(self, step: int, metrics: dict[str, Any]) -> None:
        timed = self._row_seconds > 0
        row: Row = {
            "step": step,
            "loss": metrics["loss"],
            "tokens": int(self._progress.tokens),
            "tokens_per_sec": self._row_tokens / self._row_seconds if timed else None,
            "step_time": self._row_seconds / self._row_steps if timed else None,
        }
        row |= {key: value for key, value in metrics.items() if key not in row}
        row |= self._notes.pop(step, {})
        self._begin_row()
        self._history.append(row)
        self._write_row(row)
