"""Mode `through_writes`: the same stream as `online`, and the gradient of the whole of it, uncut."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core.types import Batch
from hope_jax.learning import modes, teach
from hope_jax.learning.chunk import OnlineRule, read_loss
from hope_jax.models.lm import HopeModel
from tests.close import assert_close
from tests.oracle import bridge, cases
from tests.oracle.layers import Arch
from tests.oracle.writes import Learning, Level

QUICK = {"xla_backend_optimization_level": 0}
LEVELS = (Level("fast", 4, lr=0.2), Level("slow", 16, lr=0.1, beta=0.5))
MODERN = Arch(cases.HEADS, levels=("fast", "slow"))
REFERENCE = replace(MODERN, style="reference", qk_norm="l2", read_clip=1.0)


def learn(**values: object) -> Learning:
    return Learning(**{"levels": LEVELS, "chunk": 8, **values})  # type: ignore[arg-type]


CASES = {
    "own_output_ragged": (MODERN, learn(), "example", 0),
    "bounds_gate_clip": (
        MODERN,
        learn(threshold=0.5, teach_clip=0.4, write_clip=0.02, delta_clip=0.03, delta_at="block_output"),
        "example",
        3,
    ),
    "reference_second_moments_batch_scope": (
        REFERENCE,
        learn(levels=(Level("fast", 2, 0.02, "preconditioned"), Level("slow", 8, 0.1, "nl_l2_precond"))),
        "batch",
        0,
    ),
    "independent_levels": (replace(MODERN, connection="independent"), learn(), "example", 0),
    "nested_levels": (
        replace(MODERN, levels=("fast", "slow", "mid"), connection="nested"),
        learn(levels=(*LEVELS, Level("mid", 8, 0.1))),
        "example",
        0,
    ),
    "window_transformer": (Arch(cases.HEADS, window=5), Learning(chunk=8), "example", 0),
}


def looped_loss(model: HopeModel, rule: OnlineRule, params: Any, batch: Batch) -> jax.Array:
    """The stream as a loop over chunks, for plain automatic differentiation."""
    tokens = batch.tokens.shape[1]
    fast, norms = model.init_fast_state(params, len(batch.tokens)), model.norms(params)
    carry, total = model.init_carry(len(batch.tokens), tokens), jnp.zeros(())
    for start in range(0, tokens, rule.chunk_size):
        chunk = jax.tree.map(lambda t, at=start: t[:, at : at + rule.chunk_size], batch)

        def loss(taps: Any, fast: Any = fast, carry: Any = carry, chunk: Batch = chunk) -> Any:
            out = model.read(
                params, fast, carry, chunk.tokens, chunk.segment_ids, taps, training=rule.training
            )
            losses = read_loss(params, out, chunk.targets)
            return losses.total, (out, losses)

        (value, (out, losses)), raw = jax.value_and_grad(loss, has_aux=True)(
            model.init_taps(*chunk.tokens.shape)
        )
        signal = teach.process(rule.teach, raw, losses, jnp.ones(()))
        at = jnp.int32(start)
        fast, _ = model.write(params, norms, out.fast, out.trace, signal, at, training=rule.training)
        carry, total = out.carry, total + value
    return total


SMOOTH = ("own_output_ragged", "window_transformer")
"""Cases that always run; in them a small step changes no gate and no bound."""


@pytest.mark.parametrize(
    ("name", "tokens"),
    [(n, 20) if n in SMOOTH else pytest.param(n, 28, marks=pytest.mark.nightly) for n in CASES],
)
def test_gradient_is_that_of_the_plain_loop_and_the_stream_that_of_online(name: str, tokens: int) -> None:
    arch, learning, scope, conv = CASES[name]
    model, rule = bridge.hope_model(arch, learning, conv, scope), bridge.online_rule(learning)
    params = jax.tree.map(jnp.asarray, cases.model_params(arch, conv=conv))
    batch = bridge.batch_of(cases.examples(2, tokens))
    fast, one = model.init_fast_state(params, 2), jnp.ones(())
    jit = partial(jax.jit, compiler_options=QUICK)
    through_writes = jit(lambda p: modes.through_writes(model, rule, p, fast, batch, one))
    gradient, result = through_writes(params)
    wanted = jit(jax.grad(lambda p: looped_loss(model, rule, p, batch)))(params)
    assert_close(gradient, jax.tree.map(np.asarray, wanted), "gradient")
    cut, online = jit(lambda p: modes.online(model, rule, p, fast, batch, one))(params)
    chex.assert_trees_all_close(result, online, rtol=0, atol=1e-9)
    if arch.levels:
        apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), gradient, cut)
        assert max(jax.tree.leaves(apart)) > 1e-3, "nothing flowed through a write"
    if name in SMOOTH:
        assert_agrees_with_finite_differences(
            gradient, params, lambda p: float(through_writes(p)[1].sums.loss)
        )


def assert_agrees_with_finite_differences(gradient: Any, params: Any, loss: Callable[[Any], float]) -> None:
    """Along a random direction."""
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)

    def at(step: float) -> float:
        return loss(jax.tree.map(lambda p, d: p + step * d, params, direction))

    along = sum(
        float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    )
    h = 1e-6
    assert (at(h) - at(-h)) / (2 * h) == pytest.approx(along, rel=1e-6)
