"""Self-modifying Titans against the loop over tokens: outputs, memories, gradients, calls, shared states."""

from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.self_mod import SelfMod
from hope_jax.memory.state import Reduce, own
from tests.close import assert_close
from tests.oracle.self_mod import Settings, Stream, read

DIM, TOKENS, ONLINE = 4, 22, 4
QUICK = {"xla_backend_optimization_level": 0}


def make_params(memory: SelfMod, seed: int = 0) -> dict[str, Any]:
    """Weights of unit scale; retention near one, so that memories stay alive."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-1]))

    params: dict[str, Any] = {}
    for name in (*memory.generator_names(), "memory"):
        out = 1 if name in ("eta", "alpha") else DIM
        params[name] = {"w_in": matrix(DIM, DIM), "w_out": matrix(out, DIM)}
        if out == 1 and memory.projection_skip:
            params[name]["w_skip"] = matrix(out, DIM)
    if memory.conv_window:
        params["conv"] = matrix(memory.conv_window, DIM) + 0.5
    if not memory.adaptive_q:
        params["w_q"] = matrix(DIM, DIM)
    if memory.use_alpha:
        params["b_alpha"] = jnp.asarray(3.0)
    return params


def inputs(count: int = TOKENS) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, DIM)) / np.sqrt(DIM))


def make(online_chunk: int = ONLINE, **options: Any) -> tuple[SelfMod, Settings]:
    plain = {"chunk_size": 2, "chunk_size_memory": 4, "eta_scale": 0.05, "local_conv_window": 0}
    own = SelfMod(**{**plain, **options}, dim=DIM, online_chunk=online_chunk)
    return own, Settings(
        own.objective,
        own.stopgrad_vhat,
        own.rank1_precondition,
        own.momentum,
        own.chunk_size,
        own.chunk_size_memory,
        own.eta_scale,
        own.adaptive_q,
        own.use_alpha,
        own.value_norm,
        own.qk_norm,
    )


OPTIONS = {
    "default_with_convolution": {"local_conv_window": 3},
    "one_chunk_in_a_call_the_other_over_three": {"chunk_size_memory": 12, "momentum": 0.5},
    "longer_calls": {
        "online_chunk": 8,
        "chunk_size": 8,
        "objective": "dot",
        "stopgrad_vhat": False,
        "value_norm": 0.5,
    },
    "everything_adaptive": {"adaptive_q": True, "stopgrad_vhat": False, "value_norm": 0.5},
    "dot_without_decay": {"objective": "dot", "use_alpha": False, "projection_skip": False},
    "no_rank1_chunks_longer_than_calls": {
        "rank1_precondition": False,
        "chunk_size": 8,
        "chunk_size_memory": 12,
    },
}
RULES = product(("l2", "dot"), (True, False), (True, False), (0.0, 0.5))
FORMS = {
    "q_conv": {"adaptive_q": True, "projection_skip": False, "local_conv_window": 3},
    "no_alpha": {"use_alpha": False, "chunk_size": 3, "chunk_size_memory": 6, "online_chunk": 6},
}
NIGHTLY = {
    f"{form}-{'-'.join(map(str, rule))}": {
        **FORMS[form],
        **dict(zip(("objective", "stopgrad_vhat", "rank1_precondition", "momentum"), rule, strict=True)),
    }
    for rule, form in product(RULES, FORMS)
}
ALL = OPTIONS | NIGHTLY


def in_calls(memory: SelfMod, params: Any, x: jax.Array, reduce: Reduce = own) -> Any:
    """The stream in calls of one online chunk, the last one ragged."""
    size = memory.online_chunk
    whole = len(x) // size

    def call(crossing: Any, xs: Any) -> Any:
        state, carry = crossing
        position, piece = xs
        out, *crossing, _ = memory.read(params, state, carry, piece, position=position, reduce=reduce)
        return tuple(crossing), out

    pieces = (size * jnp.arange(whole, dtype=jnp.int32), x[: whole * size].reshape(whole, size, DIM))
    start = memory.init(params), memory.init_carry(x.dtype)
    crossing, outs = jax.lax.scan(call, start, pieces)
    outs = outs.reshape(-1, DIM)
    if len(x) > len(outs):
        crossing, out = call(crossing, (jnp.int32(len(outs)), x[len(outs) :]))
        outs = jnp.concatenate([outs, out])
    return outs, crossing[0].weights, dict(crossing[0].momentum)


def in_one(memory: SelfMod, params: Any, x: jax.Array) -> Any:
    out, state, _, _ = memory.read(params, memory.init(params), None, x, position=0)
    return out, state.weights, dict(state.momentum)


@cache
def oracle(name: str) -> Any:
    memory, settings = make(**ALL[name])
    out, weights, momentum = read(make_params(memory), inputs(), settings)
    return jax.tree.map(np.asarray, (out, weights, momentum if settings.momentum else {}))


WAYS = {"in_calls": in_calls, "in_one": in_one}
QUICK_CASES = [
    ("default_with_convolution", "in_one"),
    ("default_with_convolution", "in_calls"),
    ("one_chunk_in_a_call_the_other_over_three", "in_calls"),
    ("longer_calls", "in_calls"),
    ("no_rank1_chunks_longer_than_calls", "in_calls"),
]
CASES = [
    pytest.param(*case, marks=() if case in QUICK_CASES else pytest.mark.nightly)
    for case in product(ALL, WAYS)
]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_outputs_and_memories_match_the_loop_over_tokens(name: str, way: str) -> None:
    memory, _ = make(**ALL[name])
    params, wanted = make_params(memory), oracle(name)
    assert all(1e-3 < np.abs(w).max() < 1e3 for w in jax.tree.leaves(wanted[:2])), "dead or diverged"
    got = jax.jit(partial(WAYS[way], memory), compiler_options=QUICK)(params, inputs())
    assert_close(got, wanted, way)
    start = {w: params[w] for w in wanted[1]}
    change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), wanted[1], start)
    assert min(jax.tree.leaves(change)) > 1e-4, "a memory that is never written tests nothing"


def test_keys_and_queries_keep_their_length_without_the_norm() -> None:
    memory, settings = make(qk_norm=False)
    params, x = make_params(memory), inputs(8)
    wanted = read(params, x, settings)[:2]
    got = jax.jit(partial(in_one, memory), compiler_options=QUICK)(params, x)[:2]
    assert_close(got, jax.tree.map(np.asarray, wanted), "read")
    of_norm_1 = read(params, x, replace(settings, qk_norm=True))[:2]
    gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), wanted, of_norm_1)
    assert min(jax.tree.leaves(gap)) > 1e-6, "the norm must matter to every matrix"


def value(way: Any, given: Any) -> jax.Array:
    """A function of every output and every matrix after the last token; given: (params, x)."""
    return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(way(*given)[:2]))


def gradient(name: str, ragged: int = 0) -> tuple[Any, Any, Any]:
    """(params, x), production's gradient there, and the loop's value as a function of them. Tokens that read
    the last but one write of M_memory follow it, and `ragged` more begin another chunk."""
    memory, settings = make(**ALL[name])
    given = make_params(memory), inputs(max(2 * settings.chunk_memory, memory.online_chunk) + ragged)
    ours = jax.jit(jax.grad(partial(value, partial(in_calls, memory))), compiler_options=QUICK)
    return given, ours(given), partial(value, partial(read, settings=settings))


def test_gradients_through_the_writes_match_differences_of_the_loop() -> None:
    """Along one direction in each leaf, by differences of fourth order."""
    given, got, naive = gradient("default_with_convolution")
    leaves, tree = jax.tree.flatten(given)
    rng, h = np.random.default_rng(2), 2e-4
    for index, (path, slope) in enumerate(jax.tree.leaves_with_path(got)):
        direction = rng.normal(size=slope.shape)

        def at(steps: int, index: int = index, direction: Any = direction) -> float:
            moved = [*leaves[:index], leaves[index] + steps * h * direction, *leaves[index + 1 :]]
            return float(naive(tree.unflatten(moved)))

        wanted = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)
        along = float(np.sum(slope * direction))
        assert along == pytest.approx(wanted, rel=1e-8, abs=1e-9), jax.tree_util.keystr(path)
        assert abs(along) > 1e-5, f"{jax.tree_util.keystr(path)} has no part in the value"


@pytest.mark.parametrize(
    ("size", "slope"),
    [(ONLINE, False), *(pytest.param(n, True, marks=pytest.mark.nightly) for n in (ONLINE, 8))],
)
def test_the_convolution_sees_its_own_document_and_memories_go_on(size: int, slope: bool) -> None:
    """Documents shorter than the window, and a number that comes again, in calls of `size` tokens."""
    memory, settings = make(local_conv_window=4)
    documents = np.repeat([1, 2, 3, 1], [3, 2, 1, 2])
    given = make_params(memory), inputs(len(documents))

    def naive(params: Any, x: jax.Array) -> Any:
        return read(params, x, settings, documents.tolist())[:2]

    def ours(params: Any, x: jax.Array) -> Any:
        state, carry = memory.init(params), memory.init_carry(x.dtype) if size < len(x) else None
        known, outs = jnp.asarray(np.concatenate([[-1] * 3, documents])), []
        for start in range(0, len(x), size):
            piece = x[start : start + size]
            of = known[start : start + 3 + len(piece)]
            out, state, carry, _ = memory.read(params, state, carry, piece, position=start, segments=of)
            outs.append(out)
        return jnp.concatenate(outs), state.weights

    def total(way: Any, given: Any) -> tuple[jax.Array, Any]:
        found = way(*given)
        return sum(jnp.sin(7 * leaf).sum() for leaf in jax.tree.leaves(found)), found

    of = partial(jax.grad, has_aux=True) if slope else lambda function: function
    wanted = jax.tree.map(np.asarray, of(partial(total, naive))(given))
    assert_close(jax.jit(of(partial(total, ours)), compiler_options=QUICK)(given), wanted, "read")
    of_one = read(*given, settings)[0]
    assert np.abs(of_one - wanted[1][0])[3:].max() > 1e-2, "another document must matter to the convolution"


@pytest.mark.nightly
@pytest.mark.parametrize("name", ALL)
def test_gradients_through_the_writes_match_those_of_the_loop(name: str) -> None:
    given, got, naive = gradient(name, ragged=1)
    assert_close(got, jax.tree.map(np.asarray, jax.grad(naive)(given)), "gradient")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "wide"),
    [({}, 1), ({"adaptive_q": True, "stopgrad_vhat": False, "momentum": 0.5}, 99)],
    ids=["wide", "narrow_with_momentum"],
)
def test_second_derivatives_match_those_that_jax_takes(
    options: dict[str, Any], wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch, along one direction: a teach signal is a gradient, and `through_writes` differentiates it.
    Blocks of two chunks, whose backward pass makes the second one's matrices again; a `reduce` has a pass
    without a backward of its own."""
    for name, size in (("WIDE", wide), ("BLOCK_TOKENS", 4)):
        monkeypatch.setattr(f"hope_jax.kernels.self_mod.chunk_pass.{name}", size)
    memory, _ = make(**options)
    given, rng = (make_params(memory), inputs(16).reshape(2, 8, DIM)), np.random.default_rng(3)
    direction = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape)), given)

    def second(reduce: Reduce) -> Any:
        def rows(params: Any, x: jax.Array) -> Any:
            return jax.vmap(partial(in_calls, memory, params, reduce=reduce))(x)

        def along(given: Any) -> Any:
            return jax.jvp(jax.grad(partial(value, rows)), (given,), (direction,))[1]

        return jax.jit(along, compiler_options=QUICK)(given)

    wanted = second(lambda tree: jax.tree.map(jnp.copy, tree))
    assert_close(second(own), jax.tree.map(np.asarray, wanted), "second derivative")


