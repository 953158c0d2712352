"""One chunk in closed form against the recursion, forward and gradient, over the options."""

import functools
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.self_mod import Rule, Tokens, layout_of, stack, unstack, write_chunk

from tests.oracle.self_mod import Settings, written

DIM, HIDDEN = 5, 7
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_group(seed: int) -> Any:
    """Two square memories and a scalar one with a skip, alive: weights of unit scale."""
    rng = np.random.default_rng(seed)

    def weights(out: int, skip: bool) -> dict[str, jax.Array]:
        shapes = {"w_in": (HIDDEN, DIM), "w_out": (out, HIDDEN), **({"w_skip": (out, DIM)} if skip else {})}
        return {name: jnp.asarray(rng.normal(size=s) / np.sqrt(s[1])) for name, s in shapes.items()}

    return {"eta": weights(1, True), "k": weights(DIM, False), "v": weights(DIM, False)}


def make_tokens(count: int, alpha: float, seed: int = 1) -> Tokens:
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(count, DIM)) + 1.0
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    decay = np.log(alpha) * (1 + 0.1 * rng.uniform(size=count))
    etas = 0.1 * rng.uniform(size=count)
    return Tokens(*map(jnp.asarray, (keys, rng.normal(size=(count, DIM)), etas, decay)))


def closed_form(rule: Rule, group: Any, buffers: Any, tokens: Tokens, live: Any = None) -> Any:
    layout = layout_of(group)
    stacked = stack(group, buffers if rule.momentum else None)
    if live is not None:
        eta, log_alpha = (jnp.where(live, t, 0) for t in (tokens.eta, tokens.log_alpha))
        tokens = tokens._replace(eta=eta, log_alpha=log_alpha)
    return unstack(write_chunk(stacked, layout, tokens, rule), layout)


def recursion(rule: Rule, group: Any, buffers: Any, tokens: Tokens, live: Any = None) -> Any:
    k, v, eta, log_alpha = tokens
    rows = zip(k, v, eta, jnp.exp(log_alpha), strict=True)
    there = [row for t, row in enumerate(rows) if live is None or live[t]]
    each = {name: written(group[name], buffers[name], there, Settings(**vars(rule))) for name in group}
    now, after = ({name: one[i] for name, one in each.items()} for i in (0, 1))
    return now, after if rule.momentum else None


def assert_same(got: Any, wanted: Any, tolerance: float = 1e-9) -> None:
    def same(path: Any, a: jax.Array, b: jax.Array) -> None:
        assert np.isfinite(a).all()
        assert a.dtype == jnp.float64
        bound = tolerance * max(1.0, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=str(path))

    jax.tree_util.tree_map_with_path(same, got, wanted)


RULES = [Rule(*options) for options in product(("l2", "dot"), (True, False), (True, False), (0.0, 0.8))]
QUICK_RULES = [  # every pair of options meets in one of these
    Rule("l2", True, True, 0.0),
    Rule("l2", False, False, 0.8),
    Rule("dot", True, False, 0.8),
    Rule("dot", False, True, 0.8),
    Rule("dot", False, False, 0.0),
]
SIZES = [(1, 0.9), (5, 0.5), (11, 0.99), (19, 0.9)]
QUICK_CASES = [
    *((rule, SIZES[2]) for rule in QUICK_RULES),
    (QUICK_RULES[0], SIZES[0]),
    (QUICK_RULES[3], SIZES[1]),
]
CASES = [
    pytest.param(
        *case, marks=() if case in QUICK_CASES else pytest.mark.nightly, id=f"{case[1][0]}-{case[0]}"
    )
    for case in product(RULES, SIZES)
]


@pytest.mark.parametrize(("rule", "size"), CASES)
def test_chunked_matches_naive(rule: Rule, size: tuple[int, float]) -> None:
    group, buffers, tokens = make_group(0), make_group(2), make_tokens(*size)
    got = quick(functools.partial(closed_form, rule))(group, buffers, tokens)
    wanted = recursion(rule, group, buffers, tokens)
    assert_same(got, wanted)
    change = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), wanted[0], group)
    assert min(jax.tree.leaves(change)) > 1e-4, "a weight that no write changes tests nothing"


LIVE = {"left_out": [True, False, True, True, False], "ragged": [True] * 11 + [False] * 2}
QUICK_GRADIENT = (Rule("dot", False, True, 0.8), "left_out")
GRADIENT_CASES = [
    pytest.param(
        *case, marks=() if case == QUICK_GRADIENT else pytest.mark.nightly, id=f"{case[1]}-{case[0]}"
    )
    for case in product(RULES, LIVE)
]


@pytest.mark.parametrize(("rule", "tail"), GRADIENT_CASES)
def test_gradients_match_naive_with_tokens_left_out(rule: Rule, tail: str) -> None:
    live = np.array(LIVE[tail])
    group, buffers, tokens = make_group(0), make_group(2), make_tokens(len(live), 0.8)
    weight = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size).reshape(w.shape)), group)

    def value(write: Any, group: Any, buffers: Any, tokens: Tokens) -> jax.Array:
        written, _ = write(rule, group, buffers, tokens, live)
        return sum(jax.tree.leaves(jax.tree.map(lambda w, c: (w * c).sum(), written, weight)))

    gradient = [
        quick(jax.grad(functools.partial(value, write), argnums=(0, 1, 2)))(group, buffers, tokens)
        for write in (closed_form, recursion)
    ]
    if not rule.momentum:
        gradient = [(g[0], g[2]) for g in gradient]
    assert_same(*gradient)


@pytest.mark.parametrize("size", [64, pytest.param(256, marks=pytest.mark.nightly)])
def test_no_decay_overflows_in_float32(size: int) -> None:
    group = jax.tree.map(jnp.float32, make_group(0))

    def total(group: Any, tokens: Tokens) -> jax.Array:
        return sum(jnp.sum(w**2) for w in jax.tree.leaves(closed_form(Rule(), group, group, tokens)[0]))

    value_and_gradient = quick(jax.value_and_grad(total))
    for alpha in (1e-30, 0.5, 1.0):
        value, gradient = value_and_gradient(group, jax.tree.map(jnp.float32, make_tokens(size, alpha)))
        assert np.isfinite(value), alpha
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient)), alpha
        assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradient))
