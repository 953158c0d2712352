"""The train step of a configuration as training runs it, and benchmarks of whole steps and of compiling them.

`step/MODE/VARIANT` compares `transformer` with a variant in one mode: state donated, memories, teach signals,
writes, outer gradient and outer step as training runs them. Width 512, 8 heads, vocabulary 32000, the pilot's
CMS levels, TITAN memory, inner optimizer and online chunk of 32 tokens; 2 layers, one row of 256 tokens,
float32, AdamW. `step/MODE-TOKENS/VARIANT` is the same in longer rows: the pilot's own of 2,048, and of 512
through the writes.

`compile/pilot` traces, lowers and compiles the step of `configs/pilot.py`: `cold`, and `cached`, where XLA's
part is read from JAX's persistent cache. A sample is one compilation, from scratch."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from hope_jax.cluster.sharding import make_mesh, shard_batch
from hope_jax.config import assemble
from hope_jax.config.check import validate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.presets import pilot_config
from hope_jax.config.values import resolve
from hope_jax.core.program import TrainState
from hope_jax.core.types import Batch, PyTree
from hope_jax.models.blocks import BLOCKS
from hope_jax.perf.timing import Case, Comparison
from hope_jax.planning.compile import lower_step
from hope_jax.training.step import Step, state_shardings

BASE = "transformer"
VARIANTS = tuple(variant for variant in BLOCKS if variant != BASE)
MODES = ("online", "two_pass", "through_writes")
LONGER = (("online", 2048), ("through_writes", 512))
TEACH_DRIVEN = ("hope_attention", "hope_hybrid")


def random_batch(config: ExperimentConfig) -> Batch:
    """Rows [B, T] of random tokens, each followed by the next; one document a row."""
    shape = (config.data.batch_size, config.data.seq_len + 1)
    rows: Any = np.random.default_rng(0).integers(0, config.model.vocab_size, shape, dtype=np.int32)
    return Batch(rows[:, :-1], rows[:, 1:], np.ones_like(rows[:, 1:]))


class StepRun:
    """The train step of a configuration, compiled for one device: calling it starts the next step, on one
    batch if given none, from a state that the first call makes.

    executable: (state, batch) -> (state, metrics), the state donated. lower_seconds: of tracing and lowering.
    compile_seconds: of XLA. Raises: ConfigError.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        validate(config)
        self.mesh = make_mesh(jax.devices()[:1])
        self._step, self._batch = Step(config, self.mesh), random_batch(config)
        size = config.data.batch_size, config.data.seq_len
        started = time.perf_counter()
        lowered = lower_step(self._step, self.mesh, *size)
        lowered_at = time.perf_counter()
        self.executable = lowered.compile()
        self.lower_seconds, self.compile_seconds = lowered_at - started, time.perf_counter() - lowered_at
        self._state: TrainState | None = None

    def __call__(self, batch: Batch | None = None) -> tuple[TrainState, PyTree]:
        """The state after one more step, and its metrics. The state before it is gone: it was donated."""
        if self._state is None:
            places = state_shardings(self._step, self.mesh)
            self._state = jax.jit(self._step.init, out_shardings=places)()
            self._batch = shard_batch(self.mesh, self._batch)
        self._state, metrics = self.executable(self._state, self._batch if batch is None else batch)
        return self._state, metrics


def step_case(name: str, config: ExperimentConfig) -> Case:
    """The train step of a configuration as a case."""
    run, tokens = StepRun(config), config.data.batch_size * config.data.seq_len
    analysis = run.executable.memory_analysis()
    return Case(
        name,
        run,
        flops=tokens * assemble.flops_per_token(config),
        tokens=tokens,
        temporary_bytes=None if analysis is None else int(analysis.temp_size_in_bytes),
        compile_seconds=run.lower_seconds + run.compile_seconds,
    )


def changed(config: Any, **values: Any) -> ExperimentConfig:
    """The resolved configuration of a ConfigDict with values set, `train__steps=3` for `train.steps`."""
    for key, value in values.items():
        section, name = key.split("__")
        config[section][name] = value
    return resolve(config.to_dict())


def pilot_step(variant: str, mode: str, tokens: int = 256) -> ExperimentConfig:
    """The pilot with another block, in a mode: 2 layers, one row of tokens, float32, with AdamW. Teaching
    starts at full strength, so that writes are not blocked, and the outer rate is small, so that the same
    batch keeps teaching."""
    pilot = pilot_config()
    pilot.teach.schedule.update({"warmup_steps": 0, "decay_start": 0, "decay_duration": 0})
    pilot.optim.update({"name": "adamw", "lr": 1e-6})
    pilot.model.update({"block_variant": variant, "num_layers": 2})
    pilot.data.update({"seq_len": tokens, "batch_size": 1, "mixture": {}})
    pilot.train.update({"algorithm_mode": mode, "compute_dtype": "float32"})
    return changed(pilot)


def _against_base(variant: str, mode: str, tokens: int = 256) -> tuple[Case, ...]:
    return tuple(step_case(each, pilot_step(each, mode, tokens)) for each in (BASE, variant))


def _compile(config: ExperimentConfig, folder: str | None = None) -> tuple[float, float]:
    """Seconds of tracing and lowering, and of XLA, anew, with the persistent cache in `folder` or without."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.clear_caches()
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
    try:
        step = StepRun(config)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    return step.lower_seconds, step.compile_seconds


def cached_and_cold(config: ExperimentConfig) -> tuple[Case, ...]:
    """`cold` and `cached` of one step; its first compilation fills the cache."""
    folder = tempfile.TemporaryDirectory()
    _compile(config, folder.name)
    return (
        Case("cold", lambda: _compile(config), single=True),
        # the folder lives as long as the case that reads it
        Case("cached", lambda: _compile(config, folder.name), single=True),
    )


def comparisons() -> Iterator[Comparison]:
    """Every mode and variant, longer rows, and compiling."""
    for mode in MODES:
        for variant in VARIANTS:
            yield Comparison(f"step/{mode}/{variant}", partial(_against_base, variant, mode))
    for mode, tokens in LONGER:
        for variant in TEACH_DRIVEN:
            name = f"step/{mode}-{tokens}/{variant}"
            yield Comparison(name, partial(_against_base, variant, mode, tokens))
    pilot = changed(pilot_config(), data__mixture={})  # its sources are not at hand
    yield Comparison("compile/pilot", partial(cached_and_cold, pilot))
