"""Metrics of a run: collected on the device, fetched by a thread, written at log steps.

The loop never waits for a number. Each interval of steps is handed to one fetching thread, which notes the
time at which the device finished it; the rows are written one interval later, so the device always has
work queued. Evaluations and checkpoints drain what is outstanding and stop the clock while they run.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

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


class _Fetched(NamedTuple):
    """Of an interval's steps. finite: [n], whether loss and gradient norm are."""

    finite: np.ndarray
    tokens: float
    last: dict[str, Any]
    done_at: float


class _Interval(NamedTuple):
    """row: one is due for its last step."""

    steps: list[int]
    metrics: list[Metrics]
    row: bool
    fetched: Future[_Fetched]


def _fetch(metrics: list[Metrics]) -> _Fetched:
    """Wait for the device and copy what the rows need."""
    jax.block_until_ready(metrics[-1])
    done_at = time.perf_counter()
    per_step = jax.device_get([(m["loss"], m["grad_norm"], m["tokens"]) for m in metrics])
    loss, grad_norm, tokens = (np.asarray(column) for column in zip(*per_step, strict=True))
    finite = np.isfinite(loss) & np.isfinite(grad_norm)
    last = jax.device_get(dict(metrics[-1]))
    return _Fetched(finite, float(tokens.sum(dtype=np.float64)), last, done_at)


class Progress(NamedTuple):
    """Totals of a run, carried through its checkpoints (seconds of wall clock).

    tokens: supervised tokens trained on. steady_tokens, steady_seconds: those of the steps outside
    compilation, evaluation and saving. train_seconds: everything. compile_seconds: first step, last start.
    """

    tokens: float = 0.0
    steady_tokens: float = 0.0
    steady_seconds: float = 0.0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0


class Recorder:
    """Turns the metrics of steps into rows.

    progress: totals of the run so far. write_row: called with each finished row, in step order. explain:
    (first step whose loss or gradient norm is not finite, rows up to it, oldest first) -> message of the
    `DivergenceError` that is raised.
    """

    def __init__(
        self,
        progress: Progress,
        write_row: Callable[[Row], None],
        explain: Callable[[int, list[Row]], str],
    ) -> None:
        self._write_row = write_row
        self._explain = explain
        self._started_at = time.perf_counter()
        self._progress = progress
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._steps: list[int] = []
        self._metrics: list[Metrics] = []
        self._queue: deque[_Interval] = deque()
        self._latest: tuple[int, dict[str, Any]] | None = None
        self._notes: dict[int, Row] = {}
        self._history: deque[Row] = deque(maxlen=_HISTORY)
        self._last_done = self._started_at
        self._begin_row()

    def _begin_row(self) -> None:
        self._row_tokens = self._row_seconds = 0.0
        self._row_steps = 0

    def add(self, step: int, metrics: Metrics) -> None:
        """Take the device metrics of `step`; does not wait."""
        self._steps.append(step)
        self._metrics.append(metrics)
        if len(self._steps) >= _MAX_PENDING:
            self._close(row=False)
            self._collect(lag=1)

    def annotate(self, step: int, values: Row) -> None:
        """Add fields (an evaluation) to the row of `step`."""
        self._notes.setdefault(step, {}).update(values)

    def last_writes(self) -> Mapping[str, Any]:
        """Write statistics, by level, of the last step that was fetched."""
        return self._latest[1].get("writes", {}) if self._latest else {}

    def annotated(self, step: int) -> bool:
        """Whether `step` has fields that only its row will keep."""
        return step in self._notes

    def log(self, step: int) -> None:
        """Have a row written for `step`, the last one added: one interval later, or at the next drain."""
        if not self._steps and self._latest is not None and self._latest[0] == step:
            self._emit(*self._latest)
        else:
            self._close(row=True)
            self._collect(lag=1)

    def drain(self) -> None:
        """Wait for everything that was added and write the rows that are due.

        Raises: DivergenceError at the first step whose loss or gradient norm is not finite.
        """
        self._close(row=False)
        self._collect(lag=0)

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
        """Give up the fetching thread."""
        self._fetcher.shutdown(wait=False, cancel_futures=True)

    def _close(self, row: bool) -> None:
        if self._steps:
            future = self._fetcher.submit(_fetch, self._metrics)
            self._queue.append(_Interval(self._steps, self._metrics, row, future))
            self._steps, self._metrics = [], []

    def _collect(self, lag: int) -> None:
        while len(self._queue) > lag:
            interval = self._queue.popleft()
            fetched = interval.fetched.result()
            if not fetched.finite.all():
                self._diverged(interval, int(np.argmin(fetched.finite)))
            self._book(len(interval.steps), fetched)
            self._latest = (interval.steps[-1], fetched.last)
            if interval.row:
                self._emit(*self._latest)

    def _book(self, steps: int, fetched: _Fetched) -> None:
        seconds = max(fetched.done_at - self._last_done, 0.0)
        self._last_done = fetched.done_at
        self._row_tokens += fetched.tokens
        self._row_seconds += seconds
        self._row_steps += steps
        p = self._progress
        self._progress = p._replace(
            tokens=p.tokens + fetched.tokens,
            steady_tokens=p.steady_tokens + fetched.tokens,
            steady_seconds=p.steady_seconds + seconds,
        )

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

    def _diverged(self, interval: _Interval, first: int) -> NoReturn:
        steps = [
            {**jax.device_get(dict(metrics)), "step": step}
            for step, metrics in zip(interval.steps[: first + 1], interval.metrics, strict=False)
        ]
        raise DivergenceError(self._explain(interval.steps[first], [*self._history, *steps]))