def read_together(params: Any, x_bnd: jax.Array, settings: Settings) -> Any:
    """Contexts that share their memories: after every token these are the mean of what the contexts made."""
    streams, outs = [Stream(params, settings) for _ in x_bnd], []
    for t in range(x_bnd.shape[1]):
        outs.append([stream.read(x[t]) for stream, x in zip(streams, x_bnd, strict=True)])
        shared = jax.tree.map(lambda *w: sum(w) / len(w), *(stream.weights for stream in streams))
        for stream in streams:
            stream.weights = shared
    return jnp.stack([jnp.stack(row) for row in outs], 1), shared


def test_a_shared_state_is_the_mean_of_what_each_example_makes_of_it() -> None:
    memory, settings = make(chunk_size_memory=8)
    params, x = make_params(memory), inputs(24).reshape(2, 12, DIM)
    shared = partial(in_calls, memory, reduce=Reduce(("examples",)))
    mapped = jax.vmap(shared, in_axes=(None, 0), out_axes=(0, None, None), axis_name="examples")
    got = jax.jit(mapped, compiler_options=QUICK)(params, x)
    wanted = jax.tree.map(np.asarray, read_together(params, x, settings))
    assert_close(got[:2], wanted, "shared")
    alone = read(params, x[0], settings)
    gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), (wanted[0][0], wanted[1]), alone[:2])
    assert min(jax.tree.leaves(gap)) > 1e-6, "the other example must leave its trace in every matrix"


