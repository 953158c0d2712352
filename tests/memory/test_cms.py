"""CMS reads and writes of one layer and one example against the naive level."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import mlp_memory
from tests.close import assert_close
from tests.oracle import bridge, cases
from tests.oracle import cms as naive
from tests.oracle.layers import Arch
from tests.oracle.writes import FAST, Learning, Level

N = 4
LEVELS = (
    Level("two", 2, 0.3),
    Level("four", 4, 0.2, "nl_l2_precond"),
    Level("eight", 8, 0.05, "preconditioned"),
    Level("twelve", 12, 0.1, "nl_l2_precond", beta=0.0),
)
ARCH = Arch(1, levels=tuple(level.name for level in LEVELS))
OPEN = Learning(levels=LEVELS, chunk=N)
CASES = {
    "open_dropped": (ARCH, OPEN),
    "gated_bounded_flushed": (
        replace(ARCH, act="relu", read_clip=1.0),
        replace(OPEN, threshold=2.4, write_clip=0.05, delta_clip=0.08, flush=True),
    ),
    "other_metric_flushed_without_norm": (
        replace(ARCH, act="silu"),
        replace(OPEN, metric="loss", threshold=2.4, flush=True),
    ),
}
LENGTHS = (4, 4, 4, 4, 3)


def params_of(biases: bool, norm: bool = True) -> dict[str, dict[str, np.ndarray]]:
    draw = cases.Draw(3)
    return {level.name: cases.level_params(draw, biases, norm=norm) for level in LEVELS}


@pytest.mark.parametrize(("name", "biases"), [(n, n == "gated_bounded_flushed") for n in CASES])
def test_writes_match_naive_periods(name: str, biases: bool) -> None:
    arch, learning = CASES[name]
    params = params_of(biases, norm="without_norm" not in name)
    cms, memories = bridge.cms_of(arch, learning), naive.Cms(params, arch, learning)
    fast = cms.init(jax.tree.map(jnp.asarray, params))
    write = jax.jit(
        lambda fast, chunk, position, last: bridge.write_levels(
            cms, params, fast, chunk, position, last=last
        ),
        static_argnums=3,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    start, seen = 0, set()
    for i, chunk in enumerate(cases.chunks(LEVELS, LENGTHS, seed=1)):
        last = i == len(LENGTHS) - 1
        fast, stats = write(fast, chunk, jnp.int32(start), last)
        writes = memories.write_chunk(cases.tokens_of(chunk), start, last)
        for level in LEVELS:
            memory, what = memories.memories[level.name], f"chunk {i} {level.name}"
            assert_close(dict(fast[level.name].delta), memory.delta, what)
            bridge.assert_same_optimizer(level, fast[level.name].opt, memory.state, what)
            bridge.assert_stats(stats[level.name], bridge.expected_stats(writes, 0, level.name), what)
            bridge.assert_delta_norm(stats[level.name], memory.delta, params[level.name], what)
            if not last and level.period > N:
                assert float(stats[level.name].pending_tokens) == len(memory.partial)
        seen |= {w.applied for w in writes}
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
    weights = naive.with_delta(p, delta)
    assert_close(y, np.asarray(naive.level_read(weights, x, clip, act)), "y", 1e-12)
    factors = mlp_memory.write_factors(p, delta, trace.z, jnp.asarray(teach), **how)
    grads = mlp_memory.write_gradient(factors, mlp_memory.fast_weights(jax.tree.map(jnp.asarray, p)))
    tokens = [naive.level_gradient(weights, *pair, clip, act) for pair in zip(x, teach, strict=True)]
    wanted = {name: np.asarray(sum(token[name] for token in tokens)) for name in delta}
    assert_close(dict(grads), wanted, "gradient", 1e-11)


def test_chain_reads_in_order_with_deltas() -> None:
    params, draw = params_of(False), cases.Draw(9)
    cms = bridge.cms_of(ARCH, OPEN)
    fast = {
        name: state._replace(delta=jax.tree.map(lambda w: 0.1 * draw.rng.normal(size=w.shape), state.delta))
        for name, state in cms.init(jax.tree.map(jnp.asarray, params)).items()
    }
    deltas, x = {name: state.delta for name, state in fast.items()}, draw.rng.normal(size=(3, cases.DIM))
    y, trace = cms.read(params, fast, jnp.asarray(x), {})
    wanted, ins, _ = naive.read(params, ARCH, x, deltas, {})
    for name in ARCH.levels:
        normed = naive.level_normed(params[name], ins[name])
        assert_close(trace[name].z, np.asarray(normed), name, 1e-12)
    assert_close(y, np.asarray(wanted), "y", 1e-12)
