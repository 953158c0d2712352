"""The train step of a configuration as training runs it, and benchmarks of whole steps and of compiling them.

`step/NAME` compares a train step with the `transformer`'s on the same rows: state donated, memories, teach
signals, writes, outer gradient and outer step as training runs them. Rows, width and levels are the pilot's
(2,048 tokens, width 512, 8 heads, vocabulary 32000), with 4 layers, one row, float32 and AdamW. `STEPS` has
the names: the pilot (`hope_hybrid`) in its modes and chunks, other variants, and the published run's
semantics; through the writes it is 512 tokens. The transformer reads its row at once.

`compile/pilot` traces, lowers and compiles the step of `configs/pilot.py`: `cold`, and `cached`, where XLA's
part is read from JAX's persistent cache. A sample is one compilation, from scratch."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from hope_jax.cluster.sharding import make_mesh, shard_batch
from hope_jax.config import assemble
from hope_jax.config.check import validate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.presets import pilot_config, pilot_reference_config, set_schedule
from hope_jax.config.values import resolve
from hope_jax.core.program import TrainState
from hope_jax.core.types import Batch, PyTree
from hope_jax.perf.timing import Case, Comparison
from hope_jax.planning.compile import lower_step
from hope_jax.training.step import Step, state_shardings

BASE = "transformer"


class Kind(NamedTuple):
    """A step to be timed. chunk: N of online chunks, 0 for other modes."""

    variant: str
    mode: str
    chunk: int = 0
    tokens: int = 2048


STEPS = {
    "two_pass": Kind("hope_hybrid", "two_pass"),
    "online-512": Kind("hope_hybrid", "online", 512),
    "online-128": Kind("hope_hybrid", "online", 128),
    "online-32": Kind("hope_hybrid", "online", 32),
    "hope_selfmod": Kind("hope_selfmod", "online", 512),
    "pilot_reference": Kind("hope_hybrid", "two_pass"),
    "gated_deltanet": Kind("gated_deltanet", "two_pass"),
    "through_writes": Kind("hope_hybrid", "through_writes", 32, tokens=512),
}
"""By the name of the benchmark; `pilot_reference` with the published run's semantics."""


def random_batch(config: ExperimentConfig) -> Batch:
    """Rows [B, T] of random tokens, each followed by the next; one document a row."""
    shape = (config.data.batch_size, config.data.seq_len + 1)
    rows: Any = np.random.default_rng(0).integers(0, config.model.vocab_size, shape, dtype=np.int32)
    return Batch(rows[:, :-1], rows[:, 1:], np.ones_like(rows[:, 1:]))


class StepRun:
    """The train step of a configuration, compiled for the first device, or those given: calling it starts the
    next step, on one batch if given none, from a state that the first call makes.

    executable: (state, batch) -> (state, metrics), the state donated. lower_seconds: of tracing and lowering.
    compile_seconds: of XLA. Raises: ConfigError.
    """

    def __init__(self, config: ExperimentConfig, devices: Sequence[jax.Device] = ()) -> None:
        self.mesh = make_mesh(devices or jax.devices()[:1])
        validate(config, device_count=self.mesh.size)
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


def pilot_step(name: str, tokens: int = 0) -> ExperimentConfig:
    """The step of a name in `STEPS`, or `transformer`: 4 layers, one row of tokens (0: the name's own),
    float32, with AdamW. Teaching starts at full strength, so that writes are not blocked, and the outer rate
    is small, so that the same batch keeps teaching."""
    kind = STEPS.get(name, Kind(BASE, "two_pass"))
    pilot = pilot_reference_config() if name == "pilot_reference" else pilot_config()
    set_schedule(pilot, 0, 0, 0)
    pilot.optim.update({"name": "adamw", "lr": 1e-6})
    pilot.model.update({"block_variant": kind.variant, "num_layers": 4})
    pilot.data.update({"seq_len": tokens or kind.tokens, "batch_size": 1, "mixture": {}})
    chunk = {"algorithm_mode": kind.mode, "online_chunk_size": kind.chunk}
    pilot.train.update({**chunk, "compute_dtype": "float32"})
    return changed(pilot)


def _against_base(name: str) -> tuple[Case, ...]:
    tokens = STEPS[name].tokens
    return tuple(step_case(each, pilot_step(each, tokens)) for each in (BASE, name))


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
    """Every step, and compiling."""
    for name in STEPS:
        yield Comparison(f"step/{name}", partial(_against_base, name))
    pilot = changed(pilot_config(), data__mixture={})  # its sources are not at hand
    yield Comparison("compile/pilot", partial(cached_and_cold, pilot))
