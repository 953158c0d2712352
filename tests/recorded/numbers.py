"""The numbers of a case: of every array its norm, and its product with a direction that its name decides."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np

from hope_jax.core.program import TrainState
from hope_jax.core.types import Batch
from hope_jax.training.step import Step
from parity_tests.quick import UNOPTIMIZED
from tests.recorded import layout
from tests.recorded.cases import STEPS, VOCAB, Case
from tests.recorded.layout import Named

TOLERANCE = 1e-12
"""Of an array's recorded norm, or absolute below norm 1."""

FAST = {
    **UNOPTIMIZED,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""Halves what `parity_tests.quick` takes; here compiling is all that takes time."""

SPLIT = (5, 1, 0, 9)
"""Lengths of the first calls of a stream; the last brings the rest."""

Numbers = dict[str, np.ndarray]
"""Name -> float64 [2]."""


def numbers_of(case: Case) -> Numbers:
    """All numbers of one case, [2] each, in the order of their names.

    Raises: ValueError for a number that is not finite, or two different arrays of one name.
    """
    step, shared = layout.make_step(case.config), case.config.memory.scope == "batch"
    state, batches = layout.start(step, drawn), case.batches()
    found: Numbers = {}
    with _unoptimized():
        parts = [
            *_training(step, state, batches, shared),
            *(_evaluation(step, state, batches[0], shared) if case.evaluates else ()),
            *(_streaming(case, state, batches[0], shared) if case.streams else ()),
        ]
    for name, array in parts:
        pair = fingerprint(name, array)
        if not np.isfinite(pair).all() or not np.array_equal(found.setdefault(name, pair), pair):
            raise ValueError(f"{case.name}: {name}: {pair}, before {found.get(name)}")
    return dict(sorted(found.items()))


def fingerprint(name: str, array: Any) -> np.ndarray:
    """[2]: an array's norm, and its product with the direction of its name."""
    flat = np.asarray(array, np.float64).ravel()
    direction = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(flat.size)
    return np.array([np.linalg.norm(flat), flat @ direction])


def differences(new: Numbers, old: Numbers) -> list[str]:
    """What disagrees, the worst first."""
    wrong = dict.fromkeys(old.keys() - new.keys(), (np.inf, "missing"))
    wrong |= dict.fromkeys(new.keys() - old.keys(), (np.inf, "not recorded"))
    for name in old.keys() & new.keys():
        share = np.abs(new[name] - old[name]).max() / max(1.0, old[name][0])
        if not share <= TOLERANCE:
            wrong[name] = (float(share), f"{share:.1e}: norm, product {new[name]}, recorded {old[name]}")
    return [f"{name}: {what[1]}" for name, what in sorted(wrong.items(), key=lambda item: -item[1][0])]


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of one layer: no zeros, no ones, nothing that hides what it does."""
    draw = np.random.default_rng(zlib.crc32(f"start/{name}".encode())).standard_normal(shape)
    key = name.split("/")[-1 if name.startswith(("embed", "final_norm")) else -2]
    if name == "embed":
        return 0.5 * draw
    if key.startswith("w_") and len(shape) == 2:
        return draw / np.sqrt(shape[-1 if name.startswith("self_mod") else -2])
    if key == "conv":
        return 0.4 + 0.3 * draw
    if key.endswith("scale"):
        return (1 + 0.2 * draw) * (shape[0] ** -0.5 if key == "self_mod_scale" else 1)
    first = {"gates/b_alpha": -2.0, "gates/b_eta": 1.0, "gates/b_theta": 0.5, "self_mod/b_alpha": 2.0}
    return next((value for end, value in first.items() if f"{end}/" in name), 0.0) + 0.2 * draw


@contextmanager
def _unoptimized() -> Iterator[None]:
    """For what is compiled out of reach."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` that compiles as fast as it can."""
    return jax.jit(function, compiler_options=FAST)


def _under(prefix: str, named: Named) -> Named:
    return ((f"{prefix}/{name}", array) for name, array in named)


def _written(prefix: str, sums: Any, stats: Any, fast: Any, shared: bool) -> Named:
    yield from _under(f"{prefix}/sums", layout.of_tree(sums))
    yield from _under(f"{prefix}/stats", layout.of_stats(stats))
    yield from _under(f"{prefix}/fast", layout.of_fast(fast, shared))


def _training(step: Step, state: TrainState, batches: list[Batch], shared: bool) -> Named:
    """Outer steps: what the first learns, what each reports, and the state after the last."""
    train = _jit(partial(layout.train, step))
    for number, batch in enumerate(batches, 1):
        state, metrics, learnt = train(state, batch)
        yield from _under(f"step{number}/metrics", layout.of_tree(jax.device_get(metrics)))
        if number == 1:
            gradient, *written = jax.device_get(learnt)
            yield from _under("gradient", layout.of_params(gradient))
            yield from _written("learn", *written, shared)
    state = jax.device_get(state)
    yield from _under(f"step{STEPS}/params", layout.of_params(state.params))
    yield from _under(f"step{STEPS}/opt", layout.of_optimizer(state.opt_state))
    if step.persistent:
        yield from _under(f"step{STEPS}/fast", layout.of_fast(state.fast, shared))


def _evaluation(step: Step, state: TrainState, batch: Batch, shared: bool) -> Named:
    """The same rows read and written without an outer gradient."""
    sums, written = jax.device_get(_jit(partial(layout.evaluate, step))(state, batch))
    yield from _under("evaluate", layout.of_tree(sums))
    if written is not None:
        yield from _written("read", *written, shared)


def _streaming(case: Case, state: TrainState, batch: Batch, shared: bool) -> Named:
    """The rows fed in calls of odd lengths, before and after the stream's end."""
    streamer, tokens = layout.make_streamer(case.config), batch.tokens.shape[1]
    stream = streamer.begin(state.params, len(batch.tokens), tokens)
    mask = np.random.default_rng(VOCAB).random(batch.tokens.shape) > 0.2
    at, logits = 0, []
    for length in (*SPLIT, tokens - sum(SPLIT)):
        part = (t[:, at : at + length] for t in (batch.tokens, batch.segment_ids, mask))
        read, stream = streamer.feed(state.params, stream, *part)
        logits.append(np.asarray(read))
        at += length
    yield "stream/logits", np.concatenate(logits, axis=1)
    yield from _written("stream/fed", *jax.device_get((stream.sums, stream.stats, stream.fast)), shared)
    end = jax.device_get(streamer.finish(state.params, stream))
    yield from _written("stream/finished", end.sums, end.stats, end.fast, shared)
