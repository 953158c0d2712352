"""CMS reads and writes of one layer and one example against the naive level."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import mlp_memory
from hope_jax.memory.cms import Cms
from hope_jax.memory.levels import MemoryOptions
from tests.oracle import bridge, cases
from tests.oracle.inner import FAST, Level, fresh_state, level_gradient
from tests.oracle.model import layer_norm, level_read, with_delta
from tests.oracle.periods import Learning, Memory, Token, Write, accumulate, close_period

N = 4
LEVELS = (
    Level("two", 2, 0.3),
    Level("four", 4, 0.2, "nl_l2_precond"),
    Level("eight", 8, 0.05, "preconditioned"),
    Level("twelve", 12, 0.1, "nl_l2_precond", beta=0.0),
)
OPEN = Learning(levels=LEVELS, chunk=N)
CASES = {
    "open_dropped": OPEN,
    "gated_bounded_flushed": replace(
        OPEN, threshold=2.4, write_clip=0.05, delta_clip=0.08, flush=True, act="relu"
    ),
    "other_metric_flushed_without_norm": replace(OPEN, metric="loss", threshold=2.4, flush=True, act="silu"),
}
LENGTHS = (4, 4, 4, 4, 3)


def params_of(biases: bool, norm: bool = True) -> dict[str, dict[str, np.ndarray]]:
    draw = cases.Draw(3)
    return {level.name: cases.level_params(draw, biases, norm=norm) for level in LEVELS}


def stream(seed: int) -> list[dict[str, Any]]:
    """Chunks of level inputs, signals (some tokens have none) and surprise."""
    rng = np.random.default_rng(seed)
    chunks = []
    for n in LENGTHS:
        block = rng.normal(size=(n, cases.DIM))
        block[rng.random(n) < 0.25] = 0.0
        chunks.append(
            {
                "x": {level.name: rng.normal(size=(n, cases.DIM)) for level in LEVELS},
                "own": {level.name: rng.normal(size=(n, cases.DIM)) for level in LEVELS},
                "block": block,
                "surprise": np.linalg.norm(block, axis=-1) + 0.1,
            }
        )
    return chunks


def fresh(level: Level, p: dict[str, np.ndarray]) -> Memory:
    shapes = {n: w.shape for n, w in p.items() if n in FAST}
    memory = Memory({n: np.zeros(s) for n, s in shapes.items()}, fresh_state(level, shapes))
    memory.clear()
    return memory


def naive_chunk(
    memory: Memory,
    level: Level,
    p: dict[str, np.ndarray],
    chunk: dict[str, Any],
    learning: Learning,
    start: int,
    clip: float,
) -> list[Write]:
    read_delta, writes = memory.delta, []
    for t in range(len(chunk["block"])):
        active = bool(np.any(chunk["block"][t] != 0))
        token = Token(
            chunk["x"][level.name][t], chunk["own"][level.name][t], active, chunk["surprise"][t], active
        )
        accumulate(memory, level, p, read_delta, token, learning, clip)
        if (start + t + 1) % level.period == 0:
            writes.append(close_period(memory, p, level, learning, 0, start + t + 1))
    return writes


@pytest.mark.parametrize(("name", "biases"), [(n, n == "gated_bounded_flushed") for n in CASES])
def test_writes_match_naive_periods(name: str, biases: bool) -> None:
    learning, clip = CASES[name], 1.0 if biases else 0.0
    params = params_of(biases, norm="without_norm" not in name)
    cms = Cms(
        bridge.levels_of(LEVELS),
        cases.DIM,
        cases.HIDDEN,
        N,
        MemoryOptions(learning.metric, learning.threshold, learning.write_clip, learning.delta_clip),
        output_clip=clip or None,
        activation=learning.act,
        flush_partial_at_end=learning.flush,
    )
    fast = cms.init(jax.tree.map(jnp.asarray, params))
    memories = {level.name: fresh(level, params[level.name]) for level in LEVELS}
    write = jax.jit(
        lambda fast, chunk, position, last: bridge.write_levels(
            cms, params, fast, chunk, position, last=last
        ),
        static_argnums=3,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    start, seen = 0, set()
    for i, chunk in enumerate(stream(1)):
        last = i == len(LENGTHS) - 1
        fast, stats = write(fast, chunk, jnp.int32(start), last)
        for level in LEVELS:
            memory = memories[level.name]
            writes = naive_chunk(memory, level, params[level.name], chunk, learning, start, clip)
            if last and learning.flush and memory.tokens:
                writes.append(close_period(memory, params[level.name], level, learning, 0, 19))
            what = f"chunk {i} {level.name}"
            bridge.assert_close(dict(fast[level.name].delta), memory.delta, what)
            bridge.assert_same_optimizer(level, fast[level.name].opt, memory.optimizer, what)
            bridge.assert_stats(stats[level.name], bridge.expected_stats(writes, 0, level.name), what)
            bridge.assert_delta_norm(stats[level.name], memory.delta, params[level.name], what)
            seen |= {w.applied for w in writes}
            if not last and level.period > N:
                assert float(stats[level.name].pending_tokens) == memory.tokens
        start += len(chunk["block"])
    assert seen == ({True} if learning.threshold is None else {True, False})


@pytest.mark.parametrize("act", mlp_memory.ACTIVATIONS)
@pytest.mark.parametrize(("biases", "norm"), [(False, True), (True, True), (True, False)])
def test_read_and_gradient_match_naive_level(biases: bool, norm: bool, act: str) -> None:
    clip = 1.0 if biases else 0.0
    p, draw = params_of(biases, norm)["two"], cases.Draw(5)
    delta = {n: 0.1 * draw.rng.normal(size=w.shape) for n, w in p.items() if n in FAST}
    x, teach = draw.rng.normal(size=(2, 5, cases.DIM))
    how: Any = {"output_clip": clip or None, "activation": act}
    y, trace = mlp_memory.read(p, delta, jnp.asarray(x), **how)
    weights = with_delta(p, delta)
    bridge.assert_close(y, np.asarray(level_read(weights, x, clip, act)), "y", 1e-12)
    factors = mlp_memory.write_factors(p, delta, trace.z, jnp.asarray(teach), **how)
    grads = mlp_memory.write_gradient(factors, mlp_memory.fast_weights(jax.tree.map(jnp.asarray, p)))
    wanted = level_gradient(weights, x, teach, np.ones(5), clip, act)
    bridge.assert_close(dict(grads), {n: g for n, g in wanted.items() if n in FAST}, "gradient", 1e-11)


def test_chain_reads_in_order_with_deltas() -> None:
    params, draw = params_of(False), cases.Draw(9)
    cms = Cms(bridge.levels_of(LEVELS), cases.DIM, cases.HIDDEN, N)
    fast = {
        name: state._replace(delta=jax.tree.map(lambda w: 0.1 * draw.rng.normal(size=w.shape), state.delta))
        for name, state in cms.init(jax.tree.map(jnp.asarray, params)).items()
    }
    x = draw.rng.normal(size=(3, cases.DIM))
    y, trace = cms.read(params, fast, jnp.asarray(x), {})
    for level in LEVELS:
        p = params[level.name]
        normed = layer_norm(x, p["ln_scale"], p["ln_bias"])
        bridge.assert_close(trace[level.name].z, np.asarray(normed), level.name, 1e-12)
        x = level_read(with_delta(p, fast[level.name].delta), x)
    bridge.assert_close(y, np.asarray(x), "y", 1e-12)
