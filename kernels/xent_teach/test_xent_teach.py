"""Blocks against the oracle: losses, entropies, first and second derivatives, numerics, memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.xent_teach import cross_entropy, logits_of

from hope_jax.perf.rounding import xent_teach as numerics
from tests.oracle.model import head_signal, predict

BATCH, TOKENS, DIM, VOCAB = 2, 5, 4, 7
TARGETS = [[3, 0, -1, 6, 2], [-1, 1, 1, 5, 0]]
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

BLOCKS = {"one": 2**24, "ragged": BATCH * VOCAB * 2, "even": BATCH * VOCAB, "below_a_token": 1}
"""Logits of a block, for blocks of 5, 2 (the last: 1), 1 and 1 tokens of each example."""


def case(scale: float = 3.0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH, TOKENS, DIM))
    return jnp.asarray(hidden * scale), jnp.asarray(rng.normal(size=(VOCAB, DIM)))


def blocks_total(block_logits: int) -> Callable[..., Any]:
    return lambda hidden, head: cross_entropy(hidden, head, jnp.asarray(TARGETS), block_logits).total


def naive(hidden: jax.Array, head: jax.Array) -> Any:
    """Summed loss; losses, entropies and cotangents [B, T, ...], one token after the other."""
    rows = [
        [
            (*predict(head @ h, target), head_signal(head @ h, target, head))
            for h, target in zip(*row, strict=True)
        ]
        for row in zip(hidden, TARGETS, strict=True)
    ]
    loss, entropy, signal = (jnp.stack([jnp.stack([t[i] for t in row]) for row in rows]) for i in range(3))
    return loss.sum(), loss, entropy, signal


def naive_total(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return naive(hidden, head)[0]


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-9) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, wanted)


taught_by = {0: lambda signal: jnp.sin(signal), 1: lambda gradient: gradient**3}


def second_order(total: Callable[..., Any]) -> Callable[..., Any]:
    """Gradients of functions of first derivatives, as mode `through_writes` takes of the teach signal."""

    def taught(hidden: jax.Array, head: jax.Array, by: int) -> jax.Array:
        value, first = jax.value_and_grad(total, argnums=by)(hidden, head)
        return value**2 + (taught_by[by](first) * jnp.arange(first.size).reshape(first.shape)).sum()

    return quick(lambda *case: [jax.grad(taught, argnums=(0, 1))(*case, by) for by in taught_by])


@pytest.fixture(scope="module")
def wanted() -> Any:
    """Of the oracle: (total, losses, entropies, signal), gradients, second derivatives."""
    gradients = quick(jax.grad(naive_total, argnums=(0, 1)))
    forward = quick(naive)
    return forward(*case()), gradients(*case()), second_order(naive_total)(*case(1.0))


@pytest.mark.parametrize("blocks", BLOCKS)
def test_blocks_match_naive(blocks: str, wanted: Any) -> None:
    (total, loss, entropy, signal), gradients, _ = wanted
    got = quick(cross_entropy, static_argnums=3)(*case(), jnp.asarray(TARGETS), BLOCKS[blocks])
    assert_close(tuple(got), (total, loss, entropy, np.asarray(TARGETS) >= 0))
    by_hidden, by_head = quick(jax.grad(blocks_total(BLOCKS[blocks]), argnums=(0, 1)))(*case())
    assert_close(by_hidden, signal)
    assert_close((by_hidden, by_head), gradients)


@pytest.mark.parametrize("blocks", ["one", "ragged"])
def test_second_derivatives_match_naive(blocks: str, wanted: Any) -> None:
    assert_close(second_order(blocks_total(BLOCKS[blocks]))(*case(1.0)), wanted[2])


def test_scaled_loss_scales_its_gradient_and_gates_are_constants(wanted: Any) -> None:
    def loss(hidden: jax.Array, head: jax.Array) -> jax.Array:
        found = cross_entropy(hidden, head, jnp.asarray(TARGETS))
        return 0.25 * found.total + found.loss_bt.sum() + found.entropy_bt.sum()

    got = quick(jax.grad(loss, argnums=(0, 1)))(*case())
    assert_close(got, jax.tree.map(lambda g: g / 4, wanted[1]))


def test_a_vanishing_probability_loses_no_loss_and_a_certain_one_no_entropy() -> None:
    """Logits of +-1000: nothing overflows, in float32 either."""
    hidden = jnp.asarray([[[1000.0], [-1000.0]]], jnp.float32)
    head = jnp.asarray([[1.0], [0.0]], jnp.float32)
    targets = jnp.asarray([[1, 1]])
    got = cross_entropy(hidden, head, targets)
    np.testing.assert_allclose(got.loss_bt, [[1000, 0]])
    np.testing.assert_allclose(got.entropy_bt, [[0, 0]])
    signal = jax.grad(lambda h: cross_entropy(h, head, targets).total)(hidden)
    np.testing.assert_allclose(signal, [[[1], [0]]])


def test_bfloat16_keeps_logits_and_the_heads_gradient_in_float32() -> None:
    hidden, head = (t.astype(jnp.float32) for t in case(1.0))
    narrow = hidden.astype(jnp.bfloat16)
    assert logits_of(narrow, head).dtype == jnp.float32
    by_hidden, by_head = jax.eval_shape(jax.grad(blocks_total(14), argnums=(0, 1)), narrow, head)
    assert by_hidden.dtype == jnp.bfloat16 and by_head.dtype == jnp.float32


@pytest.mark.parametrize(
    ("dtype", "bounds"), [("float32", (1e-6, 5e-5, 2e-5, 2e-5)), ("bfloat16", (1e-6, 5e-5, 1e-2, 1e-2))]
)
def test_rounding_errors_stay_small_for_nearly_certain_predictions(dtype: str, bounds: Any) -> None:
    errors = numerics.errors(30.0, dtype, tokens=70, dim=8)
    assert all(0 < error < bound for error, bound in zip(errors, bounds, strict=True)), errors


@pytest.mark.parametrize("argnums", [0, (0, 1)])
def test_one_block_of_logits_is_all_that_is_held(argnums: Any) -> None:
    """Temporaries by the compiler: a block's logits and the gradients, whatever the number of tokens."""
    tokens, dim, vocab, block = 512, 8, 2048, 16
    like = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, tokens, dim), (vocab, dim))]
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def loss(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        return cross_entropy(hidden, head, targets, block * vocab).total

    compiled = jax.jit(jax.value_and_grad(loss, argnums=argnums)).lower(*like, targets).compile()
    gradients = 4 * (2 * tokens * dim + 3 * vocab * dim)
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2 * block * vocab + 2 * gradients
