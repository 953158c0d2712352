"""The chunk scan against the naive stream: loss, outer gradient, memories, optimizer states, statistics."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.learning import chunk, modes
from hope_jax.memory.period_write import LevelState
from tests.close import assert_close, at
from tests.oracle import bridge, cases
from tests.oracle.layers import Arch
from tests.oracle.stream import Stream, online
from tests.oracle.writes import Learning, Level

MODERN = Arch(cases.HEADS, levels=("fast", "slow"))
REFERENCE = replace(MODERN, style="reference", qk_norm="l2", read_clip=1.0)
TWO_LEVELS = (Level("fast", 4, lr=0.2), Level("slow", 16, lr=0.1, beta=0.5))


@dataclass(frozen=True)
class Case:
    """One stream setting. tokens: of each example; batches share one fast state under scope "batch"."""

    learning: Learning
    arch: Arch = MODERN
    conv: int = 0
    scope: str = "example"
    tokens: int = 24


def learn(**values: object) -> Learning:
    return Learning(**{"levels": TWO_LEVELS, "chunk": 8, **values})  # type: ignore[arg-type]


def other_act(act: str, case: Case) -> Case:
    """The case with another activation, and levels without LayerNorm."""
    return replace(case, arch=replace(case.arch, act=act, cms_norm=False))


CASES = {
    "own_output_ragged": Case(learn(), tokens=20),
    "flush_clip_schedule_bounds_relu_without_norm": other_act(
        "relu",
        Case(
            learn(
                flush=True, teach_scale=0.5, schedule=0.7, teach_clip=0.4, write_clip=0.01, delta_clip=0.015
            )
        ),
    ),
    "block_output_l2_gate": Case(
        learn(
            levels=(Level("fast", 4, optimizer="nl_l2_precond"), Level("slow", 16, 0.01, "preconditioned")),
            delta_at="block_output",
            threshold=0.6,
            flush=True,
        )
    ),
    "global_loss_gate_batch_scope": Case(
        learn(
            levels=(Level("fast", 8, 0.05, "muon"), Level("slow", 16, 0.05, "nl_l2_precond")),
            source="global",
            metric="loss",
            threshold=3.6,
            flush=True,
        ),
        scope="batch",
    ),
    "reference_entropy_gate": Case(
        learn(
            levels=(Level("fast", 2, 0.1, "dmgd"), Level("slow", 8, 0.1, "l2_objective")),
            metric="logit_entropy",
            threshold=1.57,
            teach_scale=0.3,
        ),
        arch=REFERENCE,
    ),
    "batch_mean_batch_scope": Case(learn(batch_mean=True, teach_scale=5.0), scope="batch"),
    "window_conv_truncate": Case(
        learn(levels=(Level("fast", 8, 0.1, "sgd"), Level("slow", 16)), truncate=16),
        arch=replace(MODERN, window=5),
        conv=3,
        tokens=28,
    ),
    "conv_history_cut": Case(learn(), arch=replace(MODERN, window=5), conv=3),
    "one_token_period": Case(learn(levels=(Level("fast", 1, optimizer="nl_l2_precond"), Level("slow", 2)))),
    "independent_levels_silu_without_norm": other_act(
        "silu", Case(learn(), arch=replace(MODERN, connection="independent"), tokens=20)
    ),
    "nested_levels_batch_scope": Case(
        learn(levels=(Level("fast", 4, 0.2), Level("slow", 16, 0.1, "sgd"), Level("mid", 8)), flush=True),
        arch=replace(MODERN, levels=("fast", "slow", "mid"), connection="nested"),
        scope="batch",
        tokens=28,
    ),
    "whole_sequence_one_chunk": Case(learn(chunk=16), tokens=16),
}


QUICK = (
    "own_output_ragged",
    "flush_clip_schedule_bounds_relu_without_norm",
    "global_loss_gate_batch_scope",
)
NIGHTLY = pytest.mark.nightly
COMPILE = {"xla_backend_optimization_level": 0}


def oracle_streams(case: Case) -> list[Stream]:
    """One stream for each fast state."""
    params = cases.model_params(case.arch, conv=case.conv)
    rows = cases.examples(2, case.tokens)
    groups = [rows] if case.scope == "batch" else [[row] for row in rows]
    return [online(params, case.arch, case.learning, group) for group in groups]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else NIGHTLY) for n in CASES])
def test_online_matches_naive_stream(name: str) -> None:
    case = CASES[name]
    params = jax.tree.map(jnp.asarray, cases.model_params(case.arch, conv=case.conv))
    model = bridge.hope_model(case.arch, case.learning, case.conv, case.scope)
    rows = cases.examples(2, case.tokens)
    fast = model.init_fast_state(params, len(rows))
    run = jax.jit(partial(modes.online, model, bridge.online_rule(case.learning)), compiler_options=COMPILE)
    gradient, result = run(params, fast, bridge.batch_of(rows), jnp.asarray(case.learning.schedule))
    streams = oracle_streams(case)
    supervised = sum(target >= 0 for row in rows for target in row.targets)
    total = sum(chunk.losses.sum() for s in streams for chunks in s.chunks for chunk in chunks)
    assert int(result.sums.tokens) == supervised
    assert_close(result.sums.loss, total, "loss")
    compare_gradients(gradient, streams, rows)
    for b, stream in enumerate(streams):
        compare_memories(case, result, stream, b)


def compare_gradients(gradient: object, streams: list[Stream], rows: list) -> None:
    """Sum of cross-entropies: the naive streams give means over their own supervised tokens."""
    weights = [sum(t >= 0 for t in row.targets) for row in rows]
    weights = [sum(weights)] if len(streams) == 1 else weights
    wanted = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)),
        *[stream.outer_gradient for stream in streams],
    )
    assert_close(gradient, wanted, "outer gradient")


def compare_memories(case: Case, result: object, stream: Stream, b: int) -> None:
    for layer, cms in enumerate(stream.layers):
        for level in case.learning.levels:
            where = () if case.scope == "batch" else (b,)
            what = f"layer {layer} example {b} {level.name}"
            state: LevelState = at(result.fast[layer]["cms"][level.name], *where)  # type: ignore[attr-defined]
            assert_close(dict(state.delta), cms.memories[level.name].delta, f"{what} delta")
            bridge.assert_same_optimizer(level, state.opt, cms.memories[level.name].state, what)
            stats = at(result.stats["cms"][level.name], layer, b)  # type: ignore[attr-defined]
            bridge.assert_stats(stats, bridge.expected_stats(stream.writes, layer, level.name), what)


def test_cases_exercise_what_they_name() -> None:
    """The naive writes show that gates block and pass, and that both bounds bite."""
    gated = [w for s in oracle_streams(CASES["block_output_l2_gate"]) for w in s.writes]
    assert {w.applied for w in gated} == {True, False}
    assert any(0 < w.written < w.tokens for w in gated)
    reads = [chunk.read for s in oracle_streams(CASES["reference_entropy_gate"]) for chunk in s.chunks[0]]
    clipped = [np.linalg.norm(r.level_out[0]["fast"] - r.level_in[0]["fast"], axis=-1) > 0.999 for r in reads]
    assert 0 < np.mean(clipped) < 1
    for name in ("global_loss_gate_batch_scope", "reference_entropy_gate"):
        assert {w.gate_hit for s in oracle_streams(CASES[name]) for w in s.writes} == {True, False}
    bounds = CASES["flush_clip_schedule_bounds_relu_without_norm"]
    bounded = [w for s in oracle_streams(bounds) for w in s.writes]
    assert any(w.write_clip_hits for w in bounded)
    assert any(w.delta_clip_hits for w in bounded)
    assert any(w.tokens < 16 for w in bounded if w.level == "slow")


def test_in_bfloat16_a_read_sees_what_a_write_right_before_it_has_left() -> None:
    """The write inside a step leaves delta in the reads' dtype; one before the step leaves delta alone."""
    learning = learn(levels=(Level("fast", 4, lr=0.2), Level("slow", 8, lr=0.1)))
    exact = bridge.hope_model(MODERN, learning, 0, "example")
    model = replace(exact, spec=replace(exact.spec, dtype=jnp.dtype("bfloat16")))
    narrow = jax.tree.map(jnp.float32, cases.model_params(MODERN))
    params, rule, one = model.unstacked(narrow), bridge.online_rule(learning), jnp.ones((), jnp.float32)
    batch = bridge.batch_of(cases.examples(2, 16))
    first, second = (jax.tree.map(lambda t, i=i: t[:, i : i + 8], batch) for i in (0, 8))
    norms, fast = model.norms(params), model.init_fast_state(params, 2)
    step = partial(chunk.step, model, rule, params, norms)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both() -> Any:
        read = step(chunk.begin(model, fast, 2, model.init_carry(2, 16)), first, one).state
        return step(read, second, one), step(chunk.write(model, rule, params, norms, read), second, one), read

    joined, apart, before = both()
    chex.assert_trees_all_equal(joined, apart)
    for state in (before, joined.state):
        levels = [level for layer in state.fast for level in layer["cms"].values()]
        assert all(isinstance(level, LevelState) and level.rounded == () for level in levels)
    written = joined.state.fast[0]["cms"]["fast"].delta["w_up"]
    assert written.dtype == jnp.float32 and float(jnp.abs(written).max()) > 1e-4
