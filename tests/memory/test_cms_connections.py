"""Independent and nested CMS against naive levels, token by token; gradients against finite differences."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.learning.chunk import OnlineRule
from hope_jax.learning.stream import Streamer
from hope_jax.learning.teach import Teach
from hope_jax.memory import levels as floor
from hope_jax.memory.cms import Cms
from hope_jax.memory.cms_nested import NestedCms
from hope_jax.memory.level_write import Held, gathered
from hope_jax.memory.levels import MemoryOptions
from hope_jax.memory.mlp_memory import Trace
from hope_jax.memory.period_write import WriteRules
from hope_jax.memory.state import Taps, WriteSignal, own
from hope_jax.models.lm import HopeModel
from tests.close import assert_close, at
from tests.oracle import bridge, cases
from tests.oracle import cms as naive
from tests.oracle.cms import init_name
from tests.oracle.layers import Arch
from tests.oracle.writes import Learning, Level
from tests.specs import small_spec

N, STREAMS = 4, 2
INDEPENDENT = partial(Cms, mixed=True)
NIGHTLY = pytest.mark.nightly
QUICK = {"xla_backend_optimization_level": 0}
CHAIN = (
    Level("four", 4, 0.2, "nl_l2_precond"),
    Level("sixteen", 16, 0.1, beta=0.5),
    Level("two", 2, 0.3),
    Level("eight", 8, 0.02, "preconditioned"),
)
SHORT = (Level("one", 1, 0.1, "nl_l2_precond"), Level("two", 2, 0.2, "dgd"), Level("four", 4, 0.1, "sgd"))
OPEN = Learning(levels=CHAIN, chunk=N)
NESTED = Arch(1, levels=tuple(level.name for level in CHAIN), connection="nested")
GATED = replace(OPEN, threshold=2.3, write_clip=0.05, delta_clip=0.08, flush=True)
CASES = {
    "open_dropped": (NESTED, OPEN, (4, 4, 4, 4, 4, 3)),
    "gated_bounded_flushed": (replace(NESTED, act="relu", read_clip=1.0), GATED, (4, 4, 4, 4, 4, 3)),
    "other_metric_block_output": (
        NESTED,
        replace(GATED, metric="loss", delta_at="block_output"),
        (4, 4, 4, 4, 1),
    ),
    "within_a_chunk_without_norm": (
        replace(NESTED, act="silu"),
        replace(OPEN, levels=SHORT, flush=True),
        (4, 4, 3),
    ),
}


def params_of(levels: tuple[Level, ...], biases: bool = False, norm: bool = True) -> dict[str, Any]:
    draw = cases.Draw(3)
    params: dict[str, Any] = {level.name: cases.level_params(draw, biases, norm=norm) for level in levels}
    return {**params, "mix": draw.rng.normal(size=len(levels))}


def assert_same_state(fast: Any, cms: naive.Cms, what: str) -> None:
    ordered, memories = cms.by_period, cms.memories
    for slow, level in zip([None, *ordered], ordered, strict=False):
        name, state = level.name, fast[level.name]
        parts = [(name, level, state)]
        assert bool(state.init) == (slow is not None)
        if slow is not None:
            parts.append((init_name(level), slow, state.init))
        for part, optimizer, got in parts:
            assert_close(dict(got.delta), memories[part].delta, f"{what} {part}")
            bridge.assert_same_optimizer(optimizer, got.opt, memories[part].state, f"{what} {part}")
            if got.pending:
                assert float(got.pending.ended.seen) == len(memories[part].partial), f"{what} {part}"
                pending = got.pending
                if isinstance(pending, Held):
                    pending = gathered(pending, got.delta)
                assert_close(dict(pending.grad), memories[part].gradient(), f"{what} {part} pending")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=NIGHTLY if n == "other_metric_block_output" else ()) for n in CASES]
)
def test_nested_writes_match_naive_levels(name: str) -> None:
    """Two streams under one vmap, each against its own naive levels."""
    (arch, learning, lengths), biases = CASES[name], name == "gated_bounded_flushed"
    params = params_of(learning.levels, biases, norm="without_norm" not in name)
    cms = bridge.cms_of(arch, learning)

    @partial(jax.jit, static_argnums=3, compiler_options=QUICK)
    def write(fast: Any, chunks: Any, position: Any, last: bool) -> Any:
        def one(fast: Any, chunk: Any) -> Any:
            return bridge.write_levels(cms, params, fast, chunk, position, last=last)

        return jax.vmap(one)(fast, chunks)

    fresh = cms.init(jax.tree.map(jnp.asarray, params))
    fast = jax.tree.map(lambda t: jnp.stack([t] * STREAMS), fresh)
    streams = [cases.chunks(learning.levels, lengths, seed) for seed in range(STREAMS)]
    oracles = [naive.Cms(params, arch, learning) for _ in streams]
    start, seen = 0, []
    for i, n in enumerate(lengths):
        last = i == len(lengths) - 1
        chunks = [one[i] for one in streams]
        fast, stats = write(fast, jax.tree.map(lambda *t: np.stack(t), *chunks), np.int32(start), last)
        assert set(stats) == set(cms.periods())
        for b, oracle in enumerate(oracles):
            tokens = cases.tokens_of(chunks[b], learning.delta_at == "own_output")
            writes = oracle.write_chunk(tokens, start, last)
            assert_same_state(at(fast, b), oracle, f"chunk {i} stream {b}")
            for part in stats:
                got, memory = at(stats[part], b), oracle.memories[part]
                bridge.assert_stats(got, bridge.expected_stats(writes, 0, part), f"chunk {i} {part}")
                bridge.assert_delta_norm(got, memory.delta, memory.p, f"chunk {i} {part}")
                if not last and float(got.pending_tokens):
                    assert float(got.pending_tokens) == len(memory.partial)
            seen += writes
        start += n
    assert {w.gate_hit for w in seen} == ({True} if learning.threshold is None else {True, False})
    assert {w.level for w in seen if w.applied} == set(cms.periods())
    hits = [w.write_clip_hits for w in seen], [w.delta_clip_hits for w in seen]
    assert [any(h) for h in hits] == [learning.write_clip > 0, learning.delta_clip > 0]


def test_independent_reads_match_naive_average() -> None:
    params, draw = params_of(CHAIN, biases=True, norm=False), cases.Draw(9)
    arch = replace(NESTED, connection="independent", act="silu", read_clip=1.0)
    model = bridge.cms_of(arch, OPEN)
    fast = {
        name: state._replace(delta=jax.tree.map(lambda w: 0.1 * draw.rng.normal(size=w.shape), state.delta))
        for name, state in model.init(jax.tree.map(jnp.asarray, params)).items()
    }
    deltas = {name: state.delta for name, state in fast.items()}
    x, cotangent = draw.rng.normal(size=(2, 3, cases.DIM))
    taps = {name: Taps(jnp.zeros((3, cases.DIM))) for name in arch.levels}
    (y, trace), pull = jax.vjp(lambda taps: model.read(params, fast, jnp.asarray(x), taps), taps)
    wanted, ins, _ = naive.read(params, arch, jnp.asarray(x), deltas, {})
    assert_close(y, np.asarray(wanted), "y", 1e-12)
    assert_close(trace, {name: Trace(np.asarray(x)) for name, x in ins.items()}, "trace", 1e-12)
    weights = np.exp(params["mix"]) / np.exp(params["mix"]).sum()
    (signals,) = pull((jnp.asarray(cotangent), jax.tree.map(jnp.zeros_like, trace)))
    own_signals = {name: Taps(w * cotangent) for name, w in zip(arch.levels, weights, strict=True)}
    assert_close(signals, own_signals, "own signals", 1e-12)


def tiny(kind: Any) -> tuple[Cms, Any, Any]:
    """Three levels and five chunks of inputs and signals; bounds that some writes reach."""
    levels = {"two": floor.Level(2, 0.3), "four": floor.Level(4, 0.2, "dmgd"), "eight": floor.Level(8, 0.3)}
    rules = WriteRules(N, MemoryOptions(write_clip=0.1, delta_clip=0.2))
    model = kind(levels, cases.DIM, cases.HIDDEN, rules)
    params = params_of(tuple(Level(name, level.update_period) for name, level in levels.items()))
    rng = np.random.default_rng(1)
    shape = (5, N, cases.DIM)
    inputs = {
        "x": rng.normal(size=shape),
        "own": {name: rng.normal(size=shape) for name in levels},
        "cotangent": rng.normal(size=shape),
    }
    return model, *jax.tree.map(jnp.asarray, (params, inputs))


def stream_value(model: Cms, params: Any, inputs: Any) -> jax.Array:
    """Reads and writes the chunks in order; the reads' inner product with fixed cotangents."""
    ones, norms = jnp.ones(N), model.norms(params)

    def body(carry: Any, chunk: Any) -> Any:
        fast, position, total = carry
        y, trace = model.read(params, fast, chunk["x"], {})
        taught = {name: Taps(signal) for name, signal in chunk["own"].items()}
        signal = WriteSignal(chunk["x"], taught, ones, ones > 0, ones > 0)
        fast, _ = model.write(params, norms, fast, trace, signal, position=position, reduce=own)
        return (fast, position + N, total + (y * chunk["cotangent"]).sum()), None

    return jax.lax.scan(body, (model.init(params), jnp.int32(0), jnp.zeros(())), inputs)[0][2]