def test_without_a_fast_state_the_initial_weights_are_read_and_nothing_is_written() -> None:
    """The convolution's history moves on all the same, in calls as in one."""
    memory, settings = make(local_conv_window=3)
    params, x = make_params(memory), inputs(6)

    @partial(jax.jit, compiler_options=QUICK)
    def reads(params: Any, x: jax.Array) -> Any:
        one = memory.read(params, None, None, x, position=0)
        first = memory.read(params, None, memory.init_carry(x.dtype), x[:4], position=0)
        second = memory.read(params, None, first[2], x[4:], position=4)
        return one, first, second

    one, first, second = reads(params, x)
    assert all(state is None for state in (one[1], one[2], first[1], second[1]))
    assert all(float(s) == 0 for s in jax.tree.leaves((one[3], first[3], second[3])))
    before = memory.init_carry(x.dtype)
    np.testing.assert_array_equal(first[2].conv, x[2:4])
    np.testing.assert_array_equal(second[2].conv, x[4:])
    assert_close(second[2]._replace(conv=before.conv), jax.tree.map(np.asarray, before), "carry")
    np.testing.assert_allclose(jnp.concatenate([first[0], second[0]]), one[0], rtol=0, atol=1e-12)
    unwritten = read(params, x, replace(settings, chunk=99, chunk_memory=99))[0]
    np.testing.assert_allclose(one[0], unwritten, rtol=0, atol=1e-12)
    assert float(jnp.abs(unwritten - read(params, x, settings)[0])[4:].max()) > 1e-4


