"""Self-modifying Titans against the loop over tokens: outputs, memories, gradients, calls, shared states."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.self_mod import SelfMod
from tests.oracle.bridge import assert_close
from tests.oracle.self_mod import Settings, read

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


def make(**options: Any) -> tuple[SelfMod, Settings]:
    chunks = {"chunk_size": 2, "chunk_size_memory": 4, **options}
    memory = SelfMod(DIM, ONLINE, eta_scale=0.05, **chunks)
    return memory, Settings(
        memory.chunk_size,
        memory.chunk_size_memory,
        memory.eta_scale,
        memory.adaptive_q,
        memory.use_alpha,
        memory.rank1,
        memory.objective,
        memory.stopgrad_vhat,
    )


OPTIONS = {
    "default_with_convolution": {"conv_window": 3},
    "everything_adaptive": {"adaptive_q": True, "stopgrad_vhat": False},
    "dot_without_decay": {"objective": "dot", "use_alpha": False, "projection_skip": False},
    "no_rank1_chunks_longer_than_calls": {"rank1": False, "chunk_size": 8, "chunk_size_memory": 12},
}


def in_calls(memory: SelfMod, params: Any, x: jax.Array) -> Any:
    """The stream in calls of one online chunk, the last one ragged."""
    state, carry, outs = memory.init(params), memory.init_carry(x.dtype), []
    for at in range(0, len(x), ONLINE):
        piece = x[at : at + ONLINE]
        out, state, carry, _ = memory.read(params, state, carry, piece, position=jnp.int32(at))
        outs.append(out)
    return jnp.concatenate(outs), state.weights


def in_one(memory: SelfMod, params: Any, x: jax.Array) -> Any:
    out, state, _, _ = memory.read(params, memory.init(params), None, x, position=0)
    return out, state.weights


QUICK_CASES = ("default_with_convolution", "no_rank1_chunks_longer_than_calls")
CASES = [pytest.param(n, marks=() if n in QUICK_CASES else pytest.mark.nightly) for n in OPTIONS]


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_memories_match_the_loop_over_tokens(name: str) -> None:
    memory, settings = make(**OPTIONS[name])
    params, x = make_params(memory), inputs()
    wanted = jax.tree.map(np.asarray, read(params, x, settings))
    assert all(1e-3 < np.abs(w).max() < 1e3 for w in jax.tree.leaves(wanted)), "dead or diverged"
    for way in (in_one, in_calls):
        got = jax.jit(partial(way, memory), compiler_options=QUICK)(params, x)
        assert_close(got, wanted, way.__name__)
    start = {w: params[w] for w in wanted[1]}
    change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), wanted[1], start)
    assert min(jax.tree.leaves(change)) > 1e-4, "a memory that is never written tests nothing"


@pytest.mark.parametrize("name", ["default_with_convolution", CASES[1]])
def test_gradients_through_the_writes(name: str) -> None:
    memory, settings = make(**OPTIONS[name])
    params, x = make_params(memory), inputs(12)

    def value(way: Any, params: Any, x: jax.Array) -> jax.Array:
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in jax.tree.leaves(way(params, x)))

    ours = jax.jit(
        jax.value_and_grad(partial(value, partial(in_calls, memory)), (0, 1)), compiler_options=QUICK
    )
    naive = partial(value, partial(read, settings=settings))
    at, gradient = ours(params, x)
    wanted = jax.grad(naive, (0, 1))(params, x)
    assert_close(gradient, jax.tree.map(np.asarray, wanted), "gradient")
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), gradient[0], direction)))
    h = 1e-6
    low, high = (ours(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction), x)[0] for s in (-h, h))
    assert float(high - low) / (2 * h) == pytest.approx(along, rel=1e-6)
    assert np.isfinite(at)


def test_a_shared_state_is_the_mean_of_what_each_example_makes_of_it() -> None:
    memory, _ = make()
    params, x = make_params(memory), inputs(2 * ONLINE).reshape(2, ONLINE, DIM)

    def shared(x: jax.Array) -> Any:
        reduce = partial(jax.lax.psum, axis_name="examples")
        state, carry = memory.init(params), memory.init_carry(x.dtype)
        return memory.read(params, state, carry, x, position=jnp.int32(0), reduce=reduce)[1].weights["memory"]

    together = jax.vmap(shared, axis_name="examples", out_axes=None)(x)
    # The generators' own means enter M_memory's streams after their first chunk: one chunk of both here.
    memory_only = SelfMod(DIM, ONLINE, eta_scale=0.05, chunk_size=ONLINE, chunk_size_memory=ONLINE)
    apart = [in_one(memory_only, params, row)[1]["memory"] for row in x]
    whole = jax.vmap(partial(_shared_memory, memory_only, params), axis_name="examples", out_axes=None)(x)
    assert_close(whole, jax.tree.map(lambda *w: np.mean(w, 0), *apart), "mean")
    gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), together, whole)
    assert max(jax.tree.leaves(gap)) > 1e-6


def _shared_memory(memory: SelfMod, params: Any, x: jax.Array) -> Any:
    reduce = partial(jax.lax.psum, axis_name="examples")
    carry = memory.init_carry(x.dtype)
    read = memory.read(params, memory.init(params), carry, x, position=jnp.int32(0), reduce=reduce)
    return read[1].weights["memory"]


def test_without_a_fast_state_the_initial_weights_are_read_and_nothing_is_written() -> None:
    memory, _ = make(conv_window=3)
    params, x = make_params(memory), inputs(8)
    out, state, carry, stats = memory.read(params, None, None, x, position=0)
    assert state is None and carry is None
    assert all(float(s) == 0 for s in jax.tree.leaves(stats))
    first = in_one(memory, params, x)[0]
    np.testing.assert_allclose(out[:4], first[:4], rtol=0, atol=1e-12)
    assert float(jnp.abs(out[4:] - first[4:]).max()) > 1e-4
