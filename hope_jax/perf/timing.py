"""Timings that can be compared: everything in one run, in turns, beside the machine's matmul peak.

A machine's speed drifts, so each round times every case of a comparison once and, between them, a large
float32 product; what is reported are medians over rounds, their ratios, and shares of that peak.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PEAK_SIZE = 2048
"""Side of the square float32 product that stands for the machine's peak."""

SHORTEST_SAMPLE = 0.02
"""Seconds; a faster call is repeated within a sample."""


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
    single: bool = False
    waited: Callable[[], float] | None = None


class Comparison(NamedTuple):
    """Cases timed against each other. name: "operation/what". build: compiles them; ratios are taken over the
    first."""

    name: str
    build: Callable[[], tuple[Case, ...]]


Timing = dict[str, Any]
"""A case's figures, None for those that it does not have.

comparison, case: names. seconds: median of a call. spread: interquartile range over the median. ratio: the
first case's median over this one's (above 1: faster). share: flops / seconds / peak. tokens_per_second,
tokens_per_second_at_peak: the latter is what no implementation exceeds. tokens_ratio: tokens/s over the first
case's. temporary_mib, compile_seconds: as of the case. wait_share: of the time, spent waiting for data.
peak_gflops, rounds: of the measurement."""


def compiled(name: str, function: Callable[..., Any], *arguments: Any, flops: float, tokens: int = 0) -> Case:
    """A case that runs `function(*arguments)`, compiled here; every array is an argument, not a constant."""
    started = time.perf_counter()
    executable = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - started
    analysis = executable.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    return Case(name, partial(executable, *arguments), flops, tokens, temporary, seconds)


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
    side = jnp.ones((PEAK_SIZE, PEAK_SIZE), jnp.float32)
    peak = compiled("matmul peak", jnp.matmul, side, side, flops=2.0 * PEAK_SIZE**3)
    cases = comparison.build()
    calls = {case.name: _calls(case) for case in (*cases, peak)}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    before = {case.name: case.waited() for case in cases if case.waited}
    for _ in range(rounds):
        for case in (peak, *cases):
            samples[case.name].append(_sample(case, calls[case.name]))
    peak_rate = peak.flops / float(np.median(samples[peak.name]))
    found: list[Timing] = []
    for case in cases:
        own = samples[case.name]
        timing: Timing = {"comparison": comparison.name, "case": case.name, **_figures(case, own, peak_rate)}
        first = found[0] if found else timing
        timing["ratio"] = first["seconds"] / timing["seconds"]
        timing["tokens_ratio"] = _over(timing["tokens_per_second"], first["tokens_per_second"])
        waited = case.waited() - before[case.name] if case.waited else None
        timing["wait_share"] = None if waited is None else waited / (calls[case.name] * sum(own))
        found.append(timing)
    return found


def _figures(case: Case, samples: list[float], peak_rate: float) -> Timing:
    """Those of a case alone."""
    seconds = float(np.median(samples))
    low, high = np.percentile(samples, (25, 75))
    return {
        "seconds": seconds,
        "spread": float((high - low) / seconds),
        "share": case.flops / seconds / peak_rate if case.flops else None,
        "tokens_per_second": case.tokens / seconds if case.tokens else None,
        "tokens_per_second_at_peak": _over(case.tokens * peak_rate, case.flops),
        "temporary_mib": None if case.temporary_bytes is None else case.temporary_bytes / 2**20,
        "compile_seconds": case.compile_seconds,
        "peak_gflops": peak_rate / 1e9,
        "rounds": len(samples),
    }


def _over(value: float | None, other: float | None) -> float | None:
    return value / other if value and other else None
