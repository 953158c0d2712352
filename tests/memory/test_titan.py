"""TITAN memory against the loop over tokens: reads, both write rules, and gradients through the writes."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import levels, titans_rule
from hope_jax.memory.state import Reduce, Taps, WriteSignal, own
from hope_jax.memory.titan import SelfModifierOptions, Titan, shorten
from tests.close import assert_close
from tests.oracle import bridge
from tests.oracle import titan as oracle
from tests.oracle.cases import DIM, HIDDEN, Draw
from tests.oracle.writes import Learning, Level, Token

QUICK = {"xla_backend_optimization_level": 0}
LENGTHS = (4, 4, 4, 4, 3)
N = LENGTHS[0]
OPEN = Learning(chunk=N)
BOUNDED = Learning(chunk=N, threshold=1.014, write_clip=0.05, delta_clip=0.06, flush=True)
CLIPS = {"read_clip": 0.5, "correction_clip": 0.5}
CASES = {  # level, learning, clips and activation, a SelfModifier, biases
    "within_a_chunk": (Level("titan", 2, 0.3, beta=0.5), OPEN, {"act": "relu"}, True, False),
    "over_chunks_bounded": (Level("titan", 8, 0.3), BOUNDED, CLIPS, True, True),
    "projected_without_self_modifier": (Level("titan", 4, 0.3, "nl_l2_precond"), OPEN, {}, False, False),
    "titans_within_a_chunk": (Level("titan", 2, 0.3, "titans"), OPEN, {}, True, True),
    "titans_over_chunks_bounded": (Level("titan", 8, 0.3, "titans"), BOUNDED, CLIPS, True, False),
    "titans_other_metric": (
        Level("titan", 4, 0.3, "titans"),
        replace(BOUNDED, metric="loss"),
        {"act": "silu", "correction_clip": 0.5},
        False,
        False,
    ),
}


def params_of(level: Level, self_modifier: bool, biases: bool) -> dict[str, Any]:
    draw = Draw(3)
    params: dict[str, Any] = {"w_up": draw.matrix(DIM, HIDDEN), "w_down": draw.matrix(HIDDEN, DIM)}
    params |= {"ln_scale": draw.scale(DIM), "ln_bias": draw.bias(DIM)}
    if biases:
        params |= {"b_up": draw.bias(HIDDEN), "b_down": draw.bias(DIM)}
    if self_modifier:
        widths = (3 * DIM, HIDDEN, HIDDEN, DIM)
        params["self_modifier"] = {f"w_{i}": draw.matrix(*widths[i - 1 : i + 1]) for i in (1, 2, 3)}
        if biases:
            params["self_modifier"] |= {f"b_{i}": draw.bias(widths[i]) for i in (1, 2, 3)}
    if level.optimizer == "titans":
        gates = {"alpha": -2.0, "eta": 0.5, "theta": 0.2}
        params["gates"] = {f"w_{name}": draw.bias(DIM) for name in gates}
        params["gates"] |= {f"b_{name}": np.float64(bias) for name, bias in gates.items()}
    return params


def titan_of(naive: oracle.Titan) -> Titan:
    """Production's memory of the oracle's options."""
    level, learning = naive.level, naive.learning
    return Titan(
        levels.Level(level.period, level.lr, level.optimizer, level.beta),
        DIM,
        HIDDEN,
        bridge.rules_of(learning),
        output_clip=naive.read_clip or None,
        activation=naive.act,
        self_modifier=SelfModifierOptions("self_modifier" in naive.p, naive.correction_clip),
    )


def chunks() -> list[dict[str, np.ndarray]]:
    """Keys, signals (some tokens have none; the fourth chunk teaches nothing) and surprise."""
    rng, made = np.random.default_rng(5), []
    for i, n in enumerate(LENGTHS):
        teach = 0.5 * rng.normal(size=(n, DIM))
        teach[rng.random(n) < 0.25] = 0.0
        teach = teach if i != 3 else 0 * teach
        made.append({"key": rng.normal(size=(n, DIM)), "teach": teach, "surprise": rng.uniform(0.4, 1.4, n)})
    return made


def signal_of(chunk: dict[str, Any]) -> WriteSignal:
    active = (chunk["teach"] != 0).any(-1)
    return WriteSignal(0 * chunk["teach"], {"titan": Taps(chunk["teach"])}, chunk["surprise"], active, active)


@pytest.mark.parametrize("name", CASES)
def test_stream_of_writes(name: str) -> None:
    level, learning, options, self_modifier, biases = CASES[name]
    params = params_of(level, self_modifier, biases)
    naive = oracle.Titan(level, learning, params, **options)
    titan, start, writes = titan_of(naive), 0, []
    fast, applied, blocked, written = titan.init(params), 0.0, 0.0, 0.0

    def step(fast: Any, chunk: Any, start: Any, last: bool) -> Any:
        y, trace = titan.read(params, fast, chunk["key"], {})
        return y, *titan.write(
            params, titan.norms(params), fast, trace, signal_of(chunk), position=start, reduce=own, last=last
        )

    step = jax.jit(step, static_argnums=3, compiler_options=QUICK)
    for i, chunk in enumerate(chunks()):
        last = i == len(LENGTHS) - 1
        y, fast, stats = step(fast, jax.tree.map(jnp.asarray, chunk), jnp.int32(start), last)
        read_with, how = naive.weights(), (naive.read_clip, naive.act)
        assert_close(y, np.stack([oracle.mem(read_with, key, *how) for key in chunk["key"]]), "y")
        tokens = zip(chunk["key"], chunk["teach"], chunk["surprise"], strict=True)
        writes += naive.write_chunk([Token(k, t, t.any(), s, t.any()) for k, t, s in tokens], last)
        delta, what = naive.memory.delta, f"{name}: chunk {i}"
        assert_close(dict(fast["titan"].delta), delta, f"{what}: delta")
        if level.optimizer == "titans":
            momentum = {n: slot["v"] for n, slot in naive.memory.state.items()}
            assert_close(dict(fast["titan"].opt), momentum, f"{what}: momentum")
        bridge.assert_delta_norm(stats["titan"], delta, params, what)
        written += float(stats["titan"].write_norm)
        start, applied = start + len(chunk["key"]), applied + float(stats["titan"].updates_applied)
        blocked += float(stats["titan"].periods - stats["titan"].gate_hit)
    assert applied == sum(write.applied for write in writes) > 0
    np.testing.assert_allclose(written, sum(write.write_norm for write in writes), rtol=2e-6)
    assert (blocked > 0) == (learning.threshold is not None)
    assert max(np.abs(d).max() for d in naive.memory.delta.values()) > 1e-3


@pytest.mark.parametrize(
    "name", ["over_chunks_bounded", "titans_within_a_chunk", "titans_over_chunks_bounded"]
)
def test_gradients_through_writes_are_finite_differences(name: str) -> None:
    level, learning, options, self_modifier, biases = CASES[name]
    start = params_of(level, self_modifier, biases)
    # The clip of the branch is a constant for differentiation, by definition.
    smooth = {**options, "read_clip": 0.0}
    titan = titan_of(oracle.Titan(level, replace(learning, threshold=None), start, **smooth))
    data = chunks()[:3]
    probe = np.random.default_rng(6).normal(size=(len(data[0]["key"]), DIM))

    def after_writes(params: Any, teach: Any) -> Any:
        fast, norms = titan.init(params), titan.norms(params)
        for i, chunk in enumerate(data[:2]):
            signal = signal_of({**chunk, "teach": chunk["teach"] * teach[i]})
            position = jnp.int32(N * i)
            trace = titan.read(params, fast, chunk["key"], {})[1]
            fast, _ = titan.write(params, norms, fast, trace, signal, position=position, reduce=own)
        return jnp.sum(probe * titan.read(params, fast, data[2]["key"], {})[0])

    params, teach = jax.tree.map(jnp.asarray, start), jnp.ones((2, 4, DIM))
    run = jax.jit(after_writes, compiler_options=QUICK)
    grads = jax.jit(jax.grad(after_writes, argnums=(0, 1)), compiler_options=QUICK)(params, teach)
    rng, h = np.random.default_rng(7), 1e-5
    for part in (*params, "teach"):
        whole = (params, teach)
        leaf = teach if part == "teach" else params[part]
        way = jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape)), leaf)

        def moved(by: float, part: str = part, way: Any = way, whole: Any = whole) -> Any:
            if part == "teach":
                return run(whole[0], whole[1] + by * way)
            shifted = jax.tree.map(lambda t, w: t + by * w, whole[0][part], way)
            return run({**whole[0], part: shifted}, whole[1])

        slope = (moved(h) - moved(-h)) / (2 * h)
        by = grads[1] if part == "teach" else grads[0][part]
        exact = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(by), jax.tree.leaves(way), strict=True))
        np.testing.assert_allclose(exact, slope, rtol=2e-6, atol=2e-8, err_msg=part)
        assert abs(float(exact)) > 1e-6, part


def test_a_bounded_correction_is_no_longer_than_it_may_and_never_turns_a_write_uphill() -> None:
    rng = np.random.default_rng(9)
    teach = jnp.asarray(rng.normal(size=(40, DIM)) * (np.arange(40) > 3)[:, None])
    correction = jnp.asarray(rng.normal(size=(40, DIM)) * rng.uniform(0.1, 5, (40, 1)))
    for bound in (0.5, 1.0):
        short = shorten(correction, teach, bound)
        allowed = bound * np.linalg.norm(teach, axis=-1)
        np.testing.assert_array_less(np.linalg.norm(short, axis=-1), allowed + 1e-12)
        assert float(((teach - short) * teach).sum(-1).min()) >= -1e-12
        kept = np.linalg.norm(correction, axis=-1) <= allowed
        assert kept.any() and not kept.all()
        np.testing.assert_array_equal(np.asarray(short)[kept], np.asarray(correction)[kept])
    assert shorten(correction, teach, 0.0) is correction
    slope = jax.grad(lambda c: shorten(c, teach, 1.0).sum())(0 * correction)
    assert bool(jnp.isfinite(slope).all())


def test_a_shared_state_is_the_mean_of_what_each_example_makes_of_it() -> None:
    level = Level("titan", N, 0.3, "titans")
    params = params_of(level, True, False)
    titan = titan_of(oracle.Titan(level, OPEN, params))
    pair = [jax.tree.map(jnp.asarray, c) for c in chunks()[:2]]

    def write(chunk: Any, reduce: Any) -> Any:
        fast, signal = titan.init(params), signal_of(chunk)
        trace = titan.read(params, fast, chunk["key"], {})[1]
        return titan.write(
            params, titan.norms(params), fast, trace, signal, position=jnp.int32(0), reduce=reduce
        )[0]

    both = jax.tree.map(lambda *t: jnp.stack(t), *pair)
    each = jax.jit(jax.vmap(lambda chunk: write(chunk, own)), compiler_options=QUICK)(both)
    together = jax.vmap(lambda chunk: write(chunk, Reduce(("pair",))), axis_name="pair", out_axes=None)
    shared = jax.jit(together, compiler_options=QUICK)(both)
    mean = jax.tree.map(lambda t: t.mean(0), each["titan"])
    assert_close(shared["titan"].delta, mean.delta, "delta")
    assert_close(shared["titan"].opt, mean.opt, "momentum")


def test_maps_of_periods_compose() -> None:
    rng = np.random.default_rng(8)
    gates = tuple(jnp.asarray(rng.uniform(0.1, 0.9, 6)) for _ in range(3))
    mask = jnp.asarray([True, True, False, True, True, True])
    whole = titans_rule.token_weights(gates, mask)
    first, second = (
        titans_rule.token_weights(jax.tree.map(lambda t, s=s: t[s], gates), mask[s])
        for s in (slice(0, 2), slice(2, 6))
    )
    a1, b1, e1, _, _ = first
    a2, b2, e2, _, _ = second
    np.testing.assert_allclose(whole[0], a2 * a1, rtol=1e-14)
    np.testing.assert_allclose(whole[1], a2 * b1 + b2 * e1, rtol=1e-14)
    np.testing.assert_allclose(whole[2], e2 * e1, rtol=1e-14)
