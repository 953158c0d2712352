"""The train step of a configuration as training runs it, compiled and ready to be called again and again."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from hope_jax.cluster.sharding import batch_sharding, make_mesh, replicated, shard_batch
from hope_jax.config import assemble
from hope_jax.config.check import validate
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.config.presets import pilot_config
from hope_jax.config.values import resolve
from hope_jax.core.program import TrainState
from hope_jax.core.types import Batch, PyTree
from hope_jax.perf.timing import Case, Goal
from hope_jax.training.step import Step, jit_train


class CompiledStep(NamedTuple):
    """executable: (state, batch) -> (state, metrics), the state donated. lower_seconds: of tracing and
    lowering. compile_seconds: of XLA."""

    step: Step
    mesh: Mesh
    executable: Any
    lower_seconds: float
    compile_seconds: float


def random_batch(config: ExperimentConfig, seed: int = 0) -> Batch:
    """Rows [B, T] of random tokens, each followed by the next; one document a row."""
    shape = (config.data.batch_size, config.data.seq_len + 1)
    tokens = np.random.default_rng(seed).integers(0, config.model.vocab_size, shape, dtype=np.int32)
    one = np.ones((shape[0], config.data.seq_len), np.int32)
    return Batch(*(t for t in (tokens[:, :-1].copy(), tokens[:, 1:].copy(), one)))  # type: ignore[arg-type]


def compile_step(config: ExperimentConfig) -> CompiledStep:
    """Compiles the train step of a configuration for one device; nothing of the state is allocated.

    Raises: ConfigError.
    """
    validate(config)
    mesh = make_mesh(jax.devices()[:1])
    step = Step(config, mesh)

    def placed(tree: PyTree, sharding: Any) -> Any:
        return jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=sharding), tree)

    state = placed(jax.eval_shape(step.init), replicated(mesh))
    batch = placed(random_batch(config), batch_sharding(mesh))
    started = time.perf_counter()
    lowered = jit_train(step, mesh).lower(state, batch)
    lowered_at = time.perf_counter()
    executable = lowered.compile()
    return CompiledStep(step, mesh, executable, lowered_at - started, time.perf_counter() - lowered_at)


class StepRun:
    """One step after the other from a fresh state: calling it starts the next, on one batch if given none."""

    def __init__(self, compiled: CompiledStep) -> None:
        step, mesh = compiled.step, compiled.mesh
        self._executable = compiled.executable
        self._batch = shard_batch(mesh, random_batch(step.config))
        self._state: TrainState = jax.jit(step.init, out_shardings=replicated(mesh))()

    def __call__(self, batch: Batch | None = None) -> tuple[TrainState, PyTree]:
        """The state after one more step, and its metrics. The state before it is gone: it was donated."""
        self._state, metrics = self._executable(self._state, self._batch if batch is None else batch)
        return self._state, metrics


def step_case(name: str, config: ExperimentConfig, goals: tuple[Goal, ...] = ()) -> Case:
    """The train step of a configuration as a case."""
    compiled = compile_step(config)
    tokens = config.data.batch_size * config.data.seq_len
    analysis = compiled.executable.memory_analysis()
    return Case(
        name,
        StepRun(compiled),
        flops=tokens * assemble.flops_per_token(config),
        tokens=tokens,
        temporary_bytes=None if analysis is None else int(analysis.temp_size_in_bytes),
        compile_seconds=compiled.lower_seconds + compiled.compile_seconds,
        goals=goals,
    )


def changed(config: Any, **values: Any) -> ExperimentConfig:
    """The resolved configuration of a ConfigDict with values set, `train__steps=3` for `train.steps`."""
    for key, value in values.items():
        section, name = key.split("__")
        config[section][name] = value
    return resolve(config.to_dict())


def timed_step(variant: str, **values: Any) -> ExperimentConfig:
    """The pilot with another block, of 2 layers, in rows of 256 tokens, float32, with AdamW; values as of
    `changed`. Teaching starts at full strength, so that writes are not blocked, and the outer rate is small,
    so that the same batch keeps teaching."""
    pilot = pilot_config()
    pilot.teach.schedule.update({"warmup_steps": 0, "decay_start": 0, "decay_duration": 0})
    pilot.optim.update({"name": "adamw", "lr": 1e-6})
    own = {
        "model__num_layers": 2,
        "data__seq_len": 256,
        "data__mixture": {},
        "train__compute_dtype": "float32",
    }
    return changed(pilot, model__block_variant=variant, **{**own, **values})