@pytest.mark.parametrize("kind", [pytest.param(INDEPENDENT, marks=NIGHTLY), NestedCms])
def test_gradients_of_reads_and_writes_agree_with_finite_differences(kind: Any) -> None:
    model, params, inputs = tiny(kind)
    at = {"params": params, "own": inputs.pop("own"), "x": inputs.pop("x")}

    @partial(jax.jit, compiler_options=QUICK)
    def value_and_gradient(at: Any) -> Any:
        def value(at: Any) -> jax.Array:
            return stream_value(model, at["params"], {**inputs, "own": at["own"], "x": at["x"]})

        return jax.value_and_grad(value)(at)

    rng = np.random.default_rng(2)
    for part in at:
        way = jax.tree.map(jnp.zeros_like, at)
        way[part] = jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape)), at[part])
        gradient = value_and_gradient(at)[1]
        along = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (gradient, way)), strict=True))
        h = 1e-5
        ahead, behind = (
            float(value_and_gradient(jax.tree.map(lambda t, d, s=s: t + s * d, at, way))[0]) for s in (h, -h)
        )
        assert abs(along) > 1e-2, part
        assert (ahead - behind) / (2 * h) == pytest.approx(along, rel=1e-6), part


def test_any_split_of_a_nested_stream_gives_the_same_logits_and_state() -> None:
    """Whole model: restarts at 8 and 16 tokens."""
    levels = {"slow": floor.Level(16, 0.1), "fast": floor.Level(4, 0.2), "mid": floor.Level(8, 0.2)}
    double = jnp.dtype("float64")
    spec = small_spec("hope_attention", 8, levels, num_layers=1, dtype=double, cms={"connection": "nested"})
    streamer = Streamer(HopeModel(spec), OnlineRule(8, 8, Teach(), training=False))
    params = streamer.model.init_params(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, cases.VOCAB, (2, 27))

    def run(split: tuple[int, ...]) -> Any:
        state, logits = streamer.begin(params, 2, 27), []
        for part in np.split(tokens, np.cumsum(split)[:-1], axis=1):
            read, state = streamer.feed(params, state, part)
            logits.append(read)
        return jnp.concatenate(logits, axis=1), state

    whole = run((27,))
    assert np.isfinite(whole[0]).all()
    for split in ((0, 5, 12, 0, 1, 9), (8, 8, 8, 3)):
        for got, wanted in zip(*map(jax.tree.leaves, (run(split), whole)), strict=True):
            near = 1e-6 if got.dtype == np.float32 else 1e-12
            np.testing.assert_allclose(got, wanted, rtol=near, atol=near)
    begun = whole[1].fast[0]["cms"]
    for name, restarted in (("mid", False), ("fast", True)):
        state = begun[name]
        assert max(float(jnp.abs(d).max()) for d in state.init.delta.values()) > 1e-4, name
        same = all(jnp.array_equal(state.delta[w], state.init.delta[w]) for w in state.delta)
        assert same == restarted, name


def test_nested_periods_that_do_not_fit_are_named() -> None:
    for periods, message in (((4, 6), r"got 6 \(b\) over 4 \(a\)"), ((8, 8), r"got 8 \(a\) over 8 \(b\)")):
        levels = {name: floor.Level(c, 0.1) for name, c in zip("ab", periods, strict=True)}
        with pytest.raises(ValueError, match=message):
            NestedCms(levels, cases.DIM, cases.HIDDEN, WriteRules(4))


@pytest.mark.parametrize(("connection", "read_again"), [("sequential", {"two"}), ("nested", {"one", "two"})])
def test_delta_rules_get_the_outputs_that_they_ask_for(connection: str, read_again: set[str]) -> None:
    """A read's factors have none; a nested level's init is written with the next slower level's rule."""
    arch = replace(NESTED, connection=connection)
    taps = bridge.cms_of(arch, replace(OPEN, levels=SHORT)).taps()
    assert {name for name, (_, hidden) in taps.items() if not hidden} == read_again
