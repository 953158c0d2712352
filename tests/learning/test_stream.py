"""A stream cut anywhere into calls gives the logits, the state and the statistics of one call."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.learning.online import OnlineRule, StreamResult, stream_loss
from hope_jax.learning.stream import Stream, Streamer
from hope_jax.learning.teach import TeachRule
from hope_jax.memory.levels import LevelSpec
from hope_jax.memory.self_mod import SelfMod
from hope_jax.models.lm import HopeModel
from hope_jax.models.registry import VARIANTS
from hope_jax.models.spec import ModelSpec
from hope_jax.types import NO_TARGET, Batch

DOUBLE = jnp.dtype("float64")
CHUNK, TOKENS, VOCAB = 8, 27, 11
CASES = [
    pytest.param(
        variant, style, marks=() if style == "modern" or variant == "hope_attention" else pytest.mark.nightly
    )
    for variant in VARIANTS
    for style in ("modern", "reference")
]
SPLITS = [(1,) * TOKENS, (0, 5, 12, 0, 1, 9), (8, 8, 8, 3), (26, 1)]


@cache
def setup(variant: str, style: str) -> tuple[Streamer, Any]:
    """Levels, and chunks of self-modifying memories, of half an online chunk and of two."""
    levels = (LevelSpec("fast", 4, 0.2), LevelSpec("slow", 16, 0.1))
    spec = ModelSpec(
        variant, style, VOCAB, 8, 2, 2, 12, 12, levels, CHUNK, "rms" if style == "modern" else "none",
        local_conv_window=3, flush_partial_at_end=True, dtype=DOUBLE, param_dtype=DOUBLE,
        self_mod=SelfMod(8, CHUNK, 4, 2 * CHUNK, eta_scale=0.01, conv_window=3),
    )  # fmt: skip
    model = HopeModel(spec)
    rule = OnlineRule(CHUNK, CHUNK, TeachRule(), training=False)
    return Streamer(model, rule), model.init_params(jax.random.key(0))


def rows(batch_size: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shape = (batch_size, TOKENS)
    return {
        "tokens": rng.integers(0, VOCAB, shape),
        "segment_ids": 1 + (np.arange(TOKENS) >= rng.integers(5, 20, (batch_size, 1))),
        "target_mask": rng.random(shape) > 0.2,
    }


def run(streamer: Streamer, params: Any, data: dict, split: tuple, capacity: int = TOKENS) -> tuple:
    state, at, logits = streamer.begin(params, len(data["tokens"]), capacity), 0, []
    for n in split:
        read, state = streamer.feed(params, state, **{k: v[:, at : at + n] for k, v in data.items()})
        logits.append(read)
        at += n
    return np.concatenate(logits, axis=1), state, streamer.finish(params, state)


def assert_same(got: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        near = 1e-6 if np.asarray(a).dtype == np.float32 else tolerance
        np.testing.assert_allclose(a, b, rtol=near, atol=near, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("variant", "style"), CASES)
def test_any_split_gives_the_same_logits_and_state(variant: str, style: str) -> None:
    streamer, params = setup(variant, style)
    logits, state, result = run(streamer, params, rows(), (TOKENS,))
    assert logits.shape == (3, TOKENS, VOCAB) and state.position == TOKENS
    for split in SPLITS:
        assert_same(run(streamer, params, rows(), split), (logits, state, result))


@pytest.mark.parametrize(("variant", "style"), CASES)
def test_stream_is_the_training_paths(variant: str, style: str) -> None:
    streamer, params = setup(variant, style)
    data = rows()
    tokens, segments = data["tokens"], data["segment_ids"]
    targets = np.full_like(tokens, NO_TARGET)
    valid = data["target_mask"][:, 1:] & (segments[:, 1:] == segments[:, :-1])
    targets[:, :-1] = np.where(valid, tokens[:, 1:], NO_TARGET)
    batch = Batch(*(jnp.asarray(t, jnp.int32) for t in (tokens, targets, segments)))
    fast = streamer.model.init_fast_state(params, 3)

    def loss(params: Any, fast: Any, batch: Batch) -> StreamResult:
        return stream_loss(streamer.model, streamer.rule, params, fast, batch)

    wanted = jax.jit(loss)(params, fast, batch)
    assert_same(run(streamer, params, data, (5, 22))[2], wanted)
    for levels in wanted.stats.values():
        assert all(float(stats.updates_applied.min()) > 0 for stats in levels.values())


def test_a_small_carry_grows() -> None:
    streamer, params = setup("hope_attention", "modern")
    logits, _, result = run(streamer, params, rows(), (TOKENS,))
    grown, state, regrown = run(streamer, params, rows(), (1, 20, 6), capacity=1)
    assert_same((grown, regrown), (logits, result))
    assert state.carry.segments.shape[1] == 32


def test_logits_do_not_depend_on_the_other_examples() -> None:
    streamer, params = setup("hope_attention", "modern")
    data = rows()
    other = {k: v.copy() for k, v in data.items()}
    other["tokens"][1:] = (other["tokens"][1:] + 3) % VOCAB
    logits, _, _ = run(streamer, params, data, (9, 18))
    changed, _, _ = run(streamer, params, other, (9, 18))
    np.testing.assert_allclose(changed[0], logits[0], rtol=0, atol=1e-12)
    assert np.abs(changed[1] - logits[1]).max() > 1e-3


def test_masked_tokens_teach_nothing() -> None:
    streamer, params = setup("hope_attention", "modern")
    data = rows()
    data["target_mask"] = np.zeros_like(data["target_mask"])
    _, _, result = run(streamer, params, data, (TOKENS,))
    assert all(float(s.updates_applied.max()) == 0 for s in result.stats["cms"].values())


def test_last_logits_are_those_after_the_last_token() -> None:
    streamer, params = setup("hope_attention", "modern")
    logits, state, _ = run(streamer, params, rows(), (TOKENS,))
    assert_same(np.asarray(streamer.last_logits(params, state)), logits[:, -1])
    empty: Stream = streamer.begin(params, 1, CHUNK)
    with pytest.raises(ValueError, match="nothing has been read"):
        streamer.last_logits(params, empty)


def test_shapes_that_do_not_fit_are_named() -> None:
    streamer, params = setup("hope_attention", "modern")
    state = streamer.begin(params, 2, CHUNK)
    with pytest.raises(ValueError, match=r"tokens: want shape \[2, n\], got \[1, 3\]"):
        streamer.feed(params, state, np.zeros((1, 3), int))
    with pytest.raises(ValueError, match=r"target_mask: want the tokens' shape"):
        streamer.feed(params, state, np.zeros((2, 3), int), target_mask=np.ones((2, 2), bool))
