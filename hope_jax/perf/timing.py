"""Timings that can be compared: everything in one run, in turns, beside the machine's matmul peak.

A machine's speed drifts, so no time is given alone: each round times every case of a comparison once and,
between them, a large float32 product; what is reported are medians over rounds, their ratios, and shares of
that peak.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Measure = Literal[
    "ratio",
    "share",
    "share_ratio",
    "tokens_per_second",
    "tokens_ratio",
    "temporary_mib",
    "compile_seconds",
    "seconds",
    "time_apart",
    "wait_share",
]
_AT_MOST: tuple[Measure, ...] = ("temporary_mib", "compile_seconds", "seconds", "time_apart", "wait_share")

PEAK_SIZE = 2048
"""Side of the square float32 product that stands for the machine's peak."""

SHORTEST_SAMPLE = 0.02
"""Seconds; a faster call is repeated within a sample."""


class Goal(NamedTuple):
    """What a case is to reach: `measure` at least (memory and times: at most) `value`."""

    measure: Measure
    value: float


class Case(NamedTuple):
    """One thing to time.

    run: starts the work and returns its arrays. flops: useful floating-point operations of a call (those of
    the model: recomputation is not counted), 0 if it has none to speak of. tokens: of a call.
    temporary_bytes: by the compiler's analysis. compile_seconds: tracing, lowering and compiling.
    single: a call is long and the first is like any other: a sample is one call, without warming up.
    waited: seconds that all calls so far have waited for data; None: a call does not say.
    """

    name: str
    run: Callable[[], Any]
    flops: float = 0.0
    tokens: int = 0
    temporary_bytes: int | None = None
    compile_seconds: float | None = None
    goals: tuple[Goal, ...] = ()
    single: bool = False
    waited: Callable[[], float] | None = None


class Comparison(NamedTuple):
    """Cases timed against each other. name: "operation/what". build: compiles them; the first is what ratios
    are taken over."""

    name: str
    build: Callable[[], tuple[Case, ...]]


class Timing(NamedTuple):
    """A case's figures.

    seconds: median of a call. spread: interquartile range over the median. ratio: the first case's median
    over this one's (above 1: faster). share: flops / seconds / peak. share_ratio: of the first case's
    share. time_apart: ratio or 1 / ratio, whichever is larger. tokens_ratio: tokens/s over the first case's.
    tokens_per_second_at_peak: what no implementation exceeds. wait_share: of the time, spent waiting for
    data. met: "measure value" of each goal -> whether it
    is reached.
    """

    comparison: str
    case: str
    seconds: float
    spread: float
    ratio: float
    time_apart: float
    share: float | None
    share_ratio: float | None
    tokens_per_second: float | None
    tokens_per_second_at_peak: float | None
    tokens_ratio: float | None
    temporary_mib: float | None
    compile_seconds: float | None
    wait_share: float | None
    peak_gflops: float
    rounds: int
    met: dict[str, bool]


def compiled(
    name: str,
    function: Callable[..., Any],
    *arguments: Any,
    flops: float = 0.0,
    tokens: int = 0,
    goals: tuple[Goal, ...] = (),
) -> Case:
    """A case that runs `function(*arguments)`, compiled here; every array is an argument, not a constant."""
    started = time.perf_counter()
    executable = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - started
    analysis = executable.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    return Case(name, partial(executable, *arguments), flops, tokens, temporary, seconds, goals)


def matmul_peak() -> Case:
    """The product whose rate counts as the machine's peak."""
    side = jnp.ones((PEAK_SIZE, PEAK_SIZE), jnp.float32)
    return compiled("matmul peak", jnp.matmul, side, side, flops=2.0 * PEAK_SIZE**3)


def _sample(case: Case, calls: int) -> float:
    """Seconds of a call, averaged over `calls` that follow each other."""
    started = time.perf_counter()
    for _ in range(calls):
        out = case.run()
    jax.block_until_ready(out)
    return (time.perf_counter() - started) / calls


def _calls(case: Case) -> int:
    """How many calls a sample takes; the first call here also warms up."""
    if case.single:
        return 1
    jax.block_until_ready(case.run())
    return max(1, int(SHORTEST_SAMPLE / max(_sample(case, 1), 1e-9)))


def measure(comparison: Comparison, rounds: int) -> list[Timing]:
    """Times the cases in turns. rounds: samples of each case, at least 1."""
    cases, peak = comparison.build(), matmul_peak()
    calls = {case.name: _calls(case) for case in (*cases, peak)}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    before = {case.name: case.waited() for case in cases if case.waited}
    for _ in range(rounds):
        for case in (peak, *cases):
            samples[case.name].append(_sample(case, calls[case.name]))
    peak_rate = peak.flops / float(np.median(samples[peak.name]))
    base = cases[0], float(np.median(samples[cases[0].name]))
    waits = {
        case.name: (case.waited() - before[case.name]) / (sum(samples[case.name]) * calls[case.name])
        for case in cases
        if case.waited
    }
    return [
        _timing(comparison.name, case, samples[case.name], peak_rate, *base, waits.get(case.name))
        for case in cases
    ]


def _timing(
    comparison: str,
    case: Case,
    samples: list[float],
    peak_rate: float,
    base: Case,
    base_seconds: float,
    wait_share: float | None,
) -> Timing:
    seconds = float(np.median(samples))
    low, high = np.percentile(samples, (25, 75))
    share = case.flops / seconds / peak_rate if case.flops else None
    base_share = base.flops / base_seconds / peak_rate
    rate, base_rate = case.tokens / seconds, base.tokens / base_seconds
    most = case.tokens * peak_rate / case.flops if case.flops else 0.0
    timing = Timing(
        comparison=comparison,
        case=case.name,
        seconds=seconds,
        spread=float((high - low) / seconds),
        ratio=base_seconds / seconds,
        time_apart=max(seconds / base_seconds, base_seconds / seconds),
        share=share,
        share_ratio=share / base_share if share and base_share else None,
        tokens_per_second=rate or None,
        tokens_per_second_at_peak=most or None,
        tokens_ratio=rate / base_rate if base_rate else None,
        temporary_mib=None if case.temporary_bytes is None else case.temporary_bytes / 2**20,
        compile_seconds=case.compile_seconds,
        wait_share=wait_share,
        peak_gflops=peak_rate / 1e9,
        rounds=len(samples),
        met={},
    )
    return timing._replace(met={f"{g.measure} {g.value:g}": _reached(g, timing) for g in case.goals})


def _reached(goal: Goal, timing: Timing) -> bool:
    value = getattr(timing, goal.measure)
    if value is None:
        return False
    return bool(value <= goal.value if goal.measure in _AT_MOST else value >= goal.value)