@pytest.mark.parametrize(
    ("momentum", "block"),
    [
        (0.0, 16),
        pytest.param(0.5, 16, marks=pytest.mark.nightly),
        pytest.param(0.0, 4, marks=pytest.mark.nightly),
    ],
)
def test_gradients_do_not_depend_on_blocks_calls_or_the_order_of_examples(
    momentum: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve chunks in one call (blocks of two, or of six) of a batch, one example after the other as wide
    memories go, against each example alone in calls of two chunks."""
    memory, _ = make(momentum=momentum, stopgrad_vhat=False)
    params = make_params(memory)
    batch = jnp.stack([inputs(24), inputs(24)[::-1]])

    def total(way: Any, params: Any, x: jax.Array) -> jax.Array:
        return value(partial(way, memory), (params, x))

    one_by_one = jax.jit(jax.grad(partial(total, in_calls), argnums=(0, 1)), compiler_options=QUICK)
    wanted = [one_by_one(params, x) for x in batch]
    monkeypatch.setattr("hope_jax.kernels.self_mod.chunk_pass.WIDE", 1)
    monkeypatch.setattr("hope_jax.kernels.self_mod.chunk_pass.BLOCK_TOKENS", block)
    together = jax.vmap(jax.grad(partial(total, in_one), argnums=(0, 1)), (None, 0))
    got = jax.jit(together, compiler_options=QUICK)(params, batch)
    for i, one in enumerate(wanted):
        assert_close(jax.tree.map(lambda t: t[i], got), one, f"example {i}")  # noqa: B023


@pytest.mark.parametrize(
    "options", [{"chunk_size": 4}, {"chunk_size": 8, "adaptive_q": True, "momentum": 0.5}]
)
def test_sizes_of_writes_are_those_of_the_matrices(options: dict[str, Any]) -> None:
    """At most one write a call, whose change the states show; then all calls in one."""
    memory, _ = make(**options)
    params, x = make_params(memory), inputs(16)
    names = {"generators": memory.generator_names(), "memory": ("memory",)}

    def largest(new: Any, old: Any, level: str) -> float:
        ratios = jax.tree.map(
            lambda a, b, slow: np.linalg.norm(a - b) / np.linalg.norm(slow),
            *({name: weights[name] for name in names[level]} for weights in (new, old, params)),
        )
        return max(jax.tree.leaves(ratios))

    step = jax.jit(
        lambda state, carry, x, at: memory.read(params, state, carry, x, position=at)[1:],
        compiler_options=QUICK,
    )
    state, carry, written = memory.init(params), memory.init_carry(x.dtype), dict.fromkeys(names, 0.0)
    for start in range(0, len(x), ONLINE):
        new, carry, stats = step(state, carry, x[start : start + ONLINE], jnp.int32(start))
        for level in names:
            change = largest(new.weights, state.weights, level)
            assert (change > 0) == bool(stats[level].periods)
            np.testing.assert_allclose(stats[level].write_norm, change, rtol=1e-5)
            if change:
                wanted = largest(new.weights, params, level)
                np.testing.assert_allclose(stats[level].delta_norm, wanted, rtol=1e-5)
            written[level] += change
        state = new
    whole = memory.read(params, memory.init(params), None, x, position=0)[3]
    for level in names:
        np.testing.assert_allclose(whole[level].write_norm, written[level], rtol=1e-5)
        wanted = largest(state.weights, params, level)
        np.testing.assert_allclose(whole[level].delta_norm, wanted, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_padding_writes_nothing_and_ends_a_chunk(momentum):
    """A chunk of ten tokens and two of padding is one of ten tokens."""
    shapes = {"chunk_size": 12, "chunk_size_memory": 12, "online_chunk": 12}
    padded, _ = make(**shapes, momentum=momentum)
    whole, _ = make(**dict.fromkeys(shapes, 10), momentum=momentum)
    params, x = make_params(padded), inputs()[:12]
    active = jnp.arange(12) < 10
    want = whole.read(params, whole.init(params), None, x[:10], position=0)
    for tail in (x[10:], 100 * x[10:]):
        row = jnp.concatenate([x[:10], tail])
        got = padded.read(params, padded.init(params), None, row, position=0, active_n=active)
        np.testing.assert_allclose(got[0][:10], want[0], rtol=1e-9)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), got[1], want[1])
    nothing = padded.read(params, got[1], None, x, position=0, active_n=jnp.zeros(12, bool))[1]
    jax.tree.map(np.testing.assert_array_equal, nothing, got[1])
