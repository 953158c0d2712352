"""What the recorded numbers know of today's code: entry points, and where arrays lie. Nothing else here does.

Every function yields (name, array) under names of meaning; layers and examples are parts of names, so arrays
have the shape of one layer's parameter.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.config import assemble
from hope_jax.config.experiment import ExperimentConfig
from hope_jax.core.program import TrainState
from hope_jax.core.types import Batch
from hope_jax.learning.chunk import stream_loss
from hope_jax.learning.modes import MODES
from hope_jax.learning.stream import Streamer
from hope_jax.memory.level_write import Held, gathered
from hope_jax.memory.self_mod import SelfModState
from hope_jax.training import step as step_module
from hope_jax.training.step import Step

Named: TypeAlias = Iterator[tuple[str, Any]]
SECTIONS = ("embed", "blocks", "final_norm")


def make_step(config: ExperimentConfig) -> Step:
    """The step of a configuration."""
    return Step(config)


def make_streamer(config: ExperimentConfig) -> Streamer:
    """Streams at inference."""
    return assemble.streamer(config)


def start(step: Step, draw: Callable[[str, tuple[int, ...]], np.ndarray]) -> TrainState:
    """The state before the first step at drawn parameters: those of a seed depend on the layers' loop."""

    def fill(path: Any, leaf: Any) -> jax.Array:
        name = _name(path).removeprefix("blocks/")
        if path[0].key != "blocks":
            return jnp.asarray(draw(name, leaf.shape))
        return jnp.stack([draw(f"{name}/{layer}", leaf.shape[1:]) for layer in range(leaf.shape[0])])

    shapes = jax.eval_shape(step.init)
    params = jax.tree.map_with_path(fill, shapes.params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=step.optimizer.init(params),
        fast=step.model.init_fast_state(params, 1) if step.persistent else (),
        rng=jnp.zeros(shapes.rng.shape, shapes.rng.dtype),
    )


def train(step: Step, state: TrainState, batch: Batch) -> tuple[TrainState, Any, tuple[Any, ...]]:
    """`Step.train`, and what its mode has found: (gradient, sums, stats, fast after the last write)."""
    found = []

    def catching(*arguments: Any, **named: Any) -> Any:
        found.append(MODES[step.mode](*arguments, **named))
        return found[-1]

    with mock.patch.object(step_module, "MODES", {step.mode: catching}):
        state, metrics = step.train(state, batch)
    ((gradient, result),) = found
    return state, metrics, (gradient, result.sums, result.stats, result.fast)


def evaluate(step: Step, state: TrainState, batch: Batch) -> tuple[Any, tuple[Any, ...] | None]:
    """`Step.evaluate`, and what `stream_loss` has found: (sums, stats, fast); None where it is not called."""
    found = []

    def catching(*arguments: Any) -> Any:
        found.append(stream_loss(*arguments))
        return found[-1]

    with mock.patch.object(step_module, "stream_loss", catching):
        sums = step.evaluate(state, batch)
    return sums, (found[0].sums, found[0].stats, found[0].fast) if found else None


def of_params(params: Any) -> Named:
    """Parameters or their gradient: attn/w_q/LAYER, embed, final_norm/scale."""
    for path, leaf in jax.tree.leaves_with_path(params):
        yield from _of_param(path, leaf)


def of_optimizer(opt_state: Any) -> Named:
    """Moments, by KIND/PARAMETER, and count: how often it has stepped."""
    for path, leaf in jax.tree.leaves_with_path(opt_state):
        at = next((i for i, key in enumerate(path) if getattr(key, "key", None) in SECTIONS), None)
        if at is not None:
            for name, array in _of_param(path[at:], leaf):
                yield f"{path[at - 1].name}/{name}", array
        elif path[-1].name in ("count", "steps"):
            yield "count", leaf


def of_fast(fast: Any, shared: bool) -> Named:
    """Fast states, MEMORY/LEVEL/PART/LAYER/EXAMPLE; EXAMPLE is `all` where the batch shares them."""
    for layer, memories in enumerate(fast):
        for memory, state in memories.items():
            for name, leaf in _of_memory(state):
                for example, array in [("all", leaf)] if shared else enumerate(np.asarray(leaf)):
                    yield f"{memory}/{name}/{layer}/{example}", array


def of_stats(stats: Any) -> Named:
    """Statistics of writes, MEMORY/LEVEL/FIELD/LAYER: arrays over the examples, [B]."""
    for memory, levels in stats.items():
        for level, of_level in levels.items():
            for field, leaf in of_level._asdict().items():
                for layer, array in enumerate(leaf):
                    yield f"{memory}/{level}/{field}/{layer}", array


def of_tree(tree: Any) -> Named:
    """Metrics and sums, under their keys and fields."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        yield _name(path), leaf


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _of_param(path: Any, leaf: Any) -> Named:
    if path[0].key != "blocks":
        yield _name(path), leaf
        return
    for layer, array in enumerate(leaf):
        yield f"{_name(path[1:])}/{layer}", array


def _of_memory(state: Any) -> Named:
    """Arrays of one layer."""
    if isinstance(state, SelfModState):
        yield from of_tree(state._asdict())
        return
    for level, of_level in state.items():
        for name, leaf in _of_level(of_level):
            yield f"{level}/{name}", leaf


def _of_level(state: Any) -> Named:
    yield from _under("delta", state.delta)
    yield from _of_moments(state.opt)
    renamed = {"ended/surprise": "ended/surprise/total", "ended/counted": "ended/surprise/tokens"}
    pending = state.pending
    if isinstance(pending, Held):
        pending = jax.vmap(gathered)(pending, state.delta)
    for name, leaf in of_tree(pending):
        yield f"pending/{renamed.get(name, name)}", leaf
    if state.init:
        for name, leaf in _of_level(state.init):
            yield f"init/{name}", leaf


def _of_moments(opt: Any) -> Named:
    """Moments of an inner rule; its count of writes has no effect."""
    if isinstance(opt, dict):  # Titans' S
        yield from _under("velocity", opt)
        return
    for part in opt:
        for field, name in {"ema": "velocity", "nu": "second_moment", "trace": "momentum"}.items():
            if hasattr(part, field):
                yield from _under(name, getattr(part, field))


def _under(prefix: str, tree: Any) -> Named:
    for name, leaf in of_tree(tree):
        yield f"{prefix}/{name}", leaf
