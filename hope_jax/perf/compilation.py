"""Compile time of the real train step: of the pilot, and as depth and length grow.

`compile/pilot`: the step of `configs/pilot.py` traced, lowered and compiled: `cold`, and `cached`, where
XLA's part is read from JAX's persistent cache. `compile/depth`: 2, 12 and 24 layers; `compile/length`: rows
of 256, 1024 and 2048 tokens, all in online chunks of 32: loops are loops, so neither may add to it. A
sample is one compilation, from scratch.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.presets import pilot_config
from hope_jax.perf.runs import changed, compile_step
from hope_jax.perf.timing import Case, Comparison, Goal

COLD_SECONDS = 40.0
FLAT = 1.1
"""How far a compile time may lie above or below that of the shallowest, shortest step."""


def _pilot(**values: Any) -> ExperimentConfig:
    """With values changed. Its mixture names sources that are not at hand."""
    return changed(pilot_config(), data__mixture={}, **values)


def _compile(config: ExperimentConfig, folder: str | None = None) -> tuple[float, float]:
    """Seconds of tracing and lowering, and of XLA, anew, with the persistent cache in `folder` or without."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.clear_caches()
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
    try:
        compiled = compile_step(config)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    return compiled.lower_seconds, compiled.compile_seconds


def cached_and_cold(config: ExperimentConfig) -> tuple[Case, ...]:
    """`cold` and `cached` of one step; its first compilation fills the cache."""
    folder = tempfile.TemporaryDirectory()
    _compile(config, folder.name)
    goals = (Goal("seconds", COLD_SECONDS),)
    return (
        Case("cold", lambda: _compile(config), goals=goals, single=True),
        # the folder lives as long as the case that reads it
        Case("cached", lambda: _compile(config, folder.name), single=True),
    )


def _growth_cases(configs: dict[str, ExperimentConfig]) -> tuple[Case, ...]:
    goals = (Goal("time_apart", FLAT),)
    return tuple(
        Case(name, partial(_compile, config), goals=goals if index else (), single=True)
        for index, (name, config) in enumerate(configs.items())
    )


def comparisons() -> Iterator[Comparison]:
    """Cold and cached, depth, length."""
    yield Comparison("compile/pilot", partial(cached_and_cold, _pilot()))
    depths = {f"{n} layers": _pilot(model__num_layers=n) for n in (2, 12, 24)}
    yield Comparison("compile/depth", partial(_growth_cases, depths))
    lengths = {f"{n} tokens": _pilot(data__seq_len=n, model__num_layers=2) for n in (256, 1024, 2048)}
    yield Comparison("compile/length", partial(_growth_cases, lengths))
