"""A stream cut anywhere into calls gives the logits, the state and the statistics of one call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.core.types import NO_TARGET, Batch
from hope_jax.learning.chunk import State, stream_loss
from hope_jax.learning.stream import BLOCK, Stream
from tests.streams import (
    CAPACITY,
    CHUNK,
    TOKENS,
    VOCAB,
    assert_same,
    cases,
    part,
    rows,
    run,
    setup,
    variants,
)

SPLITS = [(1,) * TOKENS, (0, 5, 12, 0, 1, 9), (8, 8, 8, 3), (26, 1)]


@pytest.mark.parametrize(("variant", "style"), cases())
def test_any_split_gives_the_same_logits_and_state(variant: str, style: str) -> None:
    streamer, params = setup(variant, style)
    logits, state, result = run(streamer, params, rows(), (TOKENS,))
    assert logits.shape == (3, TOKENS, VOCAB) and state.position == TOKENS
    for split in SPLITS:
        assert_same(run(streamer, params, rows(), split), (logits, state, result))


@pytest.mark.parametrize("variant", variants())
def test_any_split_with_one_memory_for_the_batch(variant: str) -> None:
    streamer, params = setup(variant, scope="batch")
    wanted = run(streamer, params, rows(), (TOKENS,))
    for split in SPLITS:
        assert_same(run(streamer, params, rows(), split), wanted)


@pytest.mark.parametrize("variant", variants())
def test_any_split_in_bfloat16_with_one_memory_for_the_batch(variant: str) -> None:
    """The same compiled pieces write, so states agree to the last bit; an unfinished chunk's logits come of
    another piece than a whole chunk's and differ by roundings of 2^-8 (measured: 0.8 % of the largest)."""
    streamer, params = setup(variant, scope="batch", dtype="bfloat16")
    logits, state, result = run(streamer, params, rows(), (TOKENS,))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.carry.cache)} >= {"bfloat16"}
    assert "bfloat16" not in {str(leaf.dtype) for leaf in jax.tree.leaves(state.fast)}
    for split in SPLITS:
        got, got_state, got_result = run(streamer, params, rows(), split)
        assert_same((got_state, got_result), (state, result), single=0)
        np.testing.assert_allclose(got, logits, rtol=0, atol=0.03 * np.abs(logits).max())


@pytest.mark.parametrize("variant", variants("hope_attention"))
def test_segments_of_many_chunks_and_a_carry_that_grows(variant: str) -> None:
    """From `BLOCK` chunks on a call of the device takes that many; shorter segments go chunk by chunk."""
    streamer, params = setup(variant)
    tokens = CHUNK * (BLOCK + 2) + 3
    data = rows(3, tokens)
    wanted = run(streamer, params, data, (20,) * 7 + (7,))
    assert_same(run(streamer, params, data, (tokens,)), wanted)
    grown = run(streamer, params, data, (3, tokens - 3), capacity=1)
    assert grown[1].carry.segments.shape[1] == CAPACITY
    assert_same(grown, wanted)


@pytest.mark.parametrize("variant", variants("hope_attention"))
def test_stream_is_the_training_paths(variant: str) -> None:
    streamer, params = setup(variant)
    data = rows()
    tokens, segments = data["tokens"], data["segment_ids"]
    targets = np.full_like(tokens, NO_TARGET)
    valid = data["target_mask"][:, 1:] & (segments[:, 1:] == segments[:, :-1])
    targets[:, :-1] = np.where(valid, tokens[:, 1:], NO_TARGET)
    batch = Batch(*(jnp.asarray(t, jnp.int32) for t in (tokens, targets, segments)))

    @jax.jit
    def loss(params: Any, batch: Batch) -> State:
        fast = streamer.model.init_fast_state(params, 3)
        return stream_loss(streamer.model, streamer.rule, params, fast, batch)

    wanted = loss(params, batch)
    assert_same(run(streamer, params, data, (5, 22))[2], wanted)
    for levels in wanted.stats.values():
        assert all(float(stats.updates_applied.min()) > 0 for stats in levels.values())


def test_resizing_keeps_what_is_filled() -> None:
    streamer, params = setup("hope_attention")
    _, state = streamer.feed(params, streamer.begin(params, 3, CAPACITY), **part(rows(), 0, 19))
    small = streamer.resized(state, 0)
    assert small.carry.segments.shape == (3, 16) and int(small.chunk.start) == 16
    assert_same(streamer.resized(small, CAPACITY - 1), state)
    assert streamer.resized(state, 5).carry.segments.shape == (3, 16)
    assert streamer.resized(streamer.begin(params, 3, CAPACITY), 0).carry.segments.shape == (3, CHUNK)


def test_logits_do_not_depend_on_the_other_examples() -> None:
    streamer, params = setup("hope_attention")
    data = rows()
    other = {k: v.copy() for k, v in data.items()}
    other["tokens"][1:] = (other["tokens"][1:] + 3) % VOCAB
    logits, _, _ = run(streamer, params, data, (9, 18))
    changed, _, _ = run(streamer, params, other, (9, 18))
    np.testing.assert_allclose(changed[0], logits[0], rtol=0, atol=1e-12)
    assert np.abs(changed[1] - logits[1]).max() > 1e-3


def test_masked_tokens_teach_nothing() -> None:
    streamer, params = setup("hope_attention")
    data = rows()
    data["target_mask"] = np.zeros_like(data["target_mask"])
    _, _, result = run(streamer, params, data, (TOKENS,))
    assert all(float(s.updates_applied.max()) == 0 for s in result.stats["cms"].values())


def test_last_logits_are_those_after_the_last_token() -> None:
    streamer, params = setup("hope_attention")
    logits, state, _ = run(streamer, params, rows(), (TOKENS,))
    assert_same(np.asarray(streamer.last_logits(params, state)), logits[:, -1])
    empty: Stream = streamer.begin(params, 1, CHUNK)
    with pytest.raises(ValueError, match="nothing has been read"):
        streamer.last_logits(params, empty)


def test_shapes_that_do_not_fit_are_named() -> None:
    streamer, params = setup("hope_attention")
    state = streamer.begin(params, 2, CHUNK)
    with pytest.raises(ValueError, match=r"tokens: want shape \[2, n\], got \[1, 3\]"):
        streamer.feed(params, state, np.zeros((1, 3), int))
    with pytest.raises(ValueError, match=r"target_mask: want the tokens' shape"):
        streamer.feed(params, state, np.zeros((2, 3), int), target_mask=np.ones((2, 2), bool))


@pytest.mark.parametrize("variant", ["transformer", "hope_attention"])
def test_a_stream_whose_cache_is_full_reads_and_ends_as_with_room(variant: str) -> None:
    streamer, params = setup(variant)
    _, roomy = streamer.feed(params, streamer.begin(params, 3, CAPACITY), rows()["tokens"][:, :13])
    full = streamer.resized(roomy, 0)
    assert full.carry.segments.shape[1] < full.position
    logits = [streamer.last_logits(params, state) for state in (full, roomy)]
    np.testing.assert_allclose(*logits, rtol=1e-12, atol=1e-12)
    ends = [streamer.finish(params, state).sums.loss for state in (full, roomy)]
    np.testing.assert_allclose(*ends, rtol=1e-12)
