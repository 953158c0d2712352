"""Levels that are held as tokens (`ModelSpec.context_tokens`) against the same levels as matrices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hope_jax.kernels.cms_write import Dual, dual

from hope_jax.learning.online import OnlineRule, stream_loss
from hope_jax.learning.outer_gradient import online_gradients
from hope_jax.learning.teach import TeachRule
from hope_jax.learning.through_writes import through_writes_gradients
from hope_jax.memory.cms import Bounds
from hope_jax.memory.gate import GateRule
from hope_jax.memory.levels import LevelSpec
from hope_jax.models.lm import HopeModel
from hope_jax.models.spec import ModelSpec
from hope_jax.types import Batch

CHUNK, VOCAB, LONGEST = 8, 11, 24
QUICK = {"xla_backend_optimization_level": 0}
ONE = LevelSpec("one", 1, 0.02, "nl_l2_precond")
PART = LevelSpec("part", 4, 0.02, "nl_l2_precond")
WHOLE = LevelSpec("whole", 8, 0.02, "momentum", beta=0.5)
SPANNING = LevelSpec("spanning", 16, 0.02, "nl_l2_precond")
LONGER = LevelSpec("longer", 64, 0.02, "sgd")
REFERENCE = (
    PART._replace(optimizer="l2_objective"),
    SPANNING,
    LevelSpec("square", 8, 0.002, "preconditioned"),
)
ALL = (ONE, PART, WHOLE, SPANNING, LONGER)


def make(
    variant: str, style: str, levels: tuple[LevelSpec, ...], context_tokens: int, **values: Any
) -> HopeModel:
    return HopeModel(
        ModelSpec(
            variant, style, VOCAB, 32, 1, 2, 128, 128, levels, CHUNK,
            qk_norm="rms" if style == "modern" else "none", flush_partial_at_end=True,
            context_tokens=context_tokens,
            titan_level=LevelSpec("titan", 4, 0.02, "nl_l2_precond"), titan_hidden=128,
            dtype=jnp.dtype("float64"), param_dtype=jnp.dtype("float64"), **values,
        )
    )  # fmt: skip


def rows(tokens: int) -> Batch:
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, VOCAB, (2, tokens + 1))
    targets = np.where(rng.random((2, tokens)) > 0.2, drawn[:, 1:], -1)
    return Batch(*(jnp.asarray(t, jnp.int32) for t in (drawn[:, :-1], targets, np.ones((2, tokens)))))


def matrices(fast: Any) -> Any:
    """What every level has added, as matrices."""

    def of_level(delta: dict[str, Any]) -> list[Any]:
        if not any(isinstance(d, Dual) for d in delta.values()):
            return [delta[w] for w in ("w_up", "w_down")]
        layers = jax.vmap(jax.vmap(lambda d: dual.dense(d)[0].matrix))
        return [layers(delta[w]) for w in ("w_up", "w_down")]

    return {
        name: {level: of_level(state.delta) for level, state in levels.items()}
        for name, levels in fast.items()
    }


def assert_near(got: Any, wanted: Any) -> None:
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(b).max() if np.size(b) else 0.0
        tolerance = 1e-9 if np.asarray(a).dtype == np.float64 else 1e-6
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )


def read_only(model: HopeModel, rule: OnlineRule, params: Any, fast: Any, batch: Batch, _: Any) -> Any:
    return {}, stream_loss(model, rule, params, fast, batch)


NIGHTLY = pytest.mark.nightly
BOUNDED = {"bounds": Bounds(0.002, 0.003), "gate": GateRule("l2", 0.01)}


@pytest.mark.parametrize(
    ("mode", "variant", "style", "levels", "tokens", "truncate", "values"),
    [
        pytest.param(
            online_gradients, "hope_hybrid", "modern", (PART, WHOLE, LONGER), 20, CHUNK, BOUNDED,
            marks=NIGHTLY,
        ),
        pytest.param(
            online_gradients, "hope_attention", "reference", REFERENCE, 20, CHUNK, BOUNDED, marks=NIGHTLY
        ),
        pytest.param(
            online_gradients, "hope_attention", "modern", (ONE, SPANNING), 24, 2 * CHUNK,
            {"cms_connection": "independent"}, marks=NIGHTLY,
        ),
        pytest.param(online_gradients, "hope_hybrid", "modern", ALL, 20, CHUNK, BOUNDED, marks=NIGHTLY),
        pytest.param(online_gradients, "hope_attention", "modern", ALL, 24, CHUNK, {}, marks=NIGHTLY),
        pytest.param(
            online_gradients, "hope_attention", "modern", ALL, 24, 2 * CHUNK,
            {"cms_connection": "independent"}, marks=NIGHTLY,
        ),
        pytest.param(
            read_only, "hope_hybrid", "reference", REFERENCE, 24, CHUNK, {"own_output": False}, marks=NIGHTLY
        ),
        pytest.param(
            through_writes_gradients, "hope_hybrid", "modern", ALL, 20, CHUNK, BOUNDED, marks=NIGHTLY
        ),
        pytest.param(
            online_gradients, "titan", "reference", REFERENCE, 24, CHUNK, {"own_output": False}, marks=NIGHTLY
        ),
    ],
)  # fmt: skip
def test_tokens_and_matrices_agree(
    mode: Any,
    variant: str,
    style: str,
    levels: tuple[LevelSpec, ...],
    tokens: int,
    truncate: int,
    values: dict[str, Any],
) -> None:
    rule = OnlineRule(CHUNK, truncate, TeachRule(scale=0.3, clip=0.4))
    params = make(variant, style, levels, 0, **values).init_params(jax.random.key(0))
    found = []
    for context in (LONGEST, 0):
        model = make(variant, style, levels, context, **values)
        fast = model.init_fast_state(params, 2)
        nodes = jax.tree.leaves(fast, is_leaf=lambda x: isinstance(x, Dual))
        assert any(isinstance(x, Dual) for x in nodes) == bool(context)
        run = jax.jit(partial(mode, model, rule), compiler_options=QUICK)
        gradient, result = run(params, fast, rows(tokens), jnp.ones(()))
        found.append((gradient, result.sums, result.stats, matrices(result.fast)))
    assert_near(*found)
    written = jax.tree.leaves(found[1][-1])
    assert all(np.abs(w).max() > 0 for w in written)


def test_longer_streams_are_refused() -> None:
    model = make("hope_attention", "modern", (PART,), LONGEST)
    rule = OnlineRule(CHUNK, CHUNK, TeachRule())

    def run() -> Any:
        params = model.init_params(jax.random.key(0))
        return stream_loss(model, rule, params, model.init_fast_state(params, 2), rows(32))

    with pytest.raises(ValueError, match="context_tokens=24"):
        jax.eval_shape(run)
