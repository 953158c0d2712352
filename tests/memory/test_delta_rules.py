"""Delta momentum and delta gradient descent: writes against naive rules, and what the formulas promise."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import mlp_memory
from hope_jax.memory.rules import delta_gradient_descent, delta_momentum
from tests.close import assert_close
from tests.oracle import bridge, cases
from tests.oracle.cms import Cms, drawn_gradient
from tests.oracle.layers import Arch
from tests.oracle.writes import FAST, Learning, Level

LEVELS = (
    Level("dgd_two", 2, 0.3, "dgd"),
    Level("dgd_four", 4, 0.1, "dgd"),
    Level("dgd_eight", 8, 0.2, "dgd"),
    Level("momentum_two", 2, 0.3, "delta_momentum", beta=0.8),
    Level("momentum_eight", 8, 0.2, "delta_momentum", beta=0.6),
)
LENGTHS = (4, 4, 4, 3)
ARCH = Arch(1, levels=tuple(level.name for level in LEVELS))
OPEN = Learning(levels=LEVELS, chunk=4)
CASES = {
    "plain": (OPEN, False),
    "gated_bounded_flushed": (
        replace(OPEN, threshold=2.8, write_clip=0.03, delta_clip=0.05, flush=True),
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_writes_match_naive_periods(name: str) -> None:
    learning, biases = CASES[name]
    draw = cases.Draw(11)
    params = {level.name: cases.level_params(draw, biases) for level in LEVELS}
    cms, memories = bridge.cms_of(ARCH, learning), Cms(params, ARCH, learning)

    def write(fast: Any, chunk: Any, position: Any, last: bool) -> Any:
        return bridge.write_levels(cms, params, fast, chunk, position, last=last)[0]

    compiled = jax.jit(write, static_argnums=3, compiler_options={"xla_backend_optimization_level": 0})
    fast, start, written = cms.init(jax.tree.map(jnp.asarray, params)), 0, 0
    for i, chunk in enumerate(cases.chunks(LEVELS, LENGTHS, seed=4, idle=0.3, own=0.05)):
        last = i == len(LENGTHS) - 1
        fast = compiled(fast, chunk, jnp.int32(start), last)
        written += sum(w.applied for w in memories.write_chunk(cases.tokens_of(chunk), start, last))
        for level in LEVELS:
            memory, what = memories.memories[level.name], f"chunk {i} {level.name}"
            assert_close(dict(fast[level.name].delta), memory.delta, what)
            bridge.assert_same_optimizer(level, fast[level.name].opt, memory.state, what)
        start += len(chunk["block"])
    assert written == 19 if learning.threshold is None else 8 < written < 24, written
    assert all(np.linalg.norm(m.delta["w_up"]) > 1e-2 for m in memories.memories.values())


def test_one_token_of_norm_one_is_equation_57() -> None:
    """W (I - eta' x x^T) - eta' grad_y L (x) x with matrices [out, in] and eta' = eta / (1 + eta)."""
    rng, lr = np.random.default_rng(0), 0.7
    p = {"w_up": rng.normal(size=(5, 6)), "w_down": rng.normal(size=(6, 5))}
    x, teach = rng.normal(size=(1, 5)), rng.normal(size=(1, 5))
    x /= np.linalg.norm(x)
    zero = jax.tree.map(np.zeros_like, p)
    plain = mlp_memory.write_factors(p, zero, jnp.asarray(x), jnp.asarray(teach))
    drawn = delta_gradient_descent(plain, lr, jnp.ones(1, bool), biases=False)
    step = mlp_memory.write_gradient(drawn, jax.tree.map(jnp.asarray, p))["w_up"]
    eta, w = lr / (1 + lr), p["w_up"].T
    wanted = w @ (np.eye(5) - eta * x.T @ x) - eta * np.asarray(plain.g_h).T @ x
    np.testing.assert_allclose((p["w_up"] - lr * step).T, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("biases", [False, True])
def test_factors_match_the_linear_system_and_skip_masked_tokens(biases: bool) -> None:
    draw, lr = cases.Draw(2), 0.4
    p = cases.level_params(draw, biases)
    delta = {n: 0.1 * draw.rng.normal(size=w.shape) for n, w in p.items() if n in FAST}
    x, teach = draw.rng.normal(size=(2, 3, cases.DIM))
    mask = np.array([True, False, True])
    clip = 1.0 if biases else 0.0
    masked = jnp.asarray(np.where(mask[:, None], teach, 0))
    plain = mlp_memory.write_factors(
        p, delta, mlp_memory.normalise(p, jnp.asarray(x)), masked, output_clip=clip or None
    )
    slow = mlp_memory.fast_weights(jax.tree.map(jnp.asarray, p))
    drawn = delta_gradient_descent(plain, lr, jnp.asarray(mask), biases=biases)
    level, weights = Level("level", 1, lr, "dgd"), {n: w + delta.get(n, 0.0) for n, w in p.items()}
    tokens = [drawn_gradient(level, weights, x[t], teach[t], clip) for t in (0, 2)]
    wanted = {n: tokens[0][n] + tokens[1][n] for n in tokens[0]}
    assert_close(dict(mlp_memory.write_gradient(drawn, slow)), wanted, "gradient", 1e-12)


def test_dgd_draws_the_output_to_minus_the_gradient_at_any_rate() -> None:
    rng = np.random.default_rng(1)
    p = {"w_up": rng.normal(size=(5, 6)), "w_down": rng.normal(size=(6, 5))}
    zero = jax.tree.map(np.zeros_like, p)
    plain = mlp_memory.write_factors(p, zero, jnp.asarray(rng.normal(size=(1, 5))), jnp.ones((1, 5)))
    lr = 1e8
    drawn = delta_gradient_descent(plain, lr, jnp.ones(1, bool), biases=False)
    new = p["w_down"] - lr * mlp_memory.write_gradient(drawn, p)["w_down"]
    np.testing.assert_allclose(plain.a @ new, -plain.g_o, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("square", "grows"), [(1.85, False), (1.95, True)])
def test_delta_momentum_grows_where_the_gradient_is_larger_than_its_bound(square: float, grows: bool) -> None:
    rng = np.random.default_rng(3)
    g = np.outer(rng.normal(size=4), rng.normal(size=7))
    g = jnp.asarray(g * np.sqrt(square) / np.linalg.norm(g))
    optimizer = delta_momentum(0.9)
    state = optimizer.init({"w": g})
    advance = jax.jit(lambda state: optimizer.update({"w": g}, state))
    sizes = []
    for _ in range(400):
        update, state = advance(state)
        sizes.append(float(jnp.linalg.norm(update["w"])))
    assert (sizes[-1] > 1e6) if grows else (max(sizes) < 2 * np.sqrt(square))
