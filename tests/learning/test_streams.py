"""What the modes must not change: whose batch an example is in, how one chunk is read."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core.types import Batch
from hope_jax.learning import modes
from hope_jax.learning.chunk import State, stream_loss
from tests.close import assert_close, at
from tests.oracle import bridge, cases
from tests.oracle.layers import Arch
from tests.oracle.stream import online
from tests.oracle.writes import Learning, Level

ARCH = Arch(cases.HEADS, levels=("fast", "slow"))
LEARNING = Learning(
    levels=(Level("fast", 4, lr=0.2), Level("slow", 16, lr=0.1)), chunk=8, threshold=0.5, flush=True
)
TOKENS = 24
QUICK = {"xla_backend_optimization_level": 0}


def setup(learning: Learning, tokens: int = TOKENS) -> tuple[Any, Any, Any, list, Batch]:
    params = jax.tree.map(jnp.asarray, cases.model_params(ARCH))
    model, rows = bridge.hope_model(ARCH, learning), cases.examples(2, tokens)
    return model, bridge.online_rule(learning), params, rows, bridge.batch_of(rows)


@pytest.fixture(scope="module")
def whole() -> Callable[[Batch], State]:
    """A batch's streams read in one call."""
    model, rule, params, _, _ = setup(LEARNING)
    run = jax.jit(partial(stream_loss, model, rule), compiler_options=QUICK)
    return lambda batch: run(params, model.init_fast_state(params, 2), batch)


def test_example_memory_does_not_depend_on_the_batch(whole: Callable[[Batch], State]) -> None:
    batch = bridge.batch_of(cases.examples(2, TOKENS))
    both, swapped = whole(batch), whole(Batch(*(t[::-1] for t in batch)))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(both.fast))
    back = jax.tree.map(lambda leaf: leaf[::-1], swapped.fast)
    chex.assert_trees_all_close(both.fast, back, rtol=0, atol=1e-12)


def test_two_pass_matches_naive_and_its_reads_equal_one_online_chunk() -> None:
    learning = replace(LEARNING, chunk=16)
    model, rule, params, rows, batch = setup(learning, 16)
    fast = model.init_fast_state(params, 2)
    both = (
        jax.jit(partial(mode, model, rule), compiler_options=QUICK) for mode in (modes.two_pass, modes.online)
    )
    (gradient, written), (one_chunk, result) = (run(params, fast, batch, jnp.ones(())) for run in both)
    streams = [online(params, ARCH, learning, [row]) for row in rows]
    counts = [sum(t >= 0 for t in row.targets) for row in rows]
    assert_close(written.sums.loss, sum(s.chunks[0][0].losses.sum() for s in streams), "loss")
    wanted = jax.tree.map(
        lambda *g: sum(n * leaf for n, leaf in zip(counts, g, strict=True)),
        *[s.outer_gradient for s in streams],
    )
    assert_close(gradient, wanted, "outer gradient")
    for b, stream in enumerate(streams):
        for layer, cms in enumerate(stream.layers):
            for name, memory in cms.memories.items():
                state = at(written.fast[layer]["cms"][name], b)
                assert_close(dict(state.delta), memory.delta, f"{layer} {b} {name}")
    assert_close(result.sums.loss, np.asarray(written.sums.loss), "one chunk", 1e-11)
    assert_close(one_chunk, jax.tree.map(np.asarray, gradient), "one chunk", 1e-11)
